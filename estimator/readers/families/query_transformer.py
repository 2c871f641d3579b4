"""The querying transformer of BLIP-2: learned rows that attend to each other and to the patches of an image."""

from __future__ import annotations

from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, norm
from estimator.blocks.vision import resampler_attention, tokens
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Stack
from estimator.readers.families.multimodal import Parts, projection

__all__ = ["query_attention", "query_stack"]


def query_attention(parts: Parts) -> tuple[Block, ...]:
    """The attention of the learned rows to the tower's, of all layers that have it.

    It stands behind the tower, whose rows are its keys and values.
    """
    config = parts.fields.sub("qformer_config")
    hidden, heads = config.size("hidden_size"), config.size("num_attention_heads")
    config.ignore("encoder_hidden_size")  # the class takes the tower's
    every, rows = config.size("cross_attention_frequency"), parts.fields.size("num_query_tokens")
    blocks = resampler_attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_queries=rows,
        source_size=parts.vision_size,
        name="qformer.crossattention",
    )
    last = replace(norm("qformer.crossattention.norm", hidden, "layer_norm"), positions=rows)
    return (*blocks, last) * -(-config.layers() // every)


def query_stack(parts: Parts) -> tuple[Stack, ...]:
    """The learned rows with their attention to each other and feed-forward, and the projection to the text's width.

    Ignores: rows of an instruction that some classes read beside the learned ones.

    Raises:
        ConfigError: the heads do not share the width evenly.
    """
    config, rows = parts.fields.sub("qformer_config"), parts.fields.size("num_query_tokens")
    hidden, heads, inner = (config.size(f) for f in ("hidden_size", "num_attention_heads", "intermediate_size"))
    if hidden % heads:
        raise ConfigError(
            f"qformer_config.num_attention_heads must divide {hidden}, not {heads}", field="qformer_config"
        )
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        qkv_bias=True,
        output_bias=True,
        is_cached=False,
    )
    feeding = feed_forward(hidden_size=hidden, intermediate_size=inner, gated=False, bias=True, name="query")
    reads_text = "use_qformer_text_input" not in config.data.defaults or config.flag("use_qformer_text_input")
    blocks = [mixing, norm("attention_norm", hidden, "layer_norm"), feeding, norm("query_norm", hidden, "layer_norm")]
    if reads_text:
        blocks += [replace(block, name=f"text.{block.name}", positions=0) for block in blocks[2:]]
    before = (tokens("query_tokens", rows, hidden), *_text_tables(parts), norm("layernorm", hidden, "layer_norm"))
    stack = Stack(
        name="qformer",
        hidden_size=hidden,
        before=before,
        layers=(Layer(blocks=tuple(blocks)),) * config.layers(),
        after=(projection("language_projection", (hidden, parts.text_size), positions=None),),
        length=rows,
        optional=True,
        prefix="qformer.",
    )
    return (stack,)


def _text_tables(parts: Parts) -> tuple[Block, ...]:
    """Tables for the instruction, in the family whose querying transformer always reads one."""
    config = parts.fields.sub("qformer_config")
    config.ignore("vocab_size", "max_position_embeddings")
    if "use_qformer_text_input" in config.data.defaults:
        return ()
    hidden = config.size("hidden_size")
    sizes = {"word_embeddings": "vocab_size", "position_embeddings": "max_position_embeddings"}
    return tuple(embedding(name, config.size(field), hidden) for name, field in sizes.items())
