"""What single families of decoders do and no other: small functions of the fields, which rows name as facts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from estimator.blocks.common import linear, norm_weights
from estimator.errors import ConfigError
from estimator.network import Attention, Block, Weight
from estimator.readers.fields import Fields

__all__ = [
    "doge_attention",
    "doge_blocks",
    "ernie_layers",
    "falcon_gets_two_norms",
    "falcon_key_value_heads",
    "gate_projection",
    "interleaved_layers",
    "jetmoe_attention",
    "layers_with_rope",
    "layers_without_rope",
    "local_layers",
    "multi_query_heads",
    "sparse_steps",
    "xielu_vectors",
]


def sparse_steps(fields: Fields, num_layers: int) -> Sequence[bool]:
    """Every `decoder_sparse_step`-th layer that `mlp_only_layers` does not name (qwen2_moe)."""
    step = fields.size("decoder_sparse_step")
    dense = fields.sizes("mlp_only_layers") if fields.given("mlp_only_layers") else ()
    return [index not in dense and (index + 1) % step == 0 for index in range(num_layers)]


def ernie_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """Every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index` (-1: the last)."""
    first, step = fields.count("moe_layer_start_index"), fields.size("moe_layer_interval")
    last = num_layers - 1 if fields.raw("moe_layer_end_index") == -1 else fields.count("moe_layer_end_index")
    return [(index + 1) % step == 0 and first <= index <= last for index in range(num_layers)]


def interleaved_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """The layers that `moe_layers` names, else every `interleave_moe_layer_step`-th (llama4)."""
    if fields.given("moe_layers"):
        named = fields.sizes("moe_layers")
        return [index in named for index in range(num_layers)]
    step = fields.size("interleave_moe_layer_step")
    return [(index + 1) % step == 0 for index in range(num_layers)]


def layers_with_rope(fields: Fields, num_layers: int) -> Sequence[bool]:
    """The layers with rotary positions: `no_rope_layers` holds 1 for them, else all but every N-th."""
    if fields.raw("no_rope_layers"):
        return [flag != 0 for flag in fields.sizes("no_rope_layers", num_layers)]
    step = fields.size("no_rope_layer_interval")
    return [(index + 1) % step != 0 for index in range(num_layers)]


def layers_without_rope(fields: Fields, num_layers: int) -> Sequence[bool]:
    """The layers without rotary positions (smollm3)."""
    return [not has_rope for has_rope in layers_with_rope(fields, num_layers)]


def local_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """The layers that `attention_types`, such as [[["global", "local"], 12]], calls local (gpt_neo)."""
    kinds: list[str] = []
    entries = fields.raw("attention_types") or [[["global", "local"], 12]]
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case [[*words], int(times)] if times <= num_layers and all(w in ("global", "local") for w in words):
                kinds += words * times
            case _:
                kinds = []
                break
    if len(kinds) != num_layers:
        raise ConfigError(
            f'attention_types must name "global" or "local" for each of the {num_layers} layers, '
            'such as [[["global", "local"], 12]] for 24',
            field="attention_types",
        )
    return [kind == "local" for kind in kinds]


def multi_query_heads(fields: Fields) -> int:
    """One key-value head with `multi_query`, else as many as heads (gpt_bigcode)."""
    return 1 if fields.flag("multi_query") else fields.size("num_attention_heads")


def falcon_key_value_heads(fields: Fields) -> int | None:
    """`num_kv_heads` in the new architecture, else one with `multi_query`."""
    if fields.flag("new_decoder_architecture"):
        return fields.optional_size("num_kv_heads")
    fields.ignore("num_kv_heads")
    return multi_query_heads(fields)


def falcon_gets_two_norms(fields: Fields) -> int:
    """Two norms per layer unless attention and feed-forward share one."""
    default = 2 if fields.flag("new_decoder_architecture") else 1
    num_parallel = fields.optional_size("num_ln_in_parallel_attn") or default
    return 2 if not fields.flag("parallel_attn") or num_parallel == 2 else 1


def beam_gate(fields: Fields) -> tuple[Weight, ...]:
    """A gate as afmoe's, and a bias per head."""
    bias = Weight(name="gate_bias", shape=(fields.size("num_attention_heads"),), role="bias")
    return (*gate_projection(fields), bias)


def cohere_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """All but every N-th, with one N for the first dense layers and another for those behind (cohere2_moe)."""
    num_dense = min(fields.count("first_k_dense_replace"), num_layers)
    first, rest = fields.size("prefix_dense_sliding_window_pattern"), fields.size("sliding_window_pattern")
    head = [(index + 1) % first != 0 for index in range(num_dense)]
    return head + [(index + 1) % rest != 0 for index in range(num_layers - num_dense)]


def half_local_attention(fields: Fields) -> int | None:
    """`local_attention` counts both sides (ModernBERT); a decoder looks to one."""
    return fields.size("local_attention") // 2 or None


def norm_with_optional_bias(fields: Fields) -> str:
    """Layer norms, with a shift where `norm_bias` says so (ModernBERT)."""
    return "layer_norm" if fields.flag("norm_bias") else "layer_norm_without_bias"


def gate_projection(fields: Fields) -> tuple[Weight, ...]:
    """A gate on what attention yields, from the hidden size, without bias (afmoe)."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    head_dim = fields.optional_size("head_dim") or hidden // heads
    return linear("gate_proj", hidden, heads * head_dim)


def xielu_vectors(fields: Fields) -> tuple[Weight, ...]:
    """The two numbers of the xIELU activation, where it is the one (apertus)."""
    if fields.raw("hidden_act") != "xielu":
        return ()
    return tuple(Weight(name=f"act_fn.{name}", shape=(1,), role="other") for name in ("alpha_p", "alpha_n"))


def doge_attention(fields: Fields) -> tuple[Weight, ...]:
    """The dynamic mask: a scale per key-value head, and a projection of the values to one number per head."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    key_value_heads = fields.optional_size("num_key_value_heads") or heads
    head_dim = fields.optional_size("head_dim") or hidden // heads
    scale = Weight(name="A", shape=(key_value_heads,), role="other")
    return (scale, *linear("dt_proj", key_value_heads * head_dim, key_value_heads, bias=fields.flag("attention_bias")))


def doge_blocks(fields: Fields, index: int) -> tuple[Block, ...]:
    """Gains on both residuals; with `is_moe`, pairs of vectors as experts beside the feed-forward."""
    hidden = fields.size("hidden_size")
    gains = tuple(
        Weight(name=f"{name}_residual", shape=(hidden,), role="other") for name in ("input", "post_attention")
    )
    blocks = (Block(name="", part="norm", weights=gains),)
    if not fields.flag("is_moe"):
        fields.ignore("num_experts", "num_experts_per_tok")
        return blocks
    num_experts, active = fields.size("num_experts"), fields.size("num_experts_per_tok")
    weights = linear("router_gate", hidden, 2 * math.isqrt(num_experts), quantized=False)
    weights += linear("down_embed", hidden, 1, copies=num_experts, active_copies=min(active, num_experts))
    weights += linear("up_embed", 1, hidden, copies=num_experts, active_copies=min(active, num_experts))
    return (*blocks, Block(name="mlp", part="experts", weights=weights, live_width=2 * hidden + active))


def jetmoe_attention(fields: Fields, window: int | None, index: int) -> Block:
    """Queries and outputs are experts, each with as many heads as there are keys; keys and values are shared."""
    hidden, key_value_heads, head_dim = (
        fields.size("hidden_size"),
        fields.size("num_key_value_heads"),
        fields.size("head_dim"),
    )
    num_experts, active = fields.size("num_local_experts"), fields.size("num_experts_per_tok")
    inner = key_value_heads * head_dim
    weights = linear("q_proj", hidden, inner, copies=num_experts, active_copies=active)
    weights += linear("kv_proj", hidden, 2 * inner)
    weights += linear("o_proj", inner, hidden, copies=num_experts, active_copies=active)
    weights += linear("router", hidden, num_experts, quantized=False)
    weights += (Weight(name="bias", shape=(hidden,), role="bias"),)
    scores = Attention(
        num_attention_heads=active * key_value_heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        cached_elements=2 * inner,
        window=window,
    )
    return Block(name="self_attn", part="attention", weights=weights, attention=scores, live_width=hidden + 4 * inner)


def jetmoe_bias(fields: Fields) -> tuple[Weight, ...]:
    """One bias behind the sum of the experts."""
    return (Weight(name="bias", shape=(fields.size("hidden_size"),), role="bias"),)


def axk_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """Every `moe_layer_freq`-th layer from `first_k_dense_replace` on; 1 each where they are not given."""
    first = fields.count("first_k_dense_replace") if fields.given("first_k_dense_replace") else 1
    step = fields.size("moe_layer_freq") if fields.given("moe_layer_freq") else 1
    return [index >= first and index % step == 0 for index in range(num_layers)]


def alternating_below_max_window_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """Every second layer from the first one, below `max_window_layers` (qwen2_moe)."""
    limit = fields.count("max_window_layers")
    return [index % 2 == 0 and index < limit for index in range(num_layers)]


def multiple_of_hidden_size(fields: Fields) -> int:
    """`intermediate_multiple_size` times the hidden size (gpt_neox_japanese)."""
    return fields.size("intermediate_multiple_size") * fields.size("hidden_size")


def bitnet_norm(fields: Fields) -> tuple[Weight, ...]:
    """A norm before the output projection."""
    return norm_weights("attn_sub_norm", fields.size("hidden_size"), "rms_norm")


def bitnet_mlp_norm(fields: Fields) -> tuple[Weight, ...]:
    """A norm before the down projection."""
    return norm_weights("ffn_sub_norm", fields.size("intermediate_size"), "rms_norm")


def axk_norm(fields: Fields) -> tuple[Weight, ...]:
    """A norm behind the experts."""
    return norm_weights("post_mlp_layernorm", fields.size("hidden_size"), "rms_norm")


def flint_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """As sparse_steps, but without `mlp_only_layers` the first two layers are dense."""
    every = sparse_steps(fields, num_layers)
    return every if fields.given("mlp_only_layers") else [index > 1 and has for index, has in enumerate(every)]


def bias_of_the_last_layer(fields: Fields, index: int) -> tuple[Block, ...]:
    """Only the last layer's attention has a bias (gpt_neox_japanese)."""
    if index != fields.size("num_hidden_layers") - 1:
        return ()
    bias = Weight(name="dense_bias", shape=(fields.size("hidden_size"),), role="bias")
    return (Block(name="attention", part="attention", weights=(bias,)),)


def hunyuan_active_experts(fields: Fields) -> int | None:
    """`moe_topk`, which may be a list with the same number for every layer."""
    value = fields.raw("moe_topk")
    if not isinstance(value, list):
        return fields.optional_size("moe_topk")
    if len(set(fields.sizes("moe_topk", fields.layers()))) != 1 or value[0] < 1:
        raise ConfigError("moe_topk must hold the same positive number for every layer", field="moe_topk")
    return int(value[0])
