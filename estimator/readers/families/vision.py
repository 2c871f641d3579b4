"""Vision transformers that differ in facts only: one function lays out a stack from a row of facts.

A row of `Vision` says what a family fixes and which fields of config.json decide the rest. The rows stand in
`vision_families.py`. A stack has as many rows as an image of the config's size has patches, and the tokens beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from estimator.blocks.common import attention, feed_forward, head, linear, norm
from estimator.blocks.vision import (
    attention_pooling,
    convolution,
    layer_scale,
    patch_projection,
    position_table,
    tokens,
)
from estimator.config import show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.decoder_facts import Size, Truth, is_true, size_of
from estimator.readers.families.decoders import num_labels
from estimator.readers.fields import Fields

__all__ = [
    "Vision",
    "grid_of",
    "norm_kind",
    "num_patches",
    "pair_of",
    "pooling_head",
    "vision_length",
    "vision_network",
    "vision_stack",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The facts of a family of vision transformers.

    hidden_size, layers, heads, channels: the fields. linear_patches: a matrix instead of a convolution.
    temporal_patch: the field with the frames of a patch, where videos are read. patches: how many an image has, where
    it is not image_size / patch_size squared. class_tokens, registers: rows that run beside the patches; has_mask: one
    more stands by, for training. positions: rows of the learned table, None for as many as patches and class tokens.
    pre_norm, post_norm: before the first layer and behind the last. layer_scale: a factor per element on both parts of
    a layer. has_qk_norm, qk_norm, gated, qkv_bias, key_bias (where it differs), output_bias, mlp_bias, head_dim: as in
    blocks.attention and feed_forward. attention_extra: weights that no other family has. before, after: blocks that no
    other family has. finish: what is left to change in the stack. heads_of: the words of `_head_block` for each task or
    class.
    """

    hidden_size: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    channels: str | int = "num_channels"
    norm: str | Callable[[Fields], str] = "layer_norm"
    norms: int = 2
    patch_bias: Truth = True
    linear_patches: bool = False
    temporal_patch: str | None = None
    patches: Callable[[Fields], int] | None = None
    class_tokens: int = 0
    registers: str | None = None
    has_mask: Truth = False
    positions: Size | None = None
    pre_norm: Truth = False
    post_norm: Truth = True
    layer_scale: Truth = False
    gated: Truth = False
    qkv_bias: Truth = True
    key_bias: Truth | None = None
    output_bias: Truth = True
    mlp_bias: Truth = True
    has_qk_norm: Truth = False
    qk_norm: str = "full"
    head_dim: Size | None = None
    intermediate_size: Size = "intermediate_size"
    attention_extra: Callable[[Fields], tuple[Weight, ...]] | None = None
    before: Callable[[Fields], tuple[Block, ...]] | None = None
    after: Callable[[Fields], tuple[Block, ...]] | None = None
    finish: Callable[[Fields, Stack], Stack] | None = None
    heads_of: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


def vision_network(fields: Fields, facts: Vision) -> Network:
    """A model that reads images and nothing else, with what its class has behind it.

    Raises:
        UnsupportedModelError: the class is for a task that is not known here.
    """
    heads, names = dict(facts.heads_of), fields.raw("architectures")
    words = heads.get(str(names[0]) if names else "", heads.get(fields.task, "" if fields.task == "base" else None))
    if words is None:
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    after = tuple(block for word in words.split() for block in _head_blocks(fields, facts, word))
    stack = vision_stack(fields, facts, after=after)
    return Network(architecture="encoder", stacks=(stack,), model_type=fields.data.model_type)


def norm_kind(fields: Fields, facts: Vision) -> str:
    """The kind of norm in the layers."""
    return facts.norm if isinstance(facts.norm, str) else facts.norm(fields)


def vision_stack(
    fields: Fields,
    facts: Vision,
    *,
    after: tuple[Block, ...] = (),
    optional: bool = False,
    prefix: str = "",
    name: str = "vision",
) -> Stack:
    """Patches, tokens and positions, layers and last norm, then `after`. Its length is an image's rows."""
    fields.ignore(*facts.ignored)
    hidden, num_layers = fields.size(facts.hidden_size), fields.layers(facts.layers)
    layer = _layer(fields, facts)
    last = (norm("post_norm", hidden, norm_kind(fields, facts)),) if is_true(fields, facts.post_norm) else ()
    own = facts.after(fields) if facts.after is not None else ()
    stack = Stack(
        name=name,
        hidden_size=hidden,
        before=_embeddings(fields, facts),
        layers=(layer,) * num_layers,
        after=last + own + after,
        length=vision_length(fields, facts),
        optional=optional,
        prefix=prefix,
    )
    return stack if facts.finish is None else facts.finish(fields, stack)


def pair_of(fields: Fields, name: str) -> tuple[int, int]:
    """Height and width: one positive integer for both, or a list of two.

    Raises:
        ConfigError: it is neither.
    """
    value = fields.raw(name)
    if isinstance(value, list) and len(value) == 2:
        height, width = fields.sizes(name, 2)
        if height and width:
            return height, width
        raise ConfigError(f"{name} must be one or two positive integers, not {show(value)}", field=name)
    return fields.size(name), fields.size(name)


def grid_of(fields: Fields) -> tuple[int, int]:
    """Rows and columns of patches in an image of the config's size.

    Raises:
        ConfigError: an image is smaller than a patch.
    """
    (height, width), (patch_height, patch_width) = pair_of(fields, "image_size"), pair_of(fields, "patch_size")
    if height < patch_height or width < patch_width:
        raise ConfigError(f"image_size {height} x {width} is smaller than a patch", field="image_size")
    return height // patch_height, width // patch_width


def num_patches(fields: Fields, facts: Vision) -> int:
    """Patches of one image."""
    return facts.patches(fields) if facts.patches is not None else math.prod(grid_of(fields))


def vision_length(fields: Fields, facts: Vision) -> int:
    """Rows of one image: its patches, class tokens and registers."""
    registers = fields.count(facts.registers) if facts.registers else 0
    return num_patches(fields, facts) + facts.class_tokens + registers


def _embeddings(fields: Fields, facts: Vision) -> tuple[Block, ...]:
    hidden, patches = fields.size(facts.hidden_size), num_patches(fields, facts)
    registers = fields.count(facts.registers) if facts.registers else 0
    patch: tuple[int, ...] = pair_of(fields, "patch_size")
    if facts.temporal_patch is not None:
        patch = (fields.size(facts.temporal_patch), *patch)
    first = patch_projection(
        num_channels=fields.size(facts.channels) if isinstance(facts.channels, str) else facts.channels,
        hidden_size=hidden,
        patch=patch,
        positions=patches,
        bias=is_true(fields, facts.patch_bias),
        is_linear=facts.linear_patches,
    )
    blocks = [first]
    for name, count in (("class_token", facts.class_tokens), ("register_tokens", registers)):
        blocks += [tokens(name, count, hidden)] if count else []
    if is_true(fields, facts.has_mask):
        blocks.append(tokens("mask_token", 1, hidden))
    places = patches + facts.class_tokens if facts.positions is None else size_of(fields, facts.positions)
    blocks += [position_table(places, hidden)] if places else []
    if is_true(fields, facts.pre_norm):
        blocks.append(norm("pre_norm", hidden, norm_kind(fields, facts)))
    return tuple(blocks) + (facts.before(fields) if facts.before is not None else ())


def _layer(fields: Fields, facts: Vision) -> Layer:
    hidden, heads = fields.size(facts.hidden_size), fields.size(facts.heads)
    head_dim = size_of(fields, facts.head_dim) if facts.head_dim is not None else None
    if head_dim is None and hidden % heads:
        raise ConfigError(f"{facts.heads} must divide {facts.hidden_size} {hidden}, not {heads}", field=facts.heads)
    has_scale = is_true(fields, facts.layer_scale)
    scales = tuple(layer_scale(hidden, f"layer_scale{index}.weight") for index in (1, 2)) if has_scale else ()
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim or hidden // heads,
        qkv_bias=is_true(fields, facts.qkv_bias),
        key_bias=None if facts.key_bias is None else is_true(fields, facts.key_bias),
        output_bias=is_true(fields, facts.output_bias),
        qk_norm=facts.qk_norm if is_true(fields, facts.has_qk_norm) else "none",
        is_cached=False,
        extra=scales + (facts.attention_extra(fields) if facts.attention_extra is not None else ()),
    )
    feeding = feed_forward(
        hidden_size=hidden,
        intermediate_size=size_of(fields, facts.intermediate_size) or 4 * hidden,
        gated=is_true(fields, facts.gated),
        bias=is_true(fields, facts.mlp_bias),
    )
    norms = tuple(norm(f"norms.{index}", hidden, norm_kind(fields, facts)) for index in range(facts.norms))
    return Layer(blocks=(*norms[:1], mixing, *norms[1:], feeding))


def _head_blocks(fields: Fields, facts: Vision, word: str) -> tuple[Block, ...]:
    if word == "pooler_norm" and not fields.flag("use_mean_pooling"):
        return ()
    if word == "two_labels":  # one classifier for the class token, one for the distillation token
        return (_head_block(fields, facts, "label"), _head_block(fields, facts, "label"))
    return (_head_block(fields, facts, word),)


def _head_block(fields: Fields, facts: Vision, word: str) -> Block:
    """pooler: a square matrix on one row; pooler_norm: a norm of it. norm: one of each row. label, double: a projection
    of one row, or of two side by side, to the classes. pixels: a projection of every patch to its pixels.
    visual_tokens: a projection of every row to the visual vocabulary. projection: a matrix on one row.
    """
    hidden = fields.size(facts.hidden_size)
    if word == "pooler":
        outputs = fields.optional_size("pooler_output_size") or hidden
        weights = linear("dense", hidden, outputs, bias=True, quantized=False)
        return Block(name="pooler", part="head", weights=weights, positions=1, live_width=hidden + outputs)
    if word == "pooler_norm":
        return replace(norm("pooler.norm", hidden, "layer_norm"), positions=1)
    if word == "norm":
        return norm("layernorm", hidden, "layer_norm")
    if word == "pixels":
        outputs = fields.size("encoder_stride") ** 2 * fields.size("num_channels")
        weights = convolution("decoder", hidden, outputs, (1, 1))
        patches = num_patches(fields, facts)
        return Block(name="", part="head", weights=weights, positions=patches, live_width=hidden + outputs)
    if word == "visual_tokens":
        return head("lm_head", hidden, fields.size("vocab_size"), bias=True)
    if word == "projection":
        return head("visual_projection", hidden, fields.size("projection_dim"), positions=1)
    assert word in ("label", "double"), word
    return head("classifier", hidden * (2 if word == "double" else 1), num_labels(fields), bias=True, positions=1)


def pooling_head(fields: Fields) -> tuple[Block, ...]:
    """The pooling head of SigLIP, where `vision_use_head` asks for it."""
    if not fields.flag("vision_use_head"):
        return ()
    sizes = (fields.size(name) for name in ("hidden_size", "num_attention_heads", "intermediate_size"))
    return attention_pooling(*sizes)
