"""The fields of one config.json as its family declares them: typed access that knows what was read.

A reader asks for each field that decides a size. What it did not ask for must be known to change none, or have the
value that the family declares; otherwise `check_all_read` refuses the config by the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from estimator.config import MAX_LAYERS, show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.readers.buildable_families import COMMON_REQUIRED
from estimator.readers.family_data import FamilyData, family_data, shared_defaults
from estimator.readers.neutral import SYNONYMS, is_neutral

__all__ = ["Fields"]

_MAX_SIZE = 2**31 - 1


class Fields:
    """Typed access to `values`, with the family's declared defaults for what is absent."""

    def __init__(self, values: Mapping[str, Any], data: FamilyData, *, where: str = "", task: str = "") -> None:
        self.data = data
        self.task = task
        self.warnings: list[str] = []
        self._where = where
        self._subs: dict[str, Fields] = {}
        self._read: set[str] = set()
        self._values: dict[str, Any] = {}
        self._given_names: dict[str, str] = {}
        self._defaults = {data.attribute_map.get(name, name): value for name, value in data.defaults.items()}
        for name, value in values.items():
            own = data.attribute_map.get(name, name)
            if own in self._values and self._values[own] != value:
                raise ConfigError(f"{where}{show(name)} contradicts the other name of the same field", field=name)
            self._values[own] = value
            self._given_names[own] = name

    def raw(self, name: str) -> Any:
        """The value of a field, or its declared default, or None; whatever its type. `a.b` is b in the object a."""
        outer, _, inner = name.rpartition(".")
        if outer:
            value = self.raw(outer)
            return value.get(inner) if isinstance(value, Mapping) else None
        own = self.data.attribute_map.get(name, name)
        self._read.add(own)
        if own in self._values:
            return self._values[own]
        return self._defaults.get(own, shared_defaults().get(own))

    def size(self, name: str) -> int:
        """A positive integer."""
        value = self.raw(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
            raise self._wrong(name, "must be a positive integer below 2^31", value)
        return value

    def count(self, name: str) -> int:
        """An integer of 0 or more; null counts as 0."""
        value = self.raw(name)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE:
            raise self._wrong(name, "must be an integer from 0 to 2^31 - 1", value)
        return value

    def layers(self, name: str = "num_hidden_layers") -> int:
        """A number of layers: a positive integer that is not absurd."""
        value = self.size(name)
        if value > MAX_LAYERS:
            raise self._wrong(name, f"must be at most {MAX_LAYERS}", value)
        return value

    def optional_size(self, name: str) -> int | None:
        """A positive integer, or None for null."""
        return None if self.raw(name) is None else self.size(name)

    def size_or_null_default(self, name: str) -> int | None:
        """A positive integer, or None for null where the class's own default is null: others cannot be built so."""
        own = self.data.attribute_map.get(name, name)
        return self.optional_size(name) if self._defaults.get(own) is None else self.size(name)

    def flag(self, name: str) -> bool:
        """True or false; null counts as false."""
        value = self.raw(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._wrong(name, "must be true or false", value)
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.raw(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
            raise self._wrong(name, "must be a number", value)
        return float(value)

    def choice(self, name: str, allowed: tuple[Any, ...]) -> Any:
        """One of the values that the reader can size."""
        value = self.raw(name)
        if not any(type(value) is type(other) and value == other for other in allowed):
            raise self._wrong(name, f"must be one of {', '.join(map(show, allowed))}", value)
        return value

    def sizes(self, name: str, length: int | None = None) -> tuple[int, ...]:
        """A list of integers of 0 or more, of that length if one is given."""
        value = self.raw(name)
        right = isinstance(value, list) and len(value) <= 4 * MAX_LAYERS and (length is None or len(value) == length)
        if not right or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= _MAX_SIZE for v in value):
            raise self._wrong(name, f"must be a list of {length or ''} integers".replace("  ", " "), value)
        return tuple(value)

    def words(self, name: str, length: int, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
        """A list with one of the allowed words per layer, or None for null."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            raise self._wrong(name, f"must be a list of {length} entries, one per layer", value)
        for entry in value:
            if entry not in allowed:
                raise self._wrong(name, f"must hold {', '.join(allowed)}", entry)
        return tuple(value)

    def rename(self, name: str, own: str) -> None:
        """Takes the value under another name, as the class does, for that of the field `own`."""
        if name in self._values:
            self._values[own] = self._values.pop(name)
            self._given_names[own] = name

    def set(self, name: str, value: Any) -> None:
        """Takes another value for the field, as the class of a whole model does for one of its parts."""
        self._values[self.data.attribute_map.get(name, name)] = value

    def ignore(self, *names: str) -> None:
        """Marks fields as seen that the family's classes do not read."""
        self._read.update(self.data.attribute_map.get(name, name) for name in names)

    def given(self, name: str) -> bool:
        """Whether the config itself holds the field, and not as null."""
        return self._values.get(self.data.attribute_map.get(name, name)) is not None

    def sub(
        self, name: str, *, task: str = "", family: str | None = None, flat: bool = False, merged: bool = False
    ) -> Fields:
        """The nested config of that name, as its own family declares it.

        flat: where it is left out, its fields may stand in this config itself, as older configs have them.
        merged: what it leaves out itself comes from what the class starts it with.

        Raises:
            ConfigError: it is no object. UnsupportedModelError: its model type is not known.
        """
        if name in self._subs:
            return self._subs[name]
        value = self.raw(name)
        if value is None and flat:
            value = self._fields_of(self.data.sub_configs[name])
        if value is None:
            value = self.data.sub_config_defaults.get(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, "must be an object", value)
        if merged:
            value = {**self.data.sub_config_defaults.get(name, {}), **value}
        own = self.data.sub_configs.get(name)
        model_type = value.get("model_type") or family or own
        if model_type == self.data.model_type and own is not None:
            model_type = own  # as older configs have it: no family stands within itself
        data = family_data(model_type) if isinstance(model_type, str) else None
        if data is None:
            raise UnsupportedModelError(f"{self._where}{name}: model_type {show(model_type)} is not supported")
        fields = Fields(value, data, where=f"{self._where}{name}.", task=task)
        self._subs[name] = fields
        return fields

    def own_sub(self, name: str, *, task: str = "") -> Fields:
        """The nested config of that name where the reader knows no other family in its place than the declared one.

        Raises:
            UnsupportedModelError: it is of another model type.
        """
        fields = self.sub(name, task=task)
        if fields.data.model_type != self.data.sub_configs[name]:
            raise UnsupportedModelError(
                f"{self._where}{name} of model_type {fields.data.model_type} is not supported for "
                f"model_type {self.data.model_type}"
            )
        return fields

    def _fields_of(self, model_type: str) -> dict[str, Any]:
        """What this config holds of another family's fields, none of which it declares itself."""
        data = family_data(model_type)
        assert data is not None, model_type
        found = {name: value for name, value in self._values.items() if name in data.defaults}
        found = {name: value for name, value in found.items() if name not in self._defaults}
        self._read.update(found)
        return found

    def check_all_read(self) -> None:
        """Refuses what was given, was not asked for, and could change a size.

        Raises:
            ConfigError: names the field.
        """
        for name, value in self._values.items():
            if not self._is_settled(name, value):
                known, given = name in self._defaults, self._given_names.get(name, name)
                what = f"{show(value)} is not supported" if known else "is not known"
                why = f"for model_type {self.data.model_type} and could change its size"
                raise ConfigError(f"{self._where}field {show(given)} {what} {why}", field=given)
        for fields in self._subs.values():
            fields.check_all_read()

    def _is_settled(self, name: str, value: Any) -> bool:
        if name in self._read or name in self.data.sizeless or is_neutral(name):
            return True
        if name in self._defaults:
            return value is None or value == self._defaults[name]
        if name in COMMON_REQUIRED:
            return any(type(value) is type(other) and value == other for other in COMMON_REQUIRED[name])
        if self._repeats(name, value):
            return True
        return value is None or value in (0, "", [], {})  # a feature that is switched off

    def _repeats(self, name: str, value: Any) -> bool:
        """Whether the field says once more, under a name of other families, what a field of this one says."""
        names = {self.data.attribute_map.get(other, other) for other in SYNONYMS.get(name, ())} & set(self._defaults)
        return bool(names) and all(
            type(value) is int and value == self._values.get(own, self._defaults[own]) for own in names
        )

    def in_given_names(self, text: str) -> str:
        """The text with each field called as the config itself calls it, such as n_embd for hidden_size."""

        def given(match: re.Match[str]) -> str:
            own = self.data.attribute_map.get(match[0], match[0])
            return self._given_names.get(own, match[0])

        return re.sub(r"(?<![.\w'])\w+\b(?![.'])", given, text)

    def _wrong(self, name: str, wanted: str, value: Any) -> ConfigError:
        shown = self._given_names.get(self.data.attribute_map.get(name, name), name)
        return ConfigError(f"{self._where}{shown} {wanted}, not {show(value)}", field=shown)
