"""Short convolutions, lightning attention, RG-LRU, RWKV, xLSTM, Zamba's shared blocks. Source: transformers 5.24."""

from __future__ import annotations

import dataclasses

from estimator.blocks.common import attention, experts, feed_forward, linear, norm
from estimator.blocks.recurrent import (
    lightning_attention,
    mamba,
    mamba2,
    matrix_lstm,
    rg_lru,
    rwkv,
    short_convolution,
)
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Network, Recurrence, Weight
from estimator.readers.families.hybrids import (
    FULL,
    LINEAR,
    SLIDING,
    attention_of,
    free_kinds,
    hybrid_network,
    layer_kinds,
    layers_of,
    norms,
)
from estimator.readers.families.mamba_models import TIME_STEPS, auto_size, check_inner
from estimator.readers.fields import Fields

__all__ = ["lfm2", "lfm2_moe", "lfm3", "minimax", "recurrent_gemma", "rwkv_model", "xlstm", "zamba", "zamba2"]

_CONV, _HYBRID = "conv", "hybrid"
# Of published configs; the classes read other names.
_LFM2_EXTRA = (
    "block_dim",
    "block_mlp_init_scale",
    "block_norm_eps",
    "block_out_init_scale",
    "block_use_swiglu",
    "block_use_xavier_init",
    "conv_dim",
    "conv_dim_out",
    "conv_use_xavier_init",
    "use_pos_enc",
    "num_heads",
    "theta",
)
# How kernels run, and names that the published config has beside those of the class.
_XLSTM_EXTRA = (
    "add_forward_backend_padding",
    "add_out_norm",
    "add_post_blocks_norm",
    "autocast_kernel_dtype",
    "chunkwise_kernel",
    "force_bos_token_insert",
    "head_dim",
    "igate_bias_init_range",
    "inference_state_dtype",
    "logits_soft_cap",
    "max_inference_chunksize",
    "mode",
    "return_last_states",
    "sequence_kernel",
    "step_kernel",
)


def lfm2(fields: Fields) -> Network:
    """Gated short convolutions, and attention in the layers of `full_attn_idxs`."""
    fields.ignore(*_LFM2_EXTRA)
    width = fields.size("block_ff_dim" if fields.given("block_ff_dim") else "intermediate_size")
    fields.ignore("intermediate_size")
    multiple, factor = fields.size("block_multiple_of"), fields.raw("block_ffn_dim_multiplier")
    if fields.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        width = width if factor is None else int(fields.number("block_ffn_dim_multiplier") * width)
        width = -(-width // multiple) * multiple
    attends = fields.sizes("full_attn_idxs") if fields.raw("full_attn_idxs") is not None else None
    kinds = layer_kinds(
        fields, "layer_types", (FULL, _CONV), lambda index: FULL if attends is None or index in attends else _CONV
    )
    mixers = {FULL: attention_of(fields, qk_norm="head"), _CONV: _short_convolution(fields)}
    blocks = [*norms(fields, "operator_norm", "ffn_norm"), _dense(fields, width)]
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]), tied=_lfm2_tied(fields))


def lfm2_moe(fields: Fields) -> Network:
    """As lfm2, with experts behind the first `num_dense_layers`."""
    fields.ignore(*_LFM2_EXTRA, "use_expert_bias")
    listed = free_kinds(fields, "layer_types", (FULL, _CONV))
    if listed is None or len(listed) != fields.layers():
        raise ConfigError(f"layer_types must list {fields.layers()} layers of conv or {FULL}", field="layer_types")
    mixers = {FULL: attention_of(fields, qk_norm="head"), _CONV: _short_convolution(fields)}
    sparse = experts(
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("moe_intermediate_size"),
        num_experts=fields.size("num_experts"),
        num_experts_per_tok=fields.size("num_experts_per_tok"),
    )
    dense, first_sparse = _dense(fields, fields.size("intermediate_size")), fields.count("num_dense_layers")
    around = norms(fields, "operator_norm", "ffn_norm")
    kinds = [(kind, index < first_sparse) for index, kind in enumerate(listed)]
    layers = layers_of(kinds, lambda kind: [*around, mixers[kind[0]], dense if kind[1] else sparse])
    return hybrid_network(fields, layers, tied=_lfm2_tied(fields))


def lfm3(fields: Fields) -> Network:
    """Short convolutions, window and full attention by turns, with norms before and behind."""
    pattern = (FULL, SLIDING, _CONV)
    kinds = layer_kinds(
        fields,
        "layer_types",
        pattern,
        lambda index: FULL if index % 4 == 2 else SLIDING if index % 4 == 0 and index else _CONV,
    )
    bias, window = fields.flag("attention_bias"), fields.optional_size("sliding_window")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    gate = linear("g_proj", hidden, heads) if fields.flag("use_attention_gate") else ()
    full, windowed = (attention_of(fields, bias=bias, qk_norm="head", window=size) for size in (None, window))
    mixers = {
        FULL: dataclasses.replace(full, weights=full.weights + gate),
        SLIDING: dataclasses.replace(windowed, weights=windowed.weights + gate),
        _CONV: _short_convolution(fields),
    }
    names = ["operator_norm", "ffn_norm"]
    names += ["post_operator_norm", "post_ffn_norm"] if fields.flag("use_sandwich_norm") else []
    blocks = [*norms(fields, *names), _dense(fields, fields.size("intermediate_size"))]
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]))


def minimax(fields: Fields) -> Network:
    """Lightning attention in every other layer, experts in all."""
    fields.ignore("mlp_alpha_factor", "mlp_beta_factor")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    mixers = {
        FULL: attention_of(fields, window=fields.optional_size("sliding_window")),
        LINEAR: lightning_attention(
            hidden_size=hidden,
            num_heads=heads,
            head_dim=fields.optional_size("head_dim") or hidden // heads,
            block_size=fields.size("block_size"),
        ),
    }
    sparse = experts(
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_experts=fields.size("num_local_experts"),
        num_experts_per_tok=fields.size("num_experts_per_tok"),
    )
    kinds = layer_kinds(fields, "layer_types", (FULL, LINEAR), lambda index: LINEAR if index % 2 else FULL)
    blocks = [*norms(fields, "input_layernorm", "post_attention_layernorm"), sparse]
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]))


def recurrent_gemma(fields: Fields) -> Network:
    """RG-LRU blocks and attention within a window, as `block_types` repeats; half of the given inner width."""
    fields.ignore(
        "layers_block_type",
        "_block_types",
        "final_w_init_variance_scale",
        "logits_soft_cap",
        "embeddings_scale_by_sqrt_dim",
    )
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    given = fields.raw("block_types")
    if not isinstance(given, list) or not given or any(kind not in ("recurrent", "attention") for kind in given):
        raise ConfigError("block_types must list recurrent and attention", field="block_types")
    window = fields.size("attention_window_size")
    mixers = {
        "attention": attention_of(fields, bias=fields.flag("attention_bias"), output_bias=True, window=window),
        "recurrent": rg_lru(
            hidden_size=hidden,
            lru_width=fields.optional_size("lru_width") or hidden,
            num_heads=heads,
            conv_kernel=fields.size("conv1d_width"),
        ),
    }
    width = fields.size("intermediate_size") // 2
    blocks = norms(fields, "temporal_pre_norm", "channel_pre_norm")
    blocks.append(feed_forward(hidden_size=hidden, intermediate_size=width, gated=True, bias=True, name="mlp_block"))
    kinds = [given[index % len(given)] for index in range(fields.layers())]
    return hybrid_network(fields, layers_of(kinds, lambda kind: [mixers[kind], *blocks]))


def rwkv_model(fields: Fields) -> Network:
    """RWKV-4: time mixing and channel mixing, both with the last token's input as state."""
    fields.ignore("rescale_every")
    hidden = fields.size("hidden_size")
    width = fields.optional_size("intermediate_size") or 4 * hidden
    time_mix = rwkv(hidden_size=hidden, attention_hidden_size=fields.optional_size("attention_hidden_size") or hidden)
    mixed = tuple(Weight(name=f"time_mix_{what}", shape=(1, 1, hidden), role="other") for what in ("key", "receptance"))
    weights = linear("key", hidden, width) + linear("receptance", hidden, hidden) + linear("value", width, hidden)
    channel_mix = Block(
        name="feed_forward",
        part="feed_forward",
        weights=mixed + weights,
        recurrence=Recurrence(state_elements=hidden, token_flops=0),
        live_width=3 * hidden + width,
    )
    blocks = (norm("ln1", hidden, "layer_norm"), norm("ln2", hidden, "layer_norm"), time_mix, channel_mix)
    first = Layer(blocks=(norm("pre_ln", hidden, "layer_norm"), *blocks))
    layers = (first, *(Layer(blocks=blocks) for _ in range(fields.layers() - 1)))
    return hybrid_network(fields, layers, norm_kind="layer_norm")


def xlstm(fields: Fields) -> Network:
    """Blocks of an mLSTM and a gated feed-forward; what is tied in the config is not tied in the class."""
    fields.ignore(*_XLSTM_EXTRA)
    hidden = fields.size("hidden_size")
    if fields.given("embedding_dim"):
        fields.choice("embedding_dim", (hidden,))
    layers = fields.layers("num_blocks" if fields.given("num_blocks") else "num_hidden_layers")
    fields.ignore("num_blocks", "num_hidden_layers")
    bias, fused = fields.flag("use_bias"), fields.choice("weight_mode", ("single", "fused")) == "fused"
    mixer = matrix_lstm(
        hidden_size=hidden,
        num_heads=fields.size("num_heads"),
        key_size=int(hidden * fields.number("qk_dim_factor")),
        value_size=int(hidden * fields.number("v_dim_factor")),
        chunk_size=fields.size("chunk_size"),
        bias=bias,
        fused=fused,
    )
    multiple = fields.size("ffn_round_up_to_multiple_of")
    width = int((hidden * fields.number("ffn_proj_factor") + multiple - 1) // multiple * multiple)
    kind = "layer_norm" if bias else "rms_norm"
    blocks = (
        norm("norm_mlstm", hidden, kind),
        mixer,
        norm("norm_ffn", hidden, kind),
        feed_forward(hidden_size=hidden, intermediate_size=width, gated=True, bias=bias, name="ffn"),
    )
    return hybrid_network(fields, (Layer(blocks=blocks),) * layers, tied=False)


def zamba(fields: Fields) -> Network:
    """State spaces; before some of them one attention block that all of these share runs on twice the width."""
    fields.ignore(*TIME_STEPS, "use_mamba_kernels", "num_logits_to_keep", "layer_types")
    hidden = fields.size("hidden_size")
    mixer = mamba(
        hidden_size=hidden,
        intermediate_size=int(fields.number("mamba_expand") * hidden),
        state_size=fields.size("mamba_d_state"),
        conv_kernel=fields.size("mamba_d_conv"),
        time_step_rank=auto_size(fields, "mamba_dt_rank", -(-hidden // 16)),
        bias=fields.flag("mamba_proj_bias"),
        conv_bias=fields.flag("mamba_conv_bias"),
        num_heads=fields.size("n_mamba_heads"),
        name="mamba",
    )
    fields.ignore("num_hidden_layers")  # as many as are listed
    period, offset = fields.size("attn_layer_period"), fields.count("attn_layer_offset")
    kinds = free_kinds(fields, "layers_block_type", (LINEAR, _HYBRID))
    if kinds is None:
        later = (_HYBRID if index % period == offset else LINEAR for index in range(fields.layers() - 3))
        kinds = (LINEAR, LINEAR, _HYBRID, *later)
    shared = [*_zamba_attention(fields), _dense(fields, fields.size("intermediate_size"))]
    state_space = [*norms(fields, "input_layernorm"), mixer]
    shares = fields.flag("tie_word_embeddings")  # one switch for all that the class ties
    layers: list[Layer] = []
    for kind in kinds:
        if kind == _HYBRID:
            layers.append(Layer(blocks=(*shared, _square(hidden), *state_space)))
            shared = [_borrowed(block) for block in shared] if shares else shared
        else:
            layers.append(Layer(blocks=tuple(state_space)))
    return hybrid_network(fields, layers)


def zamba2(fields: Fields) -> Network:
    """As zamba with `num_mem_blocks` shared blocks by turns, adapted by matrices of low rank that each layer owns."""
    fields.ignore(*TIME_STEPS, "use_mamba_kernels", "num_logits_to_keep", "use_mem_eff_path", "use_conv_bias")
    fields.ignore("use_mem_rope", "use_long_context", "hybrid_layer_ids", "kv_channels", "num_query_groups", "head_dim")
    fields.ignore(
        "ffn_hidden_size", "gated_linear_unit", "activation_func", "use_shared_mlp_adapter", "use_shared_block"
    )
    hidden, bias = fields.size("hidden_size"), fields.flag("add_bias_linear")
    heads, inner = fields.size("n_mamba_heads"), int(fields.number("mamba_expand") * hidden)
    head_dim = fields.optional_size("mamba_headdim") or inner // heads
    check_inner(inner, heads, head_dim, "mamba_expand * hidden_size")
    mixer = mamba2(
        hidden_size=hidden,
        num_heads=heads,
        head_dim=head_dim,
        state_size=fields.size("mamba_d_state"),
        num_groups=fields.size("mamba_ngroups"),
        conv_kernel=fields.size("mamba_d_conv"),
        chunk_size=fields.size("chunk_size"),
        bias=bias,
        conv_bias=True,
        name="mamba",
    )
    width = fields.optional_size("intermediate_size") or 4 * hidden
    shared = [*_zamba_attention(fields), _dense(fields, width, bias=bias)]
    state_space = [*norms(fields, "input_layernorm"), mixer]
    return hybrid_network(fields, _zamba2_layers(fields, shared, [_square(hidden), *state_space], width))


def _zamba2_layers(fields: Fields, shared: list[Block], after: list[Block], width: int) -> list[Layer]:
    """The layers; `after` follows the shared blocks in hybrid ones, and its state space stands alone in the others.

    Without tying, every hybrid layer has a block of its own, with the adapters of all layers that would share it.
    """
    kinds, shares, turns = _zamba2_kinds(fields), fields.flag("tie_word_embeddings"), fields.size("num_mem_blocks")
    num_hybrids = kinds.count(_HYBRID)
    blocks, layers, turn = [shared] * turns, [], 0
    for kind in kinds:
        if kind != _HYBRID:
            layers.append(Layer(blocks=tuple(after[1:])))
            continue
        used = blocks[turn % turns]
        slots = 1 if shares else len(range(turn % turns, num_hybrids, turns))
        layers.append(Layer(blocks=(*used, *_adapters(fields, width, slots), *after)))
        blocks[turn % turns] = [_borrowed(block) for block in used] if shares else used
        turn += 1
    return layers


def _zamba2_kinds(fields: Fields) -> tuple[str, ...]:
    kinds = free_kinds(fields, "layers_block_type", (LINEAR, _HYBRID))
    fields.ignore("num_hidden_layers")
    if kinds is not None:
        return kinds
    repeated = ((LINEAR,) * 5 + (_HYBRID,)) * 7
    return (LINEAR, *repeated, *(LINEAR,) * 4, _HYBRID, *(LINEAR,) * 3, _HYBRID, LINEAR, LINEAR)


def _zamba_attention(fields: Fields) -> list[Block]:
    """Attention over the hidden states beside the token embeddings, and the norms around it."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    width = fields.optional_size("attention_hidden_size") or 2 * hidden
    head_dim = fields.optional_size("attention_head_dim") or 2 * hidden // heads
    mixer = attention(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=fields.optional_size("num_key_value_heads") or heads,
        head_dim=head_dim,
        has_output=False,
        extra=linear("o_proj", heads * head_dim, hidden),
    )
    return [norm("input_layernorm", width, "rms_norm"), mixer, norm("pre_ff_layernorm", hidden, "rms_norm")]


def _adapters(fields: Fields, width: int, slots: int) -> list[Block]:
    """Matrices of low rank beside the feed-forward's input, and beside q, k and v if the config says so.

    `slots` of them are stored, of which one runs.
    """
    hidden, rank = fields.size("hidden_size"), fields.size("adapter_rank")
    inner = fields.optional_size("attention_hidden_size") or 2 * hidden
    weights = linear("gate_up_adapter.0", hidden, rank, copies=slots)
    weights += linear("gate_up_adapter.1", rank, 2 * width, copies=slots)
    blocks = [Block(name="feed_forward.adapter", part="feed_forward", weights=weights, live_width=hidden + 2 * width)]
    if fields.flag("use_shared_attention_adapter"):
        adapters: tuple[Weight, ...] = ()
        for what in ("q", "k", "v"):
            adapters += linear(f"linear_{what}_adapter.0", inner, rank, copies=slots)
            adapters += linear(f"linear_{what}_adapter.1", rank, inner, copies=slots)
        blocks.append(Block(name="self_attn.adapter", part="attention", weights=adapters, live_width=4 * inner))
    return blocks


def _square(hidden: int) -> Block:
    return Block(name="linear", part="feed_forward", weights=linear("linear", hidden, hidden), live_width=2 * hidden)


def _borrowed(block: Block) -> Block:
    """The block with weights that an earlier layer stores."""
    weights = tuple(dataclasses.replace(weight, stored=False) for weight in block.weights)
    return dataclasses.replace(block, weights=weights)


def _short_convolution(fields: Fields) -> Block:
    return short_convolution(
        hidden_size=fields.size("hidden_size"),
        conv_kernel=fields.size("conv_L_cache"),
        bias=fields.flag("conv_bias"),
    )


def _dense(fields: Fields, width: int, *, bias: bool = False) -> Block:
    return feed_forward(
        hidden_size=fields.size("hidden_size"), intermediate_size=width, gated=True, bias=bias, name="feed_forward"
    )


def _lfm2_tied(fields: Fields) -> bool:
    tied = fields.flag("tie_word_embeddings")
    return fields.flag("tie_embedding") if fields.given("tie_embedding") else tied
