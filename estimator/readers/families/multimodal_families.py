"""Language models that read images as rows of facts. Source: the classes of transformers 5.24, as the tests compare."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from estimator.blocks.common import embedding, feed_forward, head, linear, norm
from estimator.blocks.vision import image_attention, resampler_attention, tokens
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Network, Weight
from estimator.readers.families.decoder_families import DECODERS
from estimator.readers.families.decoders import Decoder, decoder_network, decoder_stack
from estimator.readers.families.multimodal import (
    Multimodal,
    Parts,
    Reader,
    merged_patches,
    multimodal_network,
    num_feature_layers,
    projection,
)
from estimator.readers.families.query_transformer import query_attention, query_stack
from estimator.readers.fields import Fields

__all__ = ["MULTIMODAL", "READERS", "TEXTS"]

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
    ratio = parts.fields.number("downsample_ratio")
    if not 1e-3 <= ratio <= 1:
        raise ConfigError("downsample_ratio must be from 0.001 to 1", field="downsample_ratio")
    factor = int(1 / ratio)
    sizes = (parts.vision_size * factor**2, parts.text_size, parts.text_size)
    return (projection(_NAME, sizes, positions=merged_patches(parts.patches, factor), norm="layer_norm"),)


def _idefics3(parts: Parts) -> tuple[Block, ...]:
    factor = parts.fields.size("scale_factor")
    sizes = (parts.vision_size * factor**2, parts.text_size)
    return (projection("connector", sizes, positions=merged_patches(parts.patches, factor), bias=False),)


def _lfm2_vl(parts: Parts) -> tuple[Block, ...]:
    fields, factor = parts.fields, parts.fields.size("downsample_factor")
    sizes = (parts.vision_size * factor**2, fields.size("projector_hidden_size"), parts.text_size)
    kind = "layer_norm" if fields.flag("projector_use_layernorm") else "none"
    rows, bias = merged_patches(parts.patches, factor), fields.flag("projector_bias")
    return (projection(_NAME, sizes, positions=rows, bias=bias, norm=kind),)


def _lighton_ocr(parts: Parts) -> tuple[Block, ...]:
    width, text, factor = parts.vision_size, parts.text_size, parts.fields.size("spatial_merge_size")
    rows = merged_patches(parts.patches, factor)
    merger = projection(
        f"{_NAME}.patch_merger",
        (width * factor**2, width),
        positions=rows,
        bias=False,
        norm="rms_norm",
        norm_size=width,
    )
    return merger, projection(_NAME, (width, text, text), positions=rows, bias=False)


def _video_llama_3(parts: Parts) -> tuple[Block, ...]:
    sizes = (parts.vision_size, parts.text_size, parts.text_size)
    return (projection("projector", sizes, positions=parts.patches),)


def _paddleocr_vl(parts: Parts) -> tuple[Block, ...]:
    factor, width = parts.vision.size("spatial_merge_size"), parts.vision_size
    sizes, rows = (width * factor**2, width * factor**2, parts.text_size), merged_patches(parts.patches, factor)
    return (projection("projector", sizes, positions=rows, norm="layer_norm", norm_size=width),)


def _hyperclovax(parts: Parts) -> tuple[Block, ...]:
    rows = merged_patches(parts.patches, parts.vision.size("spatial_merge_size"))
    return (projection("projector", (parts.vision.size("out_hidden_size"), parts.text_size), positions=rows),)


def _mllama(parts: Parts) -> tuple[Block, ...]:
    rows = parts.patches + parts.vision.size("max_num_tiles")
    sizes = (parts.vision.size("vision_output_dim"), parts.text_size)
    return (projection(_NAME, sizes, positions=rows),)


def _llama4(parts: Parts) -> tuple[Block, ...]:
    rows = max(1, int(parts.patches * parts.vision.number("pixel_shuffle_ratio") ** 2))
    sizes = (parts.vision.size("vision_output_dim"), parts.text_size)
    return (projection(_NAME, sizes, positions=rows, bias=False),)


def _idefics2(parts: Parts) -> tuple[Block, ...]:
    """A gated feed-forward on every patch, then layers in which learned rows attend to patches and themselves."""
    resampler, hidden = parts.fields.sub("perceiver_config"), parts.text_size
    inner = parts.text.size("intermediate_size")
    resampler.ignore("hidden_size")  # the class takes the text's
    latents, rows = resampler.size("resampler_n_latents"), parts.patches + resampler.size("resampler_n_latents")
    weights = linear("gate_proj", parts.vision_size, inner) + linear("up_proj", parts.vision_size, inner)
    weights += linear("down_proj", inner, hidden)
    first = Block(
        name="connector.modality_projection", part="projector", weights=weights, live_width=2 * inner + hidden
    )
    queries, keys = resampler_attention(
        hidden_size=hidden,
        num_attention_heads=resampler.size("resampler_n_heads"),
        num_key_value_heads=resampler.size("num_key_value_heads"),
        head_dim=resampler.size("resampler_head_dim"),
        num_queries=latents,
        bias=False,
    )[::-1]
    mlp = feed_forward(hidden_size=hidden, intermediate_size=4 * hidden, gated=True)
    norms = tuple(replace(norm(f"norms.{index}", hidden, "rms_norm"), positions=latents) for index in range(3))
    layer = (*norms, replace(keys, positions=rows), queries, replace(mlp, positions=latents))
    layer = tuple(replace(block, part="projector") for block in layer)
    last = replace(norm("connector.norm", hidden, "rms_norm"), positions=latents)
    return (first, tokens("latents", latents, hidden), *layer * resampler.layers("resampler_depth"), last)


def mllama_text(fields: Fields) -> Network:
    """A decoder of which some layers attend to the images instead of the tokens before, gated.

    Ignores: that these layers do not run at all for text without images.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    fields.ignore("tie_word_embeddings")  # table and head differ in size
    after = (head("lm_head", hidden, fields.size("vocab_size")),) if fields.task == "causal_lm" else ()
    stack = decoder_stack(fields, Decoder(head_dim=None), after=after)
    cross = image_attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=hidden // heads,
    )
    gates = tuple(Weight(name=f"cross_attn_{name}_gate", shape=(1,), role="other") for name in ("attn", "mlp"))
    plain = stack.layers[0].blocks
    seeing = Layer(
        blocks=tuple(
            new
            for block in plain
            for new in (
                (replace(cross[0], weights=cross[0].weights + gates), cross[1])
                if block.part == "attention"
                else (block,)
            )
        )
    )
    indices = fields.sizes("cross_attention_layers") if fields.given("cross_attention_layers") else _MLLAMA_LAYERS
    layers = tuple(seeing if index in indices else layer for index, layer in enumerate(stack.layers))
    table = embedding("embed_tokens", fields.size("vocab_size") + _MLLAMA_EXTRA_TOKENS, hidden)
    return Network(
        architecture="decoder",
        stacks=(replace(stack, layers=layers, before=(table,)),),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.size("max_position_embeddings"),
    )


_MLLAMA_LAYERS = (3, 8, 13, 18, 23, 28, 33, 38)  # where the config names none
_MLLAMA_EXTRA_TOKENS = 8  # rows of the table for tokens that are read and never written
_SELECTING = ("vision_feature_select_strategy", "image_seq_length", "image_grid_pinpoints", "vision_aspect_ratio")
_LLAVA = Multimodal(projector=_llava, text_ties=True, ignored=_SELECTING)
_GEMMA3 = Multimodal(projector=_gemma3)
_IDEFICS3 = Multimodal(projector=_idefics3, warning=_TILES)
_INTERNVL = Multimodal(projector=_internvl, ignored=(*_SELECTING, "vision_feature_layer"), warning=_TILES)
_WHOLE_TOWER = Multimodal(warning=_NOMINAL)  # the tower ends in the text's width
_GLM = Multimodal(text_ties=True)
_QWEN = replace(_WHOLE_TOWER, text_ties=True, flat=True)

_BLIP_IGNORED = (
    "image_text_hidden_size",
    "use_decoder_only_language_model",
    "is_encoder_decoder",
    "use_qformer_text_input",
    "logit_scale_init_value",
    "num_image_tokens",
)
_BLIP2 = Multimodal(projector=query_attention, between=query_stack, text_task="causal_lm", ignored=_BLIP_IGNORED)

MULTIMODAL: Mapping[str, Multimodal] = {
    "aya_vision": Multimodal(projector=_aya_vision, ignored=(*_SELECTING, "vision_feature_layer"), warning=_TILES),
    "blip-2": _BLIP2,
    "cohere2_vision": Multimodal(projector=_cohere2_vision, warning=_TILES),
    "gemma3": _GEMMA3,
    "glm46v": Multimodal(),
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm_ocr": _GLM,
    "hyperclovax_vision_v2": Multimodal(projector=_hyperclovax, warning=_NOMINAL),
    "idefics3": _IDEFICS3,
    "instructblip": _BLIP2,
    "instructblipvideo": _BLIP2,
    "internvl": _INTERNVL,
    "llava": _LLAVA,
    "llava_next": replace(_LLAVA, projector=_llava_with_newline, text_ties=False, warning=_TILES),
    "lfm2_vl": Multimodal(projector=_lfm2_vl, warning=_TILES),
    "lighton_ocr": Multimodal(projector=_lighton_ocr),
    "paddleocr_vl": Multimodal(projector=_paddleocr_vl, text_ties=True, flat=True),
    "video_llama_3": Multimodal(projector=_video_llama_3, text_ties=True, warning=_NOMINAL),
    "llava_onevision": replace(_LLAVA, projector=_llava_with_newline, warning=_TILES),
    "idefics2": Multimodal(projector=_idefics2, ignored=("perceiver_config",), warning=_TILES),
    "llama4": Multimodal(projector=_llama4, text_task="causal_lm", warning=_TILES),
    "mllama": Multimodal(projector=_mllama),
    "mistral3": Multimodal(projector=_mistral3),
    "paligemma": Multimodal(projector=_paligemma, ignored=("hidden_size", "vocab_size")),
    "qianfan_ocr": _INTERNVL,
    "qwen2_5_vl": _QWEN,
    "qwen2_vl": _QWEN,
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
    "paddleocr_vl_text": DECODERS["ernie4_5"],
    "glm_ocr_text": DECODERS["glm4"],
}


def _find_text(model_type: str) -> Reader | None:
    from estimator.readers.networks import find_reader  # which loads the families, this module among them

    return find_reader(model_type)


READERS: Mapping[str, Reader] = {
    **{name: functools.partial(decoder_network, facts=facts) for name, facts in TEXTS.items()},
    "mllama_text_model": mllama_text,
    **{
        name: functools.partial(multimodal_network, facts=facts, find_text=_find_text)
        for name, facts in MULTIMODAL.items()
    },
}
