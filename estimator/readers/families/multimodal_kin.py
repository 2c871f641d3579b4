"""Further language models that read images, in the form of `multimodal.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import head, linear, norm_weights
from estimator.blocks.vision import resampler_attention, tokens
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Recurrence, Stack, Weight
from estimator.readers.families.decoder_facts import LLAMA, Decoder, Experts, all_layers
from estimator.readers.families.decoders import decoder_network, num_labels
from estimator.readers.families.encoders import idle
from estimator.readers.families.multimodal import (
    Multimodal,
    Parts,
    Reader,
    merged_patches,
    multimodal_network,
    projection,
)
from estimator.readers.families.multimodal_families import MULTIMODAL
from estimator.readers.families.vision import vision_length, vision_stack
from estimator.readers.families.vision_families import VISION
from estimator.readers.fields import Fields

__all__ = ["READERS"]


def _video_tower(parts: Parts) -> tuple[Stack, ...]:
    """video_llava: a second tower of the same form for videos, which stands idle for images."""
    tower = vision_stack(parts.vision, parts.facts, optional=True, prefix="video_tower.")
    return (
        replace(
            tower,
            before=tuple(idle(block) for block in tower.before),
            layers=tuple(Layer(blocks=tuple(idle(block) for block in layer.blocks)) for layer in tower.layers),
            after=tuple(idle(block) for block in tower.after),
            length=0,
        ),
    )


def _aria(parts: Parts) -> tuple[Block, ...]:
    """aria: learned rows, as many as the number of patches asks for, attend to the patches."""
    width, hidden, inner = parts.vision_size, parts.text_size, parts.text_size
    queries = _queries_of(parts.fields)
    rows = queries.get(parts.patches, max(queries.values()))
    keys, own = resampler_attention(
        hidden_size=width,
        num_attention_heads=parts.vision.size("num_attention_heads"),
        num_queries=rows,
        bias=True,
    )
    before = tuple(weight for name in ("q", "k", "v") for weight in linear(f"{name}_proj.0", width, width))
    ends = norm_weights("layer_norm_kv", width, "layer_norm")
    last = linear("linear", width, width, bias=True) + norm_weights("layer_norm", width, "layer_norm") * 2
    feeding = linear("linear_in", width, inner) + linear("linear_out", inner, hidden)
    name = "multi_modal_projector"
    return (
        tokens(f"{name}.query", max(queries.values()), width),
        replace(keys, name=name, part="projector", weights=(*keys.weights, *before[1:], *ends)),
        replace(own, name=name, part="projector", weights=(*own.weights, before[0], *last)),
        Block(name=name, part="projector", weights=feeding, positions=rows, live_width=width + inner + hidden),
    )


def _queries_of(fields: Fields) -> dict[int, int]:
    """Learned rows by the number of patches.

    Raises:
        ConfigError: it is no such mapping.
    """
    fields.ignore("max_value_projector_patch_to_query_dict", "vision_feature_layer")
    given = fields.raw("projector_patch_to_query_dict")
    given = _ARIA_QUERIES if given is None else given
    known = isinstance(given, dict) and given and all(str(key).isdecimal() for key in given)
    if not known or not all(type(value) is int and 0 < value < 2**31 for value in given.values()):
        raise ConfigError(
            "projector_patch_to_query_dict must give a number of rows by the number of patches",
            field="projector_patch_to_query_dict",
        )
    return {int(key): value for key, value in given.items()}


def _ovis2(parts: Parts) -> tuple[Block, ...]:
    """ovis2: each row says how likely each of the visual tokens is, whose table it is multiplied with."""
    side, width, hidden = parts.vision.size("hidden_stride"), parts.vision_size, parts.fields.size("hidden_size")
    total, indicators = parts.vision.size("vocab_size"), parts.vision.size("num_visual_indicator_tokens")
    rows = (-(-math.isqrt(parts.patches) // side)) ** 2
    parts.vision.ignore("tokenize_function")
    parts.fields.ignore("visual_indicator_token_ids")
    weights = linear("head_linear", width * side**2, total - indicators)
    weights += norm_weights("head_norm", total - indicators, "layer_norm")
    weights += linear("visual_embeddings_table", total, hidden)
    return (Block(name="", part="projector", weights=weights, positions=rows, live_width=2 * total),)


def _ovis2_network(fields: Fields) -> Network:
    """ovis2: its head is as large as the whole config says, not the text's."""
    if fields.task not in ("base", "image_text_to_text"):
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    task, fields.task = fields.task, "base"
    network = multimodal_network(fields, Multimodal(projector=_ovis2), _find_text)
    fields.task = task
    if task == "base":
        return network
    tied = fields.flag("tie_word_embeddings")
    last = head("lm_head", fields.size("hidden_size"), fields.size("vocab_size"), tied=tied)
    if tied:
        text = fields.sub("text_config")
        last = head("lm_head", text.size("hidden_size"), text.size("vocab_size"), tied=True)
    main = replace(network.main, after=(*network.main.after, last))
    return replace(network, stacks=(*network.stacks[:-1], main))


def _kosmos2(fields: Fields) -> Network:
    """kosmos-2: learned rows attend to the patches and to themselves; they are what the text reads."""
    if fields.task not in ("base", "image_text_to_text"):
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    text, vision = (fields.own_sub(name, task="base") for name in ("text_config", "vision_config"))
    text.choice("add_cross_attention", (False, None))
    tied = any((text.flag("tie_word_embeddings"), fields.flag("tie_word_embeddings")))  # either of the two ties
    hidden, rows, facts = text.size("hidden_size"), fields.size("latent_query_num"), VISION[vision.data.model_type]
    patches = vision_length(vision, facts)
    keys, own = resampler_attention(
        hidden_size=hidden, num_attention_heads=text.size("num_attention_heads"), num_queries=rows
    )
    own_attention = replace(own, part="projector")
    dense = linear("dense", vision.size("hidden_size"), hidden, bias=True)
    projector = (
        tokens("latent_query", rows, hidden),
        Block(name="", part="projector", weights=dense, live_width=2 * hidden),
        replace(keys, part="projector", positions=patches + rows),
        replace(
            own_attention,
            attention=None,
            recurrence=Recurrence(state_elements=0, token_flops=2 * 2 * hidden * (patches + rows)),
        ),
    )
    tower = vision_stack(vision, facts, after=projector, optional=True, prefix="vision_model.")
    network = decoder_network(text, _KOSMOS_TEXT)
    after: tuple[Block, ...] = ()
    if fields.task != "base":
        after = (head("lm_head", hidden, text.size("vocab_size"), tied=tied),)
    main = replace(network.main, after=(*network.main.after, *after), prefix="text_model.")
    return replace(network, stacks=(tower, main), model_type=fields.data.model_type)


def _inner_norm(size: str) -> Callable[[Fields], tuple[Weight, ...]]:
    return lambda fields: norm_weights("inner_norm", fields.size(size), "layer_norm")


_KOSMOS_TEXT = Decoder(
    norm="layer_norm",
    gated=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    head_dim=None,
    square=True,
    key_value_heads="num_attention_heads",
    intermediate_size="ffn_dim",
    positions="none",
    attention_extra=_inner_norm("hidden_size"),
    mlp_extra=_inner_norm("ffn_dim"),
)
_ARIA_QUERIES = {1225: 128, 4900: 256}  # where the config names none
_ARIA_TEXT = replace(
    LLAMA,
    experts=Experts(
        num_experts="moe_num_experts",
        num_experts_per_tok="moe_topk",
        intermediate_size="intermediate_size",
        layers=all_layers,
        num_shared="moe_num_shared_experts",
        shared_bias="mlp_bias",
    ),
)


def _seeing_encoder(fields: Fields) -> Network:
    """modernvbert, ultravbert: a text encoder that also reads patches, which are shuffled into fewer, wider rows.

    Raises:
        UnsupportedModelError: the class's task is not known here.
    """
    fields.ignore("classifier_pooling", "classifier_bias")
    task, fields.task = fields.task, "base"  # what stands behind it is laid out here
    network = multimodal_network(fields, _SHUFFLED, _find_text)
    fields.task = task
    text, hidden = fields.sub("text_config"), fields.sub("text_config").size("hidden_size")
    before: tuple[Block, ...] = ()
    if "prediction_head_size" not in text.data.defaults:
        kind = "layer_norm" if text.flag("norm_bias") else "layer_norm_without_bias"
        weights = linear("head.dense", hidden, hidden, bias=text.flag("classifier_bias"), quantized=False)
        weights += norm_weights("head.norm", hidden, kind)
        before = (Block(name="", part="head", weights=weights, live_width=2 * hidden),)
    elif fields.task == "masked_lm":
        inner = text.size("prediction_head_size")
        weights = linear("head.linear1", hidden, inner) + linear("head.linear2", inner, hidden)
        before = (Block(name="", part="head", weights=weights, live_width=hidden + inner),)
    if fields.task == "base":
        return network
    if fields.task == "masked_lm":
        bias, tied = text.flag("decoder_bias"), fields.flag("tie_word_embeddings")
        last = head("lm_head", hidden, text.size("vocab_size"), bias=bias, tied=tied)
    elif fields.task in ("sequence_classification", "token_classification"):
        positions = 1 if fields.task == "sequence_classification" else None
        before = tuple(replace(block, positions=positions) for block in before)
        last = head("classifier", hidden, num_labels(fields), bias=True, positions=positions)
    else:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    main = replace(network.main, after=(*network.main.after, *before, last))
    return replace(network, stacks=(*network.stacks[:-1], main))


def _shuffled(parts: Parts) -> tuple[Block, ...]:
    factor = parts.fields.size("pixel_shuffle_factor")
    rows, text = merged_patches(parts.patches, factor), parts.text_size
    last = norm_weights("norm", text, "rms_norm") if "prediction_head_size" in parts.text.data.defaults else ()
    return (projection("connector", (parts.vision_size * factor**2, text), positions=rows, bias=False, extra=last),)


_SHUFFLED = Multimodal(projector=_shuffled)
_LLAVA = MULTIMODAL["llava"]
FAMILIES: Mapping[str, Multimodal] = {
    "aria": Multimodal(projector=_aria),
    "llava_next_video": replace(
        MULTIMODAL["llava_next"],
        ignored=(*_LLAVA.ignored, "spatial_pool_mode", "spatial_pool_stride", "video_seq_length"),
    ),
    "video_llava": replace(
        _LLAVA, between=_video_tower, text_ties=False, ignored=(*_LLAVA.ignored, "video_seq_length")
    ),
}


def _find_text(model_type: str) -> Reader | None:
    from estimator.readers.networks import find_reader  # which loads the families, this module among them

    return find_reader(model_type)


READERS: Mapping[str, Reader] = {
    **{
        name: functools.partial(multimodal_network, facts=facts, find_text=_find_text)
        for name, facts in FAMILIES.items()
    },
    "aria_text": functools.partial(decoder_network, facts=_ARIA_TEXT),
    "kosmos-2": _kosmos2,
    "modernvbert": _seeing_encoder,
    "ovis2": _ovis2_network,
    "ultravbert": _seeing_encoder,
}
