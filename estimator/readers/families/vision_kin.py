"""Kin of the vision transformer: AST of spectrograms, ViT-MAE of masked images, CLIP beside Roberta or BERT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import attention, feed_forward, head, linear, norm, norm_weights
from estimator.blocks.vision import position_table, tokens
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.readers.families.encoders import Encoder, encoder_network
from estimator.readers.families.vision import num_patches, vision_network, vision_stack
from estimator.readers.families.vision_families import VISION
from estimator.readers.fields import Fields

__all__ = ["READERS"]

_VIT = replace(VISION["vit"], has_mask=False, heads_of=(("base", ""),))
_TEXT = Encoder(can_decode=False, heads={"base": ""})


def _spectrogram_patches(fields: Fields) -> int:
    """Patches of a spectrogram, which overlap where the strides are smaller than the patch.

    Raises:
        ConfigError: the spectrogram is smaller than a patch.
    """
    count = 1
    for size, stride in (("num_mel_bins", "frequency_stride"), ("max_length", "time_stride")):
        length, patch = fields.size(size), fields.size("patch_size")
        if length < patch:
            raise ConfigError(f"{size} {length} is smaller than a patch of {patch}", field=size)
        count *= (length - patch) // fields.size(stride) + 1
    return count


_AST = replace(
    _VIT,
    channels=1,
    patches=_spectrogram_patches,
    class_tokens=2,
    heads_of=(("base", ""), ("audio_classification", "norm label")),
)


def _ast(fields: Fields) -> Network:
    network = vision_network(fields, _AST)
    return replace(network, stacks=tuple(replace(stack, name="audio") for stack in network.stacks))


def _masked_autoencoder(fields: Fields) -> Network:
    """ViT-MAE: only the patches that no mask hides run through the encoder. Source: arXiv:2111.06377.

    Raises:
        UnsupportedModelError: the class is for another task.
    """
    if fields.task not in ("base", "pretraining"):
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    fields.ignore(*_DECODER_FIELDS)
    patches = num_patches(fields, _VIT)
    seen = 1 + int(patches * (1 - fields.number("mask_ratio")))
    encoder = replace(vision_stack(fields, _VIT), length=seen)
    stacks = (encoder,) if fields.task == "base" else (encoder, _painter(fields, patches, seen))
    return Network(architecture="encoder", stacks=stacks, model_type=fields.data.model_type)


_DECODER_FIELDS = (
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
)


def _painter(fields: Fields, patches: int, seen: int) -> Stack:
    """The decoder of all patches, back to their pixels."""
    hidden, inner, heads = (fields.size(name) for name in _DECODER_FIELDS[:3])
    if hidden % heads:
        raise ConfigError(
            f"decoder_num_attention_heads must divide {hidden}, not {heads}", field="decoder_num_attention_heads"
        )
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        qkv_bias=fields.flag("qkv_bias"),
        output_bias=True,
        is_cached=False,
    )
    feeding = feed_forward(hidden_size=hidden, intermediate_size=inner, gated=False, bias=True)
    norms = tuple(norm(f"norms.{index}", hidden, "layer_norm") for index in range(2))
    source = fields.size("hidden_size")
    entry = Block(
        name="decoder_embed",
        part="projector",
        weights=linear("", source, hidden, bias=True),
        positions=seen,
        live_width=source + hidden,
    )
    pixels = fields.size("patch_size") ** 2 * fields.size("num_channels")
    return Stack(
        name="decoder",
        hidden_size=hidden,
        before=(entry, tokens("mask_token", 1, hidden), position_table(patches + 1, hidden)),
        layers=(Layer(blocks=(norms[0], mixing, norms[1], feeding)),) * fields.layers("decoder_num_hidden_layers"),
        after=(norm("decoder_norm", hidden, "layer_norm"), head("decoder_pred", hidden, pixels, bias=True)),
        length=patches + 1,
        prefix="decoder.",
    )


def _text_of_altclip(fields: Fields) -> Network:
    """Roberta, then a norm, and a matrix to `project_dim`."""
    network = encoder_network(fields, _TEXT)
    hidden, width = fields.size("hidden_size"), fields.size("project_dim")
    weights = norm_weights("pre_LN", hidden, "layer_norm") + linear("transformation", hidden, width, bias=True)
    last = Block(name="", part="head", weights=weights, live_width=hidden + width)
    main = replace(network.main, name="text", after=(*network.main.after, last))
    return replace(network, stacks=(main,))


def _text_of_chinese_clip(fields: Fields) -> Network:
    """BERT, which stands in the whole model without its pooler."""
    network = encoder_network(fields, _TEXT)
    return replace(network, stacks=(replace(network.main, name="text"),))


def _pair(read_text: Callable[[Fields], Network], width: str) -> Callable[[Fields], Network]:
    """CLIP with another text tower: `width` is the field with the width of what that hands on."""

    def read(fields: Fields) -> Network:
        if fields.task != "base":
            raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
        vision, text = (fields.own_sub(name, task="base") for name in ("vision_config", "text_config"))
        for part in (vision, text):
            part.ignore("projection_dim")
        outputs = fields.size("projection_dim")
        seen = head("visual_projection", vision.size("hidden_size"), outputs, positions=1)
        scale = Block(
            name="", part="head", weights=(Weight(name="logit_scale", shape=(1,), role="other"),), positions=1
        )
        network = read_text(text)
        said = head("text_projection", text.size(width), outputs, positions=1)
        main = replace(network.main, after=(*network.main.after, said, scale), prefix="text_model.")
        tower = vision_stack(vision, VISION[vision.data.model_type], after=(seen,), prefix="vision_model.")
        return replace(network, stacks=(tower, main), model_type=fields.data.model_type)

    return read


READERS: Mapping[str, Callable[[Fields], Network]] = {
    "altclip": _pair(_text_of_altclip, "project_dim"),
    "altclip_text_model": _text_of_altclip,
    "audio-spectrogram-transformer": _ast,
    "chinese_clip": _pair(_text_of_chinese_clip, "hidden_size"),
    "vit_mae": _masked_autoencoder,
}
