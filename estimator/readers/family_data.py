"""What the configuration classes of transformers declare, one record per model type, without importing transformers.

The data is families.json, written by tools/renew_families.py: one line per family, so that only the lines that are
asked for are parsed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

__all__ = ["FamilyData", "data_version", "family_data", "known_model_types", "model_types_of_class", "shared_defaults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyData:
    """One model type of transformers, as its configuration class declares it.

    defaults: every field but the shared ones -> its declared value; None where nothing is declared or where the class
        computes it from other fields (those are also in `derived`).
    attribute_map: other accepted name -> field.
    sub_configs: field that holds a nested config -> model type of the nested config where config.json names none.
    sub_config_defaults: such a field -> what the nested config starts from where config.json leaves the field out; a
        nested config that is there, even {}, starts from the defaults of its own model type instead.
    classes: class name -> task word. default_class: what a config.json without class means; None without any class.
    derived: fields that the class computes from others, whether null or a value is declared (a given one may stand).
    sizeless: fields that change no parameter's shape and nothing that the class derives, whatever their value (of
        activations: all but prelu and xielu, which have weights); any other field may change one.
    """

    model_type: str
    defaults: Mapping[str, Any]
    attribute_map: Mapping[str, str]
    sub_configs: Mapping[str, str]
    sub_config_defaults: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, str]
    default_class: str | None
    derived: frozenset[str]
    sizeless: frozenset[str]


@functools.lru_cache(maxsize=256)
def family_data(model_type: str) -> FamilyData | None:
    """The record of that model type, or None where transformers has none (or none that holds a language, vision or
    audio model). Nested configs without a model type of their own stand under the name of their class.
    """
    start = f"\n{json.dumps(model_type)}:"
    found = _lines().find(start)
    if found < 0:
        return None
    begin = found + len(start)
    return _record(model_type, json.loads(_lines()[begin : _lines().index("\n", begin)].rstrip(",")))


@functools.cache
def known_model_types() -> tuple[str, ...]:
    """All model types that `family_data` knows, sorted."""
    return tuple(re.findall(r'^"([^"]+)":', _lines(), flags=re.MULTILINE))


@functools.cache
def shared_defaults() -> Mapping[str, Any]:
    """Fields of every configuration -> their default, for all families whose record does not say another."""
    return MappingProxyType(_about()["shared_defaults"])


def model_types_of_class(name: str) -> tuple[str, ...]:
    """The model types that have a class of that name, sorted."""
    rows = re.findall(rf'^"([^"]+)":.*"classes":{{[^}}]*[" ]{re.escape(name)}[" ]', _lines(), flags=re.MULTILINE)
    return tuple(sorted(rows))


def data_version() -> str:
    """The version of transformers that the data was taken from."""
    return str(_about()["transformers_version"])


def _about() -> dict[str, Any]:
    head: dict[str, dict[str, Any]] = json.loads(_parts()[0].rstrip(",") + "}")
    return head["about"]


def _lines() -> str:
    return _parts()[1]


@functools.cache
def _parts() -> tuple[str, str]:
    """The line about the file, and the lines of the families, each after a newline."""
    text = resources.files("estimator.readers").joinpath("families.json").read_text(encoding="utf-8")
    about, _, lines = text.partition('\n"families":{')
    return about, lines


def _record(model_type: str, row: dict[str, Any]) -> FamilyData:
    unset = dict.fromkeys(_words(row, "unset"))
    classes = {name: task for task, names in row.get("classes", {}).items() for name in names.split()}
    return FamilyData(
        model_type=model_type,
        defaults=MappingProxyType(row.get("defaults", {}) | unset),
        attribute_map=MappingProxyType(row.get("attribute_map", {})),
        sub_configs=MappingProxyType(row.get("sub_configs", {})),
        sub_config_defaults=MappingProxyType(row.get("sub_config_defaults", {})),
        classes=MappingProxyType(classes),
        default_class=row.get("default_class"),
        derived=frozenset(_words(row, "derived")),
        sizeless=frozenset(_words(row, "sizeless")),
    )


def _words(row: dict[str, Any], name: str) -> list[str]:
    return str(row.get(name, "")).split()
