"""A model as it was given, sized: what `estimator size` and the service answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from estimator.calibrating.profiles import find_device
from estimator.energy import estimate_energy
from estimator.facility import facility_of
from estimator.readers.source import ModelSource
from estimator.sizing import Estimate, estimate
from estimator.workload import FLOAT_DTYPES, Workload

__all__ = ["size_document", "size_source"]


def size_source(
    source: ModelSource,
    *,
    batch_size: int,
    prompt_length: int,
    generated_length: int,
    num_images: int = 0,
    weight_dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    device: str | None = None,
) -> Estimate:
    """What the model needs, under its own name and with the reader's warnings.

    Weights are in the given type or the config's; those that were read from a file count as it stores them, unless a
    type is given. Activations follow a float type; the cache follows the activations. Times are those of the device's
    calibration where this user has one.

    Raises:
        InputError: a length or a number type is impossible.
        UnknownDeviceError: no device of that name.
    """
    stored = source.dtype or "fp32"
    weights = weight_dtype or stored
    activations = weights if weights in FLOAT_DTYPES else stored
    workload = Workload(
        batch_size=batch_size,
        prompt_length=prompt_length,
        generated_length=generated_length,
        num_images=num_images,
        weight_dtype=weights,
        activation_dtype=activations,
        kv_cache_dtype=kv_cache_dtype or activations,
    )
    found, achievable = (None, None) if device is None else find_device(device)
    stored_bytes = None
    if source.weight_file is not None and weight_dtype is None:
        stored_bytes = source.weight_file.num_bytes
    result = estimate(source.network, workload, found, achievable, stored_bytes=stored_bytes)
    return replace(result, name=source.name, config=source.buildable, warnings=(*source.warnings, *result.warnings))


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
