"""Matrices in int8 and int4: how exact they are, and that ONNX Runtime multiplies by them as they are meant."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from estimator.onnx_builder import build_onnx
from estimator.onnx_graph import GraphWriter
from estimator.quantization import (
    BlockedWeight,
    quantize_blocks,
    quantize_weight,
    write_block_matmul,
    write_quantized_matmul,
)
from estimator.weight_formats import BLOCK_FORMATS
from estimator.weights import is_linear, weight_shapes

FP16_TINY = 2.0**-24  # the smallest fp16 above 0


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The codes of packed bytes, along the last axis."""
    if bits == 8:
        return packed.astype(int)
    return np.stack([packed % 16, packed // 16], axis=-1).reshape(*packed.shape[:-1], -1)[..., :count].astype(int)


def _parts(blocked: BlockedWeight, form, inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes less zero points [out, blocks, block_size], and the scale of each [out, blocks, 1]."""
    codes = _unpacked(blocked.codes, form.bits, form.columns)
    middle = np.full(blocked.scales.shape, 1 << (form.bits - 1))
    points = middle if blocked.zero_points is None else _unpacked(blocked.zero_points, form.bits, middle.shape[1])
    return codes - points[..., None], blocked.scales[..., None].astype(np.float64)


def _restored(weight: np.ndarray, form) -> np.ndarray:
    """The matrix after quantisation and back, in float64."""
    levels, scales = _parts(quantize_blocks(weight, form), form, weight.shape[1])
    return (levels * scales).reshape(weight.shape[0], -1)[:, : weight.shape[1]]


def _block_session(weight: np.ndarray, form) -> onnxruntime.InferenceSession:
    out, inner = weight.shape
    writer = GraphWriter()
    writer.input("x", "float", ("a", "b", inner))
    writer.node("Identity", write_block_matmul(writer, "x", "w.weight", weight, form), outputs=("y",))
    writer.output("y", "float", ("a", "b", out))
    model = writer.model({})
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@settings(deadline=None, max_examples=50)
@given(arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)))
def test_quantized_weight_is_within_half_a_step(weight):
    """Each channel's error is at most half its scale, and a negative is as exact as a positive."""
    values, scales = quantize_weight(weight)
    assert values.dtype == np.int8
    assert np.abs(values.astype(int)).max() <= 127
    error = np.abs(weight - values * scales[:, None])
    assert (error <= scales[:, None] * 0.5001).all()
    mirrored, _ = quantize_weight(-weight)
    np.testing.assert_array_equal(mirrored, -values)


def test_zero_channel_stays_zero():
    """A channel of zeros has a scale, and divides by nothing."""
    values, scales = quantize_weight(np.zeros((2, 4), np.float32))
    assert not values.any()
    assert (scales == 1).all()


def test_quantized_matmul_is_close_to_the_product():
    """The nodes compute x @ weight.T up to the two rounding errors."""
    generator = np.random.default_rng(0)
    x, weight = (generator.standard_normal(shape).astype(np.float32) for shape in ((2, 7, 64), (24, 64)))
    writer = GraphWriter()
    writer.input("x", "float", ("a", "b", 64))
    writer.node("Identity", write_quantized_matmul(writer, "x", "w.weight", weight), outputs=("y",))
    writer.output("y", "float", ("a", "b", 24))
    content = writer.model({}).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    step_x, step_w = (x.max() - x.min()) / 255, np.abs(weight).max(axis=1) / 127
    bound = 0.5 * (step_x * np.abs(weight).sum(axis=1) + step_w * np.abs(x).sum(axis=-1).max()) + 64 * step_x * step_w
    error = np.abs(found - x @ weight.T)
    assert (error <= bound).all()
    assert error.max() > 0


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_blocks_are_within_half_a_step(name, data):
    """Each element is at most half a step off, or a whole one where it lies opposite to the largest and is cut off."""
    form = BLOCK_FORMATS[name]
    shape = data.draw(st.tuples(st.integers(1, 4), st.sampled_from([1, 5, 31, 32, 33, 64, 100, 129, 200])))
    weight = data.draw(
        arrays(np.float32, shape, elements=st.floats(-1000, 1000, width=32), fill=st.floats(-1, 1, width=32))
    )
    blocked = quantize_blocks(weight, form)
    levels, scales = _parts(blocked, form, shape[1])
    padded = np.zeros((shape[0], levels.shape[1] * form.columns))
    padded[:, : shape[1]] = weight
    elements = padded.reshape(levels.shape)
    is_cut = np.abs(elements / scales) > np.abs(levels) + 0.5
    error = np.abs(elements - levels * scales)
    slack = (1 << form.bits) * (FP16_TINY if form.scale_bytes == 2 else 0) + np.abs(elements) * 2.0**-9
    assert (error <= np.abs(scales) * np.where(is_cut, 1, 0.5001) + slack).all()
    assert (levels[elements == 0] == 0).all()  # a zero, and what fills up a row, stays zero
    if form.zero_points:
        assert (blocked.scales > 0).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_matrix_of_codes_comes_back_as_it_was(name):
    """What the format can express is kept to the bit: powers of two as scales, every code, an unfilled last block."""
    form, generator = BLOCK_FORMATS[name], np.random.default_rng(0)
    inner, highest = 2 * form.columns + 5, (1 << form.bits) - 1
    codes = generator.integers(0, highest + 1, (6, 3, form.columns))
    codes[..., 0], codes[..., 1] = 0, highest
    points = generator.integers(1, highest, (6, 3, 1)) if form.zero_points else 1 << (form.bits - 1)
    scales = 2.0 ** generator.integers(-9, 3, (6, 3, 1)) * (
        1 if form.zero_points else generator.choice([-1, 1], (6, 3, 1))
    )
    weight = ((codes - points) * scales).reshape(6, -1)[:, :inner].astype(np.float32)
    np.testing.assert_array_equal(_restored(weight, form), weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", ["32", "128"])
def test_zero_points_help_where_signs_are_one_sided(bits, size):
    """Weights from 0 to 1 use half of the symmetric codes: twice the step, four times the squared error."""
    weight = np.random.default_rng(0).random((64, 256), dtype=np.float32)
    name = f"int{bits}" + ("" if (bits, size) == (4, "32") else f"-g{size}")
    plain, pointed = (np.mean((_restored(weight, BLOCK_FORMATS[n]) - weight) ** 2) for n in (name, f"{name}-zp"))
    assert 3.5 < plain / pointed < 4.8


def test_blocks_confine_an_outlier_that_spoils_its_channel():
    """Per channel one large weight sets the step of the row; per block that of its block alone."""
    weight = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    weight[:, 0] = 100
    values, scales = quantize_weight(weight)
    per_channel = np.abs(values * scales[:, None] - weight)
    for name, size in (("int8-g32", 32), ("int8-g128", 128)):
        per_block = np.abs(_restored(weight, BLOCK_FORMATS[name]) - weight)
        assert per_block[:, size:].mean() < per_channel[:, size:].mean() / 10
        assert per_block[:, 1:size].mean() > per_channel[:, 1:size].mean() / 2


def test_block_as_long_as_the_row_is_the_channel():
    """The same steps but for the code -128, which a channel leaves out: errors within 127/128 of each other."""
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    values, scales = quantize_weight(weight)
    blocked = quantize_blocks(weight, BLOCK_FORMATS["int8-g128"])
    np.testing.assert_allclose(np.abs(blocked.scales[:, 0]) * 128, scales * 127, rtol=1e-6)
    per_channel = np.sqrt(np.mean((values * scales[:, None] - weight) ** 2))
    per_block = np.sqrt(np.mean((_restored(weight, BLOCK_FORMATS["int8-g128"]) - weight) ** 2))
    assert per_block == pytest.approx(per_channel, rel=0.03)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize(("out", "inner"), [(24, 64), (7, 40), (5, 33), (3, 1), (1, 300)])
def test_block_matmul_is_the_product_with_the_restored_matrix(name, out, inner):
    """For one row and for many; the inputs are multiples of 1/127 of each block's largest, which int8 holds exactly."""
    form, generator = BLOCK_FORMATS[name], np.random.default_rng(0)
    weight = generator.standard_normal((out, inner)).astype(np.float32)
    session = _block_session(weight, form)
    for rows in (1, 2, 17):
        x = generator.integers(-127, 128, (2, rows, inner)).astype(np.float32)
        x[..., :: form.columns] = 127
        (found,) = session.run(None, {"x": x})
        expected = x.astype(np.float64) @ _restored(weight, form).T
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(x).sum(axis=-1).max())


@pytest.mark.parametrize("name", ["int8-g32", "int4", "int4-g128-zp"])
def test_block_matmul_quantises_activations_by_block(name):
    """Inputs of any value are rounded to 127 steps of their block's largest, and no more: a bound by hand."""
    form, generator = BLOCK_FORMATS[name], np.random.default_rng(0)
    weight, x = (generator.standard_normal(shape).astype(np.float32) for shape in ((24, 256), (2, 7, 256)))
    (found,) = _block_session(weight, form).run(None, {"x": x})
    restored = _restored(weight, form)
    steps = np.repeat(np.abs(x.reshape(2, 7, -1, form.columns)).max(axis=-1) / 127, form.columns, axis=-1)
    error = np.abs(found - x @ restored.T)
    assert (error <= 0.5 * steps @ np.abs(restored).T + 1e-3).all()
    assert error.max() > 1e-3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("int4", 5 * 2 * (16 + 2)),
        ("int4-zp", 5 * (2 * (16 + 2) + 1)),
        ("int4-g128", 5 * (64 + 2)),
        ("int4-g128-zp", 5 * (64 + 2 + 1)),
        ("int8-g32", 5 * 2 * (32 + 4)),
        ("int8-g32-zp", 5 * 2 * (32 + 4 + 1)),
        ("int8-g128", 5 * (128 + 4)),
        ("int8-g128-zp", 5 * (128 + 4 + 1)),
    ],
)
def test_bytes_of_a_matrix_by_hand(name, expected):
    """5 rows of 40 inputs: 2 blocks of 32 or 1 of 128, with a scale each, and zero points in whole bytes a row."""
    assert BLOCK_FORMATS[name].count_bytes(5, 40) == expected


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize(("out", "inner"), [(64, 128), (48, 200), (33, 7), (1, 1), (2, 4097)])
def test_bytes_of_a_matrix_are_those_of_its_arrays(name, out, inner):
    """Of codes, scales in their own type, and zero points."""
    form = BLOCK_FORMATS[name]
    blocked = quantize_blocks(np.ones((out, inner), np.float32), form)
    points = 0 if blocked.zero_points is None else blocked.zero_points.nbytes
    assert blocked.codes.nbytes + form.scale_bytes * blocked.scales.size + points == form.count_bytes(out, inner)


@pytest.mark.parametrize("tied", [True, False])
def test_int8_file_saves_three_bytes_for_each_linear_weight(small, tied, tmp_path):
    """The difference is those bytes, less one scale for each channel and the nodes."""
    config = dataclasses.replace(small, hidden_size=256, intermediate_size=512, tie_word_embeddings=tied)
    plain, int8 = (build_onnx(config, path=tmp_path / d, weight_dtype=d).file_bytes for d in ("fp32", "int8"))
    shapes = [shape for name, shape in weight_shapes(config).items() if is_linear(name)]
    saved = sum(3 * rows * columns for rows, columns in shapes)
    scales = sum(4 * rows for rows, _ in shapes)
    assert saved - scales - 30_000 < plain - int8 < saved


def test_int8_quantises_an_activation_once(small, tmp_path):
    """One quantisation in front of the attention projections, one for its output, for gate and up, for down; a head."""
    path = build_onnx(small, path=tmp_path / "model.onnx", weight_dtype="int8").path
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count("DynamicQuantizeLinear") == 4 * small.num_hidden_layers + 1
    assert ops.count("MatMulInteger") == 7 * small.num_hidden_layers + 1
    assert "MatMul" not in ops


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_weights_too_small_for_a_scale_become_zero(name):
    """Nothing divides by nothing: zeros, and values below what a scale of fp16 can tell from zero."""
    form = BLOCK_FORMATS[name]
    for value in (0, 1e-10, -1e-10):
        restored = _restored(np.full((2, 40), value, np.float32), form)
        assert np.isfinite(restored).all()
        assert np.abs(restored - value).max() <= 1e-10
