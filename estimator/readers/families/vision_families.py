"""Vision transformers as rows of facts. Source: the classes of transformers 5.24, which the tests compare with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.errors import ConfigError
from estimator.network import Network, Weight
from estimator.readers.families.vision import Vision, grid_of, pooling_head, vision_network
from estimator.readers.families.vision_towers import TOWERS
from estimator.readers.fields import Fields

__all__ = ["READERS", "VISION"]


def _floored_head_dim(fields: Fields) -> int:
    """Heads of hidden size / heads, rounded down where they do not share it evenly."""
    return max(1, fields.size("hidden_size") // fields.size("num_attention_heads"))


def _needs_mask_token(fields: Fields) -> bool:
    return fields.task == "masked_image_modeling"


def _multiple_of_hidden_size(fields: Fields) -> int:
    """mlp_ratio times the hidden size; for SwiGLU two thirds of it, rounded up to a multiple of 8 (dinov2)."""
    width = int(fields.size("hidden_size") * fields.number("mlp_ratio"))
    if "use_swiglu_ffn" in fields.data.defaults and fields.flag("use_swiglu_ffn"):
        return (int(width * 2 / 3) + 7) // 8 * 8
    return width


def _patches_and_class(fields: Fields) -> int:
    return math.prod(grid_of(fields)) + 1


def _shared_query_bias(fields: Fields) -> bool:
    """Queries and values both with a bias or both without (dinov3_vit).

    Raises:
        ConfigError: they differ, which no published model does.
    """
    query, value = fields.flag("query_bias"), fields.flag("value_bias")
    if query != value:
        raise ConfigError("value_bias must be as query_bias", field="value_bias")
    return query


def _relative_positions(fields: Fields) -> tuple[Weight, ...]:
    """A bias per pair of places and head, in every layer (beit)."""
    if fields.flag("use_shared_relative_position_bias"):
        raise ConfigError("use_shared_relative_position_bias must be false", field="use_shared_relative_position_bias")
    if not fields.flag("use_relative_position_bias"):
        return ()
    rows, columns = grid_of(fields)
    distances = (2 * rows - 1) * (2 * columns - 1) + 3
    shape = (distances, fields.size("num_attention_heads"))
    return (Weight(name="relative_position_bias_table", shape=shape, role="other"),)


# What only the classes for segmentation and features read.
_SEGMENTATION = """
    _out_features _out_indices out_features out_indices stage_names add_fpn auxiliary_channels auxiliary_concat_input
    auxiliary_num_convs pool_scales use_auxiliary_head vocab_size
    """
_VIT = Vision(
    class_tokens=1,
    has_mask=_needs_mask_token,
    qkv_bias="qkv_bias",
    head_dim=_floored_head_dim,
    heads_of=(("base", "pooler"), ("image_classification", "label"), ("masked_image_modeling", "pixels")),
    ignored=("encoder_stride", "pooler_output_size", "pooler_act"),
)
_CLIP = Vision(
    class_tokens=1,
    patch_bias=False,
    pre_norm=True,
    heads_of=(("projection", "projection"),),
    ignored=("projection_dim",),
)
_SIGLIP = Vision(after=pooling_head)
_SIGLIP2 = replace(_SIGLIP, linear_patches=True, patches=lambda fields: fields.size("num_patches"))
_DINOV2 = Vision(
    class_tokens=1,
    has_mask="use_mask_token",
    layer_scale=True,
    gated="use_swiglu_ffn",
    qkv_bias="qkv_bias",
    head_dim=_floored_head_dim,
    intermediate_size=_multiple_of_hidden_size,
    heads_of=(("image_classification", "double"), ("backbone", "")),
    ignored=("layerscale_value", "out_features", "out_indices", "_out_features", "_out_indices", "stage_names"),
)
_BEIT = Vision(
    class_tokens=1,
    has_mask="use_mask_token",
    positions=lambda fields: _patches_and_class(fields) if fields.flag("use_absolute_position_embeddings") else 0,
    post_norm=lambda fields: not fields.flag("use_mean_pooling"),
    layer_scale=lambda fields: fields.number("layer_scale_init_value") > 0,
    key_bias=False,
    head_dim=_floored_head_dim,
    attention_extra=_relative_positions,
    ignored=tuple(_SEGMENTATION.split()),
)

VISION: Mapping[str, Vision] = {
    "vit": _VIT,
    "deit": replace(
        _VIT, class_tokens=2, heads_of=(*_VIT.heads_of, ("DeiTForImageClassificationWithTeacher", "two_labels"))
    ),
    "vit_msn": replace(_VIT, heads_of=(("base", ""), ("image_classification", "label"))),
    "ijepa": replace(_VIT, class_tokens=0, heads_of=(("base", ""), ("image_classification", "label"))),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(
        _DINOV2, has_mask=True, registers="num_register_tokens", positions=_patches_and_class
    ),
    "dinov3_vit": replace(
        _DINOV2,
        has_mask=True,
        registers="num_register_tokens",
        positions=0,
        gated="use_gated_mlp",
        head_dim=None,
        qkv_bias=_shared_query_bias,
        key_bias="key_bias",
        output_bias="proj_bias",
        mlp_bias="mlp_bias",
        intermediate_size="intermediate_size",
        ignored=(*_DINOV2.ignored, "pos_embed_jitter", "pos_embed_shift", "pos_embed_rescale"),
    ),
    "clip_vision_model": _CLIP,
    "metaclip_2_vision_model": _CLIP,
    **{f"{name}_vision_model": _CLIP for name in ("altclip", "chinese_clip", "git", "kosmos_2")},
    "siglip_vision_model": _SIGLIP,
    "beit": replace(
        _BEIT,
        heads_of=(
            ("base", "pooler_norm"),
            ("image_classification", "pooler_norm label"),
            ("masked_image_modeling", "norm visual_tokens"),
        ),
    ),
    "data2vec-vision": replace(_BEIT, heads_of=(("image_classification", "pooler_norm label"),)),
    "siglip2_vision_model": _SIGLIP2,
    **TOWERS,
}

READERS: Mapping[str, Callable[[Fields], Network]] = {
    name: functools.partial(vision_network, facts=facts) for name, facts in VISION.items()
}
