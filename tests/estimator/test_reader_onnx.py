"""ONNX files: initialisers and constants counted as onnx counts them, external data checked, hostile files refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from estimator.errors import CorruptFileError, InputError
from estimator.onnx_builder import build_onnx
from estimator.readers.files.onnx_file import read_onnx
from estimator.readers.files.onnx_types import DATA_TYPES
from estimator.readers.files.weight_files import read_weight_file
from tests.estimator.file_samples import onnx_bytes


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, with those of its nodes and their graphs, by onnx itself."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _model(tensors: list[onnx.TensorProto], nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(nodes or [], "g", [], [], initializer=tensors))


def _save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_all_tensors_are_those_that_onnx_finds(tmp_path: Path) -> None:
    """Initialisers, constants and the tensors of nested graphs, with their shapes and bytes."""
    path = tmp_path / "x.onnx"
    path.write_bytes(onnx_bytes())
    found = read_weight_file(path)
    expected = list(_tensors(onnx.load(path).graph))
    assert sorted(t.shape for t in found.tensors) == sorted(tuple(t.dims) for t in expected)
    assert found.num_elements == sum(math.prod(t.dims) for t in expected)
    sizes = {t.name: t.num_bytes for t in found.tensors}
    assert sizes == {"weight": 96, "typed": 12, "half": 4, "shape": 16, "packed": 5, "packed_scale": 4, "branch": 40}
    assert found.metadata["opset"] == {"ai.onnx": 21}
    assert found.metadata["num_nodes"] == 3 + 2
    assert found.metadata["properties"] == {"author": "a test"}
    assert found.metadata["inputs"]["x"] == {"dtype": "fp32", "shape": ("batch_size", 4)}
    assert found.metadata["outputs"]["y"] == {"dtype": "fp32", "shape": ("batch_size", 6)}


def test_parameters_are_weights_without_scales_and_shapes(tmp_path: Path) -> None:
    """int4 weights count one each; their scale, single numbers and integer shapes do not."""
    path = tmp_path / "x.onnx"
    path.write_bytes(onnx_bytes())
    found = read_onnx(path)
    # weight 4*6, typed 3, half 2, packed 3*3, and branch 2*5 in both branches of If
    assert found.num_parameters == 24 + 3 + 2 + 9 + 2 * 10
    assert "int4" in found.warnings[0]


def test_type_table_is_that_of_onnx() -> None:
    """Every type that onnx knows is known here."""
    known = {number for name, number in TensorProto.DataType.items() if name != "UNDEFINED"}
    assert known <= DATA_TYPES.keys()


_TYPED = [
    "FLOAT",
    "DOUBLE",
    "FLOAT16",
    "BFLOAT16",
    "INT8",
    "UINT8",
    "INT32",
    "INT64",
    "UINT64",
    "BOOL",
    "INT4",
    "UINT4",
]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", _TYPED)
def test_data_are_accepted_in_raw_and_typed_form(tmp_path: Path, dtype: str, raw: bool) -> None:
    """Both forms that onnx writes are whole, for every type; an odd number of int4 takes half a byte more."""
    number = getattr(TensorProto, dtype)
    values = np.arange(15) % 2
    if raw:
        array = values.astype(helper.tensor_dtype_to_np_dtype(number)).reshape(3, 5)
        tensor = numpy_helper.from_array(array, "w")
    else:
        tensor = helper.make_tensor("w", number, [3, 5], values.tolist())
    found = read_onnx(_save(tmp_path / "x.onnx", _model([tensor])))
    assert found.tensors[0].shape == (3, 5)
    assert found.num_bytes == -(-15 * DATA_TYPES[number][1] // 8)
    del tensor.dims[:]
    tensor.dims.extend([3, 500])
    with pytest.raises(CorruptFileError, match="takes"):
        read_onnx(_save(tmp_path / "x.onnx", _model([tensor])))


@pytest.mark.parametrize("weight_dtype", ["fp32", "int8"])
def test_file_of_ours_has_as_many_parameters_as_its_config(tmp_path: Path, random_configs, weight_dtype: str) -> None:
    """Counted in the file without onnx, by the builder with it; the config in it is found."""
    for index, config in enumerate(random_configs[:6]):
        artifact = build_onnx(config, path=tmp_path / f"{index}.onnx", weight_dtype=weight_dtype)
        found = read_weight_file(artifact.path)
        assert found.metadata["config"]["hidden_size"] == config.hidden_size
        stored = {tensor.name: tensor for tensor in onnx.load(artifact.path).graph.initializer}
        assert {t.name: t.shape for t in found.tensors if t.name in stored} == {
            n: tuple(t.dims) for n, t in stored.items()
        }
        assert found.num_parameters == artifact.num_params


def test_matmul_n_bits_counts_the_matrix_that_it_stands_for(tmp_path: Path) -> None:
    """N x K weights, with the bytes of blocks, scales and zero points."""
    blocks = numpy_helper.from_array(np.zeros((6, 2, 16), np.uint8), "B")  # K 64 in blocks of 32, two weights a byte
    scales = numpy_helper.from_array(np.zeros(12, np.float32), "s")
    node = helper.make_node(
        "MatMulNBits", ["x", "B", "s"], ["y"], domain="com.microsoft", K=64, N=6, bits=4, block_size=32
    )
    found = read_onnx(_save(tmp_path / "x.onnx", _model([blocks, scales], [node])))
    assert found.parameters is not None
    assert [(w.shape, w.dtype, w.num_bytes) for w in found.parameters] == [((6, 64), "int4 (MatMulNBits)", 192 + 48)]


def _external(tmp_path: Path, location: str, offset: int = 0, length: int | None = 24, data_bytes: int = 24) -> Path:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "outside.bin").write_bytes(bytes(100))
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(data_bytes))
    tensor = TensorProto(name="w", dims=[2, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    pairs = {"location": location, "offset": offset} | ({} if length is None else {"length": length})
    for key, value in pairs.items():
        tensor.external_data.add(key=key, value=str(value))
    return _save(tmp_path / "model" / "x.onnx", _model([tensor]))


def test_external_data_are_checked_but_not_read(tmp_path: Path) -> None:
    """A tensor in a file beside the model counts like any other."""
    found = read_weight_file(_external(tmp_path, "weights.bin"))
    assert (found.num_parameters, found.num_bytes, len(found.paths)) == (6, 24, 2)
    assert read_weight_file(_external(tmp_path, "weights.bin", length=None)).num_bytes == 24


@pytest.mark.parametrize(
    "location", ["../outside.bin", "/etc/passwd", "a/../../outside.bin", "..\\outside.bin", "", "linked.bin"]
)
def test_external_data_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    """Neither by path nor by link."""
    path = _external(tmp_path, location)
    (tmp_path / "model" / "linked.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(CorruptFileError, match=r"out(side| of) its folder"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "missing.bin"}, "not in"),
        ({"offset": 4}, "cut off"),
        ({"data_bytes": 23}, "cut off"),
        ({"length": 20}, "takes 24 bytes"),
        ({"offset": -4}, "offset of tensor 'w'"),
    ],
)
def test_external_data_of_another_size_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Offset and length must fit the tensor and the file."""
    with pytest.raises(InputError, match=message):
        read_onnx(_external(tmp_path, **{"location": "weights.bin", **changes}))


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _nested(levels: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on."""
    graph = b""
    for _ in range(levels):
        graph = _field(1, _field(5, _field(6, graph)))
    return b"\x08\x08" + _field(7, graph)


_HOSTILE = {
    "no graph": (b"\x08\x08", "has no graph"),
    "nested": (_nested(500), "nested too deeply"),
    "length": (b"\x08\x08" + b"\x3a" + b"\xff" * 9 + b"\x01", "ends too early"),
    "endless varint": (b"\x08" + b"\xff" * 50, "ends too early"),
    "negative dimension": (
        b"\x08\x08" + _field(7, _field(5, b"\x08" + b"\xff" * 9 + b"\x01\x10\x01")),
        "impossible dimension",
    ),
    "huge tensor": (
        b"\x08\x08" + _field(7, _field(5, b"\x08" + _varint(2**40) + b"\x08" + _varint(2**40) + b"\x10\x01")),
        "larger than any",
    ),
    "no data": (b"\x08\x08" + _field(7, _field(5, b"\x08\x04\x10\x01")), "takes 16 bytes, not 0"),
    "type": (b"\x08\x08" + _field(7, _field(5, b"\x08\x04\x10\x63")), "unknown data type 99"),
    "many dimensions": (b"\x08\x08" + _field(7, _field(5, _field(1, b"\x01" * 100))), "more than 64 dimensions"),
    "sparse": (b"\x08\x08" + _field(7, _field(15, b"")), "sparse"),
    "group": (b"\x08\x08\x0b", "cannot be told apart"),
}


@pytest.mark.parametrize("case", _HOSTILE)
def test_hostile_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    """Lengths, nesting and sizes have limits."""
    data, message = _HOSTILE[case]
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=message):
        read_weight_file(path)


def test_every_prefix_of_a_file_is_refused_or_whole_in_itself(tmp_path: Path) -> None:
    """A model that is cut off never counts with tensors that are not there."""
    data = onnx_bytes()
    whole = {tensor.name for tensor in onnx.load_from_string(data).graph.initializer}
    path = tmp_path / "x.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            found = read_weight_file(path)
        except InputError:
            continue
        assert whole <= {tensor.name for tensor in found.tensors}
