"""The search space: finite choices for the fields of a `TransformerConfig`.

A space has fixed fields (`base`) and `choices`. A choice on `<field>_per_layer` is made for each layer separately, as
dimension `<field>_per_layer[i]`; a layer that a candidate does not have, or that uses another layer's weights, is no
dimension of that candidate. `weight_sharing` chooses which layers share weights: none, pairs (two neighbours each) or
all.

Every combination of choices is a valid network, because head counts that do not divide are repaired, never refused:
without `head_dim`, `num_attention_heads` becomes the largest count up to the choice that divides `hidden_size` (into
heads of even size where positions are rotary); then `num_key_value_heads` becomes the largest count up to the choice
that divides the layer's `num_attention_heads`. Choices that are repaired to one network are duplicates, and no search
pays for a network twice.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.config import TransformerConfig
from estimator.errors import ConfigError, InputError
from nas.errors import SpaceError
from nas.space_checks import CHOOSABLE, check_space, read_toml

if TYPE_CHECKING:
    import optuna

__all__ = ["PRESETS", "SearchSpace", "cheapest_choice", "load_space", "space_of_input"]

PRESETS = ("decoder-nano", "decoder-small", "encoder-small")
# A layer that uses another layer's weights takes these from it; its window remains its own.
_DECIDED_BY_WEIGHTS = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
# Choices that are no numbers, from fewer to more parameters.
_CHEAPER_FIRST: dict[str, tuple[Any, ...]] = {
    "weight_sharing": ("all", "pairs", "none"),
    "norm_type": ("rms_norm", "layer_norm"),
    "norm_placement": ("post", "pre"),
    "position_embedding": ("none", "rotary", "learned"),
    "tie_word_embeddings": (True, False),
}

Params = dict[str, Any]
Pick = Callable[[str, tuple[Any, ...]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Finite choices by field over fixed fields; the module's text has the rules.

    Raises:
        SpaceError: names the field that is unknown, empty or of the wrong type, and says what would be right.
    """

    name: str
    choices: Mapping[str, tuple[Any, ...]]
    base: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_space(self.name, self.choices, self.base)
        ordered = sorted(self.choices, key=lambda name: CHOOSABLE.index(name.removesuffix("_per_layer")))
        object.__setattr__(self, "choices", {name: tuple(self.choices[name]) for name in ordered})
        object.__setattr__(self, "base", dict(self.base))
        for field, values in self.choices.items():
            for value in values:
                self._try_choice(field, value)

    @classmethod
    def preset(cls, name: str) -> SearchSpace:
        """One of the spaces that come with Archfront.

        Raises:
            SpaceError: no such preset; lists those there are.
        """
        if name not in PRESETS:
            raise SpaceError(f"unknown space {name!r}; choose {', '.join(PRESETS)} or the path of a TOML file")
        return cls.from_toml(Path(__file__).parent / "spaces" / f"{name}.toml")

    @classmethod
    def from_toml(cls, path: str | Path) -> SearchSpace:
        """A space from a TOML file with the tables [base] and [choices], and a name (else the file's name).

        TOML has no null: an optional field such as sliding_window is left out by the word "none".

        Raises:
            SpaceError: the file is missing, is no TOML, or describes no valid space.
        """
        return cls.from_dict(read_toml(Path(path)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchSpace:
        """Reads what `to_dict` wrote.

        Raises:
            SpaceError: a key is unknown or missing, or the space is not valid.
        """
        if not isinstance(values, Mapping):
            raise SpaceError(f"a space is a table with name, base and choices, not {values!r}")
        for key in ("name", "base", "choices"):
            if key not in values:
                raise SpaceError(f"the space lacks {key!r}; a space has name, base and choices")
        for key in values:
            if key not in ("name", "base", "choices"):
                raise SpaceError(f"unknown key {key!r} in a space; a space has name, base and choices")
        return cls(name=values["name"], base=values["base"], choices=values["choices"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back to an equal space."""
        choices = {name: list(values) for name, values in self.choices.items()}
        return {"name": self.name, "base": dict(self.base), "choices": choices}

    @property
    def architecture(self) -> str:
        return str(self.base.get("architecture", "decoder"))

    def dimensions(self, num_hidden_layers: int, weight_sharing: str) -> dict[str, tuple[Any, ...]]:
        """Choices by dimension that a candidate with so many layers and such sharing has, beyond these two."""
        sources = _weight_sources(num_hidden_layers, weight_sharing)
        found: dict[str, tuple[Any, ...]] = {}
        for name, values in self.choices.items():
            field = name.removesuffix("_per_layer")
            if field == name:
                found[name] = values
                continue
            for index, source in enumerate(sources):
                if index == source or field not in _DECIDED_BY_WEIGHTS:
                    found[f"{name}[{index}]"] = values
        return {name: values for name, values in found.items() if name not in ("num_hidden_layers", "weight_sharing")}

    def size(self) -> int:
        """Number of distinct raw choices; networks that repair makes equal are counted each."""
        return sum(
            math.prod(len(values) for values in self.dimensions(*shape).values()) for _, shape in self._layer_shapes()
        )

    def choose(self, pick: Pick) -> Params:
        """The raw choices that `pick(dimension, choices)` makes, asked only for dimensions that the candidate has."""
        params = {
            name: pick(name, self.choices[name])
            for name in ("num_hidden_layers", "weight_sharing")
            if name in self.choices
        }
        for name, values in self.dimensions(*self._layer_shape(params)).items():
            params[name] = pick(name, values)
        return params

    def suggest(self, trial: optuna.Trial) -> Params:
        """The raw choices that Optuna proposes for a trial."""
        return self.choose(lambda name, values: trial.suggest_categorical(name, values))

    def smallest(self) -> Params:
        """The cheapest choice in every dimension: fewest layers, narrowest, shared, without extras."""
        return self.choose(cheapest_choice)

    def sample(self, num_samples: int, seed: int) -> Iterator[Params]:
        """Uniform random choices, with repetition."""
        generator = random.Random(seed)  # noqa: S311 - proposals, no secrets
        for _ in range(num_samples):
            yield self.choose(lambda _, values: generator.choice(values))

    def enumerate(self) -> Iterator[Params]:
        """Every raw choice once, in a fixed order."""
        for params, shape in self._layer_shapes():
            dimensions = self.dimensions(*shape)
            for values in itertools.product(*dimensions.values()):
                yield params | dict(zip(dimensions, values, strict=True))

    def to_config(self, params: Mapping[str, Any]) -> TransformerConfig:
        """The network that raw choices stand for, head counts repaired.

        Raises:
            SpaceError: a dimension is missing, unknown or has a value that is not among its choices.
        """
        num_layers, sharing = self._layer_shape(params)
        self._check_params(params, num_layers, sharing)
        sources = _weight_sources(num_layers, sharing)
        values = {**self.base, "num_hidden_layers": num_layers}
        for name in self.choices:
            field = name.removesuffix("_per_layer")
            if name in params and name != "weight_sharing":
                values[name] = params[name]
            elif field != name:
                owners = sources if field in _DECIDED_BY_WEIGHTS else range(num_layers)
                values[name] = tuple(params[f"{name}[{owner}]"] for owner in owners)
                values[field] = values[name][0]
        if sharing != "none":
            values["weight_source_per_layer"] = sources
        return TransformerConfig.from_dict(_repair_heads(values))

    def _try_choice(self, field: str, value: Any) -> None:
        """Builds the network with this value wherever the field is chosen, and the first choice of the others."""
        try:
            self.to_config(self.choose(lambda name, values: value if name.split("[")[0] == field else values[0]))
        except ConfigError as error:
            chosen = error.field in self.choices or f"{error.field}_per_layer" in self.choices
            where = f"choices of {field}" if chosen else "base"
            raise SpaceError(f"{where} in space {self.name}: {error}") from error

    def _layer_shape(self, params: Mapping[str, Any]) -> tuple[int, str]:
        num_layers = params.get("num_hidden_layers", self.base.get("num_hidden_layers"))
        if not isinstance(num_layers, int):
            raise SpaceError("the choice of num_hidden_layers is missing")
        return num_layers, str(params.get("weight_sharing", "none"))

    def _layer_shapes(self) -> Iterator[tuple[Params, tuple[int, str]]]:
        names = [name for name in ("num_hidden_layers", "weight_sharing") if name in self.choices]
        for values in itertools.product(*(self.choices[name] for name in names)):
            params = dict(zip(names, values, strict=True))
            yield params, self._layer_shape(params)

    def _check_params(self, params: Mapping[str, Any], num_layers: int, sharing: str) -> None:
        expected = {
            name: self.choices[name] for name in ("num_hidden_layers", "weight_sharing") if name in self.choices
        }
        expected |= self.dimensions(num_layers, sharing)
        for name, values in expected.items():
            if name not in params:
                raise SpaceError(f"the choice of {name} is missing")
            if params[name] not in values:
                raise SpaceError(f"{name} must be one of {', '.join(map(str, values))}, not {params[name]!r}")
        for name in params:
            if name not in expected:
                raise SpaceError(f"{name} is no dimension of this candidate; its dimensions: {', '.join(expected)}")


def load_space(name: str) -> SearchSpace:
    """A preset by its name, or the space that a TOML file describes.

    Raises:
        SpaceError: neither, or not a valid space; says what would be right.
    """
    is_file = name not in PRESETS and (name.endswith(".toml") or Path(name).exists())
    return SearchSpace.from_toml(name) if is_file else SearchSpace.preset(name)


def space_of_input(name: str) -> SearchSpace:
    """As `load_space`, for `estimator fit --space`, which finds it as an entry point of the group archfront.spaces.

    Raises:
        InputError: as SpaceError.
    """
    try:
        return load_space(name)
    except SpaceError as error:
        raise InputError(str(error)) from error


def cheapest_choice(name: str, values: tuple[Any, ...]) -> Any:
    """The choice with the fewest parameters or, where that does not depend on it, the first."""
    order = _CHEAPER_FIRST.get(name)
    if order is not None:
        return min(values, key=order.index)
    if any(isinstance(value, str) for value in values):
        return values[0]
    return min(values, key=lambda value: math.inf if value is None else value)


def _weight_sources(num_layers: int, sharing: str) -> tuple[int, ...]:
    """Index of the layer whose weights each layer uses."""
    group = {"none": 1, "pairs": 2, "all": num_layers}[sharing]
    return tuple(index - index % group for index in range(num_layers))


def _repair_heads(values: dict[str, Any]) -> dict[str, Any]:
    """The fields with head counts that divide, by the rule in the module's text."""
    heads = values.get("num_attention_heads")
    if heads is None or not isinstance(values.get("hidden_size"), int):
        return values  # left to TransformerConfig, which names what is missing
    if values.get("head_dim") is None:
        rotary = values.get("position_embedding", "rotary") == "rotary"
        heads = _largest_divisor(values["hidden_size"] // 2 if rotary else values["hidden_size"], heads)
    heads_per_layer = values.get("num_attention_heads_per_layer")
    repaired = {**values, "num_attention_heads": heads}
    kv = values.get("num_key_value_heads_per_layer") or values.get("num_key_value_heads")
    if kv is None:
        return repaired
    if heads_per_layer is None and isinstance(kv, int):
        return {**repaired, "num_key_value_heads": _largest_divisor(heads, kv)}
    num_layers = values["num_hidden_layers"]
    wanted = (kv,) * num_layers if isinstance(kv, int) else kv
    available = heads_per_layer or (heads,) * num_layers
    fitting = tuple(_largest_divisor(n, k) for n, k in zip(available, wanted, strict=True))
    return {**repaired, "num_key_value_heads": fitting[0], "num_key_value_heads_per_layer": fitting}


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)
