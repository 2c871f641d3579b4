"""State spaces, alone and beside attention, by the names of fields of each family. Source: transformers 5.24."""

from __future__ import annotations

from estimator.blocks.common import experts, feed_forward, linear
from estimator.blocks.recurrent import mamba, mamba2
from estimator.errors import ConfigError
from estimator.network import Block, Network
from estimator.readers.families.hybrids import (
    FULL,
    LINEAR,
    attention_of,
    free_kinds,
    hybrid_network,
    layer_kinds,
    layers_of,
    norms,
)
from estimator.readers.fields import Fields

__all__ = [
    "TIME_STEPS",
    "auto_size",
    "bamba",
    "check_inner",
    "falcon_h1",
    "granite_hybrid",
    "jamba",
    "mamba2_model",
    "mamba_model",
    "nemotron_h",
]

TIME_STEPS = (
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "time_step_limit",
    "time_step_scale",
    "time_step_init_scheme",
)
# Of checkpoints converted from the authors' code; the classes read other names.
_STATE_SPACES = ("d_model", "d_inner", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm", "pad_vocab_size_multiple")


def auto_size(fields: Fields, name: str, value: int) -> int:
    """A size that is `value` where the field says "auto"."""
    return value if fields.raw(name) == "auto" else fields.size(name)


def mamba_model(fields: Fields) -> Network:
    """Layers of one norm and one selective state space (mamba, falcon_mamba)."""
    fields.ignore(*TIME_STEPS, *_STATE_SPACES, "use_falcon_mambapy")
    hidden = fields.size("hidden_size")
    mixer = mamba(
        hidden_size=hidden,
        # the class derives it from `expand`, but a given one overrides it
        intermediate_size=fields.optional_size("intermediate_size") or int(fields.number("expand") * hidden),
        state_size=fields.size("state_size"),
        conv_kernel=fields.size("conv_kernel"),
        time_step_rank=auto_size(fields, "time_step_rank", -(-hidden // 16)),
        bias=fields.flag("use_bias"),
        conv_bias=fields.flag("use_conv_bias"),
    )
    fields.number("expand")
    return hybrid_network(fields, layers_of([LINEAR] * fields.layers(), lambda _: [*norms(fields, "norm"), mixer]))


def mamba2_model(fields: Fields) -> Network:
    """Layers of one norm and one state space with heads."""
    fields.ignore(*TIME_STEPS, *_STATE_SPACES, "time_step_rank", "intermediate_size", "norm_before_gate")
    num_heads, head_dim = fields.size("num_heads"), fields.size("head_dim")
    inner = int(fields.number("expand") * fields.size("hidden_size"))
    check_inner(inner, num_heads, head_dim, "expand * hidden_size")
    mixer = mamba2(
        hidden_size=fields.size("hidden_size"),
        num_heads=num_heads,
        head_dim=head_dim,
        state_size=fields.size("state_size"),
        num_groups=fields.size("n_groups"),
        conv_kernel=fields.size("conv_kernel"),
        chunk_size=fields.size("chunk_size"),
        bias=fields.flag("use_bias"),
        conv_bias=fields.flag("use_conv_bias"),
    )
    return hybrid_network(fields, layers_of([LINEAR] * fields.layers(), lambda _: [*norms(fields, "norm"), mixer]))


def check_inner(inner: int, num_heads: int, head_dim: int, what: str) -> None:
    """Raises ConfigError if the heads of a state space are not as wide together as its inner width."""
    if inner != num_heads * head_dim:
        raise ConfigError(
            f"{what} is {inner:,}, which {num_heads:,} heads of {head_dim:,} do not make up: {num_heads * head_dim:,}"
        )


def jamba(fields: Fields) -> Network:
    """Attention in every `attn_layer_period`-th layer, experts in every `expert_layer_period`-th."""
    fields.ignore(
        "use_mamba_kernels",
        "layers_block_type",
        "layer_types",
        "layers_num_experts",
        "sliding_window",
        "num_logits_to_keep",
    )
    hidden = fields.size("hidden_size")
    mixer = mamba(
        hidden_size=hidden,
        intermediate_size=int(fields.number("mamba_expand") * hidden),
        state_size=fields.size("mamba_d_state"),
        conv_kernel=fields.size("mamba_d_conv"),
        time_step_rank=auto_size(fields, "mamba_dt_rank", -(-hidden // 16)),
        bias=fields.flag("mamba_proj_bias"),
        conv_bias=fields.flag("mamba_conv_bias"),
        has_norms=True,
        name="mamba",
    )
    mixers = {FULL: attention_of(fields), LINEAR: mixer}
    width, num_experts = fields.size("intermediate_size"), fields.size("num_experts")
    dense = feed_forward(hidden_size=hidden, intermediate_size=width, gated=True, name="feed_forward")
    sparse = experts(
        hidden_size=hidden,
        intermediate_size=width,
        num_experts=num_experts,
        num_experts_per_tok=fields.size("num_experts_per_tok"),
        name="feed_forward",
    )
    kinds = [
        (FULL if is_attention else LINEAR, is_sparse and num_experts > 1)
        for is_attention, is_sparse in zip(_every(fields, "attn"), _every(fields, "expert"), strict=True)
    ]
    around = norms(fields, "input_layernorm", "pre_ff_layernorm")
    return hybrid_network(
        fields, layers_of(kinds, lambda kind: [*around, mixers[kind[0]], sparse if kind[1] else dense])
    )


def _every(fields: Fields, what: str) -> list[bool]:
    period, offset = fields.size(f"{what}_layer_period"), fields.count(f"{what}_layer_offset")
    return [index % period == offset for index in range(fields.layers())]


def _mamba2_of(fields: Fields, *, inner: int, output_bias: bool | None = None, has_norm: bool = True) -> Block:
    """A state space by the names of fields that bamba introduced."""
    fields.ignore(*TIME_STEPS, "use_mamba_kernels", "mamba_rank")
    num_heads = fields.size("mamba_n_heads")
    head_dim = auto_size(fields, "mamba_d_head", inner // num_heads)
    check_inner(inner, num_heads, head_dim, "the inner width of the state space")
    return mamba2(
        hidden_size=fields.size("hidden_size"),
        num_heads=num_heads,
        head_dim=head_dim,
        state_size=fields.size("mamba_d_state"),
        num_groups=fields.size("mamba_n_groups"),
        conv_kernel=fields.size("mamba_d_conv"),
        chunk_size=fields.size("mamba_chunk_size"),
        bias=fields.flag("mamba_proj_bias"),
        conv_bias=fields.flag("mamba_conv_bias"),
        output_bias=output_bias,
        has_norm=has_norm,
        name="mamba",
    )


def bamba(fields: Fields) -> Network:
    """Attention in the layers that `attn_layer_indices` names, state spaces in the others."""
    fields.ignore("layers_block_type", "layer_types", "attn_rotary_emb", "num_logits_to_keep")
    hidden = fields.size("hidden_size")
    named = fields.sizes("attn_layer_indices") if fields.raw("attn_layer_indices") is not None else ()
    kinds = [FULL if index in named else LINEAR for index in range(fields.layers())]
    mixers = {
        LINEAR: _mamba2_of(fields, inner=int(fields.number("mamba_expand") * hidden)),
        FULL: attention_of(fields, bias=fields.flag("attention_bias")),
    }
    dense = _dense(fields)
    around = norms(fields, "input_layernorm", "pre_ff_layernorm")
    return hybrid_network(fields, layers_of(kinds, lambda kind: [*around, mixers[kind], dense]))


def falcon_h1(fields: Fields) -> Network:
    """Attention and a state space side by side in every layer."""
    fields.ignore("layers_block_type", "layer_types", "mlp_multipliers", "ssm_multipliers", "lm_head_multiplier")
    fields.ignore("mlp_expansion_factor", "mamba_use_mlp", "attn_layer_indices", "num_logits_to_keep")
    inner = int(fields.number("mamba_expand") * fields.size("hidden_size"))
    mixer = _mamba2_of(
        fields,
        inner=fields.optional_size("mamba_d_ssm") or inner,
        output_bias=fields.flag("projectors_bias"),
        has_norm=fields.flag("mamba_rms_norm"),
    )
    blocks = [*norms(fields, "input_layernorm", "pre_ff_layernorm"), mixer]
    blocks += [attention_of(fields, bias=fields.flag("attention_bias")), _dense(fields)]
    return hybrid_network(fields, layers_of(["hybrid"] * fields.layers(), lambda _: blocks))


def granite_hybrid(fields: Fields) -> Network:
    """State spaces or attention by `layer_types`, then experts beside a feed-forward that every token takes."""
    fields.ignore("position_embedding_type", "init_method", "normalization_function")
    hidden = fields.size("hidden_size")
    kinds = layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda _: LINEAR)
    mixers = {
        LINEAR: _mamba2_of(fields, inner=int(fields.number("mamba_expand") * hidden)),
        FULL: attention_of(fields, bias=fields.flag("attention_bias")),
    }
    shared = fields.size("shared_intermediate_size")
    blocks = norms(fields, "input_layernorm", "post_attention_layernorm")
    blocks.append(feed_forward(hidden_size=hidden, intermediate_size=shared, gated=True, name="shared_mlp"))
    num_experts = fields.count("num_local_experts")
    width, active = fields.size("intermediate_size"), fields.count("num_experts_per_tok")
    if num_experts:
        sparse = experts(
            hidden_size=hidden, intermediate_size=width, num_experts=num_experts, num_experts_per_tok=active
        )
        blocks.append(sparse)
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]))


def _dense(fields: Fields) -> Block:
    return feed_forward(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        gated=True,
        bias=fields.flag("mlp_bias"),
        name="feed_forward",
    )


def nemotron_h(fields: Fields) -> Network:
    """Layers of one norm and one block: a state space, attention, a feed-forward or experts.

    The blocks are listed in words or as a pattern of M, *, - and E; their number is that of the layers.
    """
    fields.ignore(*TIME_STEPS, "time_step_rank", "expand", "num_hidden_layers", "sliding_window", "attention_bias")
    fields.ignore("mamba_proj_bias", "mamba_ssm_cache_dtype", "use_mamba_kernels", "num_logits_to_keep")
    fields.ignore("mtp_layers_block_type", "mtp_hybrid_override_pattern", "num_nextn_predict_layers")  # never built
    fields.ignore("n_shared_experts", "moe_shared_expert_overlap", "n_groups_moe")
    hidden = fields.size("hidden_size")
    fields.choice("attention_head_dim", (None, fields.size("head_dim")))
    blocks = {
        "linear_attention": mamba2(
            hidden_size=hidden,
            num_heads=fields.size("mamba_num_heads"),
            head_dim=fields.size("mamba_head_dim"),
            state_size=fields.size("ssm_state_size"),
            num_groups=fields.size("n_groups"),
            conv_kernel=fields.size("conv_kernel"),
            chunk_size=fields.size("chunk_size"),
            bias=fields.flag("use_bias"),
            conv_bias=fields.flag("use_conv_bias"),
        ),
        "full_attention": attention_of(fields),
        "mlp": feed_forward(
            hidden_size=hidden,
            intermediate_size=fields.size("intermediate_size"),
            gated=False,
            bias=fields.flag("mlp_bias"),
        ),
        "moe": _nemotron_experts(fields),
    }
    kinds = _nemotron_kinds(fields)
    layers = layers_of(kinds, lambda kind: [*norms(fields, "norm"), blocks[kind]])
    return hybrid_network(fields, layers, tied=False)  # the class has no weights to tie, whatever the config says


def _nemotron_kinds(fields: Fields) -> tuple[str, ...]:
    words = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}
    pattern = fields.raw("hybrid_override_pattern")
    kinds = free_kinds(fields, "layers_block_type", tuple(words.values()))
    if kinds is not None:
        return kinds
    if pattern is None:
        return (LINEAR, "moe", FULL, "mlp")
    if not isinstance(pattern, str) or not pattern or set(pattern) - set(words):
        raise ConfigError("hybrid_override_pattern must be a text of M, *, - and E", field="hybrid_override_pattern")
    return tuple(words[letter] for letter in pattern)


def _nemotron_experts(fields: Fields) -> Block:
    """Experts on a projection of the hidden states where `moe_latent_size` is given, and a shared one beside them."""
    hidden, bias = fields.size("hidden_size"), fields.flag("mlp_bias")
    latent = fields.optional_size("moe_latent_size")
    width, num_experts = fields.size("moe_intermediate_size"), fields.size("n_routed_experts")
    active = min(fields.size("num_experts_per_tok"), num_experts)
    shared = fields.size("moe_shared_expert_intermediate_size")
    weights = linear("gate", hidden, num_experts, quantized=False)
    weights += linear("experts.up_proj", latent or hidden, width, copies=num_experts, active_copies=active)
    weights += linear("experts.down_proj", width, latent or hidden, copies=num_experts, active_copies=active)
    weights += linear("shared_experts.up_proj", hidden, shared, bias=bias)
    weights += linear("shared_experts.down_proj", shared, hidden, bias=bias)
    if latent:
        weights += linear("fc1_latent_proj", hidden, latent, bias=bias)
        weights += linear("fc2_latent_proj", latent, hidden, bias=bias)
    live_width = 2 * hidden + active * width + shared + 2 * (latent or 0)
    return Block(name="mixer", part="experts", weights=weights, live_width=live_width)
