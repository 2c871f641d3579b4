"""Language models that also hear: a text model, an audio tower and a projector between them.

The tower is optional: it runs for clips only, of which the workload's `num_images` counts how many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from estimator.blocks.common import head, linear, norm_weights
from estimator.config import show
from estimator.errors import UnsupportedModelError
from estimator.network import Block, Network, Weight
from estimator.readers.families.audio_towers import TOWERS, Tower, tower_network, tower_stack
from estimator.readers.families.decoder_facts import Decoder, Windows, all_layers
from estimator.readers.families.decoders import decoder_network, num_labels
from estimator.readers.families.multimodal import projection
from estimator.readers.fields import Fields

__all__ = ["READERS", "Hearing", "hearing_network"]

Reader = Callable[[Fields], Network]
_NAME = "multi_modal_projector"
_CLIPS = "num_images counts clips of audio, each of the longest length that the tower takes"
# Fields of the whole model that its classes write from those of its parts, or that only one class reads.
_OUTER = ("hidden_size", "head_dim", "max_position_embeddings", "token_classification_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The config of a whole model, of its text and of its tower, and the facts of the tower's family."""

    fields: Fields
    text: Fields
    audio: Fields
    facts: Tower

    @property
    def text_size(self) -> int:
        """Width of the text model."""
        return self.text.size("hidden_size")

    @property
    def audio_size(self) -> int:
        """Width of the tower's rows."""
        return self.audio.size("hidden_size")

    @property
    def rows(self) -> int:
        """Rows of one clip behind the tower."""
        return self.facts.outputs(self.audio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """The facts of a family. projector: the blocks behind the tower.

    merged: what the text's config leaves out comes from what the class starts it with, not from the text's family.
    can_tie: whether the head may be the text's token table. classifier_bias: the field for classes of tokens.
    """

    projector: Callable[[Sides], tuple[Block, ...]]
    merged: bool = False
    can_tie: bool = True
    classifier_bias: str | None = None
    ignored: tuple[str, ...] = ()


def hearing_network(fields: Fields, facts: Hearing) -> Network:
    """Tower, projector, text model and the head of the class.

    Raises:
        UnsupportedModelError: the text, the tower or the class's task is not known here.
    """
    from estimator.readers.networks import find_reader  # which loads the families, this module among them

    fields.ignore(*facts.ignored, *_OUTER, *(["tie_word_embeddings"] if not facts.can_tie else []))
    text = fields.sub("text_config", task="base", merged=facts.merged)
    audio = fields.sub("audio_config", task="base")
    read_text = find_reader(text.data.model_type)
    if read_text is None or "vocab_size" not in text.data.defaults:
        raise UnsupportedModelError(f"text_config of model_type {show(text.data.model_type)} is not supported")
    if audio.data.model_type not in TOWERS:
        raise UnsupportedModelError(f"audio_config of model_type {show(audio.data.model_type)} is not supported")
    text.ignore("tie_word_embeddings")
    sides = Sides(fields=fields, text=text, audio=audio, facts=TOWERS[audio.data.model_type])
    tower = tower_stack(audio, sides.facts, after=facts.projector(sides), optional=True, prefix="audio_tower.")
    language = read_text(text)
    main = replace(language.main, after=language.main.after + _task_head(sides, facts), prefix="language_model.")
    fields.warnings.append(_CLIPS)
    return replace(language, stacks=(tower, *language.stacks[:-1], main), model_type=fields.data.model_type)


def _task_head(sides: Sides, facts: Hearing) -> tuple[Block, ...]:
    fields = sides.fields
    if fields.task == "base":
        return ()
    if fields.task in ("seq2seq_lm", "speech_seq2seq"):
        tied = facts.can_tie and fields.flag("tie_word_embeddings")
        return (head("lm_head", sides.text_size, sides.text.size("vocab_size"), tied=tied),)
    if fields.task == "token_classification":
        bias = facts.classifier_bias is not None and fields.flag(facts.classifier_bias)
        return (head("score", sides.text_size, num_labels(fields), bias=bias),)
    raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")


def _qwen2_audio(sides: Sides) -> tuple[Block, ...]:
    return (projection(_NAME, (sides.audio_size, sides.text_size), positions=sides.rows),)


def _audioflamingo(sides: Sides) -> tuple[Block, ...]:
    sizes, bias = (sides.audio_size, sides.text_size, sides.text_size), sides.fields.flag("projector_bias")
    return (projection(_NAME, sizes, positions=sides.rows, bias=bias),)


def _side_by_side(sides: Sides) -> tuple[int, int]:
    """Rows of the tower laid side by side until they are as wide as its feed-forward, and how many there are then."""
    width = sides.audio.size("intermediate_size")
    return width, max(1, sides.rows * sides.audio_size // width)


def _voxtral(sides: Sides) -> tuple[Block, ...]:
    width, rows = _side_by_side(sides)
    return (projection(_NAME, (width, sides.text_size, sides.text_size), positions=rows, bias=False),)


def _voxtral_realtime(sides: Sides) -> tuple[Block, ...]:
    factor = sides.fields.size("downsample_factor")
    sizes = (sides.audio_size * factor, sides.text_size, sides.text_size)
    return (projection(_NAME, sizes, positions=max(1, sides.rows // factor), bias=False),)


def _glmasr(sides: Sides) -> tuple[Block, ...]:
    width, rows = _side_by_side(sides)
    return (projection(_NAME, (width, 2 * sides.text_size, sides.text_size), positions=rows),)


def _moss(sides: Sides) -> tuple[Block, ...]:
    merged, text, bias = sides.fields.size("audio_merge_size"), sides.text_size, sides.fields.flag("projector_bias")
    rows = max(1, sides.rows // merged)
    last = norm_weights("norm", text, "layer_norm")
    return (projection(_NAME, (sides.audio_size * merged, text, text), positions=rows, bias=bias, extra=last),)


def _qwen3_asr(sides: Sides) -> tuple[Block, ...]:
    sizes = (sides.audio_size, sides.audio_size, sides.audio.size("output_dim"))
    return (projection(_NAME, sizes, positions=sides.rows),)


def _delay_scale(fields: Fields) -> tuple[Weight, ...]:
    """voxtral_realtime: two matrices in each layer that scale its rows by how long the text lags behind the audio.

    They run on one row per sequence, which is left out of the FLOPs.
    """
    hidden = fields.size("hidden_size")
    weights = linear("linear1", hidden, _DELAY_RANK) + linear("linear2", _DELAY_RANK, hidden)
    return tuple(replace(weight, name=f"ada_rms_norm.{weight.name}") for weight in weights)


def _delay_block(fields: Fields, _index: int) -> tuple[Block, ...]:
    return (Block(name="", part="feed_forward", weights=_delay_scale(fields), positions=1),)


_DELAY_RANK = 32  # fixed by the class
_FLAMINGO = Hearing(projector=_audioflamingo, can_tie=False)

FAMILIES: Mapping[str, Hearing] = {
    "audioflamingo3": _FLAMINGO,
    "glmasr": Hearing(projector=_glmasr, merged=True),
    "moss_transcribe_diarize": Hearing(projector=_moss, ignored=("audio_chunk_size",)),
    "musicflamingo": replace(_FLAMINGO, ignored=("audio_frame_step",)),
    "qwen2_audio": Hearing(projector=_qwen2_audio, can_tie=False),
    "qwen3_asr": Hearing(projector=_qwen3_asr, classifier_bias="token_classification_bias"),
    "voxtral": Hearing(projector=_voxtral, merged=True, can_tie=False),
    "voxtral_realtime": Hearing(
        projector=_voxtral_realtime, merged=True, ignored=("audio_length_per_tok", "default_num_delay_tokens")
    ),
}
_REALTIME_TEXT = Decoder(windows=Windows(layers=all_layers), layer_blocks=_delay_block)

READERS: Mapping[str, Reader] = {
    **{name: functools.partial(hearing_network, facts=facts) for name, facts in FAMILIES.items()},
    **{name: functools.partial(tower_network, facts=facts) for name, facts in TOWERS.items()},
    "voxtral_realtime_text": functools.partial(decoder_network, facts=_REALTIME_TEXT),
}
