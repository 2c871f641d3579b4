"""The ONNX file: valid, exact, complete, and equal to our torch module and to transformers."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from estimator.config import TransformerConfig
from estimator.errors import BuildError, CorruptFileError, StorageFullError
from estimator.hf_names import from_hf_state_dict
from estimator.model import TransformerModel
from estimator.onnx_builder import OnnxArtifact, build_onnx, read_artifact, read_config
from estimator.onnx_graph import OPSET
from estimator.ort_session import make_inputs, open_session, past_names, present_names
from estimator.params import count_params
from estimator.readers.huggingface import read_config as read_hf_config
from estimator.user_data import write_bytes_atomically
from estimator.weights import random_weights, weight_shapes

TOLERANCE = 1e-4


def _run(session, inputs):
    """Outputs by name."""
    return dict(zip([entry.name for entry in session.get_outputs()], session.run(None, inputs), strict=True))


def _session(config, weights, path):
    return open_session(build_onnx(config, weights, path=path).path, num_threads=1)


def _torch_outputs(config, weights, inputs):
    model = TransformerModel(config).eval()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(inputs[name]) for name in names})
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _step(session, config, ids, past, position):
    """Logits of one call, and the cache after it."""
    batch_size, length = ids.shape
    positions = np.broadcast_to(np.arange(position, position + length), (batch_size, length))
    outputs = _run(session, {"input_ids": ids, "position_ids": np.ascontiguousarray(positions)} | past)
    presents = {
        old: outputs[new]
        for layer in config.layers
        for old, new in zip(past_names(layer.index), present_names(layer.index), strict=True)
    }
    return next(iter(outputs.values())), presents


def _empty_past(config, batch_size):
    inputs = make_inputs(config, batch_size=batch_size, sequence_length=1)
    return {name: values for name, values in inputs.items() if name.startswith("past_key_values")}


def test_graph_is_valid_and_equals_torch(random_configs, noisy_weights, tmp_path):
    """For configs that together use every option: checker, outputs within 1e-4, parameter count, config read back."""
    for index, config in enumerate(random_configs):
        weights, length = noisy_weights(config, index), min(11, config.max_position_embeddings)
        artifact = build_onnx(config, weights, path=tmp_path / "model.onnx")
        onnx.checker.check_model(str(artifact.path), full_check=True)
        inputs = make_inputs(config, batch_size=3, sequence_length=length, seed=index)
        if not config.is_causal:
            inputs["attention_mask"][1, length // 2 + 1 :] = 0
        if config.type_vocab_size:
            inputs["token_type_ids"][:, length // 2 :] = 1
        found = open_session(artifact.path, num_threads=1).run(None, inputs)
        for ours, theirs in zip(found, _torch_outputs(config, weights, inputs), strict=False):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0, err_msg=str(config))
        assert artifact.num_params == count_params(config).total
        assert read_config(artifact.path) == config


def test_chunks_with_a_past_equal_one_call(random_configs, noisy_weights, tmp_path):
    """Prefill in one call, in pieces and token by token: the same outputs and the same cache."""
    decoders = [config for config in random_configs if config.is_causal and not config.type_vocab_size]
    assert len(decoders) > 30
    for config in decoders:
        session = _session(config, noisy_weights(config), tmp_path / "model.onnx")
        length = min(9, config.max_position_embeddings)
        ids = make_inputs(config, batch_size=2, sequence_length=length)["input_ids"]
        whole, whole_cache = _step(session, config, ids, _empty_past(config, 2), 0)
        pieces, cache = [], _empty_past(config, 2)
        for first, last in zip((0, 1, 2, 5, 8), (1, 2, 5, 8, 9), strict=True):
            if first < length:
                piece, cache = _step(session, config, ids[:, first:last], cache, first)
                pieces.append(piece)
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=TOLERANCE, rtol=0, err_msg=str(config))
        for name, values in whole_cache.items():
            np.testing.assert_allclose(cache[name], values, atol=TOLERANCE, rtol=0)


DECODERS = {
    "llama": {},
    "multi_query": {"num_key_value_heads": 1},
    "gpt2": {
        "position_embedding": "learned",
        "norm_type": "layer_norm",
        "gated_mlp": False,
        "hidden_act": "gelu_new",
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    },
    "window": {"sliding_window": 4},
    "two_windows": {"sliding_window_per_layer": (3, 6), "qk_norm": True},
    "shared": {"weight_source_per_layer": (0, 0), "sliding_window_per_layer": (4, None)},
    "per_layer": {"num_attention_heads_per_layer": (2, 6), "intermediate_size_per_layer": (32, 80)},
}


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_decoding_equals_full_recomputation(small, name, noisy_weights, tmp_path):
    """Token for token, for two sequences at once, over 24 tokens; and the torch module would choose them as well."""
    config = dataclasses.replace(small, **DECODERS[name])
    weights = {name: 3 * values if values.ndim > 1 else values for name, values in noisy_weights(config).items()}
    session = _session(config, weights, tmp_path / "model.onnx")
    prompt = make_inputs(config, batch_size=2, sequence_length=5, seed=3)["input_ids"]
    logits, cache = _step(session, config, prompt, _empty_past(config, 2), 0)
    stepwise = full = prompt
    for _ in range(24):
        stepwise = np.concatenate([stepwise, logits[:, -1:].argmax(axis=-1)], axis=1)
        logits, cache = _step(session, config, stepwise[:, -1:], cache, stepwise.shape[1] - 1)
        whole, _ = _step(session, config, full, _empty_past(config, 2), 0)
        full = np.concatenate([full, whole[:, -1:].argmax(axis=-1)], axis=1)
    np.testing.assert_array_equal(stepwise, full)
    (expected,) = _torch_outputs(config, weights, {"input_ids": full})
    np.testing.assert_array_equal(expected[:, 4:-1].argmax(axis=-1), full[:, 5:])
    assert len(np.unique(full[:, 5:])) > 4  # no loop on one token, which any decoder would agree on


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True},
        {"architecture": "encoder", "head": "masked_lm", "tie_word_embeddings": True},
        {"head": "none"},
    ],
)
def test_every_weight_reaches_the_output(small, changes, noisy_weights, tmp_path):
    """No stored weight is dead in the graph: changing any one changes what comes out."""
    config = dataclasses.replace(
        small, attention_bias=True, attention_output_bias=True, mlp_bias=True, norm_type="layer_norm", **changes
    )
    weights = noisy_weights(config)
    inputs = make_inputs(config, batch_size=1, sequence_length=6)
    before = _session(config, weights, tmp_path / "model.onnx").run(None, inputs)[0]
    for name, values in weights.items():
        changed = weights | {name: values + np.linspace(0, 0.5, values.size, dtype=np.float32).reshape(values.shape)}
        after = _session(config, changed, tmp_path / "model.onnx").run(None, inputs)[0]
        assert np.abs(after - before).max() > 1e-4, name


def _hf_models():
    import transformers as hf

    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 64, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2}
    grouped = sizes | {"num_key_value_heads": 2, "pad_token_id": None}
    gpt2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 16, "rope_theta": 500.0}
    windows = {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}
    return {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "llama3": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**grouped, attention_bias=True, mlp_bias=True, head_dim=10, rope_parameters=llama3)
        ),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**grouped, sliding_window=5)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped, **windows, tie_word_embeddings=True)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped, head_dim=12)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2, bos_token_id=1, eos_token_id=2)),
        "bert_mlm": lambda: hf.BertForMaskedLM(hf.BertConfig(**sizes)),
        "bert": lambda: hf.BertModel(hf.BertConfig(**sizes)),
    }


@pytest.mark.parametrize("name", ["llama", "llama3", "mistral", "qwen2", "qwen3", "gpt2", "bert_mlm", "bert"])
def test_graph_of_converted_weights_equals_transformers(name, tmp_path):
    """Random weights of the library's own class, converted, give its logits; encoders with padding."""
    torch.manual_seed(0)
    model = _hf_models()[name]().eval()
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.1)
    values = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    config = read_hf_config(values)[0]
    weights = from_hf_state_dict(config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    inputs = make_inputs(config, batch_size=2, sequence_length=24, seed=5)
    if not config.is_causal:
        inputs["attention_mask"][1, 15:] = 0
        inputs["token_type_ids"][:, 10:] = 1
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    with torch.no_grad():
        theirs = model(**{name: torch.from_numpy(inputs[name]) for name in names})
    ours = _run(_session(config, weights, tmp_path / "model.onnx"), inputs)
    is_token = inputs.get("attention_mask", np.ones((2, 24))).astype(bool)
    for output in ("logits", "last_hidden_state", "pooler_output"):
        if output in ours:
            expected, found = theirs[output].numpy(), ours[output]
            rows = is_token if found.ndim == 3 else slice(None)
            np.testing.assert_allclose(found[rows], expected[rows], atol=TOLERANCE, rtol=0)
    assert count_params(config).total == sum(weight.numel() for weight in model.parameters())


def test_tied_matrix_stands_in_the_file_once(small, tmp_path):
    """Untying costs exactly the matrix, up to a few nodes; the tied file is its parameters and little more."""
    config = dataclasses.replace(small, vocab_size=5000)
    untied = build_onnx(config, path=tmp_path / "untied.onnx")
    tied = build_onnx(dataclasses.replace(config, tie_word_embeddings=True), path=tmp_path / "tied.onnx")
    assert abs(untied.file_bytes - tied.file_bytes - 4 * 5000 * 64) < 2_000
    assert 0 < tied.file_bytes - 4 * tied.num_params < 20_000


def test_shared_layer_stands_in_the_file_once(small, tmp_path):
    """A second layer with the weights of the first adds nodes alone."""
    shared = build_onnx(dataclasses.replace(small, weight_source_per_layer=(0, 0)), path=tmp_path / "shared.onnx")
    one = build_onnx(dataclasses.replace(small, num_hidden_layers=1), path=tmp_path / "one.onnx")
    assert shared.num_params == one.num_params
    assert shared.file_bytes - one.file_bytes < 10_000


def test_artifact_is_what_the_file_is(small, tmp_path):
    """Each field against the file, read by other means."""
    artifact = build_onnx(small, path=tmp_path / "model.onnx", seed=3)
    content = (tmp_path / "model.onnx").read_bytes()
    assert artifact == OnnxArtifact(
        path=tmp_path / "model.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        file_bytes=len(content),
        weight_bytes=4 * count_params(small).total,
        opset=OPSET,
        num_params=sum(math.prod(shape) for shape in weight_shapes(small).values()),
        weight_dtype="fp32",
        provider="cpu",
        architecture_hash=small.architecture_hash(),
    )
    assert read_artifact(str(artifact.path)) == artifact
    assert onnx.load(artifact.path).opset_import[0].version == OPSET


def test_same_input_gives_the_same_bytes(small, tmp_path):
    """Same config and seed, same sha256, also when the weights are given; another seed, another file."""
    first = build_onnx(small, path=tmp_path / "a.onnx", seed=1).sha256
    assert build_onnx(small, random_weights(small, 1), path=tmp_path / "b.onnx").sha256 == first
    assert build_onnx(small, path=tmp_path / "c.onnx", seed=2).sha256 != first


def _with(name, change):
    def spoil(weights):
        weights[name] = change(weights[name])

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.pop("norm.weight"), "'norm.weight' is missing"),
        (lambda weights: weights.update({"norm.bias": np.zeros(64)}), "'norm.bias' is not one of this config's"),
        (_with("lm_head.weight", np.transpose), r"'lm_head.weight' has shape \(64, 100\).*\(100, 64\)"),
        (_with("norm.weight", lambda values: values * np.nan), "'norm.weight' holds values that are not finite"),
    ],
)
def test_wrong_weights_are_refused_by_name(small, spoil, words, tmp_path):
    """Missing, extra, wrongly shaped, not finite; and no file is written."""
    weights = random_weights(small)
    spoil(weights)
    with pytest.raises(BuildError, match=words):
        build_onnx(small, weights, path=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["fp8", "int3", "int4-g32", ""])
def test_types_that_cannot_be_built_are_refused(small, dtype, tmp_path):
    """The message says which can."""
    with pytest.raises(BuildError, match=f"'{dtype}' cannot be built; these can: fp32, fp16, bf16, int8"):
        build_onnx(small, path=tmp_path / "model.onnx", weight_dtype=dtype)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"provider": "tpu"}, "cpu, cuda, not 'tpu'"),
        ({"provider": "cuda", "weight_dtype": "int8"}, "int8 is written for the CPU only; build fp32"),
        ({"provider": "cuda", "weight_dtype_per_layer": ("fp32", "int4")}, "int4 is written for the CPU only"),
    ],
)
def test_providers_that_cannot_run_it_are_refused(small, options, words, tmp_path):
    """An unknown provider, and types that are not written for it."""
    with pytest.raises(BuildError, match=words):
        build_onnx(small, path=tmp_path / "model.onnx", **options)


def test_file_beyond_the_format_is_refused_before_any_weight_is_made(small, tmp_path):
    """Two gibibytes end a protobuf message; a config of terabytes is refused at once."""
    huge = dataclasses.replace(small, vocab_size=2**30, hidden_size=2**12, head_dim=16)
    with pytest.raises(BuildError, match="do not fit one ONNX file, which ends at 2 GiB"):
        build_onnx(huge, path=tmp_path / "model.onnx")


def test_rope_scaling_of_an_unknown_type_is_refused(small, tmp_path):
    """By its name."""
    config = dataclasses.replace(small, rope_scaling='{"factor":2.0,"rope_type":"yarn"}')
    with pytest.raises(BuildError, match="'yarn' cannot be built"):
        build_onnx(config, path=tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [(errno.ENOSPC, StorageFullError, "no space left for"), (errno.EACCES, BuildError, "cannot be written: Perm")],
)
def test_full_or_forbidden_disk_is_one_line(small, monkeypatch, tmp_path, code, expected, words):
    """The error names the file, and leaves an older one as it was."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")

    def refuse(*_):
        raise OSError(code, {errno.ENOSPC: "No space left on device", errno.EACCES: "Permission denied"}[code])

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(expected, match=words) as caught:
        build_onnx(small, path=path)
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"older"


def test_file_is_readable_by_others_and_its_folder_is_made(tmp_path):
    """Not for its owner alone, as temporary files are."""
    write_bytes_atomically(tmp_path / "new" / "file", b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    assert (tmp_path / "new" / "file").stat().st_mode & 0o044 == 0o044


def test_folder_in_the_way_is_a_build_error(small, tmp_path):
    """The path is a folder, or lies under a file."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "model.onnx"):
        with pytest.raises(BuildError, match="cannot be written"):
            build_onnx(small, path=path)


@pytest.mark.parametrize("read", [read_artifact, read_config])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_text("{}"), "not an ONNX file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not an ONNX file|not written by Archfront"),
        (lambda path: _respell(path, lambda entries: entries.clear()), "was not written by Archfront"),
        (
            lambda path: _respell(path, lambda entries: entries.update(head="tail")),
            "config that cannot be read: .*head",
        ),
    ],
)
def test_files_that_are_not_ours_are_refused(small, read, spoil, words, tmp_path):
    """Missing, another format, cut off, another writer, an impossible config."""
    path = build_onnx(small, path=tmp_path / "model.onnx").path
    spoil(path)
    with pytest.raises(CorruptFileError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def _respell(path, change):
    """Changes the config in the file's metadata; without fields, there is none."""
    model = onnx.load(path)
    config = read_config(path).to_dict()
    change(config)
    onnx.helper.set_model_props(model, {"archfront.config": json.dumps(config)} if config else {})
    if config:
        onnx.helper.set_model_props(
            model,
            {
                "archfront.config": json.dumps(config),
                "archfront.weight_dtype": "fp32",
                "archfront.provider": "cpu",
            },
        )
    onnx.save(model, path)


def test_config_survives_json(random_configs):
    """Which is how the file keeps it."""
    for config in random_configs:
        assert TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "table",
    [
        '{"rope_type":["x"]}',
        '{"rope_type":"linear"}',
        '{"rope_type":"linear","factor":"x"}',
        '{"rope_type":"linear","factor":0}',
        '{"rope_type":"linear","factor":-1}',
        '{"factor":2,"high_freq_factor":1,"low_freq_factor":1,"original_max_position_embeddings":8,"rope_type":"llama3"}',
    ],
)
def test_impossible_rope_scaling_is_refused(table, tmp_path):
    """A graph that would divide by zero, or by a word, is not built."""
    config = TransformerConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
        rope_scaling=table,
    )
    with pytest.raises(BuildError, match=r"rope_scaling"):
        build_onnx(config, path=tmp_path / "model.onnx")
