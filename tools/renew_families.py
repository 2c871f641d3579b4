"""Writes estimator/readers/families.json from the installed transformers: run it by hand after an upgrade.

    python tools/renew_families.py

Needs transformers and torch. Every family takes one line of the file, so that a reader parses only what it needs and a
difference between two versions of transformers is a difference between lines. The probes of `sizeless` are in
tools/probe_families.py.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

DATA = Path(__file__).parent.parent / "estimator" / "readers" / "families.json"

# Task words by the mapping of modeling_auto that lists the class; a class in several takes the first.
TASKS = {
    "image_text_to_text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "speech_seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "seq2seq_lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question_answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "multiple_choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "next_sentence_prediction": "MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES",
    "image_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "audio_classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "base": "MODEL_MAPPING_NAMES",
    "text_encoder": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "multimodal_lm": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "pretraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
}
# A family is in the file if one of these tasks' mappings lists it, if it is one of ALSO, or if such a family nests it.
SCOPE = {*TASKS, "ctc", "zero_shot_image_classification", "image"} - {"base", "pretraining"}
ALSO = ("bridgetower", "clap", "csm", "dpr", "embedding_gemma2", "gpt-sw3", "groupvit", "pe_audio", "vilt", "xclip")
_OTHER_MAPPING = re.compile(r"MODEL_FOR_([A-Z0-9_]+?)(?:_MAPPING)?_NAMES")
# A config.json without class means the first of these that the family has.
DEFAULT_TASKS = ("image_text_to_text", "speech_seq2seq", "seq2seq_lm", "masked_lm", "causal_lm", "base", "text_encoder")
_ABSTRACT = "PreTrainedModel"
_SUFFIXES = {
    "DoubleHeadsModel": "double_heads",
    "ForCausalLM": "causal_lm",
    "LMHeadModel": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "pretraining",
    "ForConditionalGeneration": "conditional_generation",
    "EncoderModel": "text_encoder",
    "Backbone": "backbone",
    "Model": "base",
    "ModelWithProjection": "projection",
}


def main() -> None:
    """Writes the file, and what was odd to stderr."""
    configs = config_classes()
    started = {model_type: sub_config_defaults(config_class) for model_type, config_class in configs.items()}
    classes = model_classes(configs)
    sizeless = previous_sizeless()
    rows = {}
    for model_type in sorted(in_scope(configs)):
        config_class = configs[model_type]
        row = family_row(config_class, configs, classes.get(model_type, {})) | started[model_type]
        if sizeless.get(model_type):
            row["sizeless"] = sizeless[model_type]
        rows[model_type] = row
    write(rows)


def write(rows: dict[str, dict[str, Any]]) -> None:
    """The file: a head of two lines, then one line per family. Infinity is 1e999, which JSON reads as infinite."""
    head = {"shared_defaults": shared_defaults(), "transformers_version": transformers.__version__}
    lines = [f'"{model_type}":{_compact(row)}' for model_type, row in sorted(rows.items())]
    text = f'{{"about":{_compact(head)},\n"families":{{\n' + ",\n".join(lines) + "\n}}\n"
    DATA.write_text(text, encoding="utf-8")
    _say(f"{len(rows)} families, {len(text.encode())} bytes in {DATA.name}")


def previous_sizeless() -> dict[str, str]:
    """What tools/probe_families.py found before, by model type."""
    if not DATA.exists():
        return {}
    families = json.loads(DATA.read_text(encoding="utf-8"))["families"]
    return {model_type: row.get("sizeless", "") for model_type, row in families.items()}


def config_classes() -> dict[str, type[PreTrainedConfig]]:
    """Every configuration class by model type; nested ones that have none of their own by class name."""
    found = {model_type: CONFIG_MAPPING[model_type] for model_type in CONFIG_MAPPING_NAMES}
    waiting = list(found.values())
    while waiting:
        for spec in waiting.pop().sub_configs_defaults.values():
            nested = spec.config_class
            if not issubclass(nested, PreTrainedConfig) or _key(nested, found) in found:
                continue
            found[_key(nested, found)] = nested
            waiting.append(nested)
    return found


def in_scope(configs: dict[str, type[PreTrainedConfig]]) -> set[str]:
    """The model types of the file: those of SCOPE and ALSO, and all that they nest."""
    listed = {model_type for task, mapping in _task_mappings() if task in SCOPE for model_type in mapping}
    found: set[str] = set()
    waiting = [model_type for model_type in listed | set(ALSO) if model_type in configs]
    while waiting:
        model_type = waiting.pop()
        if model_type not in found and model_type in configs:
            found.add(model_type)
            waiting += nested_types(configs[model_type], configs).values()
    return found


def _key(config_class: type[PreTrainedConfig], found: dict[str, type[PreTrainedConfig]]) -> str:
    own = str(config_class.model_type)
    return own if own and found.get(own, config_class) is config_class else config_class.__name__


def nested_types(config_class: type[PreTrainedConfig], found: dict[str, type[PreTrainedConfig]]) -> dict[str, str]:
    """Field -> key of the family that the field holds when config.json leaves its model type out."""
    types = {}
    for name, spec in config_class.sub_configs_defaults.items():
        if issubclass(spec.config_class, PreTrainedConfig):
            types[name] = _key(spec.config_class, found)
        else:
            hyphened = spec.model_type.replace("_", "-")
            types[name] = hyphened if spec.model_type not in found and hyphened in found else spec.model_type
    return types


def declared_defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Declared field defaults, before `__post_init__`, without those that every configuration shares."""
    shared = shared_defaults()
    declared = {field.name: _default(field) for field in fields(config_class)}
    return {name: value for name, value in declared.items() if name not in shared or value != shared[name]}


def shared_defaults() -> dict[str, Any]:
    """The declared defaults of the class that all configurations inherit from."""
    return {field.name: _default(field) for field in fields(PreTrainedConfig)}


def _default(field: Any) -> Any:
    value = field.default if field.default is not MISSING else field.default_factory()
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def family_row(
    config_class: type[PreTrainedConfig], found: dict[str, type[PreTrainedConfig]], classes: dict[str, str]
) -> dict[str, Any]:
    """One family as it stands in the file; empty parts are left out, and fields whose default is null are `unset`."""
    defaults = declared_defaults(config_class)
    row = {
        "attribute_map": dict(config_class.attribute_map),
        "classes": by_task(classes),
        "default_class": default_class(classes),
        "defaults": {name: value for name, value in defaults.items() if value is not None},
        "derived": " ".join(derived_fields(config_class)),
        "sub_configs": nested_types(config_class, found),
        "unset": " ".join(sorted(name for name, value in defaults.items() if value is None)),
    }
    return {name: value for name, value in row.items() if value}


def sub_config_defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """What nested configs start from, if anything; to be read before any instance is made, which may write into it."""
    specs = config_class.sub_configs_defaults.items()
    started = {name: _plain(spec.init_kwargs) for name, spec in specs if spec.init_kwargs}
    return {"sub_config_defaults": started} if started else {}


def by_task(classes: dict[str, str]) -> dict[str, str]:
    """Task word -> names of classes, sorted."""
    return {task: " ".join(sorted(name for name in classes if classes[name] == task)) for task in set(classes.values())}


def default_class(classes: dict[str, str]) -> str | None:
    """The class that a config.json without class means: the first listed one of the first task of DEFAULT_TASKS."""
    for task in DEFAULT_TASKS:
        for name, its_task in classes.items():
            if its_task == task:
                return name
    return next(iter(classes), None)


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")


def derived_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """Fields that `__post_init__` computes: it replaces their declared value, or they move with a size."""
    try:
        plain = vars(config_class())
    except Exception as error:
        _say(f"{config_class.__name__}: no default instance: {_brief(error)}")
        return []
    declared = declared_defaults(config_class)
    moved = {name for name, value in declared.items() if value is not None and _plain(plain.get(name, value)) != value}
    for size in _SIZES:
        value = plain.get(config_class.attribute_map.get(size, size))
        if isinstance(value, int):
            moved |= _moved(config_class, plain, size, value)
    return sorted(moved & {field.name for field in fields(config_class)} - set(config_class.sub_configs_defaults))


def _moved(config_class: type[PreTrainedConfig], plain: dict[str, Any], size: str, value: int) -> set[str]:
    name = config_class.attribute_map.get(size, size)
    for changed in (value * 2, value + value // 2, value // 2):
        with contextlib.suppress(Exception):  # a size that the class refuses: the next one may do
            other = vars(config_class(**{size: changed}))
            return {key for key in plain if key != name and repr(other.get(key)) != repr(plain[key])}
    return set()


def model_classes(configs: dict[str, type[PreTrainedConfig]]) -> dict[str, dict[str, str]]:
    """Model type -> class name -> task word; classes of the auto mappings first, in the order of their tasks."""
    found: dict[str, dict[str, str]] = {model_type: {} for model_type in configs}
    for task, mapping in _task_mappings():
        for model_type, names in mapping.items():
            for name in names if isinstance(names, list | tuple) else (names,):
                if model_type in found and name:
                    found[model_type].setdefault(name, task)
    types: dict[type[PreTrainedConfig], list[str]] = {}
    for model_type, config_class in configs.items():
        types.setdefault(config_class, []).append(model_type)
    for model_class in _exported_models():
        for model_type in types.get(model_class.config_class, ()):
            found[model_type].setdefault(model_class.__name__, task_by_name(model_class.__name__))
    return found


def _task_mappings() -> Iterator[tuple[str, dict[str, Any]]]:
    for task, name in TASKS.items():
        yield task, getattr(modeling_auto, name)
    for name, mapping in vars(modeling_auto).items():
        match = _OTHER_MAPPING.fullmatch(name)
        if match and name not in TASKS.values():
            yield match[1].lower(), mapping


def _exported_models() -> Iterator[type[PreTrainedModel]]:
    folder = Path(inspect.getfile(transformers)).parent / "models"
    for path in sorted(folder.glob("*/modeling_*.py")):
        name = f"transformers.models.{path.parent.name}.{path.stem}"
        try:
            module = importlib.import_module(name)
        except Exception as error:
            _say(f"{name}: not importable: {_brief(error)}")
            continue
        for exported in getattr(module, "__all__", ()):
            model_class = getattr(module, exported)
            if (
                inspect.isclass(model_class)
                and issubclass(model_class, PreTrainedModel)
                and not exported.endswith(_ABSTRACT)
            ):
                yield model_class


def task_by_name(class_name: str) -> str:
    """The task word of a class that no auto mapping lists."""
    for suffix, task in _SUFFIXES.items():
        if class_name.endswith(suffix):
            return task
    head = class_name.rpartition("For")[2] if "For" in class_name else ""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", head).lower() or "other"


def _compact(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return re.sub(r"(?<=[:,\[])Infinity\b", "1e999", text)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
