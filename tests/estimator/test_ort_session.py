"""Sessions on the provider asked for, files that are refused, and inputs that fit."""

from __future__ import annotations

import contextlib
import dataclasses
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from estimator.errors import BuildError, CorruptFileError, EstimatorError, InputError
from estimator.onnx_builder import build_onnx
from estimator.onnx_wire import check_self_contained, read_properties
from estimator.ort_session import PROVIDERS, make_inputs, open_session, past_names, present_names


@pytest.fixture
def path(small, tmp_path):
    return build_onnx(small, path=tmp_path / "model.onnx").path


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a tiny model."""
    from estimator.config import TransformerConfig

    config = TransformerConfig(
        vocab_size=3,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
        max_position_embeddings=4,
    )
    return build_onnx(config, path=tmp_path_factory.mktemp("tiny") / "model.onnx").path.read_bytes()


def _one_node(op, **attributes):
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def _field(number, content):
    """A message as a field of another one, in protobuf's encoding."""
    length, digits = len(content), []
    while length >= 128:
        digits.append(length % 128 + 128)
        length //= 128
    return bytes([number * 8 + 2, *digits, length]) + content


@pytest.mark.parametrize("num_threads", [1, 2])
def test_session_has_the_provider_and_threads_asked_for(path, num_threads):
    """And no other provider."""
    session = open_session(path, num_threads=num_threads)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == num_threads


def test_unknown_provider_is_refused_with_those_that_exist(path):
    """The message lists the names."""
    with pytest.raises(InputError, match="cpu, cuda, not 'tpu'"):
        open_session(path, provider="tpu")


def test_missing_provider_is_refused_without_falling_back(path, monkeypatch):
    """An installation without CUDA says so, and what it has."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"'cuda' is not in this ONNX Runtime installation, which has cpu"):
        open_session(path, provider="cuda")


def test_provider_that_did_not_start_is_refused(path, monkeypatch):
    """ONNX Runtime starts a session without a provider whose libraries are missing; that is no session for us."""
    monkeypatch.setitem(PROVIDERS, "cuda", "CUDAExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    cpu_session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: cpu_session)
    with pytest.raises(InputError, match="'cuda' did not start; the session has CPUExecutionProvider"):
        open_session(path, provider="cuda")


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"", "empty"), (b"hello, world", "not an ONNX file"), (b"\0" * 50, "not an ONNX file"), (None, "No such file")],
)
def test_what_is_no_onnx_file_is_refused_in_one_line(tmp_path, text, words):
    """Missing, empty, text, zeros."""
    path = tmp_path / "model.onnx"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(CorruptFileError, match=words) as caught:
        open_session(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_folder_is_refused(tmp_path):
    """A folder is no file."""
    with pytest.raises(CorruptFileError, match="Is a directory"):
        open_session(tmp_path)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_truncated_file_is_refused(path, kept):
    """Cut within the graph, wherever that is."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CorruptFileError, match="not an ONNX file"):
        open_session(path)


def test_unknown_operator_is_a_build_error_in_one_line(tmp_path):
    """A well-formed file that ONNX Runtime cannot run."""
    onnx.save(_one_node("NoSuchOperator"), tmp_path / "model.onnx")
    with pytest.raises(BuildError, match="NoSuchOperator") as caught:
        open_session(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("link", [False, True])
def test_external_data_is_refused(path, tmp_path, link):
    """Weights in another file, also one that a hard link brings into the folder."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(1 << 20))
    if link:
        os.link(secret, tmp_path / "weights.bin")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin" if link else "secret.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFileError, match="keeps weights in other files"):
        open_session(path)


@pytest.mark.parametrize("place", ["attribute", "branch"])
def test_external_data_is_found_inside_nodes(tmp_path, place):
    """In a constant's attribute, and in the graph of a branch."""
    tensor = onnx.TensorProto(name="t", dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    if place == "attribute":
        model = _one_node("Constant", value=tensor)
    else:
        branch = helper.make_graph([], "branch", [], [], [tensor])
        model = _one_node("If", then_branch=branch, else_branch=branch)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CorruptFileError, match="keeps weights in other files"):
        check_self_contained(tmp_path / "model.onnx")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_bytes_are_refused_or_pass_but_never_crash(content, tmp_path_factory, data):
    """Whatever bytes are changed or cut off, the only error is the estimator's own."""
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        if place < len(damaged):
            damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged)
    for read in (check_self_contained, read_properties):
        with contextlib.suppress(EstimatorError):
            read(path)


def test_deep_nesting_is_refused(tmp_path):
    """A file of a few kilobytes must not exhaust the stack."""
    graph = b""
    for _ in range(500):
        for field in (6, 5, 1):  # the graph of an attribute of a node
            graph = _field(field, graph)
    (tmp_path / "model.onnx").write_bytes(_field(7, graph))
    with pytest.raises(CorruptFileError, match="nested too deeply"):
        check_self_contained(tmp_path / "model.onnx")


def test_properties_equal_those_that_onnx_reads(path):
    """Against the official reader."""
    assert read_properties(path) == {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_inputs_are_those_of_the_file(random_configs, tmp_path):
    """Names, and shapes that run, for prefill and decode of every kind of config."""
    for config in random_configs[:40]:
        session = open_session(build_onnx(config, path=tmp_path / "model.onnx").path, num_threads=1)
        for past_length, length in ((0, 2), (1, 1)) if config.is_causal else ((0, 2),):
            inputs = make_inputs(config, batch_size=2, sequence_length=length, past_length=past_length)
            assert set(inputs) == {entry.name for entry in session.get_inputs()}
            outputs = dict(zip([entry.name for entry in session.get_outputs()], session.run(None, inputs), strict=True))
            assert next(iter(outputs.values())).shape[:2] == (2, length)
            for layer in config.layers if config.is_causal else ():
                for name in present_names(layer.index):
                    wanted = (2, layer.num_key_value_heads, past_length + length, layer.head_dim)
                    assert outputs[name].shape == wanted


def test_inputs_repeat_with_their_seed(small):
    """Same seed, same inputs; another seed, other ids and another past. Positions start behind the past."""
    first, again, other = (
        make_inputs(small, batch_size=3, sequence_length=5, past_length=7, seed=seed) for seed in (4, 4, 5)
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert np.array_equal(values, other[name]) == (name == "position_ids")
    assert first["position_ids"].tolist() == [[7, 8, 9, 10, 11]] * 3
    assert first[past_names(1)[0]].shape == (3, 2, 7, 16)


@pytest.mark.parametrize(
    ("lengths", "changes", "words"),
    [
        ({"batch_size": 0, "sequence_length": 1}, {}, "at least 1"),
        ({"batch_size": 1, "sequence_length": 1, "past_length": -1}, {}, "past_length at least 0"),
        ({"batch_size": 1, "sequence_length": 9}, {"position_embedding": "learned", "max_position_embeddings": 8}, "8"),
        (
            {"batch_size": 1, "sequence_length": 1, "past_length": 1},
            {"architecture": "encoder", "head": "none"},
            "an encoder has no past",
        ),
    ],
)
def test_impossible_lengths_are_refused(small, lengths, changes, words):
    """Each with what would be right."""
    with pytest.raises(InputError, match=words):
        make_inputs(dataclasses.replace(small, **changes), **lengths)
