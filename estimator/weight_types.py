"""Which number types an ONNX file can keep its weights in, and which weight has which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from estimator.config import TransformerConfig
from estimator.errors import BuildError
from estimator.memory import weight_bytes
from estimator.network import stored_weights
from estimator.weight_formats import BLOCK_FORMATS
from estimator.weights import is_linear, network_of, weight_shapes
from estimator.workload import FLOAT_DTYPES, Workload

__all__ = ["BUILD_DTYPES", "stored_weight_bytes", "weight_dtypes"]

BUILD_DTYPES = (*FLOAT_DTYPES, "int8", *BLOCK_FORMATS)


def weight_dtypes(
    config: TransformerConfig, weight_dtype: str, weight_dtype_per_layer: Sequence[str] | None = None
) -> dict[str, str]:
    """The type of every stored weight by name.

    A layer's weights have the layer's own type if there is one, all others `weight_dtype`. Of an integer type are the
    matrices that `is_linear` names; what stands beside them is fp32.

    Raises:
        BuildError: a type is unknown, there is not one for each layer, or layers that share weights differ.
    """
    layers = _layer_dtypes(config, weight_dtype, weight_dtype_per_layer)
    names = {}
    for name in weight_shapes(config):
        dtype = layers[int(name.split(".")[1])] if name.startswith("layers.") else weight_dtype
        names[name] = dtype if dtype in FLOAT_DTYPES or is_linear(name) else "fp32"
    return names


def stored_weight_bytes(config: TransformerConfig, dtypes: Mapping[str, str]) -> int:
    """Bytes that a file keeps for all weights of the types that `weight_dtypes` gave, with their scales."""
    workloads = {dtype: Workload(weight_dtype=dtype) for dtype in set(dtypes.values())}
    weights = stored_weights(network_of(config))
    return sum(weight_bytes(weight, workloads[dtypes[name]]) for name, _, weight in weights)


def _layer_dtypes(config: TransformerConfig, weight_dtype: str, per_layer: Sequence[str] | None) -> tuple[str, ...]:
    chosen = (weight_dtype,) * config.num_hidden_layers if per_layer is None else tuple(per_layer)
    for dtype in (weight_dtype, *chosen):
        if dtype not in BUILD_DTYPES:
            raise BuildError(f"weight_dtype {dtype!r} cannot be built; these can: {', '.join(BUILD_DTYPES)}")
    if len(chosen) != config.num_hidden_layers:
        raise BuildError(
            f"weight_dtype_per_layer has {len(chosen)} types; this config has {config.num_hidden_layers} layers"
        )
    for layer in config.layers:
        own, owner = chosen[layer.index], chosen[layer.weight_source]
        if own != owner:
            raise BuildError(
                f"weight_dtype_per_layer: layer {layer.index} uses the weights of layer {layer.weight_source}, "
                f"which are {owner}, not {own}"
            )
    return chosen
