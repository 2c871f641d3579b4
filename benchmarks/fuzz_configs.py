"""Damaged config.json files of every family, and what reading, sizing and explaining them comes to.

Each starts from what a family declares, or from a published config, and gets one to five faults: a field left out,
renamed, of another type, huge, negative, or nested without end, or a nested config of another family. `fuzz_readers`
runs them by the thousand.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any

from estimator.errors import InputError
from estimator.explaining.figures import derive
from estimator.network import Network
from estimator.readers.family_data import family_data
from estimator.readers.huggingface import read_dtype
from estimator.readers.networks import network_families, read_network
from estimator.sizing import estimate
from estimator.workload import Workload

__all__ = ["config_outcome", "good_config", "hostile_configs", "mutate_config", "reading_outcome"]

_LONGEST_MESSAGE = 2000
_INTEGERS = (0, 1, 2, 3, 7, 64, 1000, 4096, 4097, 10**6, 2**31 - 1, 2**31, 2**63, 10**30, 10**400, -1, -4096, -(2**63))
_FLOATS = (0.0, -0.0, 0.5, 1.0, 2.0, 64.0, -1.5, 1e-300, 1e9, 1e308, float("nan"), float("inf"), float("-inf"))
_WORDS = ("", "a", "\0", "\n\n", "\u202e\ud800", "🦙" * 100, "x" * 100_000, "full_attention", "relu", "None", "64")


@functools.cache
def published_configs() -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """The bundled models and those of the reference data, by name."""
    found = []
    for package, folder in (("estimator", "models"), ("estimator", "reference/configs")):
        for entry in sorted(resources.files(package).joinpath(folder).iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".json"):
                found.append((entry.name, json.loads(entry.read_text(encoding="utf-8"))))
    return tuple(found)


def good_config(model_type: str, hf_class: str | None = None) -> dict[str, Any]:
    """The config.json of a family with everything it declares written out, nested configs too."""
    data = family_data(model_type)
    assert data is not None, model_type
    declared = {name: value for name, value in data.defaults.items() if value is not None}
    values: dict[str, Any] = json.loads(json.dumps(declared))
    for name, inner in data.sub_configs.items():
        if family_data(inner) is not None:
            start = data.sub_config_defaults.get(name) or good_config(inner)
            values[name] = json.loads(json.dumps(dict(start)))
    values["model_type"] = model_type
    chosen = hf_class or data.default_class
    if chosen is not None:
        values["architectures"] = [chosen]
    return values


def mutate_config(rng: random.Random) -> dict[str, Any]:
    """A config of any family with one to five faults."""
    values = _start(rng)
    for _ in range(rng.randint(1, 5)):
        place = _place(values, rng)
        rng.choice(_FAULTS)(place, rng)
    return values


def _start(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.2:
        values: dict[str, Any] = json.loads(json.dumps(rng.choice(published_configs())[1]))
        return values
    model_type = rng.choice(sorted(network_families()))
    data = family_data(model_type)
    assert data is not None, model_type
    if rng.random() < 0.2:
        return {"model_type": model_type}
    return good_config(model_type, rng.choice(list(data.classes)) if data.classes else None)


def _place(values: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The config, or one of the objects in it."""
    objects = [value for value in values.values() if isinstance(value, dict)]
    return _place(rng.choice(objects), rng) if objects and rng.random() < 0.4 else values


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """A value of any type of JSON, seldom a usual one."""
    match rng.randrange(8 if depth < 3 else 5):
        case 0:
            return rng.choice((None, True, False))
        case 1 | 2:
            return rng.choice(_INTEGERS)
        case 3:
            return rng.choice(_FLOATS)
        case 4:
            return rng.choice(_WORDS)
        case 5:
            return [any_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
        case 6:
            return [any_value(rng, 3)] * rng.choice((1, 2, 12, 24, 32, 5000))
        case _:
            return {rng.choice(_WORDS): any_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def _field(values: dict[str, Any], rng: random.Random) -> str:
    return rng.choice(list(values) or ["hidden_size"])


def _replace(values: dict[str, Any], rng: random.Random) -> None:
    values[_field(values, rng)] = any_value(rng)


def _resize(values: dict[str, Any], rng: random.Random) -> None:
    """Another number where a number stands, so that what depends on it is reached."""
    names = [name for name, value in values.items() if type(value) in (int, float)]
    if names:
        name = rng.choice(names)
        values[name] = rng.choice((*_INTEGERS, *_FLOATS, values[name] * 2, values[name] // 2, -values[name]))


def _resize_list(values: dict[str, Any], rng: random.Random) -> None:
    lists = [value for value in values.values() if isinstance(value, list) and value]
    if lists:
        chosen = rng.choice(lists)
        match rng.randrange(4):
            case 0:
                chosen[rng.randrange(len(chosen))] = any_value(rng)
            case 1:
                chosen.pop()
            case 2:
                chosen *= 2
            case _:
                chosen.append(chosen[0])


def _leave_out(values: dict[str, Any], rng: random.Random) -> None:
    values.pop(_field(values, rng), None)


def _add(values: dict[str, Any], rng: random.Random) -> None:
    """A field of another family, or an unknown one."""
    other = family_data(rng.choice(sorted(network_families())))
    assert other is not None
    values[rng.choice([*other.defaults, "num_extra_layers", *_WORDS])] = any_value(rng)


def _swap(values: dict[str, Any], rng: random.Random) -> None:
    first, second = _field(values, rng), _field(values, rng)
    if first in values and second in values:
        values[first], values[second] = values[second], values[first]


def _retype(values: dict[str, Any], rng: random.Random) -> None:
    values["model_type"] = rng.choice((*sorted(network_families()), "", "vit2", None, 3, ["llama"]))


def _nest(values: dict[str, Any], rng: random.Random) -> None:
    """A nested config of another family, or one that has none."""
    names = [name for name in values if name.endswith("_config")] or ["text_config"]
    values[rng.choice(names)] = good_config(rng.choice(sorted(network_families())))


def _deepen(values: dict[str, Any], rng: random.Random) -> None:
    inner: Any = any_value(rng)
    for _ in range(rng.choice((3, 200))):
        inner = [inner] if rng.random() < 0.5 else {"text_config": inner}
    values[_field(values, rng)] = inner


_FAULTS: tuple[Callable[[dict[str, Any], random.Random], None], ...] = (
    _replace, _replace, _resize, _resize, _resize, _resize_list, _leave_out, _add, _swap, _retype, _nest, _deepen,
)  # fmt: skip


def hostile_configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Configs that ask for as much as the limits allow, or far more, of each family."""
    for model_type in sorted(network_families()):
        yield f"{model_type} with large numbers", _enlarged(good_config(model_type), 2**30)
        yield f"{model_type} with 4,096 layers", _enlarged(good_config(model_type), None)
        yield f"{model_type} with a list of 10^6 in each field", _listed(good_config(model_type))


def _enlarged(values: dict[str, Any], number: int | None) -> dict[str, Any]:
    """Layers 4,096 times, and every other integer above 1 set to the number."""
    changed: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            changed[name] = _enlarged(value, number)
        elif type(value) is int and ("layers" in name or name in ("n_layer", "depth", "num_blocks")):
            changed[name] = 4096
        elif type(value) is int and value > 1 and number is not None:
            changed[name] = number
        elif isinstance(value, list) and ("layer" in name or "pattern" in name or "block" in name):
            continue
        else:
            changed[name] = value
    return changed


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    long = ["full_attention"] * 10**6
    return {
        name: long if isinstance(value, list) and name != "architectures" else value for name, value in values.items()
    }


def config_outcome(values: Mapping[str, Any]) -> str:
    """How sizing and explaining the config ended: sized, or the error's type.

    Anything but an InputError of one line is raised.
    """
    return _outcome(values, _size)


def reading_outcome(values: Mapping[str, Any]) -> str:
    """The same for reading alone, without sizing."""
    return _outcome(values, lambda _: None)


def _size(network: Network) -> None:
    result = estimate(network, Workload(prompt_length=64, generated_length=8), "a100-80gb")
    json.dumps([result.to_dict(), [row.value for row in derive(result)]], allow_nan=False)


def _outcome(values: Mapping[str, Any], use: Callable[[Network], None]) -> str:
    try:
        network, _, _ = read_network(values)
        read_dtype(values)
        use(network)
    except InputError as error:
        text = str(error)
        if "\n" in text or not 0 < len(text) <= _LONGEST_MESSAGE or not text.isprintable():
            raise AssertionError(f"not one readable line: {text[:300]!r}") from error
        return type(error).__name__
    return "sized"
