"""Decoders that mix delta-rule layers with attention, as facts over one function. Source: transformers 5.24.

qwen3_next and its kin, olmo_hybrid, and the Kimi delta attention of kimi_linear and bailing_hybrid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from estimator.blocks.common import attention, experts, feed_forward, latent_attention, linear
from estimator.blocks.recurrent import delta_attention, gated_delta_net
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Network
from estimator.readers.families.hybrids import (
    FULL,
    LINEAR,
    SLIDING,
    attention_of,
    hybrid_network,
    layer_kinds,
    layers_of,
    norms,
)
from estimator.readers.fields import Fields

__all__ = ["bailing_hybrid", "kimi_linear", "lara_mini", "olmo_hybrid", "qwen3_5_layers", "qwen3_5_text", "qwen3_next"]

_LARA_PATTERN = (LINEAR, SLIDING, LINEAR, FULL, SLIDING)
# How tokens are routed, and layers that predict further tokens, which the classes never build.
_ROUTING = (
    "num_expert_group",
    "topk_group",
    "moe_renormalize",
    "moe_router_enable_expert_bias",
    "num_nextn_predict_layers",
)
# Of published configs; the classes always gate the attention's output and never build the layers that predict further.
_QWEN_EXTRA = (
    "attn_output_gate",
    "mamba_ssm_dtype",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "partial_rotary_factor",
    "linear_output_gate",
)


def qwen3_next(fields: Fields) -> Network:
    """Every `full_attention_interval`-th layer attends; experts in every `decoder_sparse_step`-th."""
    fields.ignore(*_QWEN_EXTRA)
    num_experts, step = fields.count("num_experts"), fields.size("decoder_sparse_step")
    plain = fields.sizes("mlp_only_layers") if fields.raw("mlp_only_layers") is not None else ()
    dense, sparse = _dense(fields, fields.size("intermediate_size")), _experts(fields, shared_gate=True)
    kinds = [
        (kind, num_experts > 0 and index not in plain and (index + 1) % step == 0)
        for index, kind in enumerate(_interval_kinds(fields))
    ]
    mixers = _mixers(fields, projections="fused")
    around = norms(fields, "input_layernorm", "post_attention_layernorm")
    return hybrid_network(
        fields, layers_of(kinds, lambda kind: [*around, mixers[kind[0]], (sparse or dense) if kind[1] else dense])
    )


def qwen3_5_text(fields: Fields) -> Network:
    """The text part alone: as qwen3_next with a feed-forward or experts in all layers."""
    return hybrid_network(fields, qwen3_5_layers(fields))


def qwen3_5_layers(fields: Fields) -> tuple[Layer, ...]:
    """The layers of a qwen3_5 or qwen3_5_moe text config."""
    fields.ignore(*_QWEN_EXTRA, "mlp_only_layers")
    mixers = _mixers(fields, projections="split")
    is_dense = "intermediate_size" in fields.data.defaults
    if not is_dense:
        fields.ignore("intermediate_size")
    feed = _dense(fields, fields.size("intermediate_size")) if is_dense else _experts(fields, shared_gate=True)
    assert feed is not None
    blocks = [*norms(fields, "input_layernorm", "post_attention_layernorm"), feed]
    return layers_of(_interval_kinds(fields), lambda kind: [mixers[kind], *blocks])


def lara_mini(fields: Fields) -> Network:
    """Delta rule, window and full attention by turns, experts in all layers."""
    kinds = layer_kinds(fields, "layer_types", (FULL, SLIDING, LINEAR), lambda index: _LARA_PATTERN[index % 5])
    bias, window = fields.flag("attention_bias"), fields.optional_size("sliding_window")
    mixers = {
        LINEAR: _delta_net(fields, projections="split"),
        FULL: attention_of(fields, bias=bias, qk_norm="head"),
        SLIDING: attention_of(fields, bias=bias, qk_norm="head", window=window),
    }
    feed = _experts(fields, shared_gate=False)
    if feed is None:
        raise ConfigError("num_experts must be a positive integer, not 0", field="num_experts")
    blocks = [*norms(fields, "input_layernorm", "post_attention_layernorm"), feed]
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]))


def olmo_hybrid(fields: Fields) -> Network:
    """Every fourth layer attends, and the last where none would; sizes of the delta rule follow the attention's."""
    num_layers, hidden = fields.layers(), fields.size("hidden_size")
    given = layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda index: FULL if index % 4 == 3 else LINEAR)
    is_default = fields.raw("layer_types") is None and FULL not in given
    kinds = (*given[:-1], FULL) if is_default else given
    heads = fields.size("num_attention_heads")
    key_heads = fields.optional_size("linear_num_key_heads") or heads
    key_dim = fields.optional_size("linear_key_head_dim") or int(0.75 * hidden / key_heads)
    net = gated_delta_net(
        hidden_size=hidden,
        num_key_heads=key_heads,
        num_value_heads=fields.optional_size("linear_num_value_heads") or heads,
        key_head_dim=key_dim,
        value_head_dim=fields.optional_size("linear_value_head_dim") or 2 * key_dim,
        conv_kernel=fields.size("linear_conv_kernel_dim"),
        projections="separate",
    )
    mixers = {LINEAR: net, FULL: attention_of(fields, bias=fields.flag("attention_bias"), qk_norm="full")}
    assert len(kinds) == num_layers
    blocks = [*norms(fields, "norms.0", "norms.1"), _dense(fields, fields.size("intermediate_size"))]
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]))


def kimi_linear(fields: Fields) -> Network:
    """Kimi delta attention beside latent attention; published configs nest the layout in `linear_attn_config`."""
    fields.ignore("moe_layer_freq", "mla_use_nope", "use_grouped_topk", "head_dim")
    fields.ignore("moe_router_activation_func", "moe_router_topk_scaling_factor", "qk_head_dim")
    fields.ignore(*_ROUTING)
    nested = fields.raw("linear_attn_config") or {}
    if not isinstance(nested, Mapping):
        raise ConfigError("linear_attn_config must be an object", field="linear_attn_config")
    mixer = delta_attention(
        hidden_size=fields.size("hidden_size"),
        num_heads=_nested_size(fields, nested, "num_heads", "linear_num_heads"),
        head_dim=_nested_size(fields, nested, "head_dim", "linear_head_dim"),
        conv_kernel=_nested_size(fields, nested, "short_conv_kernel_size", "linear_conv_kernel_dim"),
    )
    full = _nested_layers(fields, nested)
    kinds = layer_kinds(
        fields,
        "layer_types",
        (FULL, LINEAR),
        lambda index: FULL if (index and index % 4 == 0 if full is None else index + 1 in full) else LINEAR,
    )
    first_sparse = fields.count("first_k_dense_replace") if fields.given("first_k_dense_replace") else 1
    return _kimi_network(fields, kinds, {LINEAR: mixer, FULL: _latent(fields)}, first_sparse)


def bailing_hybrid(fields: Fields) -> Network:
    """As kimi_linear with full matrices for gates; every `layer_group_size`-th layer attends, gated by head."""
    fields.ignore("mtp_loss_scaling_factor", "qk_head_dim", "rotary_dim", *_ROUTING)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    mixer = delta_attention(
        hidden_size=hidden,
        num_heads=fields.size("linear_num_heads") if fields.given("linear_num_heads") else heads,
        head_dim=fields.size("linear_head_dim" if fields.given("linear_head_dim") else "head_dim"),
        conv_kernel=fields.size(
            "linear_conv_kernel_dim" if fields.given("linear_conv_kernel_dim") else "short_conv_kernel_size"
        ),
        low_rank_gates=False,
    )
    fields.ignore("head_dim", "short_conv_kernel_size")
    group = fields.size("layer_group_size")
    kinds = layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda index: LINEAR if (index + 1) % group else FULL)
    latent = _latent(fields, extra=linear("g_proj", hidden, heads))
    return _kimi_network(fields, kinds, {LINEAR: mixer, FULL: latent}, fields.count("first_k_dense_replace"))


def _kimi_network(fields: Fields, kinds: tuple[str, ...], mixers: Mapping[str, Block], first_sparse: int) -> Network:
    feeds = fields.words("mlp_layer_types", len(kinds), ("dense", "sparse"))
    if feeds is None:
        feeds = tuple("dense" if index < first_sparse else "sparse" for index in range(len(kinds)))
    width = fields.size("moe_intermediate_size")
    sparse = experts(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=width,
        num_experts=fields.size("num_local_experts"),
        num_experts_per_tok=fields.size("num_experts_per_tok"),
        shared_intermediate_size=fields.count("n_shared_experts") * width,
    )
    feed = {"dense": _dense(fields, fields.size("intermediate_size")), "sparse": sparse}
    around = norms(fields, "input_layernorm", "post_attention_layernorm")
    layers = layers_of(list(zip(kinds, feeds, strict=True)), lambda kind: [*around, mixers[kind[0]], feed[kind[1]]])
    return hybrid_network(fields, layers, tied=False)  # the classes tie nothing, whatever the config says


def _nested_size(fields: Fields, nested: Mapping[str, Any], name: str, own: str) -> int:
    value = nested.get(name)
    if value is None:
        return fields.size(own)
    fields.ignore(own)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"linear_attn_config.{name} must be a positive integer", field="linear_attn_config")
    return value


def _nested_layers(fields: Fields, nested: Mapping[str, Any]) -> frozenset[int] | None:
    """The layers with attention, counted from 1; None where they are not listed."""
    full, delta = nested.get("full_attn_layers"), nested.get("kda_layers")
    if full is None or delta is None:
        return None
    count = fields.layers()
    listed = [*full, *delta] if isinstance(full, list) and isinstance(delta, list) else []
    if len(listed) != count or any(listed.count(index) != 1 for index in range(1, count + 1)):
        raise ConfigError(
            f"linear_attn_config must name each of {count} layers once in full_attn_layers or kda_layers",
            field="linear_attn_config",
        )
    return frozenset(full)


def _interval_kinds(fields: Fields) -> tuple[str, ...]:
    interval = fields.size("full_attention_interval") if fields.given("full_attention_interval") else 4
    return layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda index: LINEAR if (index + 1) % interval else FULL)


def _mixers(fields: Fields, *, projections: str) -> Mapping[str, Block]:
    bias = fields.flag("attention_bias")
    full = attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim"),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        gated=True,
    )
    return {FULL: full, LINEAR: _delta_net(fields, projections=projections)}


def _delta_net(fields: Fields, *, projections: str) -> Block:
    return gated_delta_net(
        hidden_size=fields.size("hidden_size"),
        num_key_heads=fields.size("linear_num_key_heads"),
        num_value_heads=fields.size("linear_num_value_heads"),
        key_head_dim=fields.size("linear_key_head_dim"),
        value_head_dim=fields.size("linear_value_head_dim"),
        conv_kernel=fields.size("linear_conv_kernel_dim"),
        projections=projections,
    )


def _dense(fields: Fields, width: int) -> Block:
    return feed_forward(hidden_size=fields.size("hidden_size"), intermediate_size=width, gated=True)


def _experts(fields: Fields, *, shared_gate: bool) -> Block | None:
    width, num_experts = fields.size("moe_intermediate_size"), fields.count("num_experts")
    active, shared = fields.size("num_experts_per_tok"), fields.size("shared_expert_intermediate_size")
    if not num_experts:
        return None
    return experts(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=width,
        num_experts=num_experts,
        num_experts_per_tok=active,
        shared_intermediate_size=shared,
        shared_gate=shared_gate,
    )


def _latent(fields: Fields, *, extra: tuple[Any, ...] = ()) -> Block:
    fields.ignore("num_key_value_heads")
    return latent_attention(
        hidden_size=fields.size("hidden_size"),
        num_attention_heads=fields.size("num_attention_heads"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        qk_nope_head_dim=fields.size("qk_nope_head_dim"),
        qk_rope_head_dim=fields.size("qk_rope_head_dim"),
        v_head_dim=fields.size("v_head_dim"),
        bias=fields.flag("attention_bias"),
        extra=extra,
    )
