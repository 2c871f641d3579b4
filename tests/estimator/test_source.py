"""SOURCE of the command line: bundled names, files and folders of every kind, and what they say when they are wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from estimator.cli import main
from estimator.config import TransformerConfig
from estimator.errors import ConfigError, InputError, UnsupportedModelError
from estimator.params import count_params
from estimator.readers.networks import read_network
from estimator.readers.source import bundled_models, read_source, source_of_values
from tests.estimator.file_samples import gguf_bytes, gguf_config_keys, onnx_bytes, safetensors_bytes

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n".encode()
TEXT = json.dumps(LLAMA).encode()


def _llama_weights(num_layers: int = 2, *, head: bool = True) -> dict[str, list[int]]:
    """Names and shapes of the tensors of `LLAMA` as its checkpoint has them."""
    shapes = {"model.embed_tokens.weight": [100, 64], "model.norm.weight": [64]}
    for index in range(num_layers):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": [64, 64] for name in "qkvo"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": [96, 64] for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = [64, 96]
        shapes |= {f"{layer}.{name}_layernorm.weight": [64] for name in ("input", "post_attention")}
    return shapes | ({"lm_head.weight": [100, 64]} if head else {})


def _write_weights(folder: Path, shapes: dict[str, list[int]]) -> Path:
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    path = folder / "model.safetensors"
    path.write_bytes(safetensors_bytes(entries, end))
    return path


def _folder(folder: Path, shapes: dict[str, list[int]], **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    _write_weights(folder, shapes)
    return folder


@pytest.mark.parametrize("name", bundled_models())
def test_bundled_models_are_read_in_any_case(name: str) -> None:
    """Each bundled config.json names its class, and can be sized without a doubt about what was read."""
    source = read_source(name.upper())
    assert (source.name, source.path) == (name, None)
    assert source.hf_class is not None
    doubts = [warning for warning in source.warnings if not warning.startswith("read as model_type")]
    assert [warning for warning in doubts if "image" not in warning and "tile" not in warning] == []
    assert count_params(source.network).total > 0


def test_reference_configs_equal_the_bundled_ones() -> None:
    """What the reference data and the package both have describes the same model."""
    shared = 0
    for path in resources.files("estimator").joinpath("reference/configs").iterdir():
        name = path.name.removesuffix(".json")
        if path.name.endswith(".json") and name in bundled_models():
            values = json.loads(path.read_text(encoding="utf-8"))
            assert count_params(read_network(values)[0]) == count_params(read_source(name).network), name
            shared += 1
    assert shared > 5


def test_config_json_and_its_folder_are_the_same(tmp_path: Path) -> None:
    """The folder's name becomes the model's name; the type of the weights is read."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | {"torch_dtype": "bfloat16"}))
    by_folder, by_file = read_source(folder), read_source(str(folder / "config.json"))
    assert by_folder == by_file
    assert (by_folder.name, by_folder.dtype) == ("my-model", "bf16")


def test_own_format_round_trips(random_configs: list[TransformerConfig], tmp_path: Path) -> None:
    """model_type archfront holds the fields of TransformerConfig, beside Hugging Face's bookkeeping."""
    path = tmp_path / "config.json"
    extra = {
        "model_type": "archfront",
        "architectures": ["ArchfrontForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_archfront.ArchfrontForCausalLM"},
        "torch_dtype": "float32",
        "transformers_version": "5.23.0",
        "bos_token_id": 1,
    }
    for config in random_configs[:20]:
        path.write_text(json.dumps(config.to_dict() | extra))
        assert read_source(path).config == config


@pytest.mark.parametrize("kinds", [None, ["full_attention"] * 2])
def test_layer_types_of_full_attention_change_nothing(kinds: list[str] | None) -> None:
    """transformers 5 writes them into every config."""
    network = source_of_values(LLAMA | {"layer_types": kinds}, "x").network
    assert network == source_of_values(LLAMA, "x").network


def test_weights_that_fit_their_config_say_nothing(tmp_path: Path) -> None:
    """A checkpoint of the model that config.json describes is no news."""
    source = read_source(_folder(tmp_path, _llama_weights()))
    assert source.warnings == ()
    assert source.weight_file is not None
    assert source.weight_file.num_parameters == count_params(source.network).total


@pytest.mark.parametrize(
    ("shapes", "changes", "words"),
    [
        (_llama_weights(3), {}, ("layers.2",)),
        (_llama_weights(1), {}, ("layers.1",)),
        (_llama_weights(head=False), {}, ("lm_head",)),
        (_llama_weights(), {"vocab_size": 101}, ("embed_tokens", "lm_head")),
        (_llama_weights() | {"model.mtp.weight": [64, 64]}, {}, ("model.mtp.weight",)),
    ],
)
def test_weights_that_differ_from_their_config_are_named(
    tmp_path: Path, shapes: dict[str, list[int]], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    """An extra layer, one too few, a head that is missing, a larger table, a tensor of nobody's."""
    source = read_source(_folder(tmp_path, shapes, **changes))
    said = " ".join(source.warnings)
    assert all(word in said for word in words), said
    assert f"{count_params(source.network).total:,}" in said
    assert not any("\n" in warning for warning in source.warnings)


def test_copy_of_a_tied_table_is_named(tmp_path: Path) -> None:
    """A checkpoint may hold a head that its config ties: the file has it once more."""
    source = read_source(_folder(tmp_path, _llama_weights(), tie_word_embeddings=True))
    assert source.weight_file is not None
    assert source.weight_file.num_parameters == count_params(source.network).total + 100 * 64
    assert "6,400" in " ".join(source.warnings) or "lm_head" in " ".join(source.warnings)


def test_weights_alone_are_sized_as_what_they_are(tmp_path: Path) -> None:
    """safetensors and ONNX: parameters and bytes; GGUF holds its own config."""
    path = _write_weights(tmp_path, _llama_weights())
    source = read_source(path)
    assert source.network.has_only_weights
    assert count_params(source.network).total == count_params(read_network(LLAMA)[0]).total
    (tmp_path / "x.onnx").write_bytes(onnx_bytes())
    assert read_source(tmp_path / "x.onnx").weight_file is not None
    sizes = {"block_count": 2, "embedding_length": 8, "attention.head_count": 2, "feed_forward_length": 16}
    keys = gguf_config_keys("llama", sizes | {"context_length": 64, "rope.freq_base": 10000.0, "vocab_size": 32})
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(keys, [("token_embd.weight", (8, 32), 1)]))
    assert read_source(tmp_path / "x.gguf").network.model_type == "llama"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b"null", "JSON object"),
        (b"\x80\x02}q\x00", "not a text file"),
        (TEXT.decode().encode("utf-16"), "not a text file"),
        (LFS, "Git LFS pointer"),
        (b'{"model_type": "llama", "vocab_size": NaN}', "vocab_size must be a positive integer below 2^31, not nan"),
        (b'{"model_type": "llama", "vocab_size": 3, "vocab_size": 4}', "stands twice"),
        (b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"model_type": "llama", "vocab_size": ' + b"9" * 4000 + b"}", "vocab_size must be a positive integer"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * 4_000_001, "larger than any config.json"),
        (b'{"model_type": "gpt2", "n_embd": -1}', "n_embd must be"),
        (b'{"model_type": "gpt2", "n_embd": 769}', "n_embd 769 must be"),
        (b'{"model_type": "gpt2", "hidden_size": 769}', "hidden_size 769 must be"),
        (b'{"model_type": "distilbert", "dim": 769}', "dim 769"),
        (b'{"model_type": "t5", "d_model": []}', "d_model must be"),
        (b'{"hidden_size": 64}', "names neither model_type nor class"),
    ],
)
def test_wrong_config_files_get_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    """The line names the file, and the field as the file calls it; the exit code is that of wrong input."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert main(["size", str(path)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert str(path) in lines[0]
    assert len(lines[0]) < 400 + len(str(path))


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + TEXT, TEXT.replace(b",", b",\r\n"), b"\n\n \t" + TEXT + b"\n"])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path, content: bytes) -> None:
    """A byte order mark, CRLF, white space."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert read_source(path).network == read_network(LLAMA)[0]


def _pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")


def _folder_of_nothing_to_read(path: Path) -> None:
    path.mkdir()
    (path / "config.json").symlink_to("/dev/zero")


def _folder_that_links_to_itself(path: Path) -> None:
    path.mkdir()
    (path / "config.json").symlink_to("config.json")


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pytorch_model.bin": (_pickle, "Python pickle"),
    "model.pt": (_zip, "zip archive"),
    "model.safetensors": (lambda path: path.write_bytes(LFS), "Git LFS pointer"),
    "other.safetensors": (
        lambda path: path.write_bytes(b"x"),
        "only safetensors, GGUF and ONNX|too short|asks for|cut",
    ),
    "fifo": (os.mkfifo, "not a regular file"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
    "loop": (lambda path: path.symlink_to("loop"), "is a link to nothing|too many"),
    "empty": (Path.mkdir, r"holds neither a config\.json nor weights"),
    "zero": (_folder_of_nothing_to_read, r"holds neither a config\.json nor weights"),
    "itself": (_folder_that_links_to_itself, r"holds neither a config\.json nor weights"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_model_is_named(tmp_path: Path, name: str) -> None:
    """Pickles, archives, pointers, pipes, links, folders that hold nothing: one line each, and none is waited for."""
    write, words = SPECIAL[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=f"(?i){words}") as caught:
        read_source(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "a\0b", "a" * 5000, "a\nb", "\udc80", "\x1b[31m", "/dev/null", "/dev/zero", "gtp2"]
)
def test_names_of_nothing_are_one_printable_line(text: str) -> None:
    """Whatever the shell hands over."""
    with pytest.raises(InputError) as caught:
        read_source(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_near_names_are_offered() -> None:
    """A typing error of a bundled model's name."""
    with pytest.raises(InputError, match="did you mean gpt2"):
        read_source("gtp2")


def test_folder_without_permission_is_named(tmp_path: Path) -> None:
    """What cannot be looked into is said as the system says it; root, who may look everywhere, asks as nobody."""
    folder = tmp_path / "closed"
    folder.mkdir()
    with pytest.raises(InputError, match="holds neither"):
        read_source(folder)  # loads what reading needs, while it can be read
    folder.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(InputError, match="Permission denied"):
            read_source(folder)
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def test_errors_of_a_file_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused field is named together with the file that holds it, and the class of the error stays."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"experts": 2}))
    with pytest.raises(ConfigError, match=r"config\.json: field 'experts'") as caught:
        read_source(path)
    assert caught.value.field == "experts"
    path.write_text(json.dumps({"model_type": "no-such-family"}))
    monkeypatch.setattr("estimator.readers.meta_device.is_available", lambda: False)
    with pytest.raises(UnsupportedModelError, match=r"config\.json: .*no-such-family"):
        read_source(path)


def test_process_answers_with_one_line_and_exit_code_3(tmp_path: Path) -> None:
    """As a user calls it: no traceback, nothing on stdout."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"num_hidden_layers": -1}))
    command = [sys.executable, "-m", "estimator.cli", "size", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "num_hidden_layers must be a positive integer" in done.stderr
