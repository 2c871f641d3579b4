"""A Hugging Face config.json as a network, without importing torch or transformers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from estimator.config import show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Block, Network
from estimator.readers.family_data import FamilyData, family_data, model_types_of_class
from estimator.readers.fields import Fields

__all__ = ["find_reader", "network_families", "read_network"]

# Published under a model type of their own, with the fields and classes of another.
_RENAMED: Mapping[str, str] = {"kimi_k2": "deepseek_v3"}

_ACTIVATION_FIELDS = (
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "text_config.hidden_act",
    "text_config.hidden_activation",
)

_MAX_BLOCKS = 200_000  # of a model with as many layers as can be, and two stacks
Reader = Callable[[Fields], Network]
# Only heads over the vocabulary share the token table.
_TIED_TASKS = ("causal_lm", "masked_lm", "seq2seq_lm", "image_text_to_text", "pretraining", "speech_seq2seq")


# Modules with READERS, the ones that are asked for most first: each is loaded only if none before it knows the family.
_MODULES = (
    "decoder_families",
    "encoder_families",
    "seq2seq_families",
    "seq2seq_composites",
    "hybrid_families",
    "vision_families",
    "dual_encoders",
    "audio",
    "multimodal_families",
    "audio_language",
    "encoder_kin",
    "odd_decoders",
    "vision_kin",
    "multimodal_kin",
    "gemma4_models",
    "looping_decoders",
    "pyramids",
    "seeing_pairs",
    "t5gemma2",
)


def find_reader(model_type: str) -> Reader | None:
    """The function that lays out a model type, or None."""
    for module in _MODULES:
        readers = _readers(module)
        if model_type in readers:
            return readers[model_type]
    return None


@functools.cache
def network_families() -> tuple[str, ...]:
    """Every model type that can be read, sorted; loads all of their readers."""
    return tuple(sorted({model_type for module in _MODULES for model_type in _readers(module)}))


def _readers(module: str) -> Mapping[str, Reader]:
    readers: Mapping[str, Reader] = importlib.import_module(f"estimator.readers.families.{module}").READERS
    return readers


def read_network(values: Mapping[str, Any]) -> tuple[Network, str, tuple[str, ...]]:
    """The network, the class that config.json names (or means), and warnings.

    Raises:
        UnsupportedModelError: names the model type or class, and what is supported.
        ConfigError: names the field that is unknown, wrong, or could change a size in a way that is not known here.
    """
    model_type = values.get("model_type") or _model_type_of_class(values)
    name = _RENAMED.get(model_type, model_type) if isinstance(model_type, str) else ""
    data, reader = family_data(name), find_reader(name)
    if data is None or reader is None:
        raise UnsupportedModelError(f"model_type {show(model_type)} is not supported")
    hf_class, warnings = _choose_class(data, values)
    if name != values.get("model_type"):
        warnings.insert(0, f"read as model_type {name}, of {hf_class}")
    fields = Fields(values, data, task=data.classes[hf_class])
    try:
        network = reader(fields)
        if fields.task not in _TIED_TASKS:
            fields.ignore("tie_word_embeddings")
        fields.check_all_read()
        _check_layers(network)
    except ConfigError as error:  # readers speak of the fields as most families call them
        field = None if error.field is None else fields.in_given_names(error.field)
        raise ConfigError(fields.in_given_names(str(error)), field=field) from error
    network = replace(network, hidden_act=_hidden_act(fields))
    return network, hf_class, (*warnings, *fields.warnings)


def _check_layers(network: Network) -> None:
    """Refuses heads without width, sizes below 0, and what would take minutes to count: many blocks in many layers."""
    for stack in network.stacks:
        _check_sizes([*stack.before, *stack.after])
    layers = [layer for stack in network.stacks for layer in stack.layers]
    for layer in {id(layer): layer for layer in layers}.values():
        kinds = (block.attention for block in layer.blocks if block.attention is not None)
        if any(attention.key_head_dim < 1 or attention.value_head_dim < 1 for attention in kinds):
            raise ConfigError("num_attention_heads leaves a head no width of hidden_size", field="num_attention_heads")
        _check_sizes(layer.blocks)
    blocks = sum(len(layer.blocks) for layer in layers)
    if blocks > _MAX_BLOCKS:
        raise ConfigError(f"the layers have {blocks:,} blocks together; at most {_MAX_BLOCKS:,} can be sized")


def _check_sizes(blocks: Iterable[Block]) -> None:
    """A size that a family computes from several fields can come out negative when one of them is."""
    for block in blocks:
        for weight in block.weights:
            if min(weight.shape, default=0) < 0:
                name = f"{block.name}.{weight.name}".strip(".")
                raise ConfigError(f"{name} would have the shape {list(weight.shape)}: a field of its size is negative")


def _hidden_act(fields: Fields) -> str:
    """The activation function's name, whatever the family calls the field; empty where none says it."""
    for name in _ACTIVATION_FIELDS:
        value = fields.raw(name)
        if isinstance(value, str):
            return value
    projection = fields.raw("feed_forward_proj")  # t5: "relu" or "gated-gelu", which is written as gelu_new
    if not isinstance(projection, str):
        return ""
    return "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")


def _model_type_of_class(values: Mapping[str, Any]) -> str:
    """The model type that the class in architectures belongs to, for a config.json that names none."""
    names = values.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UnsupportedModelError("config.json names neither model_type nor class; add one, such as llama")
    known = [name for name in model_types_of_class(names[0]) if find_reader(name) is not None]
    of_that_name = [name for name in known if names[0].lower().startswith(name.replace("_", "").replace("-", ""))]
    found = known if len(known) == 1 else of_that_name
    if len(found) != 1:
        raise UnsupportedModelError(f"config.json names no model_type, and class {show(names[0])} does not say which")
    return found[0]


def _same_head(data: FamilyData, name: str) -> str | None:
    """The family's one class with the head that the name ends with, such as ForCausalLM."""
    head = name[name.rfind("For") :] if "For" in name else ""
    found = [known for known in data.classes if head and known.endswith(head)]
    return found[0] if len(found) == 1 else None


def _choose_class(data: FamilyData, values: Mapping[str, Any]) -> tuple[str, list[str]]:
    names = values.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > 1:
        raise ConfigError("architectures must be a list with one class name", field="architectures")
    if not names:
        if data.default_class is None:
            raise UnsupportedModelError(f"model_type {data.model_type} has no class of its own")
        return data.default_class, [f"config.json names no class in architectures; read as {data.default_class}"]
    if names[0] not in data.classes:
        same = [known for known in data.classes if known.lower() == names[0].lower()]
        if len(same) == 1:  # as it was spelled before transformers had it
            return same[0], [f"class {show(names[0])} read as {same[0]}"]
        if values.get("auto_map") and (known := _same_head(data, names[0])):
            return known, [f"class {show(names[0])} is the publisher's own; read as {known}"]
        raise UnsupportedModelError(
            f"class {show(names[0])} is not supported for model_type {data.model_type}; "
            f"supported are {', '.join(data.classes)}"
        )
    return names[0], []
