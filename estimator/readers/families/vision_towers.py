"""Vision towers that stand in language models only, as rows of facts. Source: the classes of transformers 5.24."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from estimator.blocks.common import linear, norm, norm_weights
from estimator.blocks.vision import convolution, layer_scale, position_table
from estimator.network import Block, Layer, Stack, Weight
from estimator.readers.families.vision import Vision, grid_of, pair_of
from estimator.readers.fields import Fields

__all__ = ["NOMINAL_IMAGE", "TOWERS"]

# Side of the image that is assumed where a family reads images of any size and its config names none, in pixels.
NOMINAL_IMAGE = 448
_NUM_ASPECT_RATIOS = 8  # of mllama, where its config names none: all with at most 4 tiles


def _nominal_patches(fields: Fields) -> int:
    height, width = pair_of(fields, "patch_size")
    return max(1, NOMINAL_IMAGE // height) * max(1, NOMINAL_IMAGE // width)


def _merged(fields: Fields, patches: int) -> int:
    return max(1, patches // fields.size("spatial_merge_size") ** 2)


def _qwen_merger(fields: Fields, *, norm_kind: str, size: str, out: str) -> tuple[Block, ...]:
    """A norm of each patch, then a feed-forward over squares of them, to the width of the text."""
    width, rows = fields.size(size), _merged(fields, _nominal_patches(fields))
    inner = width * fields.size("spatial_merge_size") ** 2
    weights = norm_weights("ln_q", width, norm_kind) + linear("mlp.0", inner, inner, bias=True)
    weights += linear("mlp.2", inner, fields.size(out), bias=True)
    return (Block(name="merger", part="projector", weights=weights, positions=rows, live_width=2 * inner),)


def _qwen3_mergers(fields: Fields) -> tuple[Block, ...]:
    """The merger, and one more for each layer whose rows are added to the text's first layers (deepstack)."""
    width, out = fields.size("hidden_size"), fields.size("out_hidden_size")
    inner, rows = width * fields.size("spatial_merge_size") ** 2, _merged(fields, _nominal_patches(fields))

    def merger(name: str, norm_size: int) -> Block:
        weights = norm_weights("norm", norm_size, "layer_norm") + linear("linear_fc1", inner, inner, bias=True)
        weights += linear("linear_fc2", inner, out, bias=True)
        return Block(name=name, part="projector", weights=weights, positions=rows, live_width=2 * inner)

    deep = fields.sizes("deepstack_visual_indexes") if "deepstack_visual_indexes" in fields.data.defaults else ()
    return (merger("merger", width), *(merger(f"deepstack_merger_list.{i}", inner) for i in range(len(deep))))


def _glm_merger(fields: Fields, *, inner_size: str | None = None) -> tuple[Block, ...]:
    """A convolution over squares of patches, and a gated feed-forward on each: GLM's way to the width of the text."""
    width, out, side = fields.size("hidden_size"), fields.size("out_hidden_size"), fields.size("spatial_merge_size")
    rows = _merged(fields, _grid_patches(fields))
    inner = fields.size(inner_size) if inner_size else out * fields.size("in_channels")
    weights = convolution("downsample", width, out, (side, side)) + linear("proj", out, out)
    weights += norm_weights("post_projection_norm", out, "layer_norm")
    weights += linear("gate_proj", out, inner) + linear("up_proj", out, inner) + linear("down_proj", inner, out)
    return (Block(name="merger", part="projector", weights=weights, positions=rows, live_width=2 * out + 2 * inner),)


def _grid_patches(fields: Fields) -> int:
    rows, columns = grid_of(fields)
    return rows * columns


def _internvl_scale(fields: Fields) -> tuple[Weight, ...]:
    return tuple(layer_scale(fields.size("hidden_size"), f"lambda_{index}") for index in (1, 2))


def _internvl_norm(fields: Fields) -> str:
    return str(fields.choice("norm_type", ("layer_norm", "rms_norm")))


def _internvl_last_norm(fields: Fields) -> tuple[Block, ...]:
    if fields.flag("use_mean_pooling"):
        return ()
    return (norm("layernorm", fields.size("hidden_size"), "layer_norm"),)


def _internvl_positions(fields: Fields) -> int:
    return _grid_patches(fields) + 1 if fields.flag("use_absolute_position_embeddings") else 0


def _llama4_adapter(fields: Fields) -> tuple[Block, ...]:
    """Squares of patches become one row each, through a feed-forward."""
    ratio, out = fields.number("pixel_shuffle_ratio"), fields.size("projector_output_dim")
    rows = max(1, int(_grid_patches(fields) * ratio**2))
    weights = linear("mlp.fc1", fields.size("intermediate_size"), fields.size("projector_input_dim"))
    weights += linear("mlp.fc2", out, out)
    return (Block(name="vision_adapter", part="projector", weights=weights, positions=rows, live_width=2 * out),)


def _mllama_patches(fields: Fields) -> int:
    return fields.size("max_num_tiles") * _grid_patches(fields)


def _mllama_tables(fields: Fields) -> tuple[Block, ...]:
    """Gated positions of a patch and of a tile, by the aspect ratio of the image."""
    hidden, tiles, places = fields.size("hidden_size"), fields.size("max_num_tiles"), _grid_patches(fields) + 1
    ratios = fields.raw("supported_aspect_ratios")
    num_ratios = len(ratios) if isinstance(ratios, list) else _NUM_ASPECT_RATIOS
    gate = Weight(name="gate", shape=(1,), role="other")
    widths = {
        "gated_positional_embedding.tile": tiles * places * hidden,
        "pre_tile_positional_embedding": tiles * hidden,
        "post_tile_positional_embedding": tiles * hidden,
    }
    tables = [position_table(places, hidden, "gated_positional_embedding")]
    tables += [position_table(num_ratios + 1, width, name) for name, width in widths.items()]
    return (
        *(replace(table, weights=(*table.weights, gate)) for table in tables if "tile" not in table.name[-5:]),
        *(table for table in tables if table.name.endswith(".tile")),
    )


def _mllama_stack(fields: Fields, stack: Stack) -> Stack:
    """Every tile has a class token; the global layers behind the others are gated. Layers kept beside the last: they
    widen the output, not the weights.
    """
    gates = tuple(Weight(name=name, shape=(1,), role="other") for name in ("gate_attn", "gate_ffn"))
    layer = stack.layers[0]
    gated = tuple(
        replace(block, weights=block.weights + gates) if block.part == "attention" else block for block in layer.blocks
    )
    layers = stack.layers + (Layer(blocks=gated),) * fields.layers("num_global_layers")
    fields.ignore("intermediate_layers_indices", "vision_output_dim")
    return replace(stack, layers=layers, length=fields.size("max_num_tiles") * (_grid_patches(fields) + 1))


_BLIP = Vision(channels=3, class_tokens=1, qkv_bias="qkv_bias")
_IDEFICS = Vision()
_INTERNVL = Vision(
    class_tokens=1,
    has_mask="use_mask_token",
    norm=_internvl_norm,
    positions=_internvl_positions,
    post_norm=False,
    qkv_bias="attention_bias",
    has_qk_norm="use_qk_norm",
    attention_extra=_internvl_scale,
    after=_internvl_last_norm,
    ignored=("layer_scale_init_value",),
)
_QWEN = Vision(
    layers="depth",
    heads="num_heads",
    channels="in_channels",
    patch_bias=False,
    temporal_patch="temporal_patch_size",
    patches=_nominal_patches,
    positions=0,
    post_norm=False,
)
_QWEN2_5 = replace(
    _QWEN,
    norm="rms_norm",
    gated=True,
    after=functools.partial(_qwen_merger, norm_kind="rms_norm", size="hidden_size", out="out_hidden_size"),
    ignored=("window_size", "fullatt_block_indexes", "tokens_per_second"),
)
_QWEN3 = replace(_QWEN, patch_bias=True, positions="num_position_embeddings", after=_qwen3_mergers)
_GLM = Vision(
    layers="depth",
    heads="num_heads",
    channels="in_channels",
    norm="rms_norm",
    temporal_patch="temporal_patch_size",
    pre_norm=True,
    gated=True,
    qkv_bias="attention_bias",
    output_bias=False,
    mlp_bias=False,
    intermediate_size="out_hidden_size",
    after=functools.partial(_glm_merger, inner_size="intermediate_size"),
)

TOWERS: Mapping[str, Vision] = {
    "blip_2_vision_model": _BLIP,
    "instructblip_vision_model": _BLIP,
    "instructblipvideo_vision_model": _BLIP,
    "glm4v_vision": _GLM,
    "glm4v_moe_vision": _GLM,
    "glm_ocr_vision": replace(
        _GLM,
        pre_norm=False,
        positions=0,
        output_bias="attention_bias",
        mlp_bias="attention_bias",
        has_qk_norm=True,
        qk_norm="head",
        intermediate_size="intermediate_size",
        after=_glm_merger,
    ),
    "idefics2_vision": _IDEFICS,
    "idefics3_vision": _IDEFICS,
    "internvl_vision": _INTERNVL,
    "ovis2_vision": Vision(
        norm="rms_norm",
        pre_norm=True,
        gated=True,
        qkv_bias="qkv_bias",
        output_bias="qkv_bias",
        mlp_bias="mlp_bias",
    ),
    "pixtral": Vision(
        norm="rms_norm",
        patch_bias=False,
        positions=0,
        pre_norm=True,
        post_norm=False,
        gated=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        ignored=("head_dim",),
    ),
    "llama4_vision_model": Vision(
        linear_patches=True,
        patch_bias=False,
        class_tokens=1,
        pre_norm=True,
        after=_llama4_adapter,
        ignored=("vision_output_dim", "multi_modal_projector_bias", "vision_feature_select_strategy"),
    ),
    "mllama_vision_model": Vision(
        heads="attention_heads",
        patch_bias=False,
        class_tokens=1,
        patches=_mllama_patches,
        positions=0,
        pre_norm=True,
        qkv_bias=False,
        output_bias=False,
        before=_mllama_tables,
        finish=_mllama_stack,
    ),
    "qianfan_ocr_vision": _INTERNVL,
    "qwen2_vl_vision": replace(
        _QWEN,
        hidden_size="embed_dim",
        intermediate_size=lambda fields: int(fields.size("embed_dim") * fields.number("mlp_ratio")),
        after=functools.partial(_qwen_merger, norm_kind="layer_norm", size="embed_dim", out="hidden_size"),
    ),
    "qwen2_5_vl_vision": _QWEN2_5,
    "qwen3_vl_vision": _QWEN3,
    "qwen3_vl_moe_vision": _QWEN3,
    "paddleocr_vl_vision": replace(_IDEFICS, ignored=("spatial_merge_size",)),
    "smolvlm_vision": _IDEFICS,
    "video_llama_3_vision": Vision(patches=_nominal_patches, positions=0),
}
