"""A model as it was given, sized: what `estimator size` and the service answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from estimator.calibrating.profiles import find_device
from estimator.cost.energy import estimate_energy
from estimator.cost.facility import facility_of
from estimator.network import Network
from estimator.readers.quantization_config import apply_quantization
from estimator.readers.source import ModelSource
from estimator.sizing import Estimate, estimate
from estimator.weight_formats import weight_format
from estimator.workload import FLOAT_DTYPES, Workload

__all__ = ["SizedRequest", "request_of", "size_document", "size_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedRequest:
    """A model and what it is asked to do, before a device is known.

    `network` has the weights marked that a quantised checkpoint leaves as they are. `stored_bytes` are those of the
    weights as a file holds them, None where the workload's type counts.
    """

    network: Network
    workload: Workload
    stored_bytes: int | None
    warnings: tuple[str, ...]


def request_of(
    source: ModelSource,
    *,
    batch_size: int,
    prompt_length: int,
    generated_length: int,
    num_images: int = 0,
    weight_dtype: str | None = None,
    group_size: str | None = None,
    zero_points: bool = False,
    kv_cache_dtype: str | None = None,
    kv_scales: str | None = None,
    attention: str | None = None,
    logits: str = "all",
    runtime: str | None = None,
) -> SizedRequest:
    """The workload that is meant for a model.

    Weights are in the given type, else as the checkpoint stores them: as its quantization_config says, or in its dtype.
    Those that were read from a file count as it stores them, unless a type is given. Activations follow a float type;
    the cache follows the activations.

    Raises:
        InputError: a length, a number type or an option is impossible.
    """
    stored, quantization, network = source.dtype or "fp32", source.quantization, source.network
    weights = weight_dtype or source.weight_dtype or "fp32"
    as_stored = group_size is None and not zero_points
    packing = weight_format(weights, group_size, zero_points)
    warnings = source.warnings
    if quantization is not None and as_stored and weights == quantization.format.dtype:
        network, missing = apply_quantization(network, quantization)
        packing, warnings = quantization.format, (*warnings, *missing)
    activations = weights if weights in FLOAT_DTYPES else stored
    workload = Workload(
        batch_size=batch_size,
        prompt_length=prompt_length,
        generated_length=generated_length,
        num_images=num_images,
        weight_dtype=weights,
        activation_dtype=activations,
        kv_cache_dtype=kv_cache_dtype or activations,
        weight_format=packing,
        kv_scales=kv_scales,
        attention=attention,
        logits=logits,
        runtime=runtime,
    )
    if kv_cache_dtype in FLOAT_DTYPES and not network.is_causal:  # of the others `estimate` warns
        warnings = (*warnings, "an encoder keeps no KV cache; its type changes nothing")
    is_file = source.weight_file is not None and weight_dtype is None and as_stored
    stored_bytes = source.weight_file.num_bytes if is_file and source.weight_file is not None else None
    return SizedRequest(network=network, workload=workload, stored_bytes=stored_bytes, warnings=warnings)


def size_source(source: ModelSource, *, device: str | None = None, **asked: Any) -> Estimate:
    """What the model needs, under its own name and with the reader's warnings; `asked` as for `request_of`.

    Times are those of the device's calibration where this user has one.

    Raises:
        InputError: a length, a number type or an option is impossible, or the runtime does not run on the device.
        UnknownDeviceError: no device of that name.
    """
    request = request_of(source, **asked)
    found, achievable = (None, None) if device is None else find_device(device)
    result = estimate(request.network, request.workload, found, achievable, stored_bytes=request.stored_bytes)
    return replace(result, name=source.name, config=source.buildable, warnings=(*request.warnings, *result.warnings))


def size_document(result: Estimate, source: ModelSource) -> dict[str, Any]:
    """The JSON document of `estimator size --json`; energy is that of a facility with the defaults."""
    document = result.to_dict()
    if result.device is not None:
        energy = None
        if result.latency is not None:
            energy = estimate_energy(result.latency, result.device, result.workload, facility_of(result.device))
        document["energy"] = None if energy is None else energy.to_dict()
    document["model"] |= {"class": source.hf_class, "path": None if source.path is None else str(source.path)}
    if source.weight_file is not None:
        file = source.weight_file
        document["weight_file"] = {
            "paths": [str(path) for path in file.paths],
            "format": file.format,
            "parameters": file.num_parameters,
            "num_bytes": file.num_bytes,
            "bytes_by_dtype": file.bytes_by_dtype,
        }
    return document
