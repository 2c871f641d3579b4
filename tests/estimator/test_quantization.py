"""Dynamic int8: how exact it is, what it quantises, what it saves."""

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
from estimator.ort_session import make_inputs, open_session
from estimator.quantization import quantize_weight, write_quantized_matmul
from estimator.weights import is_linear, weight_shapes

# Root mean square of the error over that of the outputs. The weights here are rougher than trained ones, and norms over
# few elements magnify what is rounded in front of them.
MEDIAN_BOUND, BOUND = 0.02, 0.1


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


def test_int8_logits_stay_close_to_fp32(random_configs, noisy_weights, tmp_path):
    """Over configs with every option, the error is 2 % of the outputs in the median, and never 10 %."""
    errors = []
    for index, config in enumerate(random_configs[:30]):
        weights, length = noisy_weights(config), min(9, config.max_position_embeddings)
        inputs = make_inputs(config, batch_size=2, sequence_length=length, seed=index)
        outputs = []
        for dtype in ("fp32", "int8"):
            path = build_onnx(config, weights, path=tmp_path / f"{dtype}.onnx", weight_dtype=dtype).path
            outputs.append(open_session(path, num_threads=1).run(None, inputs)[0])
        errors.append(np.sqrt(((outputs[0] - outputs[1]) ** 2).mean() / (outputs[0] ** 2).mean()))
    assert 0 < min(errors) < max(errors) < BOUND
    assert np.median(errors) < MEDIAN_BOUND


def test_int8_quantises_exactly_the_linear_weights(random_configs, tmp_path):
    """Which initialisers are int8, and the parameter count is that of the config: scales are no parameters."""
    for config in random_configs[:20]:
        artifact = build_onnx(config, path=tmp_path / "model.onnx", weight_dtype="int8")
        shapes = weight_shapes(config)
        model = onnx.load(artifact.path)
        onnx.checker.check_model(model, full_check=True)
        quantised = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
        assert quantised == {name for name in shapes if is_linear(name)}
        assert artifact.num_params == sum(int(np.prod(shape)) for shape in shapes.values())
        assert artifact.weight_dtype == "int8"


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
