"""Decoders whose layers differ in kind: state spaces beside attention, and models of state spaces alone.

What the families share: the stack around the layers, the kinds of layers, and how Mamba mixers are configured. Source:
the classes of transformers 5.24, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from estimator.blocks import attention, embedding, experts, feed_forward, norm
from estimator.config import MAX_LAYERS, show
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Network, Stack
from estimator.readers.decoders import Decoder, task_head
from estimator.readers.fields import Fields
from estimator.recurrent_blocks import mamba, mamba2

__all__ = [
    "FULL",
    "LINEAR",
    "SLIDING",
    "attention_of",
    "auto_size",
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granite_hybrid",
    "hybrid_network",
    "hybrid_stack",
    "jamba",
    "layer_kinds",
    "layers_of",
    "mamba2_model",
    "mamba_model",
]

Kind = TypeVar("Kind", bound=Hashable)
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_LEGACY = {"mamba": LINEAR, "attention": FULL}
_TIME_STEPS = (
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "time_step_limit",
    "time_step_scale",
    "time_step_init_scheme",
)
# Of checkpoints converted from the authors' code; the classes read other names.
_STATE_SPACES = ("d_model", "d_inner", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm", "pad_vocab_size_multiple")


def hybrid_network(fields: Fields, layers: Sequence[Layer], *, norm_kind: str = "rms_norm") -> Network:
    """A model that is one decoder stack of these layers, with the head that its class asks for."""
    return Network(
        architecture="decoder",
        stacks=(hybrid_stack(fields, layers, norm_kind=norm_kind, after=task_head(fields, Decoder())),),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.optional_size("max_position_embeddings"),
    )


def hybrid_stack(
    fields: Fields,
    layers: Sequence[Layer],
    *,
    norm_kind: str = "rms_norm",
    after: tuple[Block, ...] = (),
    prefix: str = "",
) -> Stack:
    """Token embedding, layers and last norm, then `after`."""
    hidden = fields.size("hidden_size")
    last = () if norm_kind == "none" else (norm("norm", hidden, norm_kind),)
    return Stack(
        name="decoder",
        hidden_size=hidden,
        before=(embedding("embed_tokens", fields.size("vocab_size"), hidden),),
        layers=tuple(layers),
        after=last + after,
        is_causal=True,
        prefix=prefix,
    )


def layers_of(kinds: Sequence[Kind], make: Callable[[Kind], Sequence[Block]]) -> tuple[Layer, ...]:
    """A layer per entry; layers of one kind are one record."""
    made = {kind: Layer(blocks=tuple(make(kind))) for kind in dict.fromkeys(kinds)}
    return tuple(made[kind] for kind in kinds)


def layer_kinds(
    fields: Fields, name: str, allowed: tuple[str, ...], default: Callable[[int], str], num_layers: int | None = None
) -> tuple[str, ...]:
    """The kind of each layer: the list in that field, also in the words of older configs, or `default(index)`."""
    length = fields.layers() if num_layers is None else num_layers
    given = fields.words(name, length, (*allowed, *_LEGACY))
    if given is None:
        return tuple(default(index) for index in range(length))
    return tuple(_LEGACY.get(kind, kind) for kind in given)


def free_kinds(fields: Fields, name: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """The kinds in that field, as many as it lists, where the number of layers follows from the list; None for null."""
    value = fields.raw(name)
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_LAYERS:
        raise ConfigError(f"{name} must be a list of 1 to {MAX_LAYERS} entries, not {show(value)}", field=name)
    return layer_kinds(fields, name, allowed, str, len(value))


def auto_size(fields: Fields, name: str, value: int) -> int:
    """A size that is `value` where the field says "auto"."""
    return value if fields.raw(name) == "auto" else fields.size(name)


def attention_of(
    fields: Fields,
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    qk_norm: str = "none",
    window: int | None = None,
) -> Block:
    """Grouped attention by the usual names of fields; `head_dim` may be given where the family does not declare it."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=fields.optional_size("num_key_value_heads") or heads,
        head_dim=fields.optional_size("head_dim") or hidden // heads,
        qkv_bias=bias,
        output_bias=bias if output_bias is None else output_bias,
        qk_norm=qk_norm,
        window=window,
    )


def norms(fields: Fields, *names: str) -> list[Block]:
    """Norms over the hidden size."""
    return [norm(name, fields.size("hidden_size"), "rms_norm") for name in names]


def mamba_model(fields: Fields) -> Network:
    """Layers of one norm and one selective state space (mamba, falcon_mamba)."""
    fields.ignore(*_TIME_STEPS, *_STATE_SPACES)
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


def falcon_mamba(fields: Fields) -> Network:
    """As mamba; its norms within the mixer have no weights."""
    fields.ignore("use_falcon_mambapy")
    return mamba_model(fields)


def mamba2_model(fields: Fields) -> Network:
    """Layers of one norm and one state space with heads."""
    fields.ignore(*_TIME_STEPS, *_STATE_SPACES, "time_step_rank", "intermediate_size", "norm_before_gate")
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
    fields.ignore("use_mamba_kernels", "layers_block_type", "layer_types", "layers_num_experts", "sliding_window")
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
    fields.ignore(*_TIME_STEPS, "use_mamba_kernels", "mamba_rank")
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
    fields.ignore("position_embedding_type", "attention_layer_indices")
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
