"""One description of a transformer: Hugging Face field names, with per-layer freedom.

A config is canonical the moment it exists: defaults are resolved, a per-layer tuple whose entries are all equal
becomes the plain field, a layer that reuses another layer's weights takes that layer's shapes. Two configs that
describe the same network are therefore equal and share one `architecture_hash()`.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from estimator.errors import ConfigError

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "HEADS", "MAX_LAYERS", "Layer", "TransformerConfig", "show"]

ARCHITECTURES = ("decoder", "encoder")
# Hugging Face's `hidden_act` names. gelu_new, gelu_pytorch_tanh and gelu_fast are one function (tanh approximation).
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
NORM_TYPES = ("layer_norm", "rms_norm")
NORM_PLACEMENTS = ("pre", "post")
POSITION_EMBEDDINGS = ("rotary", "learned", "none")
# causal_lm: a projection to the vocabulary. masked_lm: BERT's dense, norm, tied projection with bias.
# pooler: BERT's dense over the first token. none: the hidden states.
HEADS = ("causal_lm", "masked_lm", "pooler", "none")
PER_LAYER_FIELDS = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "sliding_window",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer as it runs: its sizes, and the layer whose weights it uses (its own index unless shared)."""

    index: int
    weight_source: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    sliding_window: int | None

    @property
    def owns_weights(self) -> bool:
        return self.weight_source == self.index

    @property
    def query_size(self) -> int:
        """Width of all query heads together, N*H."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all key (or value) heads together, K*H."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """A decoder or encoder stack.

    Fields carry their Hugging Face names. `<field>_per_layer` is a tuple with one entry per layer, or None when every
    layer uses `<field>`. `weight_source_per_layer[i]` is the index (at most i) of the layer whose weights layer i uses.

    Raises:
        ConfigError: names the field that is missing, of the wrong type or impossible, and what would be right.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    architecture: str = "decoder"
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True
    norm_type: str = "rms_norm"
    norm_eps: float = 1e-5
    norm_placement: str = "pre"
    position_embedding: str = "rotary"
    rope_theta: float = 10_000.0
    rope_scaling: str | None = None  # canonical JSON of a Hugging Face rope_scaling table; it changes no size
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    tie_word_embeddings: bool = True
    embedding_norm: bool = False
    type_vocab_size: int = 0
    head: str = "causal_lm"
    num_attention_heads_per_layer: tuple[int, ...] | None = None
    num_key_value_heads_per_layer: tuple[int, ...] | None = None
    intermediate_size_per_layer: tuple[int, ...] | None = None
    sliding_window_per_layer: tuple[int | None, ...] | None = None
    weight_source_per_layer: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _resolve_defaults(self)
        _check_choices(self)
        _canonicalise_layers(self)
        for layer in self.layers:
            _check_layer(self, layer)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in the order they run."""
        return tuple(
            Layer(
                index=index,
                weight_source=index if self.weight_source_per_layer is None else self.weight_source_per_layer[index],
                num_attention_heads=self._of_layer("num_attention_heads", index),
                num_key_value_heads=self._of_layer("num_key_value_heads", index),
                head_dim=self.resolved_head_dim,
                intermediate_size=self._of_layer("intermediate_size", index),
                sliding_window=self._of_layer("sliding_window", index),
            )
            for index in range(self.num_hidden_layers)
        )

    @property
    def resolved_head_dim(self) -> int:
        assert self.head_dim is not None
        return self.head_dim

    @property
    def is_uniform(self) -> bool:
        """True when every layer has the same shape and its own weights."""
        return all(getattr(self, f"{name}_per_layer") is None for name in (*PER_LAYER_FIELDS, "weight_source"))

    @property
    def is_causal(self) -> bool:
        return self.architecture == "decoder"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields without those that are None; `from_dict` reads them back to an equal config."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TransformerConfig:
        """Reads what `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown, missing, of the wrong type or impossible.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown field {name!r}; known fields: {', '.join(sorted(known))}", field=name)
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise ConfigError(f"field {field.name!r} is missing", field=field.name)
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**arguments)

    def architecture_hash(self) -> str:
        """First 16 hexadecimal digits of the sha256 over the canonical JSON; equal networks share it."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _of_layer(self, name: str, index: int) -> Any:
        per_layer = getattr(self, f"{name}_per_layer")
        return getattr(self, name) if per_layer is None else per_layer[index]


_MAX_SIZE = 2**31 - 1  # ONNX tensors and every runtime index dimensions with signed integers
MAX_LAYERS = 4096
_POSITIVE_INTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "sliding_window",
)
_OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")
_BOOLS = (
    "gated_mlp",
    "attention_bias",
    "attention_output_bias",
    "mlp_bias",
    "qk_norm",
    "tie_word_embeddings",
    "embedding_norm",
)


def show(value: object) -> str:
    """The value for an error message, which stays one line however large the value is."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 80
    return shortener.repr(value)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIZE


def _check_types(config: TransformerConfig) -> None:
    for name in _POSITIVE_INTS:
        value = getattr(config, name)
        if not (_is_size(value) or (value is None and name in _OPTIONAL)):
            raise ConfigError(f"{name} must be a positive integer below 2^31, not {show(value)}", field=name)
    if config.num_hidden_layers > MAX_LAYERS:
        raise ConfigError(f"num_hidden_layers must be at most {MAX_LAYERS}", field="num_hidden_layers")
    _check_other_types(config)
    for name in (*PER_LAYER_FIELDS, "weight_source"):
        _check_per_layer(config, name)


def _check_other_types(config: TransformerConfig) -> None:
    types = config.type_vocab_size
    if not (_is_size(types) or (types == 0 and not isinstance(types, bool))):
        raise ConfigError(f"type_vocab_size must be an integer, 0 or more, not {show(types)}", field="type_vocab_size")
    if config.rope_scaling is not None and not _is_json_object(config.rope_scaling):
        raise ConfigError(
            "rope_scaling must be the JSON text of a Hugging Face rope_scaling table", field="rope_scaling"
        )
    for name in _BOOLS:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name} must be true or false, not {show(getattr(config, name))}", field=name)
    for name in ("norm_eps", "rope_theta"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ConfigError(f"{name} must be a positive number, not {show(value)}", field=name)


def _is_json_object(value: object) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except ValueError:
        return False


def _check_per_layer(config: TransformerConfig, name: str) -> None:
    field = f"{name}_per_layer"
    values = getattr(config, field)
    if values is None:
        return
    if not isinstance(values, tuple) or len(values) != config.num_hidden_layers:
        raise ConfigError(f"{field} must have {config.num_hidden_layers} entries, one per layer", field=field)
    for index, value in enumerate(values):
        if name == "weight_source":
            right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= index
            wanted = f"the index of this or an earlier layer (0 to {index})"
        else:
            right = _is_size(value) or (value is None and name == "sliding_window")
            wanted = "a positive integer"
        if not right:
            raise ConfigError(f"{field}[{index}] must be {wanted}, not {show(value)}", field=field)


def _set(config: TransformerConfig, name: str, value: object) -> None:
    object.__setattr__(config, name, value)


def _resolve_defaults(config: TransformerConfig) -> None:
    if config.num_key_value_heads is None:
        _set(config, "num_key_value_heads", config.num_attention_heads)
        if config.num_attention_heads_per_layer and not config.num_key_value_heads_per_layer:
            _set(config, "num_key_value_heads_per_layer", config.num_attention_heads_per_layer)
    if config.head_dim is None:
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError(
                f"hidden_size {config.hidden_size} does not divide by num_attention_heads "
                f"{config.num_attention_heads}; choose a divisor or give head_dim",
                field="num_attention_heads",
            )
        _set(config, "head_dim", config.hidden_size // config.num_attention_heads)
    _set(config, "norm_eps", float(config.norm_eps))
    if config.head in ("pooler", "none"):
        _set(config, "tie_word_embeddings", True)
    _set(config, "rope_theta", float(config.rope_theta) if config.position_embedding == "rotary" else 10_000.0)


def _check_choices(config: TransformerConfig) -> None:
    choices = {
        "architecture": ARCHITECTURES,
        "hidden_act": ACTIVATIONS,
        "norm_type": NORM_TYPES,
        "norm_placement": NORM_PLACEMENTS,
        "position_embedding": POSITION_EMBEDDINGS,
        "head": HEADS,
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ConfigError(
                f"{name} must be one of {', '.join(allowed)}, not {show(getattr(config, name))}", field=name
            )
    if config.head == "causal_lm" and config.architecture != "decoder":
        raise ConfigError("head causal_lm needs architecture decoder; an encoder has masked_lm", field="head")
    if config.head in ("masked_lm", "pooler") and config.architecture != "encoder":
        raise ConfigError(f"head {config.head} needs architecture encoder", field="head")
    if config.position_embedding == "rotary" and config.resolved_head_dim % 2:
        raise ConfigError(f"rotary positions need an even head_dim, not {config.head_dim}", field="head_dim")


def _canonicalise_layers(config: TransformerConfig) -> None:
    sources = config.weight_source_per_layer
    if sources is not None:
        sources = _owners(sources)
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            values = getattr(config, f"{name}_per_layer")
            if values is not None:
                _set(config, f"{name}_per_layer", tuple(values[source] for source in sources))
        own = tuple(range(config.num_hidden_layers))
        _set(config, "weight_source_per_layer", None if sources == own else sources)
    for name in PER_LAYER_FIELDS:
        values = getattr(config, f"{name}_per_layer")
        if values is None:
            continue
        _set(config, name, values[0])
        if len(set(values)) == 1:
            _set(config, f"{name}_per_layer", None)


def _owners(sources: tuple[int, ...]) -> tuple[int, ...]:
    """Follows each chain of reuse to the layer that owns the weights."""
    owners: list[int] = []
    for index, source in enumerate(sources):
        owners.append(index if source == index else owners[source])
    return tuple(owners)


def _check_layer(config: TransformerConfig, layer: Layer) -> None:
    if layer.num_attention_heads % layer.num_key_value_heads:
        raise ConfigError(
            f"layer {layer.index}: num_attention_heads {layer.num_attention_heads} does not divide by "
            f"num_key_value_heads {layer.num_key_value_heads}",
            field="num_key_value_heads",
        )
