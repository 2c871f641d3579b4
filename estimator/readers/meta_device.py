"""A model type that the torch-free readers do not know, counted by transformers itself on the meta device.

Slower (it imports torch and transformers), and it knows only what one forward pass shows: parameters are exact, caches
are those of the pass, FLOPs those of PyTorch's counter.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from estimator.config import MAX_LAYERS, show
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.network import Attention, Block, Layer, Network, Recurrence, Stack, Weight

__all__ = ["is_available", "network_through_transformers"]

_PROBE_TOKENS = (4, 8, 12)
_DEPTHS = ("depth", "n_layer", "num_blocks")  # names of a number of layers that do not say so
# What makes transformers fetch or run something: kernels, code and weights that a config names.
_CODE = (
    "auto_map",
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
    "use_kernels",
    "use_pretrained_backbone",
    "use_timm_backbone",
)


def is_available() -> bool:
    """Whether torch and transformers (extras `train` and `hf`) are installed; neither is imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def network_through_transformers(values: Mapping[str, Any]) -> tuple[Network, str, tuple[str, ...]]:
    """The network of a config.json, the class that was built, and warnings that say how it was counted.

    Nothing is downloaded and no code of the config's own (auto_map) runs.

    Raises:
        UnsupportedModelError: transformers does not know the model type or class, or the class cannot be probed.
        ConfigError: transformers refuses the config.
    """
    import torch
    import transformers

    model_type = values["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"model_type {show(model_type)} is known neither here nor to transformers {transformers.__version__}"
        )
    _check_layers(values)
    with _quiet(), torch.device("meta"):
        config = _config(transformers, values)
        model = _model(transformers, config, values)
    network = _network(torch, model, model_type)
    version = transformers.__version__
    said = (f"model_type {model_type} is not known here: counted through transformers {version} on the meta device",)
    return network, type(model).__name__, said


def _check_layers(values: Mapping[str, Any]) -> None:
    """Refuses numbers of modules that would take minutes to build, also in nested configs."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_layers(value)
        is_number = isinstance(value, int) and ("layers" in name or "experts" in name or name in _DEPTHS)
        if is_number and value > MAX_LAYERS:
            raise ConfigError(f"{show(name)} must be at most {MAX_LAYERS}, not {show(value)}", field=name)


class _quiet:  # noqa: N801 - a context manager
    """Silences what transformers says while it builds a model that nobody runs, and keeps it off the network."""

    def __enter__(self) -> None:
        from huggingface_hub import constants

        self._constants, self._was_offline = constants, constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = True
        self._level = logging.root.manager.disable
        logging.disable(logging.ERROR)
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._caught.__exit__(None, None, None)
        logging.disable(self._level)
        self._constants.HF_HUB_OFFLINE = self._was_offline


def _config(transformers: Any, values: Mapping[str, Any]) -> Any:
    fields = _without_code(values)
    fields.pop("model_type")
    try:
        return transformers.CONFIG_MAPPING[values["model_type"]].from_dict(fields)
    except Exception as error:  # whatever its validation raises, the config is at fault
        raise ConfigError(f"transformers refuses the config: {' '.join(str(error).split())[:300]}") from error


def _without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what would make transformers load code or weights of somebody else's."""
    kept = {name: value for name, value in values.items() if name not in _CODE and not name.startswith("_attn")}
    return {name: _without_code(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


def _model(transformers: Any, config: Any, values: Mapping[str, Any]) -> Any:
    build = _builder(transformers, config, values)
    try:
        model = build(config)
        model.tie_weights()
    except Exception as error:  # whatever its modules raise, the config is at fault
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"transformers cannot build the {values['model_type']} model: {text}") from error
    return model.eval()


def _builder(transformers: Any, config: Any, values: Mapping[str, Any]) -> Any:
    """The class that config.json names, or what transformers takes for the model type."""
    names = values.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    if name is None and type(config) in transformers.MODEL_MAPPING:
        return transformers.AutoModel.from_config
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    if name is None:
        raise UnsupportedModelError(
            f"model_type {values['model_type']} is part of a model, and has no class of its own"
        )
    raise UnsupportedModelError(f"class {show(name)} is no model that transformers {transformers.__version__} knows")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """FLOPs of one pass over `tokens`, and for each layer's cache the elements that a token leaves and its window."""

    tokens: int
    flops: int
    cache: tuple[tuple[int, int | None], ...]


def _network(torch: Any, model: Any, model_type: str) -> Network:
    weights = tuple(_weights(torch, model))
    try:
        probes = [_probe(torch, model, tokens) for tokens in _PROBE_TOKENS]
    except Exception:  # an input it wants beside tokens, an operator without a meta kernel, whatever else stops it
        probes = []
    blocks = (Block(name="", part="other", weights=weights), *_probed_blocks(weights, probes))
    text = model.config.get_text_config()
    is_causal = bool(probes and probes[0].cache)
    stack = Stack(
        name="model",
        hidden_size=getattr(text, "hidden_size", None) or 1,
        layers=(Layer(blocks=blocks),),
        is_causal=is_causal,
    )
    return Network(
        architecture="decoder" if is_causal else "encoder",
        stacks=(stack,),
        model_type=model_type,
        vocab_size=getattr(text, "vocab_size", None) or 0,
        has_only_weights=len(blocks) == 1,
    )


def _weights(torch: Any, model: Any) -> Iterator[Weight]:
    """Every parameter once, with the role that its module gives it."""
    roles = {
        torch.nn.Linear: "linear",
        torch.nn.Embedding: "embedding",
        torch.nn.Conv1d: "convolution",
        torch.nn.Conv2d: "convolution",
    }
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            is_norm = "norm" in type(module).__name__.lower()
            role = roles.get(type(module), "other") if name == "weight" else "bias" if name == "bias" else "other"
            shape = tuple(parameter.shape)
            yield Weight(name=f"{prefix}.{name}".lstrip("."), shape=shape, role="norm" if is_norm else role)


def _probe(torch: Any, model: Any, tokens: int) -> _Probe:
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with _quiet(), torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        result = model(input_ids=ids)
    cache = getattr(result, "past_key_values", None)
    layers = getattr(cache, "layers", ())
    sizes = tuple((_cached_elements(layer), getattr(layer, "sliding_window", None)) for layer in layers)
    return _Probe(tokens=tokens, flops=counter.get_total_flops(), cache=sizes)


def _cached_elements(layer: Any) -> int:
    """Elements of one token; keys and values are [1, heads, tokens, width], and a window keeps fewer tokens."""
    kept = layer.keys.shape[-2]
    elements = layer.keys.numel() + layer.values.numel()
    if layer.keys.dim() != 4 or layer.values.shape[-2] != kept or elements % kept:
        raise ValueError("the cache does not hold the same for every token")
    return int(elements // kept)


def _probed_blocks(weights: tuple[Weight, ...], probes: list[_Probe]) -> Iterator[Block]:
    """Caches, products of tokens with tokens, and FLOPs per token that no matrix explains; none if they do not fit."""
    if not probes or len({probe.cache for probe in probes}) != 1:
        return
    square, linear = _parabola(probes)
    if square is None:
        return
    matrices = sum(2 * weight.num_elements for weight in weights if weight.role in ("linear", "convolution"))
    yield Block(name="", part="head", recurrence=Recurrence(state_elements=0, token_flops=linear - matrices))
    layers = probes[0].cache or ((0, None),)
    for index, (elements, window) in enumerate(layers):
        width = square // 4 // len(layers) + (1 if index < square // 4 % len(layers) else 0)
        scores = Attention(
            num_attention_heads=1, key_head_dim=width, value_head_dim=width, cached_elements=elements, window=window
        )
        yield Block(name="", part="attention", attention=scores)


def _parabola(probes: list[_Probe]) -> tuple[int | None, int]:
    """Coefficients of T^2 and T that give the FLOPs of all probes exactly; None if there are none."""
    first, second, *others = probes
    per_token = [Fraction(probe.flops, probe.tokens) for probe in (first, second)]
    square = (per_token[1] - per_token[0]) / (second.tokens - first.tokens)
    linear = per_token[0] - square * first.tokens
    fits = all(square * probe.tokens**2 + linear * probe.tokens == probe.flops for probe in others)
    if not fits or square.denominator != 1 or linear.denominator != 1 or square % 4:
        return None, 0
    return int(square), int(linear)
