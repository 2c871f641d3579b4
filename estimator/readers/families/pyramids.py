"""Vision models in stages, each with fewer and wider rows than the one before: Swin, ConvNeXt, ResNet.

A stage is a stack of its own, because its number of rows is. Source: transformers 5.24, models/swin, convnext,
convnextv2, resnet, donut.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import attention, feed_forward, head, norm, norm_weights
from estimator.blocks.vision import convolution, position_table, tokens
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Recurrence, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.vision import pair_of
from estimator.readers.fields import Fields

__all__ = ["READERS"]

_BACKBONE = ("_out_features", "_out_indices", "out_features", "out_indices", "stage_names")
_KERNEL = 7  # of ConvNeXt's convolutions and ResNet's first
_NOMINAL_SIDE = 224  # of ResNet's image, which its config does not name
_WIDER = 4
_NO_SIZE = f"images of any size are read; one of {_NOMINAL_SIDE} x {_NOMINAL_SIDE} pixels is assumed"


def _network(
    fields: Fields, stacks: tuple[Stack, ...], width: int, tasks: Mapping[str, Callable[[], Block]]
) -> Network:
    """The stages, and the head of the class behind the last of them."""
    fields.ignore(*_BACKBONE)
    if fields.task == "image_classification":
        after: tuple[Block, ...] = (head("classifier", width, num_labels(fields), bias=True, positions=1),)
    elif fields.task in tasks:
        after = (tasks[fields.task](),)
    elif fields.task == "base":
        after = ()
    else:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    last = replace(stacks[-1], after=(*stacks[-1].after, *after))
    return Network(architecture="encoder", stacks=(*stacks[:-1], last), model_type=fields.data.model_type)


def _halved(grid: tuple[int, int]) -> tuple[int, int]:
    return -(-grid[0] // 2), -(-grid[1] // 2)


def _swin(fields: Fields, *, last_norm: bool) -> Network:
    """Attention within windows of places, which shift in every second layer. Source: arXiv:2103.14030."""
    depths = fields.sizes("depths")
    heads, width = fields.sizes("num_heads", len(depths)), fields.size("embed_dim")
    if not depths or not all((*depths, *heads)):
        raise ConfigError("depths and num_heads must be positive", field="depths")
    fields.ignore("encoder_stride", "num_layers", "hidden_size")
    sides = zip(pair_of(fields, "image_size"), pair_of(fields, "patch_size"), strict=True)
    rows, columns = (-(-image // patch) for image, patch in sides)
    grid, stacks = (rows, columns), []
    for index, depth in enumerate(depths):
        is_last = index == len(depths) - 1
        after: tuple[Block, ...] = ()
        if not is_last:
            merged = Weight(name="reduction.weight", shape=(2 * width, 4 * width))
            weights = (*norm_weights("norm", 4 * width, "layer_norm"), merged)
            positions = math.prod(_halved(grid))
            block = Block(name="downsample", part="other", weights=weights, positions=positions, live_width=6 * width)
            after = (block,)
        elif last_norm:
            after = (norm("layernorm", width, "layer_norm"),)
        stack = Stack(
            name="vision" if is_last else f"vision.{index}",
            hidden_size=width,
            before=_swin_patches(fields, grid) if index == 0 else (),
            layers=(_swin_layer(fields, width, heads[index], grid),) * depth,
            after=after,
            length=math.prod(grid),
            prefix=f"encoder.layers.{index}.",
        )
        stacks.append(stack)
        grid, width = (grid, width) if is_last else (_halved(grid), 2 * width)
    return _network(fields, tuple(stacks), width, {"masked_image_modeling": lambda: _pixels(fields, width, grid)})


def _pixels(fields: Fields, width: int, grid: tuple[int, int]) -> Block:
    outputs = fields.size("encoder_stride") ** 2 * fields.size("num_channels")
    weights = convolution("decoder", width, outputs, (1, 1))
    return Block(name="", part="head", weights=weights, positions=math.prod(grid), live_width=width + outputs)


def _swin_patches(fields: Fields, grid: tuple[int, int]) -> tuple[Block, ...]:
    hidden, patch = fields.size("embed_dim"), pair_of(fields, "patch_size")
    weights = convolution("projection", fields.size("num_channels"), hidden, patch)
    blocks = [Block(name="patch_embeddings", part="embedding", weights=weights, live_width=2 * hidden)]
    if fields.task == "masked_image_modeling":
        blocks.append(tokens("mask_token", 1, hidden))
    if fields.flag("use_absolute_embeddings"):
        extra = fields.data.model_type == "donut-swin"  # one more row than there are places
        blocks.append(position_table(math.prod(grid) + extra, hidden))
    return (*blocks, norm("norm", hidden, "layer_norm"))


def _swin_layer(fields: Fields, width: int, heads: int, grid: tuple[int, int]) -> Layer:
    """Rows are filled up to whole windows before attention; a grid smaller than a window is one window."""
    own = fields.size("window_size")
    side = min(own, *grid)
    padded = math.prod(-(-length // side) * side for length in grid)
    if width % heads:
        raise ConfigError(f"num_heads must divide the width {width}, not {heads}", field="num_heads")
    table = Weight(name="relative_position_bias_table", shape=((2 * own - 1) ** 2, heads), role="other")
    mixing = attention(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        qkv_bias=fields.flag("qkv_bias"),
        output_bias=True,
        is_cached=False,
        extra=(table,),
    )
    products = Recurrence(state_elements=0, token_flops=2 * 2 * width * side**2)
    live_width = mixing.live_width + heads * side**2
    mixing = replace(mixing, attention=None, recurrence=products, positions=padded, live_width=live_width)
    inner = int(fields.number("mlp_ratio") * width)
    feeding = feed_forward(hidden_size=width, intermediate_size=inner, gated=False, bias=True)
    norms = tuple(norm(f"layernorm.{index}", width, "layer_norm") for index in range(2))
    return Layer(blocks=(norms[0], mixing, norms[1], feeding))


def _convnext(fields: Fields) -> Network:
    """Convolutions over channels one by one, then a feed-forward. Source: arXiv:2201.03545 and arXiv:2301.00808."""
    count = fields.size("num_stages")
    widths, depths = fields.sizes("hidden_sizes", count), fields.sizes("depths", count)
    if not all((*widths, *depths)):
        raise ConfigError("hidden_sizes and depths must be positive", field="hidden_sizes")
    patch, side = fields.size("patch_size"), fields.size("image_size")
    side, stacks = max(1, side // patch), []
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if index:
            side = max(1, side // 2)
            weights = norm_weights("downsampling_layer.0", widths[index - 1], "layer_norm")
            weights += convolution("downsampling_layer.1", widths[index - 1], width, (2, 2))
        else:
            weights = convolution("patch_embeddings", fields.size("num_channels"), width, (patch, patch))
            weights += norm_weights("layernorm", width, "layer_norm")
        is_last = index == count - 1
        stack = Stack(
            name="vision" if is_last else f"vision.{index}",
            hidden_size=width,
            before=(Block(name="", part="embedding", weights=weights, live_width=2 * width),),
            layers=(_convnext_layer(fields, width),) * depth,
            after=(replace(norm("layernorm", width, "layer_norm"), positions=1),) if is_last else (),
            length=side**2,
            prefix=f"encoder.stages.{index}.",
        )
        stacks.append(stack)
    return _network(fields, tuple(stacks), widths[-1], {})


def _convnext_layer(fields: Fields, width: int) -> Layer:
    weights = convolution("dwconv", width, width, (_KERNEL, _KERNEL), groups=width)
    feeding = feed_forward(hidden_size=width, intermediate_size=_WIDER * width, gated=False, bias=True)
    if "layer_scale_init_value" in fields.data.defaults:
        scale = Weight(name="layer_scale_parameter", shape=(width,), role="other")
        extra: tuple[Weight, ...] = (scale,) if fields.number("layer_scale_init_value") > 0 else ()
    else:
        names = ("grn.weight", "grn.bias")
        extra = tuple(Weight(name=name, shape=(_WIDER * width,), role="norm") for name in names)
    return Layer(
        blocks=(
            Block(name="", part="other", weights=weights, live_width=2 * width),
            norm("layernorm", width, "layer_norm"),
            replace(feeding, weights=feeding.weights + extra),
        )
    )


def _resnet(fields: Fields) -> Network:
    """Convolutions with a sum around every two or three of them. Source: arXiv:1512.03385."""
    fields.warnings.append(_NO_SIZE)
    widths = fields.sizes("hidden_sizes")
    depths = fields.sizes("depths", len(widths))
    if not widths or not all((*widths, *depths)):
        raise ConfigError("hidden_sizes and depths must be positive", field="hidden_sizes")
    source, side = fields.size("embedding_size"), _NOMINAL_SIDE // 2
    first = _normed("embedder", fields.size("num_channels"), source, _KERNEL, side)
    side, stacks = side // 2, []
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        stride = 2 if index or fields.flag("downsample_in_first_stage") else 1
        layers = [_resnet_layer(fields, source, width, stride, side)]
        side = -(-side // stride)
        layers += [_resnet_layer(fields, width, width, 1, side)] * (depth - 1)
        stack = Stack(
            name="vision" if index == len(widths) - 1 else f"vision.{index}",
            hidden_size=width,
            before=(first,) if index == 0 else (),
            layers=tuple(layers),
            length=side**2,
            prefix=f"encoder.stages.{index}.",
        )
        stacks.append(stack)
        source = width
    return _network(fields, tuple(stacks), widths[-1], {})


def _normed(name: str, source: int, width: int, kernel: int, side: int) -> Block:
    """A convolution without bias, and a batch norm."""
    weights = convolution(f"{name}.convolution", source, width, (kernel, kernel), bias=False)
    weights += norm_weights(f"{name}.normalization", width, "layer_norm")
    return Block(name="", part="other", weights=weights, positions=side**2, live_width=source + width)


def _resnet_layer(fields: Fields, source: int, width: int, stride: int, side: int) -> Layer:
    small = -(-side // stride)
    shortcut = (_normed("shortcut", source, width, 1, small),) if source != width or stride > 1 else ()
    if fields.choice("layer_type", ("basic", "bottleneck")) == "basic":
        fields.ignore("downsample_in_bottleneck")
        return Layer(
            blocks=(*shortcut, _normed("layer.0", source, width, 3, small), _normed("layer.1", width, width, 3, small))
        )
    inner = width // _WIDER
    early = small if fields.flag("downsample_in_bottleneck") else side
    return Layer(
        blocks=(
            *shortcut,
            _normed("layer.0", source, inner, 1, early),
            _normed("layer.1", inner, inner, 3, small),
            _normed("layer.2", inner, width, 1, small),
        )
    )


READERS: Mapping[str, Callable[[Fields], Network]] = {
    "convnext": _convnext,
    "convnextv2": _convnext,
    "donut-swin": functools.partial(_swin, last_norm=False),
    "resnet": _resnet,
    "swin": functools.partial(_swin, last_norm=True),
}
