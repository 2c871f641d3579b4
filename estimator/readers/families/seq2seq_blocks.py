"""Blocks that single families of encoder-decoders have, as functions of their fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, linear, norm, norm_weights
from estimator.errors import ConfigError
from estimator.network import Block, Recurrence, Weight
from estimator.readers.families.encoder_blocks import (
    attention_window,
    convolution,
    global_projections,
    within_window,
)
from estimator.readers.fields import Fields

__all__ = [
    "biased_output_attention",
    "blockwise_attention",
    "global_table",
    "marian_vocabulary",
    "mel_front",
    "moonshine_front",
    "ngram_attention",
    "ngram_table",
    "prompt_tables",
    "source_vocabulary",
    "subsampling_front",
    "transient_attention",
    "two_sided_attention",
]


def marian_vocabulary(fields: Fields) -> int | None:
    """marian: the decoder's own number of tokens, where the two stacks share no table."""
    if fields.flag("share_encoder_decoder_embeddings"):
        fields.optional_size("decoder_vocab_size")
        return None
    return fields.optional_size("decoder_vocab_size") or fields.size("vocab_size")


def source_vocabulary(fields: Fields) -> int:
    """fsmt: the encoder's own number of tokens."""
    return fields.size("src_vocab_size")


def global_table(fields: Fields) -> tuple[Block, ...]:
    """pegasus_x: a table of global tokens, which go through the encoder with every input."""
    return (embedding("embed_global", fields.size("num_global_tokens"), fields.size("d_model")),)


def prompt_tables(fields: Fields) -> tuple[Block, ...]:
    """mvp: with `use_prompt`, two sets of prompts for every layer of the decoder, made from tables by two matrices."""
    rows, inner = fields.size("prompt_length"), fields.size("prompt_mid_dim")
    if not fields.flag("use_prompt"):
        return ()
    hidden = fields.size("d_model")
    outputs = fields.layers("decoder_layers") * 2 * hidden
    blocks: list[Block] = []
    for name in ("self_attn_prompt", "cross_attn_prompt"):
        blocks.append(embedding(name, rows, hidden))
        weights = linear("trans.0", hidden, inner, bias=True) + linear("trans.1", inner, outputs, bias=True)
        blocks.append(Block(name=name, part="attention", weights=weights, positions=rows))
    return tuple(blocks)


def two_sided_attention(fields: Fields, _index: int) -> tuple[Block, ...]:
    """led: attention within a window, and matrices for tokens that are marked global."""
    hidden, heads = fields.size("d_model"), fields.size("encoder_attention_heads")
    window = attention_window(fields, fields.layers("encoder_layers"))
    block = within_window(_plain(hidden, heads, hidden, qkv_bias=True, output_bias=True), hidden, window)
    return block, global_projections(hidden)


def blockwise_attention(fields: Fields, _index: int) -> tuple[Block, ...]:
    """pegasus_x: each token attends to its block and to the global tokens, which attend to everything.

    Source: PEGASUS-X, arXiv:2208.04347, section 3.
    """
    hidden, heads, num_global = (
        fields.size("d_model"),
        fields.size("encoder_attention_heads"),
        fields.size("num_global_tokens"),
    )
    keys = fields.size("block_size") + 2 * num_global
    block = _plain(hidden, heads, hidden, qkv_bias=False, output_bias=False)
    inner = feed_forward(hidden_size=hidden, intermediate_size=fields.size("encoder_ffn_dim"), gated=False)
    again = tuple(replace(weight, stored=False) for weight in block.weights + inner.weights)
    between = Recurrence(state_elements=0, token_flops=2 * 2 * hidden * num_global)
    products = Recurrence(state_elements=0, token_flops=2 * 2 * hidden * keys)
    return (
        replace(block, attention=None, recurrence=products, live_width=block.live_width + heads * keys),
        Block(name="self_attn", part="attention", weights=again, recurrence=between, positions=num_global),
    )


def biased_output_attention(side: str) -> Callable[[Fields, int], tuple[Block, ...]]:
    """bigbird_pegasus: `use_bias` decides every bias of the encoder's and decoder's attention."""

    def make(fields: Fields, _index: int) -> tuple[Block, ...]:
        hidden, bias = fields.size("d_model"), fields.flag("use_bias")
        heads = fields.size(f"{side}_attention_heads")
        return (_plain(hidden, heads, hidden, qkv_bias=bias, output_bias=bias, is_cached=side == "decoder"),)

    return make


def transient_attention(fields: Fields, index: int) -> tuple[Block, ...]:
    """longt5: local attention, or with a summary of each block of tokens in addition. Source: arXiv:2112.07916."""
    hidden, heads, rows = (
        fields.size("d_model"),
        fields.size("num_heads"),
        fields.size("relative_attention_num_buckets"),
    )
    kind = fields.choice("encoder_attention_type", ("local", "transient-global"))
    width, radius = heads * fields.size("d_kv"), fields.size("local_radius")
    fields.ignore("global_block_size")
    block = _plain(hidden, heads, width, qkv_bias=False, output_bias=False)
    names = ["relative_attention_bias"] if index == 0 else []
    extra: tuple[Weight, ...] = ()
    if kind == "transient-global":
        names += ["global_relative_attention_bias"] if index == 0 else []
        extra = norm_weights("global_input_layer_norm", hidden, "rms_norm")
    tables = tuple(Weight(name=name, shape=(rows, heads), role="embedding", quantized=False) for name in names)
    keys = 3 * (radius + 1)  # three blocks of tokens
    products = Recurrence(state_elements=0, token_flops=2 * 2 * width * keys)
    live_width = block.live_width + heads * keys
    weights = block.weights + tables + extra
    return (replace(block, weights=weights, attention=None, recurrence=products, live_width=live_width),)


def ngram_table(fields: Fields) -> tuple[Block, ...]:
    """prophetnet: a table with a row for each of the tokens that are predicted at once."""
    return (embedding("ngram_embeddings", fields.size("ngram"), fields.size("hidden_size")),)


def ngram_attention(fields: Fields, _index: int) -> tuple[Block, ...]:
    """prophetnet: self-attention with a matrix that gives each row its biases by distance."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_decoder_attention_heads")
    outputs = fields.size("num_buckets") * heads
    block = _plain(hidden, heads, hidden, qkv_bias=True, output_bias=True, is_cached=True)
    return (replace(block, weights=block.weights + linear("relative_pos_embeddings", hidden, outputs, bias=True)),)


def mel_front(fields: Fields) -> tuple[tuple[Block, ...], int]:
    """whisper: two convolutions over the spectrogram, the second of which halves its length, and positions."""
    hidden, length = fields.size("d_model"), fields.size("max_source_positions")
    first = convolution("conv1", fields.size("num_mel_bins"), hidden, 3)
    second = convolution("conv2", hidden, hidden, 3)
    return (
        Block(name="", part="embedding", weights=first, positions=2 * length),
        Block(name="", part="embedding", weights=second, positions=length, live_width=3 * hidden),
        embedding("embed_positions", length, hidden),
    ), length


def subsampling_front(fields: Fields) -> tuple[tuple[Block, ...], int]:
    """speech_to_text: gated convolutions that each halve the length; sized for the longest input."""
    kernels = fields.sizes("conv_kernel_sizes", fields.size("num_conv_layers"))
    width, inner = fields.size("input_feat_per_channel") * fields.size("input_channels"), fields.size("conv_channels")
    length = fields.size("max_source_positions")
    blocks: list[Block] = []
    for index, kernel in enumerate(kernels):
        outputs = 2 * fields.size("d_model") if index == len(kernels) - 1 else inner
        length = (length - 1) // 2 + 1
        weights = convolution(f"conv.{index}", width, outputs, kernel)
        blocks.append(Block(name="", part="embedding", weights=weights, positions=length, live_width=2 * outputs))
        width = outputs // 2
    return tuple(blocks), length


def moonshine_front(fields: Fields) -> tuple[tuple[Block, ...], None]:
    """moonshine: convolutions over samples; a row of the encoder stands for 6 of the first and 2 of the second."""
    hidden = fields.size("hidden_size")
    blocks: list[Block] = []
    for name, width, outputs, kernel, rows in (
        ("conv1", 1, hidden, 127, 6),
        ("conv2", hidden, 2 * hidden, 7, 2),
        ("conv3", 2 * hidden, hidden, 3, 1),
    ):
        weights = convolution(name, width, outputs, kernel, bias=name != "conv1")
        more = Recurrence(state_elements=0, token_flops=(rows - 1) * 2 * width * outputs * kernel)
        recurrence = more if rows > 1 else None
        blocks.append(Block(name="", part="embedding", weights=weights, recurrence=recurrence, live_width=3 * hidden))
    blocks.append(norm("groupnorm", hidden, "layer_norm"))
    return tuple(blocks), None


def _plain(hidden: int, heads: int, width: int, *, qkv_bias: bool, output_bias: bool, is_cached: bool = False) -> Block:
    if width % heads:
        raise ConfigError(f"the number of heads must divide the width {width}, not {heads}")
    return attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        is_cached=is_cached,
    )
