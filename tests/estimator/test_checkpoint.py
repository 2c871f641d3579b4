"""Checkpoints: read back exactly, and loaded by transformers with the logits of our ONNX file."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from estimator.checkpoint import from_hf_state_dict, hf_family, read_checkpoint, to_hf_state_dict, write_checkpoint
from estimator.config import TransformerConfig
from estimator.errors import BuildError, CorruptFileError, InputError
from estimator.onnx_builder import build_onnx
from estimator.ort_session import make_inputs, open_session
from estimator.params import count_params
from estimator.readers.source import read_source

LLAMA3 = (
    '{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,'
    '"original_max_position_embeddings":8,"rope_type":"llama3"}'
)
GPT2 = {
    "num_key_value_heads": 4,
    "position_embedding": "learned",
    "norm_type": "layer_norm",
    "gated_mlp": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "mlp_bias": True,
    "hidden_act": "gelu_new",
}
BERT = GPT2 | {
    "architecture": "encoder",
    "head": "masked_lm",
    "norm_placement": "post",
    "embedding_norm": True,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
# Changes of the base config -> the stock family that computes it, None for our own format.
CASES = {
    "llama": ({}, "llama"),
    "llama_untied": ({"tie_word_embeddings": False, "head_dim": 16}, "llama"),
    "llama_biases": ({"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}, "llama"),
    "llama3": ({"rope_scaling": LLAMA3}, "llama"),
    "llama_body": ({"head": "none"}, "llama"),
    "mistral": ({"sliding_window": 4}, "mistral"),
    "qwen2": ({"attention_bias": True}, "qwen2"),
    "qwen2_windows": ({"attention_bias": True, "sliding_window_per_layer": (None, 4)}, "qwen2"),
    "qwen3": ({"qk_norm": True, "head_dim": 16}, "qwen3"),
    "gpt2": (GPT2, "gpt2"),
    "gpt2_untied": (GPT2 | {"tie_word_embeddings": False}, "gpt2"),
    "bert_mlm": (BERT, "bert"),
    "bert_pooler": (BERT | {"head": "pooler"}, "bert"),
    "widths": ({"intermediate_size_per_layer": (48, 32)}, None),
    "heads": ({"num_attention_heads_per_layer": (4, 2)}, None),
    "shared": ({"weight_source_per_layer": (0, 0), "sliding_window_per_layer": (4, None)}, None),
    "scaled_widths": ({"intermediate_size_per_layer": (48, 32), "rope_scaling": LLAMA3}, None),
    "grouped_gpt2": (GPT2 | {"num_key_value_heads": 2, "tie_word_embeddings": False}, None),
    "llama_encoder": ({"architecture": "encoder", "head": "masked_lm"}, None),
    "own_pooler": ({"architecture": "encoder", "head": "pooler", "type_vocab_size": 2}, None),
    "own_body": ({"head": "none", "embedding_norm": True}, None),
    # BERT's class cannot do without token types
    "typeless_bert": (BERT | {"type_vocab_size": 0}, None),
}


def _config(name):
    base = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
    }
    changes = CASES[name][0]
    if "num_attention_heads_per_layer" in changes:
        base["head_dim"] = 8
    return TransformerConfig(**base | changes)


def _load(folder, config):
    """The model by its Auto class, which must find each weight in the file and nothing else there."""
    import transformers

    names = {"causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM"}
    auto = getattr(transformers, names.get(config.head, "AutoModel"))
    is_own = hf_family(config) is None
    model, report = auto.from_pretrained(folder, trust_remote_code=is_own, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_checkpoint_is_read_back_and_loaded_by_transformers(name, noisy_weights, tmp_path):
    """The same config, weights to the bit, parameters, and logits within 1e-4 of our ONNX file, with padding."""
    config, family = _config(name), CASES[name][1]
    assert hf_family(config) == family
    weights = noisy_weights(config)
    write_checkpoint(config, weights, tmp_path / "model")
    again, read = read_checkpoint(tmp_path / "model")
    assert again == config == read_source(tmp_path / "model").config
    assert list(read) == list(weights)
    for weight_name, values in weights.items():
        np.testing.assert_array_equal(read[weight_name], values)

    model = _load(tmp_path / "model", config)
    assert type(model).__name__.startswith("Archfront") == (family is None)
    assert sum(weight.numel() for weight in model.parameters()) == count_params(config).total
    inputs = make_inputs(config, batch_size=2, sequence_length=20, seed=1)
    is_token = np.ones((2, 20), bool)
    if not config.is_causal:
        inputs["attention_mask"][1, 15:] = 0
        is_token = inputs["attention_mask"].astype(bool)
    session = open_session(build_onnx(config, weights, path=tmp_path / "model.onnx").path, num_threads=1)
    found = session.run(None, inputs)[0]
    names = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in inputs]
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(inputs[key]) for key in names})[0].numpy()
    np.testing.assert_allclose(found[is_token], expected[is_token], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "shared"])
def test_transformers_generates_what_the_onnx_file_does(name, noisy_weights, tmp_path):
    """generate() without a cache of its own or with one: the same tokens."""
    config = dataclasses.replace(_config(name), tie_word_embeddings=False)
    weights = noisy_weights(config)
    write_checkpoint(config, weights, tmp_path)
    session = open_session(build_onnx(config, weights, path=tmp_path / "model.onnx").path, num_threads=1)
    inputs = make_inputs(config, batch_size=1, sequence_length=5)
    ids = inputs["input_ids"]
    generated = _load(tmp_path, config).generate(torch.from_numpy(ids), max_new_tokens=8, do_sample=False)
    for _ in range(8):
        step = make_inputs(config, batch_size=1, sequence_length=ids.shape[1]) | {"input_ids": ids}
        ids = np.concatenate([ids, session.run(["logits"], step)[0][:, -1:].argmax(axis=-1)], axis=1)
    assert generated.tolist() == ids.tolist()


def test_own_format_needs_nothing_of_this_package(noisy_weights, tmp_path):
    """A process that cannot import estimator loads the folder, computes a loss and saves it again."""
    config = _config("shared")
    write_checkpoint(config, noisy_weights(config), tmp_path / "model")
    code = (
        "import sys, torch, transformers\n"
        "sys.modules['estimator'] = None\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained('model', trust_remote_code=True)\n"
        "ids = torch.arange(12).reshape(2, 6)\n"
        "loss = model(ids, labels=ids).loss\n"
        "expected = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())\n"
        "assert torch.equal(loss, expected) and loss > 0\n"
        "model.save_pretrained('again')\n"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-I", "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "again")[0] == config


def test_own_decoder_refuses_padding(noisy_weights, tmp_path):
    """It has no mask for it, and says so instead of computing something else."""
    config = _config("widths")
    write_checkpoint(config, noisy_weights(config), tmp_path)
    model, ids = _load(tmp_path, config), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes no padding"):
        model(ids, attention_mask=torch.tensor([[0, 1, 1, 1]]))


def test_stock_config_names_the_class_and_no_code(noisy_weights, tmp_path):
    """A stock checkpoint is two files without remote code; ours has the fields at the top level."""
    write_checkpoint(_config("llama"), noisy_weights(_config("llama")), tmp_path / "stock")
    assert {path.name for path in (tmp_path / "stock").iterdir()} == {"config.json", "model.safetensors"}
    stock = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert (stock["model_type"], stock["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert "auto_map" not in stock
    write_checkpoint(_config("shared"), noisy_weights(_config("shared")), tmp_path / "own")
    own = json.loads((tmp_path / "own" / "config.json").read_text())
    assert own["model_type"] == "archfront"
    assert own.items() >= _config("shared").to_dict().items()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_read(dtype, noisy_weights, tmp_path):
    """Each number is the one that PyTorch reads."""
    from safetensors.torch import save_file

    config = _config("llama")
    write_checkpoint(config, noisy_weights(config), tmp_path)
    state_dict = to_hf_state_dict(config, noisy_weights(config))
    tensors = {name: torch.from_numpy(values).to(dtype) for name, values in state_dict.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    expected = from_hf_state_dict(config, {name: tensor.float().numpy() for name, tensor in tensors.items()})
    for name, values in read_checkpoint(tmp_path)[1].items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected[name])


def test_gpt2_fuses_and_transposes_its_projections(noisy_weights):
    """c_attn is [in, 3 * out] with queries, keys and values beside each other."""
    config = _config("gpt2")
    weights = noisy_weights(config)
    fused = to_hf_state_dict(config, weights)["transformer.h.1.attn.c_attn.weight"]
    assert fused.shape == (32, 96)
    for index, which in enumerate("qkv"):
        part = fused[:, 32 * index : 32 * index + 32]
        np.testing.assert_array_equal(part, weights[f"layers.1.self_attn.{which}_proj.weight"].T)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert_mlm"])
def test_missing_prefix_copies_and_buffers_are_understood(name, noisy_weights):
    """As in published files: no prefix, the tied matrix a second time, buffers of old versions."""
    config = _config(name)
    weights = noisy_weights(config)
    prefix = {"gpt2": "transformer.", "llama": "model.", "bert_mlm": "bert."}[name]
    head = "cls.predictions.decoder" if name == "bert_mlm" else "lm_head"
    extra = {f"{head}.weight": weights["embed_tokens.weight"]}
    if name == "bert_mlm":
        extra |= {f"{head}.bias": weights["lm_head.bias"], "embeddings.position_ids": np.arange(32)}
    else:
        extra |= {"h.0.attn.bias" if name == "gpt2" else "layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)}
    bare = {full.removeprefix(prefix): values for full, values in to_hf_state_dict(config, weights).items()}
    found = from_hf_state_dict(config, bare | extra)
    assert list(found) == list(weights)
    for weight_name, values in weights.items():
        np.testing.assert_array_equal(found[weight_name], values)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("model.norm.weight"), "'model.norm.weight' is missing"),
        (lambda state: state.update({"model.norm.bias": np.ones(32)}), "'model.norm.bias' is not one of this config's"),
        (lambda state: state.update({"model.norm.weight": np.ones(31)}), r"'model.norm.weight' has shape \(31,\)"),
        (lambda state: state.update({"lm_head.weight": np.ones((61, 32))}), "'lm_head.weight' should be tied to"),
    ],
)
def test_wrong_state_dict_is_refused_by_name(spoil, words, noisy_weights):
    """Missing, unknown, wrongly shaped, and a head that is not the embedding it is tied to."""
    config = _config("llama")
    state_dict = dict(to_hf_state_dict(config, noisy_weights(config)))
    spoil(state_dict)
    with pytest.raises(BuildError, match=words):
        from_hf_state_dict(config, state_dict)


def test_config_without_a_class_has_no_names_there(noisy_weights):
    """The conversions refuse it; write_checkpoint has our own format for it."""
    config = _config("shared")
    for convert in (to_hf_state_dict, from_hf_state_dict):
        with pytest.raises(BuildError, match="no Hugging Face class computes this config"):
            convert(config, noisy_weights(config))


def test_incomplete_weights_are_refused_before_anything_is_written(noisy_weights, tmp_path):
    """The weight is named, and the folder is not made."""
    config = _config("llama")
    weights = noisy_weights(config)
    del weights["layers.1.mlp.up_proj.weight"]
    with pytest.raises(BuildError, match=r"'layers.1.mlp.up_proj.weight' is missing"):
        write_checkpoint(config, weights, tmp_path / "model")
    with pytest.raises(BuildError, match=r"'layers.1.mlp.up_proj.weight' is missing"):
        to_hf_state_dict(config, weights)
    assert not (tmp_path / "model").exists()


def test_damaged_checkpoints_are_refused(noisy_weights, tmp_path):
    """No weights, no safetensors file, a type that is not read, no config: one line each."""
    from safetensors.numpy import save_file

    config, weights_path = _config("llama"), tmp_path / "model.safetensors"
    write_checkpoint(config, noisy_weights(config), tmp_path)
    save_file({"model.norm.weight": np.ones(32, np.int8)}, weights_path)
    with pytest.raises(CorruptFileError, match=r"model.norm.weight has type I8; F32, F16, BF16 can be read"):
        read_checkpoint(tmp_path)
    weights_path.write_bytes(b"not a checkpoint")
    with pytest.raises(CorruptFileError, match=r"model\.safetensors asks for a header"):
        read_checkpoint(tmp_path)
    weights_path.unlink()
    with pytest.raises(CorruptFileError, match="No such file"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds neither a config\.json nor weights"):
        read_checkpoint(tmp_path)
