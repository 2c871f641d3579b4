"""Files of every weight type: close to fp32, valid, of the bytes that are counted; and of one type for each layer."""

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

from estimator.config import TransformerConfig
from estimator.errors import BuildError
from estimator.memory import count_weight_bytes
from estimator.model import TransformerModel
from estimator.onnx_builder import build_onnx, read_artifact
from estimator.ort_session import make_inputs, open_session, past_names, present_names
from estimator.params import count_params
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
