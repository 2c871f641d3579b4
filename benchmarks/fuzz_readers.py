"""Feeds damaged and hostile files to the readers: none may crash, hang or take over 200 MB.

    python -m benchmarks.fuzz_readers --count 10000 --configs 10000 --seed 0

Each file is a good one (safetensors, its index, GGUF, ONNX) with some bytes changed, cut, repeated or replaced by huge
numbers. A reader must answer or raise an InputError of one line. Some files are hostile by construction: headers as
large as the limits allow. Each config.json is that of some family with one to five faults, and is read, sized and
explained; those that are hostile by construction have as many layers and as long lists as can be, and are read. All run
in a child process, whose peak memory is printed with the slowest case.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.fuzz_configs import config_outcome, hostile_configs, mutate_config, reading_outcome
from estimator.errors import InputError
from estimator.readers.files.gguf_config import config_of_gguf
from estimator.readers.files.weight_files import read_weight_file
from tests.estimator.file_samples import gguf_bytes, gguf_config_keys, safetensors_bytes

__all__ = ["good_files", "hostile_files", "mutate", "outcome"]

LIMIT_BYTES = 200_000_000
_NUMBERS = (0, 1, 2, 3, 8, 9, 31, 32, 127, 128, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def good_files() -> dict[str, bytes]:
    """One small good file of each format, by its name."""
    entries = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "a.qweight": {"dtype": "I32", "shape": [2, 4], "data_offsets": [48, 80]},
        "a.scales": {"dtype": "F16", "shape": [1, 4], "data_offsets": [80, 88]},
        "a.qzeros": {"dtype": "I32", "shape": [1, 1], "data_offsets": [88, 92]},
        "b.weight": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [92, 100]},
    }
    index = {
        "metadata": {"total_size": 100},
        "weight_map": {name: "x.safetensors" for name in entries if name[0] != "_"},
    }
    sizes = {"block_count": 2, "embedding_length": 8, "attention.head_count": 2, "feed_forward_length": 16}
    keys = gguf_config_keys("llama", sizes | {"context_length": 64, "rope.freq_base": 10000.0})
    keys |= {"tokens": (9, (8, ["a", "bc"])), "numbers": (9, (5, [1, 2])), "general.alignment": (4, 32)}
    tensors = [("token_embd.weight", (32, 8), 1), ("blk.0.w", (2, 32), 2), ("blk.1.w", (1, 256), 12)]
    return {
        "x.safetensors": safetensors_bytes(entries, 100),
        "x.safetensors.index.json": json.dumps(index).encode(),
        "x.gguf": gguf_bytes(keys, tensors),
        "big-endian.gguf": gguf_bytes(keys, tensors, order=">"),
        "x.onnx": _small_onnx(),
    }


def _small_onnx() -> bytes:
    """An ONNX model by hand, so that the fuzzed process does not import onnx."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    tensor = b"\x08\x02\x08\x03\x10\x01" + field(8, b"weight") + field(9, bytes(24))
    external = b"\x08\x02\x10\x01" + field(8, b"e") + b"\x70\x01"
    external += field(13, field(1, b"location") + field(2, b"x.gguf"))
    node = field(1, b"x") + field(1, b"weight") + field(2, b"y") + field(4, b"MatMul")
    constant = field(2, b"c") + field(4, b"Constant") + field(5, field(1, b"value") + field(5, tensor))
    value = field(1, b"x") + field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x08\x02"))))
    graph = field(1, node) + field(1, constant) + field(5, tensor) + field(5, external) + field(11, value)
    return b"\x08\x08" + bytes([7 << 3 | 2]) + _varint(len(graph)) + graph + field(8, b"\x10\x15")


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four faults."""
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0:
                data = data[:position] + bytes([rng.randrange(256)]) + data[position + 1 :]
            case 1:
                data = data[:position]
            case 2:
                data = data[:position] + data[position + rng.randint(1, 16) :]
            case 3:
                data = data[:position] + data[position : position + 40] * rng.randint(1, 50) + data[position:]
            case 4:
                code = rng.choice(("<Q", ">Q", "<I", ">I"))
                number = struct.pack(code, rng.choice(_NUMBERS) & (2 ** (8 * struct.calcsize(code)) - 1))
                data = data[:position] + number + data[position + len(number) :]
            case 5:
                data = data[:position] + str(rng.choice((*_NUMBERS, -1, 1.5, 1e300))).encode() + data[position:]
            case 6:
                data = (
                    data[:position]
                    + rng.choice((b"[", b"{", b'"', b"}", b"\\", b"\xff")) * rng.randint(1, 3000)
                    + data[position:]
                )
        data = data or b"\0"
    return data


def outcome(path: Path) -> str:
    """How reading the file ended: read, or the error's type. Anything but an InputError of one line is raised."""
    try:
        found = read_weight_file(path)
        sum(found.bytes_by_dtype.values())
        if found.format == "gguf":
            config_of_gguf(found)
    except InputError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError(f"not one line: {str(error)[:300]!r}") from error
        return type(error).__name__
    return "read"


def hostile_files() -> dict[str, Callable[[Path], None]]:
    """Writers of large files that ask for as much as the limits allow, by name; each file takes up to 130 MB."""
    return {
        "safetensors with many tensors": lambda path: _write_chunks(path, _many_tensors(199_000)),
        "safetensors with too many tensors": lambda path: _write_chunks(path, _many_tensors(800_000)),
        "safetensors with long names": lambda path: _write_chunks(
            path, _many_tensors(9_000, b"\xf0\x9f\x98\x80" * 640)
        ),
        "safetensors with 8 dimensions": lambda path: _write_chunks(
            path, _many_tensors(199_000, shape=[100] * 7 + [0])
        ),
        "safetensors of lists": lambda path: _write_chunks(path, _header([b'{"a":{"b":' + b"[{}," * 20_000_000])),
        "safetensors metadata of lists": lambda path: _write_chunks(
            path, _header([b'{"__metadata__":{"a":[' + b"[]," * 600_000 + b"0]}}"])
        ),
        "safetensors of blanks": lambda path: _write_chunks(path, _header([b"{" + b" " * 99_000_000])),
        "index of lists": lambda path: path.write_bytes(b'{"weight_map":' + b"[[]," * 20_000_000) and None,
        "gguf with many texts": lambda path: path.write_bytes(_gguf_texts(4_000_000)) and None,
        "gguf with too many texts": lambda path: path.write_bytes(_gguf_texts(9_000_000)) and None,
        "gguf with many keys": lambda path: path.write_bytes(_gguf_keys(65_000)) and None,
        "gguf with many tensors": lambda path: path.write_bytes(_gguf_tensors(199_000)) and None,
        "onnx of small fields": lambda path: path.write_bytes(b"\x08\x08" * 50_000_000) and None,
        "onnx with many tensors": lambda path: path.write_bytes(_onnx_tensors(199_000)) and None,
        "onnx with many nodes": lambda path: path.write_bytes(_onnx_nodes(490_000)) and None,
    }


def _write_chunks(path: Path, chunks: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(chunks)


def _header(chunks: list[bytes]) -> Iterator[bytes]:
    yield struct.pack("<Q", sum(map(len, chunks)))
    yield from chunks


def _many_tensors(
    count: int, prefix: bytes = b"model.layers.0.mlp.experts.weight_", shape: list[int] | None = None
) -> Iterator[bytes]:
    tail = json.dumps({"dtype": "U8", "shape": [0] if shape is None else shape, "data_offsets": [0, 0]}).encode()
    entries = [b'"' + prefix + str(index).encode() + b'":' + tail for index in range(count)]
    return _header([b"{" + b",".join(entries) + b"}"])


def _gguf_texts(count: int) -> bytes:
    text = struct.pack("<Q", 4) + b"abcd"
    key = struct.pack("<Q", 1) + b"t" + struct.pack("<IIQ", 9, 8, count)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + text * count


def _gguf_keys(count: int) -> bytes:
    keys = [struct.pack("<Q6sIIQ4000s", 6, b"%06d" % index, 9, 0, 4000, b"") for index in range(count // 4)]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)


def _gguf_tensors(count: int) -> bytes:
    infos = [struct.pack("<Q40sI4QIQ", 40, b"%040d" % index, 4, 0, 999, 999, 999, 0, 0) for index in range(count)]
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + b"".join(infos) + bytes(64)


def _onnx_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _onnx_tensors(count: int) -> bytes:
    tensors = (
        _onnx_field(5, b"\x08\x00\x08\xe7\x07\x08\xe7\x07\x10\x01" + _onnx_field(8, b"%040d" % i)) for i in range(count)
    )
    return b"\x08\x08" + _onnx_field(7, b"".join(tensors))


def _onnx_nodes(count: int) -> bytes:
    node = _onnx_field(1, _onnx_field(1, b"x") + _onnx_field(1, b"w") + _onnx_field(4, b"DequantizeLinear"))
    return b"\x08\x08" + _onnx_field(7, node * count)


def _run_one(folder: Path, name: str, data: bytes) -> str:
    for old in folder.iterdir():
        old.unlink()
    for other, content in good_files().items():
        (folder / other).write_bytes(content)
    (folder / name).write_bytes(data)
    return outcome(folder / name)


def _fuzz(count: int, seed: int) -> None:
    """Runs in the child: prints one JSON object."""
    rng = random.Random(seed)
    files = list(good_files().items())
    results: Counter[str] = Counter()
    slowest = (0.0, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(count):
            file, data = files[index % len(files)]
            mutated = mutate(data, rng)
            begin = time.perf_counter()
            results[_run_one(folder, file, mutated)] += 1
            slowest = max(slowest, (time.perf_counter() - begin, index))
    _print(results=dict(results), slowest_s=slowest[0], slowest_case=slowest[1])


def _fuzz_configs(count: int, seed: int) -> None:
    """Runs in the child: prints one JSON object."""
    cases = ((f"case {index}", mutate_config(random.Random(f"{seed} {index}"))) for index in range(count))
    _run_configs(cases, config_outcome)


def _run_configs(cases: Iterator[tuple[str, dict[str, Any]]], run: Callable[[dict[str, Any]], str]) -> None:
    results: Counter[str] = Counter()
    slowest = (0.0, "")
    for name, values in cases:
        begin = time.process_time()
        results[run(values)] += 1
        slowest = max(slowest, (time.process_time() - begin, name))
    _print(results=dict(results), slowest_s=slowest[0], slowest_case=slowest[1])


def _hostile(name: str, path: str) -> None:
    """Runs in the child: reads one hostile file."""
    begin = time.perf_counter()
    result = outcome(Path(path))
    _print(case=name, result=result, read_s=time.perf_counter() - begin)


def _peak_bytes() -> int:
    """Peak resident memory of this process alone; getrusage would count its parent's before the exec."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _print(**values: object) -> None:
    peak_bytes = _peak_bytes()
    print(json.dumps({**values, "peak_bytes": peak_bytes, "within_limit": peak_bytes <= LIMIT_BYTES}))


def _child(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def _run_child(kind: str, rest: list[str]) -> None:
    if kind == "hostile":
        _hostile(*rest)
    elif kind == "hostile-configs":
        _run_configs(hostile_configs(), reading_outcome)
    else:
        (_fuzz if kind == "fuzz" else _fuzz_configs)(int(rest[0]), int(rest[1]))


def main() -> int:
    """Prints seed, count and what came of them; 0 if every case was within the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *rest = arguments.child
        _run_child(kind, rest)
        return 0
    answers = [_child("--child", "fuzz", str(arguments.count), str(arguments.seed))]
    print(f"seed {arguments.seed}, {arguments.count:,} mutated files: {json.dumps(answers[0])}")
    answers.append(_child("--child", "configs", str(arguments.configs), str(arguments.seed)))
    print(f"seed {arguments.seed}, {arguments.configs:,} mutated configs: {json.dumps(answers[-1])}", flush=True)
    answers.append(_child("--child", "hostile-configs"))
    print(f"hostile configs: {json.dumps(answers[-1])}", flush=True)
    for name, write in hostile_files().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "hostile"
            write(path)
            answers.append(_child("--child", "hostile", name, str(path)))
            print(json.dumps(answers[-1]), flush=True)
    return 0 if all(answer["within_limit"] for answer in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
