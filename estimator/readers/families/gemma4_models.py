"""Gemma 4 with its towers, the one without towers (unified), and the small models that guess ahead for both.

Source: transformers 5.24, models/gemma4, gemma4_unified, gemma4_assistant, gemma4_unified_assistant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import attention, feed_forward, head, linear, norm, norm_weights
from estimator.blocks.vision import convolution, patch_projection, position_table
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Layer, Network, Recurrence, Stack, Weight
from estimator.readers.families.decoder_families import DECODERS
from estimator.readers.families.decoders import decoder_network
from estimator.readers.families.encoders import idle
from estimator.readers.fields import Fields

__all__ = ["READERS"]

_SOFT_TOKENS = 280  # of one image, as the processor of images has it by default
_CHANNELS = 3
_WIDER = 4  # by how much the audio tower's feed-forward is wider
_NO_CLIPS = "the audio tower is counted in the weights, but no clip runs through it"
_IMAGES = f"images of any size are read; one of {_SOFT_TOKENS} tokens is assumed"

_TEXT = DECODERS["gemma4_text"]
# Its class has no inputs per layer and no experts.
_UNIFIED_TEXT = replace(_TEXT, before_blocks=None, layer_blocks=None)


def _patches(fields: Fields) -> int:
    return _SOFT_TOKENS * fields.size("pooling_kernel_size") ** 2


def vision_stack(fields: Fields, after: tuple[Block, ...] = (), *, optional: bool = False) -> Stack:
    """Patches, layers, and a product that averages squares of patches."""
    hidden, patch, rows = fields.size("hidden_size"), fields.size("patch_size"), _patches(fields)
    fields.ignore("standardize", "use_clipped_linears", "max_position_embeddings")  # buffers, and rotary positions
    fields.ignore("attention_bias")  # the class builds none
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=fields.size("num_attention_heads"),
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim"),
        qk_norm="head",
        is_cached=False,
    )
    feeding = feed_forward(hidden_size=hidden, intermediate_size=fields.size("intermediate_size"), gated=True)
    norms = [norm(f"norms.{index}", hidden, "rms_norm") for index in range(4)]
    before = (
        patch_projection(
            num_channels=_CHANNELS,
            hidden_size=hidden,
            patch=(patch, patch),
            positions=rows,
            bias=False,
            is_linear=True,
        ),
        position_table(2 * fields.size("position_embedding_size"), hidden),
    )
    pooled = Recurrence(state_elements=0, token_flops=2 * rows * hidden if rows != _SOFT_TOKENS else 0)
    pooling = Block(name="pooler", part="other", recurrence=pooled, positions=_SOFT_TOKENS, live_width=hidden)
    return Stack(
        name="vision",
        hidden_size=hidden,
        before=before,
        layers=(Layer(blocks=(norms[0], mixing, norms[1], norms[2], feeding, norms[3])),) * fields.layers(),
        after=(pooling, *after),
        length=rows,
        optional=optional,
        prefix="vision_tower.",
    )


def _audio_weights(fields: Fields) -> tuple[Block, ...]:
    """The first convolutions of the audio tower, and what stands behind its layers."""
    hidden, channels = fields.size("hidden_size"), fields.sizes("subsampling_conv_channels", 2)
    weights: tuple[Weight, ...] = ()
    for index, width in enumerate(channels):
        source = channels[index - 1] if index else 1
        weights += convolution(f"layer{index}.conv", source, width, (3, 3), bias=False)
        weights += norm_weights(f"layer{index}.norm", width, "layer_norm_without_bias")
    weights += linear("input_proj_linear", channels[0] // 4 * channels[1], hidden)
    last = linear("output_proj", hidden, fields.size("output_proj_dims"), bias=True)
    return (
        Block(name="subsample_conv_projection", part="embedding", weights=weights),
        Block(name="", part="projector", weights=last),
    )


def _audio_layer(fields: Fields) -> Layer:
    """A layer of a conformer: two halves of a feed-forward around attention and a convolution."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    width = hidden // heads * heads
    names = ("q_proj", "k_proj", "v_proj", "relative_k_proj")
    weights = tuple(weight for name in names for weight in linear(name, hidden, width))
    weights += linear("o_proj", hidden, hidden)
    weights += (Weight(name="per_dim_scale", shape=(hidden // heads,), role="other"),)
    convolving = linear("linear_start", hidden, 2 * hidden) + linear("linear_end", hidden, hidden)
    kernel = (fields.size("conv_kernel_size"),)
    convolving += convolution("depthwise_conv1d", hidden, hidden, kernel, bias=False, groups=hidden)
    feeding = feed_forward(hidden_size=hidden, intermediate_size=_WIDER * hidden, gated=False)
    norms = [norm(f"norms.{index}", hidden, "rms_norm") for index in range(9)]
    return Layer(
        blocks=(
            replace(feeding, name="feed_forward1"),
            Block(name="self_attn", part="attention", weights=weights),
            Block(name="lconv1d", part="feed_forward", weights=convolving),
            replace(feeding, name="feed_forward2"),
            *norms,
        )
    )


def _audio_stack(fields: Fields, after: tuple[Block, ...]) -> Stack:
    """The audio tower, which stands idle: what is counted beside the text is images."""
    fields.ignore("attention_chunk_size", "attention_context_left", "attention_context_right", "use_clipped_linears")
    first, last = (idle(block) for block in _audio_weights(fields))
    layer = Layer(blocks=tuple(idle(block) for block in _audio_layer(fields).blocks))
    return Stack(
        name="audio",
        hidden_size=fields.size("hidden_size"),
        before=(first,),
        layers=(layer,) * fields.layers(),
        after=(last, *(idle(block) for block in after)),
        length=0,
        optional=True,
        prefix="audio_tower.",
    )


def _embedder(name: str, source: int, hidden: int) -> Block:
    weights = linear("embedding_projection", source, hidden)
    return Block(name=name, part="projector", weights=weights, positions=_SOFT_TOKENS, live_width=source + hidden)


def _towers(fields: Fields, text: Fields) -> tuple[Stack, ...]:
    hidden = text.size("hidden_size")
    stacks: tuple[Stack, ...] = ()
    if fields.raw("vision_config") is not None:
        vision = fields.sub("vision_config")
        stacks += (
            vision_stack(vision, (_embedder("embed_vision", vision.size("hidden_size"), hidden),), optional=True),
        )
        fields.warnings.append(_IMAGES)
    if fields.raw("audio_config") is not None:
        audio = fields.sub("audio_config")
        stacks += (_audio_stack(audio, (_embedder("embed_audio", audio.size("output_proj_dims"), hidden),)),)
        fields.warnings.append(_NO_CLIPS)
    return stacks


def _projections(fields: Fields, text: Fields) -> tuple[Stack, ...]:
    """The unified model: patches and stretches of samples go through matrices, without layers."""
    hidden = text.size("hidden_size")
    stacks: tuple[Stack, ...] = ()
    if fields.raw("vision_config") is not None:
        vision = fields.sub("vision_config")
        width, outputs = vision.size("mm_embed_dim"), vision.size("output_proj_dims")
        side = vision.size("patch_size") * vision.size("pooling_kernel_size")
        fields.warnings.append(_IMAGES)
        pixels = _CHANNELS * side**2
        weights = norm_weights("patch_ln1", pixels, "layer_norm") + linear("patch_dense", pixels, width, bias=True)
        weights += norm_weights("patch_ln2", width, "layer_norm") + norm_weights("pos_norm", width, "layer_norm")
        first = Block(name="embed_vision", part="embedding", weights=weights, live_width=pixels + 2 * width)
        table = position_table(2 * vision.size("mm_posemb_size"), width)
        last = _embedder("embed_vision.multimodal_embedder", outputs, hidden)
        stacks += (_without_layers("vision", width, (first, table, last), _SOFT_TOKENS),)
    if fields.raw("audio_config") is not None:
        width = fields.sub("audio_config").size("audio_embed_dim")
        block = idle(_embedder("embed_audio", width, hidden))
        stacks += (_without_layers("audio", width, (block,), 0),)
        fields.warnings.append(_NO_CLIPS)
    return stacks


def _without_layers(name: str, width: int, blocks: tuple[Block, ...], length: int) -> Stack:
    return Stack(name=name, hidden_size=width, layers=(), before=blocks, length=length, optional=True)


def _whole(fields: Fields, *, beside: Callable[[Fields, Fields], tuple[Stack, ...]]) -> Network:
    """The text, what reads images and audio beside it, and the head of the class."""
    if fields.task not in ("base", "image_text_to_text"):
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    text = fields.sub("text_config", task="base")
    text.ignore("tie_word_embeddings")
    network = _read_text(text)
    after: tuple[Block, ...] = ()
    if fields.task != "base":
        tied = fields.flag("tie_word_embeddings")
        after = (head("lm_head", text.size("hidden_size"), text.size("vocab_size"), tied=tied),)
    main = replace(network.main, after=(*network.main.after, *after), prefix="language_model.")
    return replace(network, stacks=(*beside(fields, text), main), model_type=fields.data.model_type)


def _assistant(fields: Fields) -> Network:
    """A small decoder that reads the rows, keys and values of a large one, and keeps none of its own.

    With `use_ordered_embeddings` it scores groups of tokens first, then the tokens of the best groups.
    """
    text = fields.sub("text_config", task="base")
    text.ignore("tie_word_embeddings")
    if not text.count("num_kv_shared_layers"):
        text.set("num_kv_shared_layers", text.layers())
    hidden, backbone = text.size("hidden_size"), fields.size("backbone_hidden_size")
    network = _read_text(text)
    before = linear("pre_projection", 2 * backbone, hidden)
    after = linear("post_projection", hidden, backbone)
    vocabulary, groups = text.size("vocab_size"), fields.size("num_centroids")
    chosen = fields.size("centroid_intermediate_top_k")
    blocks: tuple[Block, ...] = (Block(name="", part="projector", weights=after, live_width=hidden + backbone),)
    lm = head("lm_head", hidden, vocabulary, tied=fields.flag("tie_word_embeddings"))
    if fields.flag("use_ordered_embeddings"):
        scored = Recurrence(state_elements=0, token_flops=2 * hidden * chosen * (vocabulary // groups))
        weights = linear("masked_embedding.centroids", hidden, groups)
        blocks += (
            Block(name="", part="head", weights=weights, recurrence=scored, live_width=hidden + groups),
            idle(lm),
        )
    else:
        blocks += (lm,)
    first = Block(name="", part="projector", weights=before, live_width=2 * backbone + hidden)
    main = replace(network.main, before=(*network.main.before, first), after=(*network.main.after, *blocks))
    return replace(network, stacks=(main,), model_type=fields.data.model_type)


def _read_text(text: Fields) -> Network:
    known = {"gemma4_text": _TEXT, "gemma4_unified_text": _UNIFIED_TEXT}
    if text.data.model_type not in known:
        raise UnsupportedModelError(f"text_config of model_type {text.data.model_type} is not supported")
    return decoder_network(text, known[text.data.model_type])


def _vision(fields: Fields) -> Network:
    return Network(architecture="encoder", stacks=(vision_stack(fields),), model_type=fields.data.model_type)


READERS: Mapping[str, Callable[[Fields], Network]] = {
    "gemma4": functools.partial(_whole, beside=_towers),
    "gemma4_assistant": _assistant,
    "gemma4_unified": functools.partial(_whole, beside=_projections),
    "gemma4_unified_assistant": _assistant,
    "gemma4_unified_text": functools.partial(decoder_network, facts=_UNIFIED_TEXT),
    "gemma4_vision": _vision,
}
