"""inkling: attention with relative positions and short convolutions around it, and experts, some of them always on."""

from __future__ import annotations

import dataclasses

from estimator.blocks.common import attention, experts, feed_forward, linear, norm
from estimator.blocks.recurrent import residual_convolutions
from estimator.errors import ConfigError
from estimator.network import Block, Network, Weight
from estimator.readers.families.hybrids import hybrid_network, layer_kinds, layers_of, norms
from estimator.readers.fields import Fields

__all__ = ["inkling_text"]

_FULL, _SLIDING = "hybrid", "hybrid_sliding"


def inkling_text(fields: Fields) -> Network:
    """Window attention, full in every sixth layer, or as `local_layer_ids` says; the two have heads of their own.

    Source: transformers 5.24, models/inkling.
    """
    fields.ignore(
        "chain_hidden_post_norm",
        "num_mtp_layers",
        "mtp_local_layer_ids",
        "mtp_hidden_states_first",
        "shared_expert_sink",
    )  # not built
    fields.ignore("logits_mup_width_multiplier", "unpadded_vocab_size", "number_of_conv_states", "tie_word_embeddings")
    local = frozenset(fields.sizes("local_layer_ids")) if fields.raw("local_layer_ids") is not None else None
    kinds = layer_kinds(
        fields,
        "layer_types",
        (_FULL, _SLIDING),
        lambda index: _SLIDING if ((index + 1) % 6 if local is None else index in local) else _FULL,
    )
    feeds = fields.words("mlp_layer_types", len(kinds), ("dense", "sparse"))
    if feeds is None:
        first = fields.count("dense_mlp_idx") if fields.given("dense_mlp_idx") else 0
        feeds = tuple("dense" if index < first else "sparse" for index in range(len(kinds)))
    mixers = {kind: _mixer(fields, kind) for kind in (_FULL, _SLIDING)}
    feed = {"dense": _dense(fields), "sparse": _experts(fields)}
    around = norms(fields, "input_layernorm", "post_attention_layernorm")
    layers = layers_of(list(zip(kinds, feeds, strict=True)), lambda kind: [*around, *mixers[kind[0]], feed[kind[1]]])
    network = hybrid_network(fields, layers, tied=False)
    embedded = norm("embed_tokens.embed_norm", fields.size("hidden_size"), "rms_norm")
    stack = dataclasses.replace(network.main, before=(*network.main.before, embedded))
    return dataclasses.replace(network, stacks=(stack,))


def _mixer(fields: Fields, kind: str) -> tuple[Block, Block]:
    """Attention, and the convolutions of a layer with the product that makes logits of relative positions."""
    prefix = "swa_" if kind == _SLIDING else ""
    hidden, heads = fields.size("hidden_size"), fields.size(f"{prefix}num_attention_heads")
    head_dim, groups = fields.size(f"{prefix}head_dim"), fields.size(f"{prefix}num_key_value_heads")
    window, relative = fields.size("sliding_window_size"), fields.size("d_rel")
    extent = window if prefix else fields.size("rel_extent")
    profiles = Weight(name="rel_logits_proj.proj", shape=(relative, extent), role="other")
    mixer = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        qk_norm="head",
        window=window if prefix else None,
        extra=(*linear("r_proj", hidden, heads * relative), profiles),
    )
    width = groups * head_dim
    convolutions = residual_convolutions(
        channels={"k_sconv": width, "v_sconv": width, "attn_sconv": hidden, "mlp_sconv": hidden},
        conv_kernel=fields.size("conv_kernel_size"),
        token_flops=2 * heads * relative * extent,
    )
    return mixer, convolutions


def _widths(fields: Fields) -> tuple[int, int]:
    """Of a dense feed-forward, and of an expert: older configs call them dense_intermediate_size, intermediate_size."""
    dense, sparse = fields.size("intermediate_size"), fields.size("moe_intermediate_size")
    return (
        (fields.size("dense_intermediate_size"), dense) if fields.given("dense_intermediate_size") else (dense, sparse)
    )


def _dense(fields: Fields) -> Block:
    block = feed_forward(hidden_size=fields.size("hidden_size"), intermediate_size=_widths(fields)[0], gated=True)
    return dataclasses.replace(block, weights=(*block.weights, Weight(name="global_scale", shape=(1,), role="other")))


def _experts(fields: Fields) -> Block:
    """Chosen experts and `n_shared_experts` that always run; one router weighs both."""
    hidden, shared = fields.size("hidden_size"), fields.count("n_shared_experts")
    num_experts, width = fields.size("n_routed_experts"), _widths(fields)[1]
    active = fields.size("num_experts_per_tok")
    if active > num_experts:
        raise ConfigError(
            f"num_experts_per_tok {active} is more than {num_experts} experts", field="num_experts_per_tok"
        )
    block = experts(
        hidden_size=hidden,
        intermediate_size=width,
        num_experts=num_experts,
        num_experts_per_tok=active,
        shared_intermediate_size=shared * width,
    )
    router = linear("gate", hidden, num_experts + shared, quantized=False)
    scale = Weight(name="gate.global_scale", shape=(1,), role="other")
    others = tuple(weight for weight in block.weights if not weight.name.startswith("gate."))
    return dataclasses.replace(block, weights=(*router, *others, scale))
