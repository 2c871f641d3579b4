"""GGUF headers: every type's exact bytes, all versions, and files that ask for more than they hold."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from estimator.errors import CorruptFileError, InputError, UnsupportedModelError
from estimator.readers.files.gguf_config import GGUF_ARCHITECTURES, config_of_gguf
from estimator.readers.files.gguf_file import ArrayLength, read_gguf
from estimator.readers.files.gguf_types import GGML_TYPES
from estimator.readers.files.weight_files import compare_with_config, read_weight_file
from estimator.readers.networks import read_network
from tests.estimator.file_samples import gguf_bytes, gguf_config_keys


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Bits per weight as llama.cpp's documentation of quantize prints them; independent of the bytes in the table.
_BITS_PER_WEIGHT = {
    "Q4_0": 4.5,
    "Q4_1": 5.0,
    "Q5_0": 5.5,
    "Q5_1": 6.0,
    "Q8_0": 8.5,
    "Q2_K": 2.625,
    "Q3_K": 3.4375,
    "Q4_K": 4.5,
    "Q5_K": 5.5,
    "Q6_K": 6.5625,
    "IQ1_S": 1.5625,
    "IQ1_M": 1.75,
    "IQ2_XXS": 2.0625,
    "IQ2_XS": 2.3125,
    "IQ2_S": 2.5625,
    "IQ3_XXS": 3.0625,
    "IQ3_S": 3.4375,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "TQ1_0": 1.6875,
    "TQ2_0": 2.0625,
    "MXFP4": 4.25,
    "NVFP4": 4.5,
    "bf16": 16,
    "fp16": 16,
    "fp32": 32,
    "fp64": 64,
}


@pytest.mark.parametrize("dtype", _BITS_PER_WEIGHT)
def test_type_takes_its_published_bits_per_weight(tmp_path: Path, dtype: str) -> None:
    """512 x 3 weights take as many bytes as the type's bits per weight say."""
    kind = next(number for number, row in GGML_TYPES.items() if row[0] == dtype)
    found = read_gguf(_write(tmp_path / "x.gguf", gguf_bytes({}, [("w", (3, 512), kind)])))
    assert (found.tensors[0].shape, found.tensors[0].dtype) == ((3, 512), dtype)
    assert found.num_bytes == 3 * 512 * _BITS_PER_WEIGHT[dtype] / 8
    assert found.num_parameters == 3 * 512


_ALL_KINDS = {
    "a.uint8": (0, 200),
    "a.int8": (1, -5),
    "a.uint16": (2, 60_000),
    "a.int16": (3, -300),
    "a.uint32": (4, 4_000_000_000),
    "a.int32": (5, -70_000),
    "a.float32": (6, 0.5),
    "a.bool": (7, True),
    "a.string": (8, "héllo"),
    "a.array": (9, (5, [1, 2, 3])),
    "a.strings": (9, (8, ["x", "yz"])),
    "a.nested": (9, (9, [(4, [1]), (8, ["q"])])),
    "a.uint64": (10, 2**60),
    "a.int64": (11, -(2**60)),
    "a.float64": (12, 0.25),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_kind_of_value_is_read_in_all_versions_and_orders(tmp_path: Path, version: int, order: str) -> None:
    """What was written comes back, and what follows it is still found."""
    data = gguf_bytes(_ALL_KINDS, [("w", (2, 4), 0), ("v", (32,), 2)], version=version, order=order)
    found = read_gguf(_write(tmp_path / "x.gguf", data))
    plain = {name: value for name, (kind, value) in _ALL_KINDS.items() if kind != 9}
    assert {name: found.metadata[name] for name in plain} == plain
    assert found.metadata["a.array"] == (1, 2, 3)
    assert found.metadata["a.strings"] == ("x", "yz")
    assert found.metadata["a.nested"] == ((1,), ("q",))
    assert [(t.name, t.shape, t.num_bytes) for t in found.tensors] == [("w", (2, 4), 32), ("v", (32,), 18)]


def test_vocabulary_is_counted_but_not_kept(tmp_path: Path) -> None:
    """Long arrays leave their length alone."""
    keys = {"tokens": (9, (8, ["ab"] * 5000)), "scores": (9, (6, [0.0] * 5000)), "text": (8, "x" * 100_000)}
    found = read_gguf(_write(tmp_path / "x.gguf", gguf_bytes(keys)))
    assert found.metadata == {
        name: ArrayLength(num_elements=n) for name, n in zip(keys, (5000, 5000, 100_000), strict=True)
    }


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    """Offsets follow general.alignment."""
    tensors = [("a", (1,), 0), ("b", (3,), 0)]
    keys = {"general.alignment": (4, 64)}
    path = _write(tmp_path / "x.gguf", gguf_bytes(keys, tensors, alignment=64))
    assert read_gguf(path).num_bytes == 16
    _write(path, gguf_bytes(keys, tensors, alignment=64, offsets=[0, 32]))
    with pytest.raises(CorruptFileError, match="not aligned"):
        read_gguf(path)


_HUGE = 3 * 2**30


def _bad_files() -> dict[str, tuple[bytes, str]]:
    tensors = [("a", (8,), 0), ("b", (8,), 0)]
    good = gguf_bytes({"k": (4, 1)}, tensors)
    key = b"\x01\0\0\0\0\0\0\0k"
    head = b"GGUF\x03\0\0\0" + bytes(8) + b"\x01\0\0\0\0\0\0\0" + key
    one = b"GGUF\x03\0\0\0\x01" + bytes(15) + b"\x01\0\0\0\0\0\0\0a"
    huge = _HUGE.to_bytes(8, "little")
    return {
        "magic": (b"GGUX" + good[4:], "does not start with GGUF"),
        "version": (b"GGUF\x63\0\0\0" + good[8:], "version 99"),
        "tensors": (b"GGUF\x03\0\0\0" + huge + bytes(8), "3,221,225,472 tensors"),
        "keys": (b"GGUF\x03\0\0\0" + bytes(8) + huge, "3,221,225,472 keys"),
        "string": ((head + b"\x08\0\0\0" + huge).ljust(100, b"\0"), "3,221,225,472 bytes"),
        "array": ((head + b"\x09\0\0\0" + b"\x04\0\0\0" + huge).ljust(100, b"\0"), "3,221,225,472 array elements"),
        "array of strings": ((head + b"\x09\0\0\0" + b"\x08\0\0\0" + huge).ljust(100, b"\0"), "array elements"),
        "array of nothing": ((head + b"\x09\0\0\0" + b"\x63\0\0\0" + huge).ljust(100, b"\0"), "array elements"),
        "kind": ((head + b"\x0d\0\0\0").ljust(100, b"\0"), "unknown type 13"),
        "key name": (b"GGUF\x03\0\0\0" + bytes(8) + b"\x01\0\0\0\0\0\0\0" + huge + bytes(50), "bytes of key"),
        "nested": (head + b"\x09\0\0\0" + b"\x09\0\0\0\x01\0\0\0\0\0\0\0" * 2000 + bytes(50), "nested too deeply"),
        "twice": (head[:16] + b"\x02" + head[17:] + b"\x04\0\0\0\x07\0\0\0" + key + b"\x04\0\0\0" * 9, "stands twice"),
        "same name": (gguf_bytes({}, [("a", (8,), 0), ("a", (8,), 0)]), "same name"),
        "overlap": (gguf_bytes({}, [("a", (16,), 0), ("b", (8,), 0)], offsets=[0, 32]), "overlaps"),
        "outside": (gguf_bytes({}, tensors, offsets=[0, 2**40]), "cut off"),
        "cut off": (gguf_bytes({}, tensors, num_missing_bytes=1), "cut off"),
        "type": (gguf_bytes({}, [("a", (8,), 4)]), "unknown ggml type 4"),
        "row": (gguf_bytes({}, [("a", (8, 31), 2)]), "no multiple of Q4_0's 32"),
        "dimensions": (gguf_bytes({}, [("a", (1, 1, 1, 1, 1), 0)]), "5 dimensions"),
        "alignment": (gguf_bytes({"general.alignment": (4, 0)}, tensors), "power of 2"),
        "alignment text": (gguf_bytes({"general.alignment": (8, "x")}, tensors), "power of 2"),
        "huge shape": (one + b"\x02\0\0\0" + b"\0\0\0\0\0\0\0\x30" * 2 + bytes(44), "larger than any"),
        "negative shape": (one + b"\x01\0\0\0" + b"\xff" * 8 + bytes(44), "impossible dimension"),
    }


@pytest.mark.parametrize("case", list(_bad_files()))
def test_file_that_cannot_be_right_is_refused_at_once(tmp_path: Path, case: str) -> None:
    """One line names the fault, and no memory is taken on a file's word."""
    data, message = _bad_files()[case]
    path = _write(tmp_path / "x.gguf", data)
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match=message):
        read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_every_prefix_of_a_file_is_refused(tmp_path: Path) -> None:
    """A file cut off anywhere is never read as a smaller model."""
    data = gguf_bytes(_ALL_KINDS, [("w", (2, 4), 0)])
    for length in range(len(data) - 1):
        path = _write(tmp_path / "x.gguf", data[:length])
        with pytest.raises(InputError):
            read_weight_file(path)


def _split(folder: Path, *, count: int = 2, total: int = 2) -> Path:
    for number in range(2):
        keys = {"split.no": (2, number), "split.count": (2, count), "split.tensors.count": (5, total)}
        keys |= {"general.architecture": (8, "llama")} if number == 0 else {}
        _write(folder / f"m-{number + 1:05}-of-00002.gguf", gguf_bytes(keys, [(f"t{number}", (4,), 0)]))
    return folder / "m-00001-of-00002.gguf"


def test_split_model_is_read_from_any_part_and_the_folder(tmp_path: Path) -> None:
    """All parts count once, and the first one's keys are the model's."""
    first = _split(tmp_path)
    for path in (first, tmp_path / "m-00002-of-00002.gguf", tmp_path):
        found = read_weight_file(path)
        assert [t.name for t in found.tensors] == ["t0", "t1"]
        assert found.metadata["general.architecture"] == "llama"
        assert len(found.paths) == 2


def test_split_model_with_a_wrong_or_missing_part_is_refused(tmp_path: Path) -> None:
    """Parts must be there, say the same, and hold as many tensors as they say."""
    with pytest.raises(CorruptFileError, match="hold 3 tensors; they hold 2"):
        read_gguf(_split(tmp_path, total=3))
    with pytest.raises(CorruptFileError, match="not named"):
        read_gguf(_split(tmp_path, count=3))
    first = _split(tmp_path)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(first.read_bytes())
    with pytest.raises(CorruptFileError, match="part 0 of 2"):
        read_gguf(first)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(InputError, match="not in"):
        read_gguf(first)


def test_buffers_are_no_parameters_and_halves_of_latent_attention_are_one(tmp_path: Path) -> None:
    """Rotary frequencies do not count; kv_b [2 * (6 + 5), 4], cut into k_b and v_b, is a matrix again."""
    halves = [("blk.0.attn_v_b.weight", (2, 5, 4), 0), ("blk.0.attn_k_b.weight", (2, 4, 6), 0)]
    found = read_gguf(_write(tmp_path / "x.gguf", gguf_bytes({}, [*halves, ("rope_freqs.weight", (32,), 0)])))
    assert found.parameters is not None
    assert [(w.name, w.shape, w.num_bytes) for w in found.parameters] == [("blk.0.attn_kv_b.weight", (22, 4), 352)]
    assert found.num_elements == 22 * 4 + 32


def test_file_agrees_with_the_network_of_its_own_config(tmp_path: Path) -> None:
    """What the keys say makes the very tensors that the file holds, in llama.cpp's names."""
    layer = {"attn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    layer |= {"ffn_norm": (64,), "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    tensors = [("token_embd.weight", (128, 64), 0), ("output_norm.weight", (64,), 0), ("rope_freqs.weight", (8,), 0)]
    tensors += [
        (f"blk.{index}.{name}.weight", shape, 8 if len(shape) == 2 else 0)
        for index in range(3)
        for name, shape in layer.items()
    ]
    found = read_gguf(_write(tmp_path / "x.gguf", gguf_bytes(gguf_config_keys("llama", _COMMON), tensors)))
    network, _, _ = read_network(config_of_gguf(found))
    result = compare_with_config(found, network)
    assert result.agrees
    assert result.file_parameters == result.config_parameters == found.num_parameters


_COMMON = {
    "block_count": 3,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 512,
    "rope.freq_base": 10000.0,
}
_HEADS = {"attention.key_length": 24, "attention.value_length": 24}
_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
_SAME = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 512}
_LLAMA = _SAME | {"intermediate_size": 96, "num_key_value_heads": 2, "vocab_size": 128}
# Keys, names of further tensors, and the config that they were written from.
_CONFIGS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "llama": ("llama", _COMMON, ("output.weight",), _LLAMA | {"model_type": "llama", "tie_word_embeddings": False}),
    "llama with head_dim, tied": (
        "llama",
        _COMMON | _HEADS,
        (),
        _LLAMA | {"model_type": "llama", "head_dim": 24, "tie_word_embeddings": True},
    ),
    "llama with biases": (
        "llama",
        _COMMON,
        ("blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_up.bias"),
        _LLAMA | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mixtral": (
        "llama",
        _COMMON | {"expert_count": 4, "expert_used_count": 2},
        ("output.weight",),
        _LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2": ("qwen2", _COMMON, (), _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True}),
    "qwen2moe": (
        "qwen2moe",
        _COMMON | _EXPERTS | {"expert_shared_feed_forward_length": 48},
        ("output.weight",),
        _LLAMA
        | {
            "model_type": "qwen2_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "qwen3": (
        "qwen3",
        _COMMON | _HEADS,
        (),
        _LLAMA | {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    ),
    "qwen3moe": (
        "qwen3moe",
        _COMMON | _HEADS | _EXPERTS,
        ("output.weight",),
        _LLAMA
        | {
            "model_type": "qwen3_moe",
            "head_dim": 24,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "gemma": ("gemma", _COMMON | _HEADS, (), _LLAMA | {"model_type": "gemma", "head_dim": 24}),
    "gemma2": (
        "gemma2",
        _COMMON | _HEADS | {"attention.sliding_window": 64},
        (),
        _LLAMA | {"model_type": "gemma2", "head_dim": 24, "sliding_window": 64},
    ),
    "gemma3": (
        "gemma3",
        _COMMON | _HEADS | {"attention.sliding_window": 64},
        (),
        _LLAMA | {"model_type": "gemma3_text", "head_dim": 24, "sliding_window": 64},
    ),
    "phi2": ("phi2", _COMMON, ("output.weight",), _LLAMA | {"model_type": "phi"}),
    "phi3": (
        "phi3",
        _COMMON | {"attention.sliding_window": 64},
        ("output.weight",),
        _LLAMA | {"model_type": "phi3", "sliding_window": 64, "pad_token_id": 0},
    ),
    "gpt2": (
        "gpt2",
        {key: value for key, value in _COMMON.items() if key not in ("attention.head_count_kv", "rope.freq_base")},
        (),
        {
            "model_type": "gpt2",
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 512,
            "n_inner": 96,
            "vocab_size": 128,
        },
    ),
    "starcoder2": ("starcoder2", _COMMON, (), _LLAMA | {"model_type": "starcoder2"}),
    "falcon 7B": (
        "falcon",
        _COMMON | {"attention.head_count_kv": 1},
        (),
        _SAME
        | {
            "model_type": "falcon",
            "vocab_size": 128,
            "ffn_hidden_size": 96,
            "multi_query": True,
            "parallel_attn": True,
            "bias": False,
        },
    ),
    "falcon 40B": (
        "falcon",
        _COMMON,
        ("blk.0.attn_norm_2.weight", "output.weight"),
        _SAME
        | {
            "model_type": "falcon",
            "vocab_size": 128,
            "ffn_hidden_size": 96,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "bias": False,
            "tie_word_embeddings": False,
        },
    ),
    "gpt-oss": (
        "gpt-oss",
        _COMMON | _HEADS | _EXPERTS | {"attention.sliding_window": 64},
        ("output.weight",),
        _LLAMA
        | {
            "model_type": "gpt_oss",
            "head_dim": 24,
            "intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 64,
        },
    ),
    "olmo2": ("olmo2", _COMMON, ("output.weight",), _LLAMA | {"model_type": "olmo2"}),
    "smollm3": (
        "smollm3",
        _COMMON,
        (),
        _LLAMA | {"model_type": "smollm3", "tie_word_embeddings": True, "pad_token_id": 0},
    ),
    "deepseek_v3": (
        "deepseek2",
        _COMMON
        | _EXPERTS
        | {
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": 20,
            "attention.kv_lora_rank": 16,
            "attention.key_length": 24,
            "attention.value_length": 16,
            "attention.key_length_mla": 20,
            "attention.value_length_mla": 12,
            "rope.dimension_count": 8,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
        },
        ("output.weight", "blk.1.exp_probs_b.bias"),
        _LLAMA
        | {
            "model_type": "deepseek_v3",
            "num_key_value_heads": 4,
            "q_lora_rank": 20,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
}


def _gguf(tmp_path: Path, arch: str, values: dict[str, Any], names: tuple[str, ...]) -> Path:
    tensors = [("token_embd.weight", (128, 64), 0), *((name, (1,), 0) for name in names)]
    return _write(tmp_path / "x.gguf", gguf_bytes(gguf_config_keys(arch, values), tensors))


@pytest.mark.parametrize("case", _CONFIGS)
def test_config_of_gguf_builds_the_model_that_it_was_written_from(tmp_path: Path, case: str) -> None:
    """transformers makes weights of the same shapes from both configs."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    arch, values, names, original = _CONFIGS[case]
    found = config_of_gguf(read_gguf(_gguf(tmp_path, arch, values, names)))
    shapes = []
    for config in (found, original):
        with torch.device("meta"):
            fields = {name: value for name, value in config.items() if name != "model_type"}
            fields["pad_token_id"] = 0
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
        shapes.append({name: tuple(weight.shape) for name, weight in model.named_parameters()})
    assert shapes[0] == shapes[1]
    assert {name: found.get(name) for name in original if name in found} == {
        n: v for n, v in original.items() if n in found
    }


def test_every_architecture_of_the_table_is_tested() -> None:
    """No row of the table is without a case above."""
    assert {arch for arch, *_ in _CONFIGS.values()} == set(GGUF_ARCHITECTURES)


@pytest.mark.parametrize(
    ("arch", "changes", "error", "message"),
    [
        ("rwkv9", {}, UnsupportedModelError, "'rwkv9'.*can be counted"),
        ("llama", {"block_count": None}, CorruptFileError, "llama.block_count is missing"),
        ("llama", {"block_count": 0}, CorruptFileError, "positive integer, not 0"),
        ("llama", {"embedding_length": "x"}, CorruptFileError, "positive integer, not 'x'"),
        ("llama", {"attention.key_length": 24, "attention.value_length": 16}, UnsupportedModelError, "value_length 16"),
        ("qwen2", {"attention.key_length": 24, "attention.value_length": 24}, UnsupportedModelError, "key_length 24"),
        (
            "deepseek2",
            {"rope.dimension_count": 64, "attention.key_length": 64, "attention.value_length": 3},
            CorruptFileError,
            "nothing for the rest",
        ),
    ],
)
def test_keys_that_say_too_little_are_refused(
    tmp_path: Path, arch: str, changes: dict[str, Any], error: type[InputError], message: str
) -> None:
    """What the keys leave open is named, never guessed."""
    values = {key: value for key, value in (_COMMON | changes).items() if value is not None}
    found = read_gguf(_gguf(tmp_path, arch, values, ()))
    with pytest.raises(error, match=message):
        config_of_gguf(found)


def test_sizes_that_differ_by_layer_are_refused(tmp_path: Path) -> None:
    """A list of equal sizes is one size; a list of different ones is no config that can be told."""
    for heads, is_read in (([4, 4, 4], True), ([4, 4, 2], False)):
        keys = gguf_config_keys("llama", _COMMON) | {"llama.attention.head_count": (9, (4, heads))}
        path = _write(tmp_path / "x.gguf", gguf_bytes(keys, [("token_embd.weight", (128, 64), 0)]))
        if is_read:
            assert config_of_gguf(read_gguf(path))["num_attention_heads"] == 4
        else:
            with pytest.raises(UnsupportedModelError, match="differs from layer to layer"):
                config_of_gguf(read_gguf(path))
