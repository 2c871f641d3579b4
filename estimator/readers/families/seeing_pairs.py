"""vision-encoder-decoder: a vision model of one family, and a decoder of another that reads its rows (TrOCR, Donut)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import cross_attention, linear, norm
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Network, Stack
from estimator.readers.families.decoder_families import DECODERS
from estimator.readers.families.decoders import decoder_network
from estimator.readers.families.encoder_families import ENCODERS
from estimator.readers.families.encoder_heads import head_blocks
from estimator.readers.families.encoders import encoder_stack
from estimator.readers.families.odd_decoders import trocr_stack
from estimator.readers.families.pyramids import READERS as PYRAMIDS
from estimator.readers.families.seq2seq import seq2seq_network
from estimator.readers.families.seq2seq_families import SEQ2SEQ
from estimator.readers.families.vision import vision_network
from estimator.readers.families.vision_families import VISION
from estimator.readers.fields import Fields

__all__ = ["READERS"]


def paired_network(fields: Fields) -> Network:
    """Both stacks, and a matrix between them where their widths differ.

    Raises:
        UnsupportedModelError: a stack is of a family that is not read as such.
    """
    fields.ignore("is_encoder_decoder", "tie_word_embeddings", "decoder_start_token_id")
    source, target = fields.sub("encoder", task="base"), fields.sub("decoder", task="causal_lm")
    for side in (source, target):
        side.ignore("is_encoder_decoder")
    seen = _vision(source)
    width, hidden = seen.main.hidden_size, target.size("hidden_size")
    after = seen.main.after
    if width != hidden and not target.given("cross_attention_hidden_size"):
        weights = linear("enc_to_dec_proj", width, hidden, bias=True)
        after += (Block(name="", part="projector", weights=weights, live_width=width + hidden),)
    encoder = replace(seen.main, after=after)
    stacks = tuple(replace(stack, prefix=f"encoder.{stack.prefix}") for stack in (*seen.stacks[:-1], encoder))
    return Network(
        architecture="encoder-decoder",
        stacks=(*stacks, _decoder(target)),
        model_type=fields.data.model_type,
        vocab_size=target.size("vocab_size"),
        max_position_embeddings=target.optional_size("max_position_embeddings"),
    )


def _vision(fields: Fields) -> Network:
    name = fields.data.model_type
    if name in PYRAMIDS:
        return PYRAMIDS[name](fields)
    if name not in VISION:
        raise UnsupportedModelError(f"encoder of model_type {name} is not supported")
    return vision_network(fields, VISION[name])


def _decoder(fields: Fields) -> Stack:
    name = fields.data.model_type
    if name == "trocr":
        fields.ignore("add_cross_attention")
        return trocr_stack(fields)
    if "add_cross_attention" in fields.data.defaults and not fields.flag("add_cross_attention"):
        raise ConfigError("decoder must have add_cross_attention true", field="decoder")
    if name == "gpt2":
        facts = replace(DECODERS["gpt2"], layer_blocks=_cross_blocks, required={})
        return replace(decoder_network(fields, facts).main, prefix="decoder.")
    if name in SEQ2SEQ:
        fields.task = "seq2seq_lm"
        fields.ignore("add_cross_attention")
        return seq2seq_network(fields, replace(SEQ2SEQ[name], front=lambda _: ((), None))).main
    if name in ENCODERS:
        if not fields.flag("is_decoder"):
            raise ConfigError("decoder must have is_decoder true", field="decoder")
        facts_of = ENCODERS[name]
        after = tuple(head_blocks(fields, facts_of))
        return encoder_stack(fields, facts_of, after=after, prefix="decoder.", has_source=True)
    raise UnsupportedModelError(f"decoder of model_type {name} is not supported")


def _cross_blocks(fields: Fields, _index: int) -> tuple[Block, ...]:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    blocks = cross_attention(
        hidden_size=hidden,
        source_size=hidden,
        num_attention_heads=heads,
        head_dim=hidden // heads,
        qkv_bias=True,
        output_bias=True,
    )
    return (norm("ln_cross_attn", hidden, "layer_norm"), *blocks)


READERS: Mapping[str, Callable[[Fields], Network]] = {"vision-encoder-decoder": paired_network}
