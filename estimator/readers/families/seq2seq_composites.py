"""Encoder-decoders whose config nests a config for each of the two stacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from estimator.blocks.common import attention, cross_attention, embedding, feed_forward, head, linear, norm
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack
from estimator.readers.families.encoder_families import ENCODERS
from estimator.readers.families.encoder_heads import head_blocks, is_tied
from estimator.readers.families.encoders import encoder_stack
from estimator.readers.fields import Fields

__all__ = ["READERS"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def paired_network(fields: Fields) -> Network:
    """encoder-decoder: an encoder of one family, and a decoder with cross-attention of the same or another.

    Raises:
        UnsupportedModelError: a stack is of a family that is not read as an encoder.
        ConfigError: the decoder has no cross-attention.
    """
    source, target = fields.sub("encoder", task="base"), fields.sub("decoder", task="causal_lm")
    for side in (source, target):
        if side.data.model_type not in ENCODERS:
            raise UnsupportedModelError(f"encoder-decoder with {side.data.model_type} is not supported")
    if not (target.flag("is_decoder") and target.flag("add_cross_attention")):
        raise ConfigError("decoder must have is_decoder and add_cross_attention true", field="decoder")
    first, second = ENCODERS[source.data.model_type], ENCODERS[target.data.model_type]
    bridge: tuple[Block, ...] = ()
    rows, columns = source.size("hidden_size"), target.size("hidden_size")
    if rows != columns:
        bridge = (Block(name="", part="projector", weights=linear("enc_to_dec_proj", rows, columns, bias=True)),)
    after = tuple(head_blocks(source, first)) + bridge
    encoder = encoder_stack(source, first, after=after, prefix="encoder.")
    decoder = encoder_stack(
        target, second, after=tuple(head_blocks(target, second)), prefix="decoder.", has_source=True
    )
    return Network(
        architecture="encoder-decoder",
        stacks=(encoder, decoder),
        model_type=fields.data.model_type,
        vocab_size=target.size("vocab_size"),
        max_position_embeddings=target.optional_size("max_position_embeddings"),
        learned_positions=second.positions == "learned",
    )


def gemma_network(fields: Fields) -> Network:
    """t5gemma: two stacks of Gemma 2, the second with cross-attention. Source: arXiv:2504.06225."""
    if fields.task not in ("base", "seq2seq_lm"):
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    fields.ignore("is_encoder_decoder", "vocab_size")
    source, target = fields.sub("encoder"), fields.sub("decoder")
    for side in (source, target):
        side.ignore(
            "is_decoder",
            "dropout_rate",
            "cross_attention_hidden_size",
            "max_position_embeddings",
            "tie_word_embeddings",
        )
    after: tuple[Block, ...] = ()
    if fields.task == "seq2seq_lm":
        after = (head("lm_head", target.size("hidden_size"), target.size("vocab_size"), tied=is_tied(fields)),)
    return Network(
        architecture="encoder-decoder",
        stacks=(_gemma_stack(source, None, ()), _gemma_stack(target, source.size("hidden_size"), after)),
        model_type=fields.data.model_type,
        vocab_size=target.size("vocab_size"),
        max_position_embeddings=target.optional_size("max_position_embeddings"),
    )


def _gemma_stack(fields: Fields, source_size: int | None, after: tuple[Block, ...]) -> Stack:
    hidden, count = fields.size("hidden_size"), fields.layers()
    kinds = fields.words("layer_types", count, (_FULL, _SLIDING))
    window = fields.optional_size("sliding_window")
    if kinds is None:
        kinds = tuple(_FULL if index % 2 else _SLIDING for index in range(count))
    layers = tuple(_gemma_layer(fields, window if kind == _SLIDING else None, source_size) for kind in kinds)
    name = "encoder" if source_size is None else "decoder"
    return Stack(
        name=name,
        hidden_size=hidden,
        before=(embedding("embed_tokens", fields.size("vocab_size"), hidden),),
        layers=layers,
        after=(norm("norm", hidden, "rms_norm"), *after),
        is_causal=source_size is not None,
        prefix=f"{name}.",
    )


def _gemma_layer(fields: Fields, window: int | None, source_size: int | None) -> Layer:
    hidden, heads, width = fields.size("hidden_size"), fields.size("num_attention_heads"), fields.size("head_dim")
    key_value_heads, bias = fields.size("num_key_value_heads"), fields.flag("attention_bias")
    own = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=width,
        qkv_bias=bias,
        output_bias=bias,
        window=window,
        is_cached=source_size is not None,
    )
    parts: list[tuple[str, tuple[Block, ...]]] = [("self_attn", (own,))]
    if source_size is not None:
        cross = cross_attention(
            hidden_size=hidden,
            source_size=source_size,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=width,
            qkv_bias=bias,
            output_bias=bias,
        )
        parts.append(("cross_attn", cross))
    inner = fields.size("intermediate_size")
    parts.append(("mlp", (feed_forward(hidden_size=hidden, intermediate_size=inner, gated=True),)))
    blocks: tuple[Block, ...] = ()
    for name, part in parts:
        before, behind = (norm(f"{where}_{name}_norm", hidden, "rms_norm") for where in ("pre", "post"))
        blocks += (before, *part, behind)
    return Layer(blocks=blocks)


READERS: Mapping[str, Callable[[Fields], Network]] = {"encoder-decoder": paired_network, "t5gemma": gemma_network}
