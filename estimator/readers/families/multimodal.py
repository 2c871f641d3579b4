"""Language models that also read images: a text model, a vision tower and a projector between them.

One function lays out every family: the text and the tower are read as the families of their own that they are, and a
row of `Multimodal` says what stands between them. The rows stand in `multimodal_families.py`. The tower is optional: it
runs for images only, and its projector says how many tokens of the text an image takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from estimator.blocks.common import head, linear, norm_weights
from estimator.config import show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Network, Stack, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.vision import Vision, num_patches, vision_stack
from estimator.readers.families.vision_families import VISION
from estimator.readers.fields import Fields

__all__ = ["Multimodal", "Parts", "Reader", "merged_patches", "multimodal_network", "projection"]

Reader = Callable[[Fields], Network]
# Fields of published configs that no class reads: of the whole model, and of its parts.
_OUTER = ("ignore_index", "vocab_size", "hidden_size", "use_image_newline_parameter", "image_seq_len")
_INNER = (
    "tie_word_embeddings",
    "use_bidirectional_attention",
    "num_image_tokens",
    "projection_dim",
    "projector_hidden_act",
    "in_chans",
    "spatial_patch_size",
    "max_image_size",
    "size",
    "use_base_siglip",
    "perceiver_config",
    "pixel_shuffle_factor",
    "qk_layer_norms",
    "use_resampler",
    "neftune_noise_alpha",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The config of a whole model, of its text and of its tower, and the facts of the tower's family."""

    fields: Fields
    text: Fields
    vision: Fields
    facts: Vision

    @property
    def text_size(self) -> int:
        """Width of the text model."""
        return self.text.size("hidden_size")

    @property
    def vision_size(self) -> int:
        """Width of the tower's rows."""
        return self.vision.size(self.facts.hidden_size)

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return num_patches(self.vision, self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Multimodal:
    """The facts of a family.

    projector: the blocks behind the tower, None where the tower holds them itself. between: stacks between the tower
    and the text. vision: the field of the tower's config. text_task: "base" where the head is the whole model's own,
    "causal_lm" where it is the text model's (of an encoder-decoder: "seq2seq_lm"). text_ties: the text's own
    tie_word_embeddings ties the head too, as older configs have it. flat: the text's fields may stand in the whole
    model's config. ignored: fields that the classes do not size by. warning: what a user must know about the size of an
    image.
    """

    projector: Callable[[Parts], tuple[Block, ...]] | None = None
    between: Callable[[Parts], tuple[Stack, ...]] | None = None
    vision: str = "vision_config"
    text_task: str = "base"
    text_ties: bool = False
    flat: bool = False
    ignored: tuple[str, ...] = ()
    warning: str | None = None


def multimodal_network(fields: Fields, facts: Multimodal, find_text: Callable[[str], Reader | None]) -> Network:
    """Tower, projector, text model and the head of the class.

    Raises:
        UnsupportedModelError: the text, the tower or the class's task is not known here.
    """
    fields.ignore(*facts.ignored)
    fields.ignore(*_OUTER)
    text = fields.sub("text_config", task=facts.text_task, flat=facts.flat)
    vision = fields.sub(facts.vision, task="base")
    read_text = find_text(text.data.model_type)
    if read_text is None or "vocab_size" not in text.data.defaults:
        raise UnsupportedModelError(f"text_config of model_type {show(text.data.model_type)} is not supported")
    if vision.data.model_type not in VISION:
        raise UnsupportedModelError(f"{facts.vision} of model_type {show(vision.data.model_type)} is not supported")
    if facts.text_task == "causal_lm" and "seq2seq_lm" in text.data.classes.values():
        text.task = "seq2seq_lm"
    text.ignore(*_INNER)
    vision.ignore(*_INNER, "vocab_size")
    language = read_text(text)
    parts = Parts(fields=fields, text=text, vision=vision, facts=VISION[vision.data.model_type])
    projector = facts.projector(parts) if facts.projector is not None else ()
    tower = vision_stack(vision, parts.facts, after=projector, optional=True, prefix="vision_tower.")
    between = facts.between(parts) if facts.between is not None else ()
    main = replace(language.main, after=language.main.after + _task_head(parts, facts), prefix="language_model.")
    if facts.warning is not None:
        fields.warnings.append(facts.warning)
    return replace(language, stacks=(tower, *between, *language.stacks[:-1], main), model_type=fields.data.model_type)


def projection(
    name: str,
    sizes: tuple[int, ...],
    *,
    positions: int | None,
    bias: bool = True,
    norm: str = "none",
    norm_size: int | None = None,
    halved: bool = False,
    extra: tuple[Weight, ...] = (),
) -> Block:
    """A norm over the first size, where there is one, and a matrix from each size to the next.

    halved: the inner rows are two halves, of which one is the gate of the other.
    """
    weights = norm_weights(f"{name}.norm", norm_size or sizes[0], norm)
    for index, (in_size, out_size) in enumerate(itertools.pairwise(sizes)):
        inner = in_size // 2 if halved and index else in_size
        weights += linear(f"{name}.linear_{index + 1}", inner, out_size, bias=bias)
    return Block(name="", part="projector", weights=weights + extra, positions=positions, live_width=sum(sizes[:2]))


def merged_patches(patches: int, factor: int) -> int:
    """Tokens of an image when squares of `factor` by `factor` patches become one."""
    return max(1, patches // factor**2)


def _task_head(parts: Parts, facts: Multimodal) -> tuple[Block, ...]:
    fields = parts.fields
    if fields.task == "base" or (facts.text_task != "base" and fields.task == "image_text_to_text"):
        return ()
    if fields.task == "image_text_to_text":
        tied = fields.flag("tie_word_embeddings") or (facts.text_ties and parts.text.flag("tie_word_embeddings"))
        return (head("lm_head", parts.text_size, parts.text.size("vocab_size"), tied=tied),)
    if fields.task == "sequence_classification":
        return (head("score", parts.text_size, num_labels(fields)),)
    if fields.task == "token_classification":
        return (head("score", parts.text_size, num_labels(fields), bias=True),)
    raise UnsupportedModelError(f"classes for {fields.task} are not supported for {fields.data.model_type}")


def num_feature_layers(fields: Fields) -> int:
    """How many of the tower's layers are laid side by side: `vision_feature_layer` names one, or a list.

    Raises:
        ConfigError: it is neither.
    """
    value = fields.raw("vision_feature_layer")
    if isinstance(value, int) and not isinstance(value, bool):
        return 1
    if isinstance(value, list) and 1 <= len(value) <= 64 and all(type(layer) is int for layer in value):
        return len(value)
    raise ConfigError(
        f"vision_feature_layer must be one or more layers, not {show(value)}", field="vision_feature_layer"
    )
