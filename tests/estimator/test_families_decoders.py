"""Decoders as rows of facts: sizes, caches and FLOPs are those of small real models of transformers."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

import estimator
from estimator.errors import ConfigError, InputError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.params import count_params
from estimator.readers.families.decoder_families import DECODERS
from estimator.readers.family_data import family_data
from estimator.readers.networks import read_network
from estimator.workload import Workload

GOLDEN = Path(estimator.__file__).parent / "reference"
TOKENS = 9
# One small value for each field that any family sizes by: sizes that differ from each other, so that none can stand in
# for another unnoticed.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 16,
    "kv_channels": 16,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "ffn_dim": 88,
    "ffn_hidden_size": 88,
    "n_inner": 88,
    "dff": 88,
    "intermediate_size_mlp": 80,
    "dense_intermediate_size": 80,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "moe_num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "shared_expert_intermediate_size": 40,
    "shared_intermediate_size": 40,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "zero_expert_num": 0,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "index_n_heads": 2,
    "index_head_dim": 18,
    "index_topk": 64,
    "rotary_dim": 8,
    "sliding_window": 5,
    "window_size": 5,
    "attention_chunk_size": 5,
    "local_attention": 10,
    "keep_window_size": 64,
    "hidden_size_per_layer_input": 11,
    "vocab_size_per_layer_input": 90,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "gemma3n_text": {"num_hidden_layers": 8, "num_kv_shared_layers": 2, "altup_num_inputs": 3, "laurel_rank": 7},
    "gemma4_text": {
        "num_hidden_layers": 8,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "attention_k_eq_v": True,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
    "dbrx": {
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "longcat_flash": {"head_dim": 8},
}
# transformers runs every expert of llama4 on every token, and multiplies what was not chosen by zero.
ALL_EXPERTS = ("llama4_text",)
# transformers keeps all tokens for gpt_neo's local layers and masks them; what the layers attend to is the window.
FULL_CACHE = ("gpt_neo",)
NO_CACHE = ("openai-gpt",)


@pytest.fixture(scope="module")
def hf():
    """The transformers package, with torch on one thread."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch").set_num_threads(1)
    return transformers


def small_config(transformers, model_type, **changes):
    """The family's configuration with the small values of the fields that it has."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    declared = {field.name for field in dataclasses.fields(config_class)}
    values = {}
    for name, value in (SMALL | changes).items():
        own = name if name in declared else config_class.attribute_map.get(name)
        if own in declared:
            values[own] = value
    if "kv_lora_rank" in declared and "num_key_value_heads" in declared:
        values["num_key_value_heads"] = SMALL["num_attention_heads"]
    config = config_class(**values | OWN.get(model_type, {}))
    config._attn_implementation = config._experts_implementation = "eager"
    return config


def built(transformers, model_type):
    """A small model of the family's default class, and the network that its config.json reads as."""
    config, name = small_config(transformers, model_type), family_data(model_type).default_class
    model = getattr(transformers, name)(config).eval().requires_grad_(False)
    values = json.loads(json.dumps(config.to_dict(), default=str)) | {"architectures": [name]}
    return model, read_network(values)[0]


def kept_elements(network, num_tokens):
    """Elements of the cache of one sequence; transformers keeps one token less than a window, the next one's room."""
    attentions = [block.attention for block in network.main.blocks if block.attention and "index" not in block.name]
    return sum(a.cached_elements * min(num_tokens, a.window - 1 if a.window else num_tokens) for a in attentions)


@pytest.mark.parametrize("model_type", sorted(DECODERS))
def test_family_is_what_a_small_model_of_transformers_is(hf, model_type):
    """Parameters, FLOPs of a prefill and elements of the cache are those that the running model has."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, network = built(hf, model_type)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())
    tokens = torch.arange(2 * TOKENS).view(2, TOKENS) % 90 + 3
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(tokens, use_cache=True)
    flops = count_flops(network, Workload(batch_size=2, prompt_length=TOKENS)).prefill_flops
    assert (flops < counter.get_total_flops()) if model_type in ALL_EXPERTS else flops == counter.get_total_flops()
    if model_type not in NO_CACHE:
        layers = output.past_key_values.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
        kept = sum(tensor.numel() for tensor in tensors) // 2
        assert (
            kept_elements(network, TOKENS) < kept
            if model_type in FULL_CACHE
            else kept_elements(network, TOKENS) == kept
        )


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "falcon", "gpt_oss", "qwen2_moe", "opt", "mpt"])
def test_decode_flops_are_those_of_one_more_token(hf, model_type):
    """One token on a full cache, in layers with and without windows and experts."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, network = built(hf, model_type)
    tokens = torch.arange(TOKENS).view(1, TOKENS) + 3
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(tokens[:, :1], cache=cache, use_cache=True)
    expected = count_flops(network, Workload(prompt_length=TOKENS)).decode_flops_per_token
    assert counter.get_total_flops() == expected


def windows(network):
    """The window of each layer's attention."""
    found = [[b.attention.window for b in layer.blocks if b.attention] for layer in network.main.layers]
    return [layer[0] for layer in found]


@pytest.mark.parametrize("model_type", sorted(set(DECODERS) - {"gpt_neo"}))  # which has no list of types
def test_windows_are_in_the_layers_that_transformers_lists(hf, model_type):
    """Whether config.json has the list or leaves it to the family's rule; switched on where there is a switch."""
    layers = {"num_hidden_layers": 13, "num_layers": 13, "max_window_layers": 7, "use_sliding_window": True}
    whole = small_config(hf, model_type, **layers).to_dict()
    kinds = whole.get("layer_types") or [_kind_of_all(whole)] * 13
    expected = [kind in ("sliding_attention", "chunked_attention") for kind in kinds]
    without_list = {name: value for name, value in whole.items() if name != "layer_types"}
    for values in (whole, without_list):
        network = read_network(json.loads(json.dumps(values, default=str)))[0]
        assert [window is not None for window in windows(network)] == expected


def _kind_of_all(values):
    return "sliding_attention" if values.get("sliding_window") else "full_attention"


def golden_rows():
    """Published configs of decoders with their class and counted parameters."""
    for folder in (GOLDEN, GOLDEN / "published"):
        with (folder / "params_truth.tsv").open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                values = json.loads((folder / "configs" / f"{row['config']}.json").read_text(encoding="utf-8"))
                if values.get("model_type") in DECODERS and row["params"]:
                    yield pytest.param(values, row, id=row["config"])


@pytest.mark.parametrize(("values", "row"), list(golden_rows()))
def test_published_config_has_its_published_parameters(values, row):
    """As published, with every field that no class reads; counted by transformers."""
    network, hf_class, warnings = read_network(values)
    assert count_params(network).total == int(row["params"])
    assert (hf_class, warnings) == (row["class"], ())


def test_config_without_model_type_is_read_by_its_class():
    """MiniCPM3 publishes a class and code of its own, and no model_type: 62 layers, a latent of 256 + 32 per token."""
    values = json.loads((GOLDEN / "configs" / "minicpm3-4b-mla.json").read_text(encoding="utf-8"))
    assert "model_type" not in values
    network, hf_class, warnings = read_network(values)
    assert (network.model_type, hf_class) == ("minicpm3", "MiniCPM3ForCausalLM")
    assert kept_elements(network, 1) == 62 * (256 + 32)
    assert "model_type minicpm3" in warnings[0]


def test_renamed_model_type_is_read_as_what_it_renames():
    """Kimi-K2 is DeepSeek-V3 with more experts and fewer heads."""
    values = json.loads((GOLDEN / "configs" / "deepseek-v3.json").read_text(encoding="utf-8"))
    renamed, hf_class, warnings = read_network(values | {"model_type": "kimi_k2"})
    assert (renamed, hf_class) == (read_network(values)[0], "DeepseekV3ForCausalLM")
    assert "model_type deepseek_v3" in warnings[0]


def test_class_of_the_publisher_is_read_by_its_head():
    """A class of code that comes along is read by its head; without that code, an unknown class is refused."""
    values = {"model_type": "mpt", "architectures": ["MosaicForCausalLM"]}
    network, hf_class, warnings = read_network(values | {"auto_map": {"AutoModel": "modeling_mpt.MosaicForCausalLM"}})
    assert (hf_class, network.model_type) == ("MptForCausalLM", "mpt")
    assert "MosaicForCausalLM" in warnings[0]
    with pytest.raises(UnsupportedModelError, match="MosaicForCausalLM"):
        read_network(values)


@pytest.mark.parametrize("names", [None, [], ["LlamaFor"], ["NoSuchForCausalLM"], [3], "LlamaForCausalLM"])
def test_config_that_says_nothing_of_its_kind_is_refused(names):
    """Neither model_type nor a class that tells one: nothing is guessed."""
    with pytest.raises(InputError, match="model_type"):
        read_network({"hidden_size": 64, "architectures": names})


def test_class_of_several_families_is_that_of_its_name():
    """exaone and others use LlamaForCausalLM; alone, it means llama."""
    assert read_network({"architectures": ["LlamaForCausalLM"]})[0].model_type == "llama"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"model_type": "gpt_neo", "attention_types": [[["global"], 3]]}, "attention_types"),
        ({"model_type": "gpt_neo", "attention_types": [["global", 24]]}, "attention_types"),
        ({"model_type": "gpt_neo", "attention_types": 7}, "attention_types"),
        ({"model_type": "gpt_neo", "attention_types": [[["global", "far"], 12]]}, "attention_types"),
        ({"model_type": "hunyuan_v1_moe", "moe_topk": [1, 2] * 16}, "moe_topk"),
        ({"model_type": "deepseek_v2"}, "num_experts_per_tok"),
        ({"model_type": "deepseek_v3", "moe_layer_freq": 2}, "moe_layer_freq"),
        ({"model_type": "deepseek_v3", "qk_head_dim": 7}, "qk_head_dim"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "mpt", "attn_config": {"attn_type": "multiquery_attention"}}, "attn_type"),
        ({"model_type": "dbrx", "ffn_config": {"moe_num_experts": "many"}}, "ffn_config"),
        ({"model_type": "llama", "layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "helium", "head_dim": 64}, "hidden_size"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "num_attention_heads"),
        ({"model_type": "llama", "intermediate_size": None}, "intermediate_size"),
        ({"model_type": "qwen3", "head_dim": None}, "head_dim"),
        ({"model_type": "roberta", "intermediate_size": None}, "intermediate_size"),
        ({"model_type": "llama", "mystery_size": 3}, "mystery_size"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_sized_is_refused_by_name(values, field):
    """One line that names the field."""
    with pytest.raises(ConfigError, match=field) as caught:
        read_network(values)
    assert "\n" not in str(caught.value)


def test_bidirectional_gemma_is_an_encoder():
    """EmbeddingGemma is Gemma 3 that looks to both sides: as many weights, no cache, nothing generated."""
    values = json.loads((GOLDEN / "published" / "configs" / "gemma-3-270m.json").read_text(encoding="utf-8"))
    network, _, _ = read_network(values | {"use_bidirectional_attention": True, "architectures": ["Gemma3TextModel"]})
    decoder, _, _ = read_network(values)
    assert count_params(network).total == count_params(decoder).total  # its head is the table of tokens
    assert (network.architecture, kept_elements(network, TOKENS)) == ("encoder", 0)
    assert count_flops(network, Workload(prompt_length=TOKENS)).decode_flops_per_token is None
