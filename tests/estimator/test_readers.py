"""Readers: equal to transformers on the meta device, and refusing what they cannot represent."""

from __future__ import annotations

import json
import random

import pytest

from estimator.config import TransformerConfig
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.params import count_params
from estimator.readers.buildable_families import BOOKKEEPING, COMMON_REQUIRED, FAMILIES
from estimator.readers.huggingface import read_config, read_dtype

CONFIG_CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gpt2": "GPT2Config",
    "bert": "BertConfig",
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def _options(rng, family):
    """Random fields of a config.json of the family."""
    heads, layers = rng.choice([2, 4, 6]), rng.randint(1, 4)
    fields = {"vocab_size": rng.randint(20, 300), "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        sizes = {"n_embd": heads * rng.choice([8, 10]), "n_head": heads, "n_layer": layers}
        inner = {"n_inner": rng.choice([None, 50]), "n_positions": rng.randint(8, 90)}
        return fields | sizes | inner | {"tie_word_embeddings": rng.random() < 0.7}
    fields |= {
        "hidden_size": heads * rng.choice([8, 10, 16]),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": rng.randint(20, 150),
        "max_position_embeddings": rng.randint(8, 90),
    }
    if family == "bert":
        return fields | {"type_vocab_size": rng.choice([1, 2, 3]), "pad_token_id": 0}
    fields |= {"num_key_value_heads": rng.choice([1, 2, heads]), "tie_word_embeddings": rng.random() < 0.5}
    if family == "qwen3" or (family != "qwen2" and rng.random() < 0.5):
        fields["head_dim"] = rng.choice([6, 12, 20])
    if family in ("llama", "qwen3"):
        fields["attention_bias"] = rng.random() < 0.5
    if family == "llama":
        fields["mlp_bias"] = rng.random() < 0.5
    if family == "mistral":
        fields["sliding_window"] = rng.choice([None, 16])
    if family.startswith("qwen"):
        windows = {"sliding_window": 16, "max_window_layers": rng.randint(0, layers)}
        fields |= windows | {"use_sliding_window": rng.random() < 0.5}
    return fields


def _cases():
    rng = random.Random(3)
    for family, row in FAMILIES.items():
        for index in range(14):
            classes = list(row.heads)
            yield pytest.param(family, classes[index % len(classes)], _options(rng, family), id=f"{family}-{index}")


@pytest.mark.parametrize(("family", "class_name", "fields"), list(_cases()))
def test_count_equals_transformers_on_the_meta_device(family, class_name, fields):
    """Both the short config.json and the full one that transformers writes give the exact count and windows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    hf = getattr(transformers, CONFIG_CLASSES[family])(**fields)
    with torch.device("meta"):
        model = getattr(transformers, class_name)(hf)
    total = sum(parameter.numel() for parameter in model.parameters())

    named = {"model_type": family, "architectures": [class_name]}
    short, hf_class, warnings = read_config(fields | named)
    full, _, _ = read_config(json.loads(hf.to_json_string(use_diff=False)) | named)
    assert count_params(short).total == total
    assert short == full
    assert (hf_class, warnings) == (class_name, ())
    kinds = getattr(hf, "layer_types", None)
    if kinds is not None:
        assert [layer.sliding_window is not None for layer in short.layers] == [k.startswith("sliding") for k in kinds]


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    """A config.json with nothing but its type means the published defaults."""
    transformers = pytest.importorskip("transformers")
    hf = getattr(transformers, CONFIG_CLASSES[family])()
    for name, default in FAMILIES[family].defaults.items():
        if name == "rope_theta":
            assert hf.rope_parameters["rope_theta"] == default
        elif default is None and name != "n_inner":
            continue  # derived by both; compared below
        elif name == "sliding_window" and family.startswith("qwen"):
            assert type(hf)(use_sliding_window=True).sliding_window == default
        else:
            assert getattr(hf, name) == default, name
    first = next(iter(FAMILIES[family].heads))
    short, hf_class, warnings = read_config({"model_type": family})
    full, _, _ = read_config(json.loads(hf.to_json_string(use_diff=False)) | {"architectures": [first]})
    assert short == full
    assert hf_class == first
    assert "architectures" in warnings[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_config_class_is_known(family):
    """transformers has no field for the family that the table does not place."""
    transformers = pytest.importorskip("transformers")
    row = FAMILIES[family]
    hf = getattr(transformers, CONFIG_CLASSES[family])()
    placed = {*row.fields, *row.irrelevant, *row.required, *BOOKKEEPING, *COMMON_REQUIRED, "attention_bias"}
    assert set(hf.to_dict()) <= placed


def test_a_field_stands_in_one_place():
    """Renamed, required and irrelevant fields do not overlap."""
    for row in FAMILIES.values():
        assert not set(row.fields) & (set(row.irrelevant) | set(row.required) | BOOKKEEPING)
        assert not set(row.irrelevant) & (set(row.required) | BOOKKEEPING)


def test_own_format_refuses_unknown_fields():
    """Nothing that could change a size is ignored in our own format either."""
    with pytest.raises(ConfigError, match="num_experts"):
        read_config({"model_type": "archfront", "num_experts": 8})


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_rope_is_read_in_both_spellings(spelling):
    """Theta and scaling change no size, but they are kept for whoever builds the model."""
    table = {"type": "linear", "factor": 2.0} if spelling == "rope_scaling" else {"rope_type": "linear", "factor": 2.0}
    config, _, _ = read_config(LLAMA | {spelling: table | {"rope_theta": 5e5}})
    assert config.rope_theta == 5e5
    assert json.loads(config.rope_scaling) == {"factor": 2.0, "rope_type": "linear"}
    plain, _, _ = read_config(LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    assert plain == read_config(LLAMA)[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"n_layer": 3}, "n_layer"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"hidden_size": [64]}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        ({"architectures": ["LlamaForCausalLM", "LlamaModel"]}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ],
)
def test_what_could_change_the_size_is_refused_by_name(changes, named):
    """Unknown and impossible fields are errors that name the field, in one line."""
    with pytest.raises(ConfigError, match=named) as caught:
        read_config(LLAMA | changes)
    assert caught.value.field == named
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("family", "class_name"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("gpt2", "GPT2DoubleHeadsModel"),
        ("bert", "BertForPreTraining"),
        ("bert", "BertForSequenceClassification"),
        ("bert", "BertLMHeadModel"),
    ],
)
def test_classes_with_other_heads_are_refused_by_name(family, class_name):
    """A head that a config cannot describe is not counted as if it were absent."""
    with pytest.raises(UnsupportedModelError, match=class_name):
        read_config({"model_type": family, "architectures": [class_name], "num_labels": 5})


@pytest.mark.parametrize("model_type", ["mixtral", "t5", "LLAMA", "", 3, None])
def test_other_model_types_are_refused_with_the_supported_ones(model_type):
    """The error names the type and what there is instead."""
    with pytest.raises(
        UnsupportedModelError, match="can be built are llama, mistral, qwen2, qwen3, gpt2, bert"
    ) as caught:
        read_config({"model_type": model_type})
    named = "names no model_type" if model_type is None else f"has model_type {model_type!r}"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("bert", {"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False}, "tie_word_embeddings"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("gpt2", {"n_embd": 64, "hidden_size": 32}, "hidden_size"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("mistral", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"attention_bias": False}, "attention_bias"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}, "layer_types"),
        ("qwen3", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "layer_types"),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": "2"}, "max_window_layers"),
        ("qwen3", {"use_sliding_window": 1}, "use_sliding_window"),
    ],
)
def test_what_a_family_cannot_represent_is_refused(family, changes, named):
    """Each family's own traps."""
    with pytest.raises(ConfigError) as caught:
        read_config({"model_type": family} | changes)
    assert caught.value.field == named


def test_gpt2_is_read_under_the_common_names_too():
    """transformers maps hidden_size and friends onto n_embd and friends."""
    short = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}
    common = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    }
    assert read_config({"model_type": "gpt2"} | short)[0] == read_config({"model_type": "gpt2"} | common)[0]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [({"torch_dtype": "float16"}, "fp16"), ({"dtype": "bfloat16"}, "bf16"), ({"dtype": "auto"}, None), ({}, None)],
)
def test_dtype_is_read(values, dtype):
    """Both spellings; none means none."""
    assert read_dtype(values) == dtype


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"text_config": {"dtype": "bfloat16"}}, "bf16"),
        ({"torch_dtype": "float32", "text_config": {"dtype": "bfloat16"}}, "fp32"),
        ({"text_config": {"text_config": {"dtype": "bfloat16"}}}, None),
        ({"text_config": None}, None),
        ({"dtype": "float16", "torch_dtype": "torch.float16"}, "fp16"),
        ({"dtype": "auto", "torch_dtype": "float16"}, "fp16"),
    ],
)
def test_dtype_of_the_text_counts_where_no_other_is_named(values, dtype):
    """Configs of images and text may name it in the text's config alone."""
    assert read_dtype(values) == dtype


def test_two_dtypes_contradict_each_other():
    """What is named twice must be the same."""
    with pytest.raises(ConfigError, match="'bfloat16' contradicts torch_dtype 'float16'"):
        read_dtype({"dtype": "bfloat16", "torch_dtype": "float16"})


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", 16, ["float32"]])
def test_other_dtypes_are_refused(dtype):
    """A type whose bytes are not known is not guessed."""
    with pytest.raises(ConfigError, match="dtype"):
        read_dtype({"torch_dtype": dtype})


def test_model_class_has_no_head_and_causal_lm_has_one():
    """The class in architectures decides."""
    bare, _, _ = read_config(LLAMA | {"architectures": ["LlamaModel"]})
    full, _, _ = read_config(LLAMA)
    assert isinstance(bare, TransformerConfig)
    assert count_params(full).total - count_params(bare).total == 100 * 64
