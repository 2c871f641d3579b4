"""Speech encoders over raw samples: convolutions down to frames, then layers of attention (wav2vec 2.0 and its kin).

A row of the stack is a frame, of 320 samples or 20 ms at 16 kHz as a rule; the prompt's length is in frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from estimator.blocks.common import attention, feed_forward, head, linear, norm, norm_weights
from estimator.blocks.vision import convolution, tokens
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Layer, Network, Recurrence, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.fields import Fields

__all__ = ["READERS", "Speech", "speech_network"]

# What only training, pretraining and speaker verification read.
_IGNORED = tuple(
    """
    apply_spec_augment mask_time_length mask_time_min_masks mask_feature_length mask_feature_min_masks num_negatives
    num_codevector_groups num_codevectors_per_group codevector_dim proj_codevector_dim diversity_loss_weight
    contrastive_logits_temperature tdnn_dim tdnn_kernel tdnn_dilation xvector_output_dim ctc_loss_reduction
    ctc_zero_infinity adapter_kernel_size adapter_stride num_adapter_layers output_hidden_size classifier_proj_size
    vocab_size use_weighted_layer_sum num_feat_extract_layers num_clusters do_stable_layer_norm num_buckets
    max_bucket_distance num_ctc_classes replace_prob
    """.split()  # noqa: SIM905 - a column of words reads better
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """The facts of a family. projection_norm: the norm before the projection of frames, or the field that decides it.
    relative_positions: buckets of distances in the first layer, and gates of them in each (wavlm).
    """

    projection_norm: bool | str = True
    relative_positions: bool = False


def speech_network(fields: Fields, facts: Speech) -> Network:
    """Feature encoder, projection, convolutional positions, layers, and the head of the class.

    Raises:
        UnsupportedModelError: the class's task is not known here.
    """
    fields.ignore(*_IGNORED)
    fields.choice("add_adapter", (False, None))
    fields.choice("adapter_attn_dim", (None,))
    hidden, num_layers = fields.size("hidden_size"), fields.layers()
    layers = tuple(_layer(fields, facts, index) for index in range(min(num_layers, 2)))
    stack = Stack(
        name="audio",
        hidden_size=hidden,
        before=(_feature_encoder(fields), *_projection(fields, facts), *_positions(fields)),
        layers=layers[:1] + layers[1:] * (num_layers - 1),
        after=_task_head(fields),
    )
    return Network(architecture="encoder", stacks=(stack,), model_type=fields.data.model_type)


def _feature_encoder(fields: Fields) -> Block:
    """Convolutions of which each has more rows than frames come out: n rows take (n - 1) * stride + kernel before.

    Rows beyond one per frame are products of the block beside its weights.
    """
    widths = fields.sizes("conv_dim")
    kernels, strides = fields.sizes("conv_kernel", len(widths)), fields.sizes("conv_stride", len(widths))
    kind = fields.choice("feat_extract_norm", ("group", "layer"))
    if not widths or not all((*widths, *kernels, *strides)):
        raise ConfigError("conv_dim, conv_kernel and conv_stride must be positive", field="conv_dim")
    weights: tuple[Weight, ...] = ()
    for index, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        source = widths[index - 1] if index else 1
        weights += convolution(f"conv_layers.{index}", source, width, (kernel,), bias=fields.flag("conv_bias"))
        if kind == "layer" or index == 0:
            weights += norm_weights(f"conv_layers.{index}.layer_norm", width, "layer_norm")
    per_frame, once, factor, offset = 0, 0, 1, 0
    kernels_of = [2 * math.prod(weight.shape) for weight in weights if weight.role == "convolution"]
    for flops, kernel, stride in reversed(list(zip(kernels_of, kernels, strides, strict=True))):
        per_frame, once = per_frame + flops * (factor - 1), once + flops * offset
        factor, offset = factor * stride, offset * stride + kernel - stride
    rest = Recurrence(state_elements=0, token_flops=per_frame, prompt_flops=once)
    live_width = widths[0] * math.prod(strides[1:])
    return Block(name="feature_extractor", part="embedding", weights=weights, recurrence=rest, live_width=live_width)


def _projection(fields: Fields, facts: Speech) -> tuple[Block, ...]:
    hidden, width = fields.size("hidden_size"), fields.sizes("conv_dim")[-1]
    has_norm = facts.projection_norm
    has_norm = fields.flag(has_norm) if isinstance(has_norm, str) else has_norm
    weights = norm_weights("layer_norm", width, "layer_norm" if has_norm else "none")
    weights += linear("projection", width, hidden, bias=True)
    block = Block(name="feature_projection", part="embedding", weights=weights, live_width=width + hidden)
    is_masked = fields.number("mask_time_prob") > 0 or fields.number("mask_feature_prob") > 0
    return (block, tokens("masked_spec_embed", 1, hidden)) if is_masked else (block,)


def _positions(fields: Fields) -> tuple[Block, ...]:
    """A grouped convolution over the frames, whose weight is kept as direction and length, and a norm."""
    hidden, kernel = fields.size("hidden_size"), fields.size("num_conv_pos_embeddings")
    if "conv_pos_batch_norm" in fields.data.defaults:
        fields.choice("conv_pos_batch_norm", (False,))
    weights = convolution("conv", hidden, hidden, (kernel,), groups=fields.size("num_conv_pos_embedding_groups"))
    length = Weight(name="conv.length", shape=(1, 1, kernel), role="other")
    thrown_away = 2 * math.prod(weights[0].shape) * (1 - kernel % 2)
    rest = Recurrence(state_elements=0, token_flops=0, prompt_flops=thrown_away)
    block = Block(
        name="pos_conv_embed",
        part="embedding",
        weights=(*weights, length),
        recurrence=rest,
        live_width=2 * hidden,
    )
    return block, norm("encoder.layer_norm", hidden, "layer_norm")


def _layer(fields: Fields, facts: Speech, index: int) -> Layer:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden % heads:
        raise ConfigError(f"num_attention_heads must divide hidden_size {hidden}, not {heads}", field="hidden_size")
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        qkv_bias=True,
        output_bias=True,
        is_cached=False,
    )
    weights = _relative(fields, facts, index)
    per_head = sum(2 * math.prod(weight.shape) for weight in weights if weight.role == "linear")
    gates = Recurrence(state_elements=0, token_flops=(heads - 1) * per_head) if per_head else None
    mixing = replace(mixing, weights=mixing.weights + weights, recurrence=gates)
    width = fields.size("intermediate_size")
    feeding = feed_forward(hidden_size=hidden, intermediate_size=width, gated=False, bias=True)
    norms = [norm(name, hidden, "layer_norm") for name in ("layer_norm", "final_layer_norm")]
    return Layer(blocks=(mixing, norms[0], feeding, norms[1]))


def _relative(fields: Fields, facts: Speech, index: int) -> tuple[Weight, ...]:
    if not facts.relative_positions:
        return ()
    heads = fields.size("num_attention_heads")
    weights: tuple[Weight, ...] = (Weight(name="gru_rel_pos_const", shape=(1, heads, 1, 1), role="other"),)
    weights += linear("gru_rel_pos_linear", fields.size("hidden_size") // heads, 8, bias=True, quantized=False)
    if index == 0:
        weights += (Weight(name="rel_attn_embed", shape=(fields.size("num_buckets"), heads), role="embedding"),)
    return weights


def _task_head(fields: Fields) -> tuple[Block, ...]:
    hidden = fields.size("hidden_size")
    if fields.task == "base":
        return ()
    if fields.task == "ctc":
        return (head("lm_head", hidden, fields.size("vocab_size"), bias=True),)
    if fields.task not in ("audio_classification", "audio_frame_classification"):
        raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")
    sums = fields.flag("use_weighted_layer_sum")
    shares = Weight(name="layer_weights", shape=(fields.layers() + 1,), role="other")
    extra = (Block(name="", part="head", weights=(shares,), positions=0),) if sums else ()
    if fields.task == "audio_frame_classification":
        return (*extra, head("classifier", hidden, num_labels(fields), bias=True))
    width = fields.size("classifier_proj_size")
    projector = Block(name="", part="projector", weights=linear("projector", hidden, width, bias=True))
    return (*extra, projector, head("classifier", width, num_labels(fields), bias=True, positions=1))


READERS: Mapping[str, Callable[[Fields], Network]] = {
    name: functools.partial(speech_network, facts=facts)
    for name, facts in {
        "wav2vec2": Speech(),
        "hubert": Speech(projection_norm="feat_proj_layer_norm"),
        "wavlm": Speech(relative_positions=True),
        "unispeech": Speech(),
        "unispeech-sat": Speech(),
    }.items()
}
