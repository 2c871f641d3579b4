"""Decoders that write from what an image says: TrOCR's, which another model's rows feed, GIT and Fuyu."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import cross_attention, head, linear, norm, norm_weights
from estimator.blocks.vision import patch_projection
from estimator.network import Block, Network, Stack, Weight
from estimator.readers.families.decoder_facts import Decoder
from estimator.readers.families.decoder_families import DECODERS
from estimator.readers.families.decoders import decoder_network, decoder_stack
from estimator.readers.families.encoders import idle
from estimator.readers.families.vision import vision_stack
from estimator.readers.families.vision_families import VISION
from estimator.readers.family_data import family_data
from estimator.readers.fields import Fields

__all__ = ["READERS", "trocr_stack"]

_BIASED = Decoder(
    norm="layer_norm",
    gated=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    head_dim=None,
    square=True,
    key_value_heads="num_attention_heads",
    positions="learned",
)
_NOMINAL = "images of any size are read; one of image_size is assumed"


def trocr_facts(fields: Fields, *, has_source: bool = False) -> Decoder:
    """The row of TrOCR's decoder, whose norms stand behind its parts; has_source: an encoder stands before."""

    def cross(own: Fields, _index: int) -> tuple[Block, ...]:
        hidden, heads = own.size("hidden_size"), own.size("num_attention_heads")
        blocks = cross_attention(
            hidden_size=hidden,
            source_size=own.optional_size("cross_attention_hidden_size") or hidden,
            num_attention_heads=heads,
            head_dim=hidden // heads,
            qkv_bias=True,
            output_bias=True,
        )
        blocks = blocks if has_source else (idle(blocks[0]), idle(blocks[1]))
        return (*blocks, norm("encoder_attn_layer_norm", hidden, "layer_norm"))

    fields.ignore("is_decoder")  # the class sets it
    return replace(
        _BIASED,
        positions="learned" if fields.flag("use_learned_position_embeddings") else "none",
        extra_positions=2,
        embedding_norm=fields.flag("layernorm_embedding"),
        final_norm=False,
        intermediate_size="decoder_ffn_dim",
        layer_blocks=cross,
    )


def trocr_stack(fields: Fields) -> Stack:
    """TrOCR's decoder behind an encoder, with its head."""
    width, vocabulary = fields.size("hidden_size"), fields.size("vocab_size")
    last = head("output_projection", width, vocabulary, tied=fields.flag("tie_word_embeddings"))
    facts = trocr_facts(fields, has_source=True)
    return decoder_stack(fields, facts, after=(last,), prefix="decoder.")


def _trocr(fields: Fields) -> Network:
    return decoder_network(fields, trocr_facts(fields))


def _git(fields: Fields) -> Network:
    """GIT: a decoder in BERT's form over the rows of an image, then those of the text. Source: arXiv:2205.14100."""
    network = decoder_network(fields, replace(_BIASED, final_norm=False, embedding_norm=True, head_bias=True))
    vision, hidden = fields.own_sub("vision_config"), fields.size("hidden_size")
    width = vision.size("hidden_size")
    frames = fields.layers("num_image_with_embedding") if fields.count("num_image_with_embedding") else 0
    weights = linear("visual_projection.0", width, hidden, bias=True)
    weights += norm_weights("visual_projection.1", hidden, "layer_norm")
    weights += tuple(
        Weight(name=f"img_temporal_embedding.{index}", shape=(1, 1, width), role="embedding") for index in range(frames)
    )
    projector = Block(name="", part="projector", weights=weights, live_width=width + hidden)
    facts = VISION[vision.data.model_type]
    tower = vision_stack(vision, facts, after=(projector,), optional=True, prefix="image_encoder.")
    return replace(network, stacks=(tower, *network.stacks))


def _fuyu(fields: Fields) -> Network:
    """Fuyu: patches of an image become rows of the text by one matrix, without a tower."""
    flat = family_data("persimmon")
    assert flat is not None
    fields.ignore(*flat.defaults, "tie_word_embeddings")
    tied = fields.task != "base" and fields.flag("tie_word_embeddings")
    text = fields.own_sub("text_config", task="base")
    text.ignore("tie_word_embeddings")
    hidden, vocabulary = text.size("hidden_size"), text.size("vocab_size")
    after = () if fields.task == "base" else (head("lm_head", hidden, vocabulary, tied=tied),)
    network = decoder_network(text, DECODERS[text.data.model_type])
    side = fields.size("patch_size")
    places = max(1, fields.size("image_size") // side) ** 2
    first = patch_projection(
        num_channels=fields.size("num_channels"),
        hidden_size=hidden,
        patch=(side, side),
        positions=places,
        is_linear=True,
        name="vision_embed_tokens",
    )
    images = Stack(name="vision", hidden_size=hidden, layers=(), before=(first,), length=places, optional=True)
    main = replace(network.main, after=network.main.after + after, prefix="language_model.")
    fields.warnings.append(_NOMINAL)
    return replace(network, stacks=(images, main), model_type=fields.data.model_type)


READERS: Mapping[str, Callable[[Fields], Network]] = {"fuyu": _fuyu, "git": _git, "trocr": _trocr}
