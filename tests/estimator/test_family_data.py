"""The data about Hugging Face families: against the installed configuration and model classes of transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import MISSING, FrozenInstanceError, fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from estimator.readers.family_data import FamilyData, data_version, family_data, known_model_types, shared_defaults

SAMPLE = (
    *("llama", "gpt2", "bert", "t5", "bart", "whisper", "gemma3", "gemma3_text", "clip", "clip_text_model"),
    *("siglip_vision_model", "qwen3_moe", "mamba2", "deepseek_v3", "wav2vec2", "dinov2", "vit", "llava", "falcon"),
)


def _family(model_type: str) -> FamilyData:
    data = family_data(model_type)
    assert data is not None
    return data


def _config_classes() -> dict[str, Any]:
    """Every known model type with transformers' class; nested ones without a model type are found by class name."""
    from transformers import CONFIG_MAPPING

    classes: dict[str, Any] = {name: CONFIG_MAPPING[name] for name in CONFIG_MAPPING}
    waiting = list(classes.values())
    for config_class in waiting:
        for spec in config_class.sub_configs_defaults.values():
            nested = spec.config_class
            for name in {nested.__name__, getattr(nested, "model_type", "")} - {"", "AutoConfig"} - classes.keys():
                classes[name] = nested
                waiting.append(nested)
    return classes


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _declared(config_class: Any) -> dict[str, Any]:
    return {
        field.name: _plain(field.default if field.default is not MISSING else field.default_factory())
        for field in fields(config_class)
    }


def test_version_is_the_installed_one() -> None:
    """The data was taken from the transformers that the tests run against."""
    import transformers

    assert data_version() == transformers.__version__


def test_defaults_are_those_of_every_configuration_class() -> None:
    """Each family's record and the shared defaults give exactly the fields and values that transformers declares."""
    classes = _config_classes()
    moved = {}
    for model_type in known_model_types():
        ours = {**shared_defaults(), **_family(model_type).defaults}
        theirs = _declared(classes[model_type])
        if ours != theirs:
            moved[model_type] = {k for k in ours.keys() | theirs.keys() if ours.get(k, ...) != theirs.get(k, ...)}
    assert moved == {}


def test_other_names_and_nested_families_are_those_of_every_configuration_class() -> None:
    """attribute_map and the fields of nested configs, with what they start from, are transformers' own."""
    classes, starts = _config_classes(), _nested_starts()
    for model_type in known_model_types():
        data, config_class = _family(model_type), classes[model_type]
        assert dict(data.attribute_map) == config_class.attribute_map, model_type
        assert data.sub_configs.keys() == config_class.sub_configs_defaults.keys(), model_type
        assert {name: dict(start) for name, start in data.sub_config_defaults.items()} == starts[model_type], model_type


def _nested_starts() -> dict[str, dict[str, Any]]:
    """What nested configs start from, by family; in a process of its own, because instances write into it."""
    code = """
import json
from renew_families import config_classes, sub_config_defaults
from estimator.readers.family_data import known_model_types
classes = config_classes()
print(json.dumps({name: sub_config_defaults(classes[name]) for name in known_model_types()}))
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "tools")))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return {name: row.get("sub_config_defaults", {}) for name, row in found.items()}


def test_every_nested_family_is_known() -> None:
    """A nested config's model type has a record of its own, except two that transformers cannot resolve either."""
    from transformers import CONFIG_MAPPING

    for model_type in known_model_types():
        for nested in _family(model_type).sub_configs.values():
            assert nested in known_model_types() or nested not in CONFIG_MAPPING, (model_type, nested)


@pytest.mark.parametrize("model_type", SAMPLE)
def test_classes_belong_to_the_family(model_type: str) -> None:
    """Every class exists in transformers, takes the family's configuration, and its task word says what it is for."""
    import transformers
    from transformers.models.auto import modeling_auto

    words = {
        "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "image_text_to_text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "speech_seq2seq": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        "image_classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    data = _family(model_type)
    assert data.default_class in data.classes
    for name, task in data.classes.items():
        assert getattr(transformers, name).config_class is transformers.CONFIG_MAPPING[model_type]
        if task in words and model_type in words[task]:
            assert name in words[task][model_type]


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("bert", "BertForMaskedLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("bart", "BartForConditionalGeneration"),
        ("whisper", "WhisperForConditionalGeneration"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("gemma3_text", "Gemma3ForCausalLM"),
        ("clip", "CLIPModel"),
        ("clip_text_model", "CLIPTextModel"),
        ("vit", "ViTModel"),
    ],
)
def test_default_class_is_the_natural_one(model_type: str, name: str) -> None:
    """A config.json without class means the language model of the family, else its bare model."""
    assert _family(model_type).default_class == name


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gemma3_text", "arcee", "cohere2"])
def test_derived_fields_move_with_the_sizes(model_type: str) -> None:
    """What is called derived has another value in transformers' class when only sizes are changed."""
    from transformers import CONFIG_MAPPING

    data = _family(model_type)
    plain = CONFIG_MAPPING[model_type]()
    sizes = {"hidden_size": 2 * plain.hidden_size, "num_hidden_layers": 2 * plain.num_hidden_layers}
    others = [CONFIG_MAPPING[model_type](**{name: value}) for name, value in sizes.items()]
    others.append(CONFIG_MAPPING[model_type](num_attention_heads=2 * plain.num_attention_heads))
    assert data.derived
    for name in data.derived:
        assert any(getattr(other, name) != getattr(plain, name) for other in others), name


def test_derived_fields_hold_those_that_the_class_overwrites() -> None:
    """A declared size that transformers replaces is derived, so that nobody takes the declared one."""
    for model_type, name in [
        ("mamba", "time_step_rank"),
        ("qwen3", "sliding_window"),
        ("hrm_text", "num_hidden_layers"),
    ]:
        assert name in _family(model_type).derived


OTHER_VALUES: dict[type, tuple[Any, ...]] = {
    bool: (True, False),
    int: (3, 11),
    float: (0.5, 0.125),
    str: ("relu", "silu"),
}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "qwen3_moe", "t5", "vit"])
def test_sizeless_fields_change_no_shape(model_type: str) -> None:
    """With any of them changed, the family's model on the meta device has the parameters it had."""
    import torch
    import transformers
    from transformers import CONFIG_MAPPING

    data = _family(model_type)
    assert data.default_class is not None
    few = {name: 2 for name in ("num_hidden_layers", "n_layer", "num_layers") if name in data.defaults}

    def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
        with torch.device("meta"):
            model = getattr(transformers, str(data.default_class))(CONFIG_MAPPING[model_type](**few, **changes))
        return {name: tuple(value.shape) for name, value in model.named_parameters()}

    plain = shapes()
    tried = 0
    for name in data.sizeless:
        for value in OTHER_VALUES.get(type(data.defaults[name]), ()):
            assert shapes(**{name: value}) == plain, (name, value)
            tried += 1
    assert tried >= 5


def test_no_size_is_sizeless() -> None:
    """No family calls a field sizeless that sets sizes, layers, heads, experts, attention windows or sharing."""
    words = ("size", "layers", "heads", "experts", "head_dim", "layer_types", "window", "rank", "tie_", "vocab", "_dim")
    for model_type in known_model_types():
        data = _family(model_type)
        assert data.sizeless <= data.defaults.keys()
        assert not [name for name in data.sizeless for word in words if word in name], model_type


def test_most_families_have_sizeless_fields() -> None:
    """Every language model family at least has the numbers of its training and sampling called sizeless."""
    for model_type in known_model_types():
        data = _family(model_type)
        if "initializer_range" in data.defaults and model_type in SAMPLE:
            assert "initializer_range" in data.sizeless


def test_unknown_model_type_is_none() -> None:
    """Names that are no model type find nothing, whatever characters they hold."""
    for name in ("", "families", "about", "no_such_family", 'llama"', "llama\n", "LLAMA"):
        assert family_data(name) is None


def test_file_is_one_line_per_family() -> None:
    """The file is JSON as a whole too, in order, and holds exactly the families that can be asked for."""
    import json

    text = resources.files("estimator.readers").joinpath("families.json").read_text(encoding="utf-8")
    families = list(json.loads(text)["families"])
    assert families == sorted(families) == list(known_model_types())
    assert text.count("\n") == len(families) + 3


def test_record_cannot_be_changed() -> None:
    """Records are shared between callers, so nothing in them can be set."""
    data = _family("llama")
    with pytest.raises(FrozenInstanceError):
        data.model_type = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        data.defaults["hidden_size"] = 1  # type: ignore[index]


def test_reading_imports_no_heavy_library() -> None:
    """A family is read without torch and transformers."""
    code = (
        "import sys; from estimator.readers.family_data import family_data; assert family_data('llama');"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
