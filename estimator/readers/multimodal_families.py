"""Language models that read images as rows of facts. Source: the classes of transformers 5.24, as the tests compare."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from estimator.network import Block, Network, Weight
from estimator.readers.decoder_families import DECODERS
from estimator.readers.decoders import Decoder, decoder_network
from estimator.readers.fields import Fields
from estimator.readers.multimodal import (
    Multimodal,
    Parts,
    Reader,
    merged_patches,
    multimodal_network,
    num_feature_layers,
    projection,
)
from estimator.vision_blocks import tokens

__all__ = ["MULTIMODAL", "TEXTS", "multimodal_readers"]

_NAME = "multi_modal_projector"
_TILES = "a large image is cut into tiles; num_images counts tiles of the tower's image size"
_NOMINAL = "images of any size are read; one of 448 x 448 pixels is assumed"


def _llava(parts: Parts) -> tuple[Block, ...]:
    width, text = parts.vision_size * num_feature_layers(parts.fields), parts.text_size
    bias = parts.fields.flag("multimodal_projector_bias")
    return (projection(_NAME, (width, text, text), positions=parts.patches, bias=bias),)


def _llava_with_newline(parts: Parts) -> tuple[Block, ...]:
    return (*_llava(parts), tokens("image_newline", 1, parts.text_size))


def _vipllava(parts: Parts) -> tuple[Block, ...]:
    width, text = parts.vision_size * num_feature_layers(parts.fields), parts.text_size
    return (projection(_NAME, (width, text, text), positions=parts.patches, norm="layer_norm"),)


def _gemma3(parts: Parts) -> tuple[Block, ...]:
    rows = parts.fields.size("mm_tokens_per_image")
    return (projection(_NAME, (parts.vision_size, parts.text_size), positions=rows, bias=False, norm="rms_norm"),)


def _paligemma(parts: Parts) -> tuple[Block, ...]:
    sizes = (parts.vision_size, parts.fields.size("projection_dim"))
    return (projection(_NAME, sizes, positions=parts.patches),)


def _cohere2_vision(parts: Parts) -> tuple[Block, ...]:
    factor = parts.fields.size("downsample_factor")
    sizes = (parts.vision_size * factor**2, parts.fields.size("alignment_intermediate_size"), parts.text_size)
    return (projection(_NAME, sizes, positions=merged_patches(parts.patches, factor), halved=True),)


def _aya_vision(parts: Parts) -> tuple[Block, ...]:
    factor = parts.fields.size("downsample_factor")
    inner = parts.fields.optional_size("alignment_intermediate_size") or parts.text_size
    sizes, rows = (parts.vision_size * factor**2, inner, parts.text_size), merged_patches(parts.patches, factor)
    return (projection(_NAME, sizes, positions=rows, norm="layer_norm", halved=True),)


def _mistral3(parts: Parts) -> tuple[Block, ...]:
    fields, width, text = parts.fields, parts.vision_size, parts.text_size
    factor = fields.size("spatial_merge_size")
    rows = merged_patches(parts.patches, factor)
    merger = projection(
        f"{_NAME}.patch_merger",
        (width * factor**2, width),
        positions=rows,
        bias=False,
        norm="rms_norm",
        norm_size=width,
    )
    sizes, bias = (width * num_feature_layers(fields), text, text), fields.flag("multimodal_projector_bias")
    return merger, projection(_NAME, sizes, positions=rows, bias=bias)


def _internvl(parts: Parts) -> tuple[Block, ...]:
    factor = int(1 / parts.fields.number("downsample_ratio"))
    sizes = (parts.vision_size * factor**2, parts.text_size, parts.text_size)
    return (projection(_NAME, sizes, positions=merged_patches(parts.patches, factor), norm="layer_norm"),)


def _idefics3(parts: Parts) -> tuple[Block, ...]:
    factor = parts.fields.size("scale_factor")
    sizes = (parts.vision_size * factor**2, parts.text_size)
    return (projection("connector", sizes, positions=merged_patches(parts.patches, factor), bias=False),)


_SELECTING = ("vision_feature_select_strategy", "image_seq_length", "image_grid_pinpoints", "vision_aspect_ratio")
_LLAVA = Multimodal(projector=_llava, ignored=_SELECTING)
_GEMMA3 = Multimodal(projector=_gemma3)
_IDEFICS3 = Multimodal(projector=_idefics3, warning=_TILES)
_INTERNVL = Multimodal(projector=_internvl, ignored=(*_SELECTING, "vision_feature_layer"), warning=_TILES)
_WHOLE_TOWER = Multimodal(warning=_NOMINAL)  # the tower ends in the text's width

MULTIMODAL: Mapping[str, Multimodal] = {
    "aya_vision": Multimodal(projector=_aya_vision, ignored=(*_SELECTING, "vision_feature_layer"), warning=_TILES),
    "cohere2_vision": Multimodal(projector=_cohere2_vision, warning=_TILES),
    "gemma3": _GEMMA3,
    "glm46v": _WHOLE_TOWER,
    "glm4v": _WHOLE_TOWER,
    "glm4v_moe": _WHOLE_TOWER,
    "glm_ocr": _WHOLE_TOWER,
    "hyperclovax_vision_v2": _WHOLE_TOWER,
    "idefics3": _IDEFICS3,
    "internvl": _INTERNVL,
    "llava": _LLAVA,
    "llava_next": replace(_LLAVA, projector=_llava_with_newline, warning=_TILES),
    "llava_onevision": replace(_LLAVA, projector=_llava_with_newline, warning=_TILES),
    "mistral3": Multimodal(projector=_mistral3),
    "paligemma": Multimodal(projector=_paligemma, ignored=("hidden_size", "vocab_size")),
    "qianfan_ocr": _INTERNVL,
    "qwen2_5_vl": _WHOLE_TOWER,
    "qwen2_vl": _WHOLE_TOWER,
    "qwen3_vl": _WHOLE_TOWER,
    "qwen3_vl_moe": _WHOLE_TOWER,
    "smolvlm": _IDEFICS3,
    "vipllava": Multimodal(projector=_vipllava, ignored=_SELECTING),
}

# The text models that stand in these families only.
TEXTS: Mapping[str, Decoder] = {
    "qwen2_vl_text": DECODERS["qwen2"],
    "qwen2_5_vl_text": DECODERS["qwen2"],
    "qwen3_vl_text": replace(DECODERS["qwen3"], windows=None),
    "qwen3_vl_moe_text": replace(DECODERS["qwen3_moe"], windows=None),
    "glm4v_text": replace(DECODERS["glm4"], qkv_bias=True),
    "glm4v_moe_text": DECODERS["glm4_moe"],
    "glm_ocr_text": DECODERS["glm4"],
}


def multimodal_readers(texts: Mapping[str, Reader]) -> Mapping[str, Reader]:
    """The readers of all these families, over those of the text models that they may hold."""
    own: dict[str, Reader] = {
        name: functools.partial(decoder_network, facts=facts) for name, facts in TEXTS.items()
    }
    known = {**texts, **own}
    return own | {
        name: functools.partial(multimodal_network, facts=facts, texts=known) for name, facts in MULTIMODAL.items()
    }
