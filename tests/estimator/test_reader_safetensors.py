"""safetensors headers: counted exactly, and refused where they cannot be right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from estimator.blocks.common import attention, embedding, experts, head
from estimator.errors import CorruptFileError, InputError
from estimator.network import Layer, Network, Stack
from estimator.readers.files.safetensors_file import DTYPE_BITS, read_safetensors
from estimator.readers.files.weight_files import compare_with_config, read_weight_file
from tests.estimator.file_samples import safetensors_bytes


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _packed(folder: Path, tensors: dict[str, tuple[str, list[int]]], config: dict[str, object] | None = None) -> Path:
    """A file of such tensors, one behind the other."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + int(np.prod(shape, dtype=int)) * DTYPE_BITS[dtype][1] // 8
        header[name] = _entry(dtype, shape, begin, end)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, end))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def _save(path: Path, **arrays: np.ndarray) -> None:
    save_file(arrays, path, metadata={"format": "pt"})


def test_file_of_the_package_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Names, shapes, types and bytes are those that the safetensors package wrote."""
    arrays = {
        "a": np.zeros((3, 5), np.float32),
        "b.weight": np.zeros((2, 2, 2), np.float16),
        "scalar": np.zeros((), np.float64),
        "empty": np.zeros((0, 7), np.float32),
    }
    _save(tmp_path / "x.safetensors", **arrays)
    found = read_weight_file(tmp_path / "x.safetensors")
    assert {t.name: (t.shape, t.num_bytes) for t in found.tensors} == {
        n: (a.shape, a.nbytes) for n, a in arrays.items()
    }
    assert found.num_elements == found.num_parameters == 15 + 8 + 1
    assert found.bytes_by_dtype == {"fp32": 60, "fp16": 16, "fp64": 8}
    assert found.elements_by_dtype == {"fp32": 15, "fp16": 8, "fp64": 1}
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_number_type_takes_its_bits(tmp_path: Path, dtype: str) -> None:
    """8 x 3 elements take 3 times as many bytes as the type has bits, and not one more."""
    bits = DTYPE_BITS[dtype][1]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"w": _entry(dtype, [8, 3], 0, 3 * bits)}, 3 * bits))
    assert read_safetensors(path).num_bytes == 3 * bits
    path.write_bytes(safetensors_bytes({"w": _entry(dtype, [8, 3], 0, 3 * bits + 1)}, 3 * bits + 1))
    with pytest.raises(CorruptFileError, match="takes"):
        read_safetensors(path)


def test_sharded_checkpoint_is_read_from_folder_and_index(tmp_path: Path) -> None:
    """All files that the index names count; a wrong total_size is a warning."""
    _save(tmp_path / "model-00001-of-00002.safetensors", a=np.zeros((4, 4), np.float32))
    _save(tmp_path / "model-00002-of-00002.safetensors", b=np.zeros((2,), np.float32))
    index = {
        "metadata": {"total_size": 72},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2))
    assert read_weight_file(tmp_path).num_parameters == read_weight_file(path).num_parameters == 18
    assert read_weight_file(tmp_path).warnings == ()
    assert "part 1 of 2" in read_weight_file(tmp_path / "model-00001-of-00002.safetensors").warnings[0]
    path.write_text(json.dumps(index | {"metadata": {"total_size": 71}}))
    assert "total_size 71" in read_weight_file(tmp_path).warnings[0]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/x.safetensors", "..\\x", "C:x", "", ".", "x\0"])
def test_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Names of files in an index are plain names."""
    _save(tmp_path / "x.safetensors", a=np.zeros(1, np.float32))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CorruptFileError, match="outside its folder"):
        read_weight_file(folder)


def test_link_out_of_the_folder_is_refused_but_for_the_cache_of_hugging_face(tmp_path: Path) -> None:
    """A linked file must lie in the folder, or in the blobs beside a snapshot."""
    _save(tmp_path / "x.safetensors", a=np.zeros(1, np.float32))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "x.safetensors")
    with pytest.raises(CorruptFileError, match="link out of its folder"):
        read_weight_file(folder)
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    _save(blobs / "0123", a=np.zeros(1, np.float32))
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "0123")
    assert read_weight_file(snapshot).num_parameters == 1


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "x.safetensors", "z": "x.safetensors"}, "'z' is in 'x.safetensors', but it is not"),
        ({"b": "x.safetensors"}, "'b' is in"),
        ({"a": "y.safetensors"}, "not in"),
        ({"a": 3}, "not a name"),
        ({}, "no weight_map"),
    ],
)
def test_index_that_contradicts_its_files_is_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    """Every name must be where the index says, and every file there."""
    _save(tmp_path / "x.safetensors", a=np.zeros(1, np.float32))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(InputError, match=message):
        read_weight_file(tmp_path)


_GOOD = _entry("F32", [2], 0, 8)
_BAD_HEADERS = {
    "overlap": ({"a": _GOOD, "b": _entry("F32", [2], 4, 12)}, 12, "overlaps"),
    "hole": ({"a": _GOOD, "b": _entry("F32", [2], 12, 20)}, 20, "hole"),
    "trailing bytes": ({"a": _GOOD}, 9, "1 bytes behind"),
    "cut off": ({"a": _GOOD}, 7, "cut off"),
    "wrong size": ({"a": _entry("F32", [3], 0, 8)}, 8, "takes 12 bytes"),
    "negative": ({"a": _entry("F32", [-2, -1], 0, 8)}, 8, "impossible dimension"),
    "huge": ({"a": _entry("F32", [2**40, 2**40], 0, 8)}, 8, "larger than any"),
    "huge and empty": ({"a": _entry("F32", [2**61, 2**61, 0], 0, 0)}, 0, "larger than any"),
    "float": ({"a": _entry("F32", [2.0], 0, 8)}, 8, "impossible dimension"),
    "true": ({"a": _entry("F32", [True, 2], 0, 8)}, 8, "impossible dimension"),
    "many dimensions": ({"a": _entry("F32", [1] * 99, 0, 4)}, 4, "99 dimensions"),
    "reverse": ({"a": _entry("F32", [0], 8, 0)}, 8, "impossible offsets"),
    "dtype": ({"a": _entry("F33", [2], 0, 8)}, 8, "unknown dtype 'F33'"),
    "more fields": ({"a": _GOOD | {"data": "x"}}, 8, "nothing else"),
    "no object": ({"a": 3}, 8, "must have dtype"),
    "metadata": ({"__metadata__": {"a": 3}, "a": _GOOD}, 8, "must map names to strings"),
    "twice": (
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[1,2]}}',
        2,
        "twice",
    ),
    "nested": (b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", 0, "valid safetensors header"),
    "nested objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 0, "valid safetensors header"),
    "not closed": (b'{"a":{"dtype":"U8"', 0, "valid safetensors header"),
    "not UTF-8": (b'{"\xff\xfe":1}', 0, "valid safetensors header"),
    "text": (b"hello", 0, "valid safetensors header"),
    "more behind": (b"{} {}", 0, "more follows"),
    "endless name": (b'{"' + b"a" * 200_000 + b'":1}', 0, "longer than"),
}


@pytest.mark.parametrize("case", _BAD_HEADERS)
def test_header_that_cannot_be_right_is_refused(tmp_path: Path, case: str) -> None:
    """Each fault is named in one line that names the file."""
    header, num_data_bytes, message = _BAD_HEADERS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(header, num_data_bytes))
    with pytest.raises(CorruptFileError, match=message) as error:
        read_safetensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"abc", "too short"),
        ((2**63).to_bytes(8, "little") + b"{}", "header of 9,223,372,036,854,775,808 bytes"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "100,000,000 is the most"),
        ((50).to_bytes(8, "little") + b"{}", "cut off"),
    ],
)
def test_header_length_beyond_the_file_or_the_limit_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """Nothing is read on the word of a length."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_safetensors(path)
    with pytest.raises(InputError):
        read_weight_file(path)


def test_other_formats_are_refused_with_the_safe_ones_named(tmp_path: Path) -> None:
    """Zip archives, pickles, pointers and pipes are never opened; the format is known by its bytes."""
    for data, word in (
        (b"PK\x03\x04xxxxxxx", "zip archive"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"nonsense....", "no format"),
    ):
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"{word}.*safetensors, GGUF and ONNX"):
            read_weight_file(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_weight_file(tmp_path / "pipe")
    with pytest.raises(InputError, match="does not exist"):
        read_weight_file(tmp_path / "nothing")
    _save(tmp_path / "named.gguf", a=np.zeros(3, np.float32))
    assert read_weight_file(tmp_path / "named.gguf").format == "safetensors"


def test_folder_that_leaves_a_choice_is_refused(tmp_path: Path) -> None:
    """Without a model.safetensors or an index, two files are a question, and none is an answer."""
    with pytest.raises(InputError, match="holds no weights"):
        read_weight_file(tmp_path)
    _save(tmp_path / "a.safetensors", a=np.zeros(1, np.float32))
    assert read_weight_file(tmp_path).num_parameters == 1
    _save(tmp_path / "b.safetensors", a=np.zeros(1, np.float32))
    with pytest.raises(InputError, match="give one of them"):
        read_weight_file(tmp_path)


# A matrix [out 64, in 128] in each packing: its stored parts, what config.json says, and the type that it counts as.
_PACKINGS = {
    # 4 bits: 128 * 4 / 32 = 16 rows of int32; 128 / 32 = 4 groups
    "GPTQ": (
        {
            "l.qweight": ("I32", [16, 64]),
            "l.qzeros": ("I32", [4, 8]),
            "l.scales": ("F16", [4, 64]),
            "l.g_idx": ("I32", [128]),
        },
        None,
        "int4 (GPTQ)",
    ),
    "GPTQ 8 bits without order": (
        {"l.qweight": ("I32", [32, 64]), "l.qzeros": ("I32", [4, 16]), "l.scales": ("F16", [4, 64])},
        None,
        "int8 (GPTQ)",
    ),
    "GPTQ 3 bits": (
        {
            "l.qweight": ("I32", [12, 64]),
            "l.qzeros": ("I32", [4, 6]),
            "l.scales": ("F16", [4, 64]),
            "l.g_idx": ("I32", [128]),
        },
        None,
        "int3 (GPTQ)",
    ),
    # 64 * 4 / 32 = 8 columns of int32
    "AWQ": (
        {"l.qweight": ("I32", [128, 8]), "l.qzeros": ("I32", [1, 8]), "l.scales": ("F16", [1, 64])},
        None,
        "int4 (AWQ)",
    ),
    "bitsandbytes int8": (
        {"l.weight": ("I8", [64, 128]), "l.SCB": ("F32", [64]), "l.weight_format": ("U8", [])},
        None,
        "int8 (bitsandbytes)",
    ),
    "fp8": (
        {"l.weight": ("F8_E4M3", [64, 128]), "l.weight_scale_inv": ("F32", [1, 1])},
        None,
        "fp8_e4m3",
    ),
    "NVFP4": (
        {
            "l.weight": ("U8", [64, 64]),
            "l.weight_scale": ("F8_E4M3", [64, 8]),
            "l.weight_scale_2": ("F32", []),
            "l.input_scale": ("F32", []),
        },
        None,
        "NVFP4",
    ),
    "compressed-tensors": (
        {"l.weight_packed": ("I32", [64, 16]), "l.weight_scale": ("BF16", [64, 1]), "l.weight_shape": ("I64", [2])},
        {"quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}},
        "int4 (compressed-tensors)",
    ),
    "MLX": (
        {"l.weight": ("U32", [64, 16]), "l.scales": ("F16", [64, 2]), "l.biases": ("F16", [64, 2])},
        {"quantization": {"bits": 4, "group_size": 64}},
        "int4 (MLX)",
    ),
}


@pytest.mark.parametrize("case", _PACKINGS)
def test_packed_matrix_counts_as_what_it_stands_for(tmp_path: Path, case: str) -> None:
    """64 x 128 weights, whose bytes are those of all parts; another tensor beside it stays as it is."""
    parts, config, dtype = _PACKINGS[case]
    found = read_weight_file(_packed(tmp_path, parts | {"norm.weight": ("F32", [64])}, config))
    assert found.parameters is not None
    weight = next(w for w in found.parameters if w.name == "l.weight")
    assert (weight.shape, weight.dtype, weight.num_bytes) == ((64, 128), dtype, found.num_bytes - 4 * 64)
    assert found.num_parameters == 64 * 128 + 64
    assert dtype in found.warnings[0]


def test_scales_of_caches_are_no_parameters(tmp_path: Path) -> None:
    """An fp8 checkpoint may scale its cache; these numbers belong to no weight."""
    parts = {"a.o_proj.weight": ("F8_E4M3", [8, 8]), "a.k_scale": ("F32", []), "a.v_scale": ("F32", [])}
    assert read_weight_file(_packed(tmp_path, parts)).num_parameters == 64


def test_bitsandbytes_4_bit_counts_two_weights_a_byte(tmp_path: Path) -> None:
    """The true shape stands in a tensor that is not read; the number of weights is exact."""
    parts = {
        "l.weight": ("U8", [4096, 1]),
        "l.weight.absmax": ("U8", [128]),
        "l.weight.quant_map": ("F32", [16]),
        "l.weight.nested_absmax": ("F32", [1]),
        "l.weight.nested_quant_map": ("F32", [256]),
        "l.weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
    }
    found = read_weight_file(_packed(tmp_path, parts))
    assert found.num_parameters == 64 * 128
    assert found.parameters is not None
    assert found.parameters[0].num_bytes == found.num_bytes


def test_mxfp4_experts_of_gpt_oss_count_32_weights_a_block(tmp_path: Path) -> None:
    """Blocks [experts, out, in / 32, 16] of two weights a byte."""
    parts = {"e.gate_up_proj_blocks": ("U8", [4, 64, 3, 16]), "e.gate_up_proj_scales": ("U8", [4, 64, 3])}
    found = read_weight_file(_packed(tmp_path, parts))
    assert found.parameters is not None
    assert [(w.name, w.shape, w.dtype) for w in found.parameters] == [("e.gate_up_proj", (4, 64, 96), "MXFP4")]


def test_unknown_packing_is_not_counted(tmp_path: Path) -> None:
    """Integers that no known packing explains leave the number of parameters unknown, and said so."""
    found = read_weight_file(_packed(tmp_path, {"l.W_q": ("U8", [64, 64]), "l.meta": ("F32", [3])}))
    assert found.num_parameters is None
    assert "'l.W_q'" in found.warnings[0]
    assert found.num_bytes == 64 * 64 + 12
    with pytest.raises(InputError, match="unknown way"):
        compare_with_config(found, _network())


def test_buffers_are_no_parameters(tmp_path: Path) -> None:
    """GPT-2's causal mask, BERT's positions and Llama's frequencies are stored in old checkpoints."""
    buffers = {
        "h.0.attn.bias": ("F32", [1, 1, 8, 8]),
        "embeddings.position_ids": ("I64", [1, 8]),
        "layers.0.rotary_emb.inv_freq": ("F32", [4]),
    }
    found = read_weight_file(
        _packed(tmp_path, buffers | {"w.weight": ("F32", [3, 3]), "h.0.attn.c_attn.bias": ("F32", [9])})
    )
    assert found.num_parameters == 18
    assert "3 buffers" in found.warnings[0]


def _network(num_layers: int = 2) -> Network:
    layers = []
    for _ in range(num_layers):
        mixer = attention(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=4, qkv_bias=True)
        layers.append(
            Layer(blocks=(mixer, experts(hidden_size=8, intermediate_size=6, num_experts=3, num_experts_per_tok=2)))
        )
    stack = Stack(
        name="decoder",
        hidden_size=8,
        layers=tuple(layers),
        before=(embedding("embed_tokens", 50, 8),),
        after=(head("lm_head", 8, 50, tied=True),),
    )
    return Network(architecture="decoder", stacks=(stack,), model_type="test", vocab_size=50)


def _tensors(num_layers: int = 2) -> dict[str, tuple[str, list[int]]]:
    """The same network, with q, k and v fused, experts stacked, gates and ups fused, and an output transposed."""
    tensors: dict[str, tuple[str, list[int]]] = {"embed.weight": ("F32", [50, 8])}
    for index in range(num_layers):
        tensors |= {
            f"h.{index}.qkv.weight": ("F32", [16, 8]),
            f"h.{index}.qkv.bias": ("F32", [16]),
            f"h.{index}.o.weight": ("F32", [8, 8]),
            f"h.{index}.router": ("F32", [3, 8]),
            f"h.{index}.gate_up": ("F32", [3, 8, 12]),
            f"h.{index}.down": ("F32", [3, 6, 8]),
        }
    return tensors


def test_same_weights_agree_however_they_are_fused_and_stacked(tmp_path: Path) -> None:
    """Names, order, fusion, stacking and transposition change no size."""
    result = compare_with_config(read_weight_file(_packed(tmp_path, _tensors())), _network())
    assert result.agrees
    assert result.messages == ()
    assert result.file_parameters == result.config_parameters


def test_differences_between_file_and_config_are_named(tmp_path: Path) -> None:
    """A duplicated head and one more layer are named; so is what a file lacks."""
    more = _tensors(3) | {"lm_head.weight": ("F32", [50, 8])}
    result = compare_with_config(read_weight_file(_packed(tmp_path, more)), _network())
    assert "lm_head.weight" in result.only_in_file
    assert {name for name in result.only_in_file if name != "lm_head.weight"} == {
        n for n in more if n.startswith("h.2.")
    }
    assert result.only_in_config == ()
    assert "only the file has" in result.messages[1]
    less = _tensors()
    del less["h.1.down"]
    result = compare_with_config(read_weight_file(_packed(tmp_path, less)), _network())
    assert result.only_in_file == ()
    assert len(result.only_in_config) == 1  # gate, up and down are of one shape: which one lacks cannot be told
    assert result.only_in_config[0].startswith("layers.1.mlp.experts.")
    assert result.config_parameters - result.file_parameters == 3 * 6 * 8
