"""Weights in 16 bit, int8 and int4: how exact they are, what they apply to, what they save."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from estimator.config import TransformerConfig
from estimator.errors import BuildError
from estimator.memory import count_weight_bytes
from estimator.model import TransformerModel
from estimator.onnx_builder import build_onnx, read_artifact
from estimator.onnx_graph import GraphWriter
from estimator.ort_session import make_inputs, open_session, past_names, present_names
from estimator.params import count_params
from estimator.quantization import (
    BlockedWeight,
    quantize_blocks,
    quantize_weight,
    write_block_matmul,
    write_quantized_matmul,
)
from estimator.weight_formats import BLOCK_FORMATS
from estimator.weight_types import BUILD_DTYPES, stored_weight_bytes, weight_dtypes
from estimator.weights import is_linear, random_weights, weight_shapes
from estimator.workload import Workload

# Root mean square of the error of the logits over that of the logits, by type: in the median over many configs, and at
# most. The weights here are rougher than trained ones, and norms over few elements magnify what is rounded before them.
BOUNDS = {
    "fp16": (0.001, 0.005),
    "bf16": (0.01, 0.04),
    "int8": (0.02, 0.1),
    "int8-g32": (0.02, 0.1),
    "int8-g128": (0.02, 0.1),
    "int4": (0.2, 0.6),
    "int4-g128": (0.25, 0.7),
}
BOUNDS |= {f"{name}-zp": BOUNDS[name] for name in ("int8-g32", "int8-g128", "int4", "int4-g128")}
HALVES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TRAINED = TransformerConfig(
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)
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


@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_stay_close_to_fp32(dtype, random_configs, noisy_weights, tmp_path):
    """Over configs with every option: the median error of a type, and its largest."""
    errors = []
    for index, config in enumerate(random_configs[:20]):
        weights, length = noisy_weights(config), min(9, config.max_position_embeddings)
        inputs = make_inputs(config, batch_size=2, sequence_length=length, seed=index)
        outputs = []
        for built in ("fp32", dtype):
            path = build_onnx(config, weights, path=tmp_path / f"{built}.onnx", weight_dtype=built).path
            outputs.append(open_session(path, num_threads=1).run(None, inputs)[0])
        errors.append(np.sqrt(((outputs[0] - outputs[1]) ** 2).mean() / (outputs[0] ** 2).mean()))
    median, most = BOUNDS[dtype]
    assert 0 < min(errors) < max(errors) < most
    assert np.median(errors) < median


@pytest.fixture(scope="module")
def trained():
    """Weights of TRAINED that continue random walks over its tokens, and 32 walks of 33 tokens to test them on."""
    generator, odds = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.full(100, 0.02), size=100)
    walks = np.empty((32 + 8 * 150, 33), np.int64)
    walks[:, 0] = generator.integers(0, 100, len(walks))
    for step in range(32):
        chances = odds[walks[:, step]].cumsum(axis=1)
        walks[:, step + 1] = np.minimum((chances < generator.random((len(walks), 1))).sum(axis=1), 99)
    model = TransformerModel(TRAINED)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in random_weights(TRAINED).items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for batch in torch.from_numpy(walks[32:]).split(8):
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}, walks[:32]


def _predicted(weights, walks, dtype, folder):
    """The most likely next token everywhere, and the cross-entropy in bits."""
    path = build_onnx(TRAINED, weights, path=folder / "model.onnx", weight_dtype=dtype).path
    inputs = make_inputs(TRAINED, batch_size=len(walks), sequence_length=32) | {"input_ids": walks[:, :-1]}
    logits = open_session(path, num_threads=1).run(None, inputs)[0].astype(np.float64)
    likely = np.take_along_axis(logits, walks[:, 1:, None], axis=-1)[..., 0]
    return logits.argmax(axis=-1), ((np.log(np.exp(logits).sum(axis=-1)) - likely) / np.log(2)).mean()


@pytest.mark.parametrize("dtype", [dtype for dtype in BUILD_DTYPES if dtype != "fp32"])
def test_trained_model_predicts_the_same(dtype, trained, tmp_path):
    """The same token as in fp32 nearly everywhere, and hardly a loss of bits: four bits cost more than eight."""
    weights, walks = trained
    expected, plain_bits = _predicted(weights, walks, "fp32", tmp_path)
    found, bits = _predicted(weights, walks, dtype, tmp_path)
    agreement = np.mean(found == expected)
    is_four = dtype.startswith("int4")
    assert agreement >= (0.9 if is_four else 0.98)
    assert abs(bits - plain_bits) <= (0.1 if is_four else 0.01)
    assert plain_bits < 5  # it has learnt: a guess costs log2(100)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_file_computes_exactly_with_the_rounded_weights(dtype, random_configs, noisy_weights, tmp_path):
    """It gives what the fp32 file of the rounded weights gives, and keeps those weights bit by bit."""
    for config in random_configs[:20]:
        weights = noisy_weights(config)
        rounded = {name: values.astype(HALVES[dtype]).astype(np.float32) for name, values in weights.items()}
        half = build_onnx(config, weights, path=tmp_path / "half.onnx", weight_dtype=dtype)
        full = build_onnx(config, rounded, path=tmp_path / "full.onnx")
        inputs = make_inputs(config, batch_size=2, sequence_length=min(9, config.max_position_embeddings))
        found, expected = (open_session(a.path, num_threads=1).run(None, inputs)[0] for a in (half, full))
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
        kept = {t.name: t for t in onnx.load(half.path).graph.initializer if t.name in rounded}
        assert kept.keys() == rounded.keys()
        for name, tensor in kept.items():
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            assert any(np.array_equal(values, stored) for stored in (rounded[name], rounded[name].T))


@pytest.mark.parametrize("dtype", BUILD_DTYPES)
def test_type_is_that_of_exactly_the_weights_meant(dtype, random_configs, tmp_path):
    """16 bit for all, an integer for the linear ones; valid; parameters are the config's, bytes as counted."""
    for config in random_configs[:12]:
        artifact = build_onnx(config, path=tmp_path / "model.onnx", weight_dtype=dtype)
        model = onnx.load(artifact.path)
        onnx.checker.check_model(model, full_check=True)
        shapes = weight_shapes(config)
        types = {t.name: t.data_type for t in model.graph.initializer if t.name in shapes}
        meant = {name for name in shapes if dtype in HALVES or is_linear(name)} if dtype != "fp32" else set()
        assert {name for name, kind in types.items() if kind != onnx.TensorProto.FLOAT} == meant
        assert artifact.num_params == count_params(config).total
        assert (artifact.weight_dtype, artifact.weight_dtype_per_layer) == (dtype, None)
        assert artifact.weight_bytes == stored_weight_bytes(config, weight_dtypes(config, dtype))


@pytest.mark.parametrize("dtype", BUILD_DTYPES)
def test_bytes_of_the_file_are_those_of_the_estimate(dtype, random_configs, tmp_path):
    """Tensor by tensor, rows that end in a block among them."""
    for config in random_configs[:12]:
        artifact = build_onnx(config, path=tmp_path / "model.onnx", weight_dtype=dtype)
        assert artifact.weight_bytes == count_weight_bytes(config, Workload(weight_dtype=dtype))


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


def _executed(path: Path, inputs, folder: Path) -> list[dict[str, str]]:
    """Operator and provider of every node that ONNX Runtime ran."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event["args"] for event in events if event["cat"] == "Node" and event["name"].endswith("kernel_time")]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", *BLOCK_FORMATS])
def test_every_node_runs_here_and_nothing_is_cast_for_each_call(dtype, small, tmp_path):
    """On the CPU provider, the operators that were written; weights and scales were cast when the file was loaded."""
    inputs = make_inputs(small, batch_size=1, sequence_length=4)
    ran = {}
    for built in ("fp32", dtype):
        path = build_onnx(small, path=tmp_path / "model.onnx", weight_dtype=built).path
        nodes = _executed(path, inputs, tmp_path)
        assert {node["provider"] for node in nodes} == {"CPUExecutionProvider"}
        ran[built] = Counter(node["op_name"] for node in nodes)
    if dtype in BLOCK_FORMATS:
        assert ran[dtype]["MatMulNBits"] == 7 * small.num_hidden_layers + 1
        ran["fp32"]["MatMulNBits"] = ran["fp32"].pop("MatMul")
    assert ran[dtype]["Cast"] == ran["fp32"]["Cast"]
    assert ran[dtype]["MatMulNBits"] == ran["fp32"]["MatMulNBits"]


def _logits(session, config, ids, past, first):
    """Logits of tokens that stand from `first` on, and the cache with them."""
    positions = np.broadcast_to(np.arange(first, first + ids.shape[1]), ids.shape).copy()
    names = [entry.name for entry in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"input_ids": ids, "position_ids": positions} | past), strict=True))
    pairs = (zip(past_names(i), present_names(i), strict=True) for i in range(config.num_hidden_layers))
    return outputs["logits"], {old: outputs[new] for pair in pairs for old, new in pair}


@pytest.mark.parametrize("dtype", ["fp16", "bf16", *BLOCK_FORMATS])
def test_decoding_with_a_past_equals_recomputation(dtype, small, noisy_weights, tmp_path):
    """Row by row and all at once: the same logits, but where the last bit of an activation decides how it is rounded.

    Not so dynamic int8: it rounds all rows of a call with one scale.
    """
    path = build_onnx(small, noisy_weights(small), path=tmp_path / "model.onnx", weight_dtype=dtype).path
    session = open_session(path, num_threads=1)
    inputs = make_inputs(small, batch_size=2, sequence_length=12)
    ids, past = inputs["input_ids"], {name: v for name, v in inputs.items() if name.startswith("past_key_values")}
    whole, _ = _logits(session, small, ids, past, 0)
    steps = []
    for position in range(ids.shape[1]):
        logits, past = _logits(session, small, ids[:, position : position + 1], past, position)
        steps.append(logits)
    error = np.abs(np.concatenate(steps, axis=1) - whole)
    assert error.max() <= (0.02 * np.abs(whole).max() if dtype in BLOCK_FORMATS else 1e-5)
    assert np.median(error) <= 1e-5


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


def test_layers_have_the_types_that_are_asked_for(small, noisy_weights, tmp_path):
    """Each layer its own, the rest the file's; what the file says of itself, bytes and parameters with it."""
    config = dataclasses.replace(small, num_hidden_layers=4)
    per_layer = ("int4", "fp16", "int8", "int4-g128-zp")
    path = tmp_path / "model.onnx"
    artifact = build_onnx(
        config, noisy_weights(config), path=path, weight_dtype="int8-g32", weight_dtype_per_layer=per_layer
    )
    assert (artifact.weight_dtype, artifact.weight_dtype_per_layer) == ("int8-g32", per_layer)
    assert read_artifact(path) == artifact
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    found = {t.name: (t.data_type, t.dims[-1]) for t in model.graph.initializer}
    types = onnx.TensorProto
    assert found["layers.0.mlp.up_proj.weight"] == (types.UINT8, 16)
    assert found["layers.0.mlp_norm.weight"][0] == types.FLOAT
    assert found["layers.1.mlp_norm.weight"][0] == found["layers.1.mlp.up_proj.weight"][0] == types.FLOAT16
    assert found["layers.2.mlp.up_proj.weight"][0] == types.INT8
    assert found["layers.3.mlp.up_proj.weight"] == (types.UINT8, 64)
    assert "layers.3.mlp.up_proj.weight_zero_points" in found
    assert found["lm_head.weight"] == (types.UINT8, 32)
    assert found["embed_tokens.weight"][0] == found["norm.weight"][0] == types.FLOAT
    assert artifact.num_params == count_params(config).total
    assert artifact.weight_bytes == stored_weight_bytes(config, weight_dtypes(config, "int8-g32", per_layer))
    by_type = {dtype: build_onnx(config, path=path, weight_dtype=dtype).weight_bytes for dtype in ("int4", "int8-g32")}
    assert by_type["int4"] < artifact.weight_bytes < by_type["int8-g32"] + 20_000
    assert open_session(path).run(None, make_inputs(config, batch_size=1, sequence_length=3))


def test_layers_of_one_type_are_the_plain_file(small, tmp_path):
    """Saying the same of each layer changes no byte."""
    plain = build_onnx(small, path=tmp_path / "a.onnx", weight_dtype="int4")
    said = build_onnx(small, path=tmp_path / "b.onnx", weight_dtype="int4", weight_dtype_per_layer=["int4", "int4"])
    assert (said.sha256, said.weight_dtype_per_layer) == (plain.sha256, None)


@pytest.mark.parametrize(
    ("changes", "per_layer", "words"),
    [
        ({}, ("int4",), "has 1 types; this config has 2 layers"),
        ({}, ("int4", "int3"), "'int3' cannot be built; these can: fp32"),
        ({"weight_source_per_layer": (0, 0)}, ("int4", "int8"), "layer 1 uses the weights of layer 0.*int4, not int8"),
    ],
)
def test_types_that_fit_no_layers_are_refused(small, changes, per_layer, words, tmp_path):
    """Too few, unknown, two for one weight; no file is written."""
    config = dataclasses.replace(small, **changes)
    with pytest.raises(BuildError, match=words):
        build_onnx(config, path=tmp_path / "model.onnx", weight_dtype_per_layer=per_layer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "value"), [("fp16", 7e4), ("bf16", 3.4e38), ("int4", 6e5), ("int4-zp", 1e6)])
def test_weights_too_large_for_the_type_are_refused(small, dtype, value, tmp_path):
    """By name, rather than as infinities."""
    weights = random_weights(small)
    weights["layers.1.mlp.up_proj.weight"][3, 5] = value
    with pytest.raises(BuildError, match=r"'layers.1.mlp.up_proj.weight' holds values that are too large for"):
        build_onnx(small, weights, path=tmp_path / "model.onnx", weight_dtype=dtype)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_weights_too_small_for_a_scale_become_zero(name):
    """Nothing divides by nothing: zeros, and values below what a scale of fp16 can tell from zero."""
    form = BLOCK_FORMATS[name]
    for value in (0, 1e-10, -1e-10):
        restored = _restored(np.full((2, 40), value, np.float32), form)
        assert np.isfinite(restored).all()
        assert np.abs(restored - value).max() <= 1e-10
