"""ONNX Runtime sessions on the provider that was asked for, and inputs to run them with."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.errors import BuildError, CorruptFileError, InputError
from estimator.onnx_wire import check_self_contained

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "NO_TELEMETRY",
    "PROVIDERS",
    "load_runtime",
    "make_inputs",
    "open_session",
    "past_names",
    "present_names",
    "provider_name",
]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Since 1.29 official builds of ONNX Runtime report to Microsoft from a thread of their own, and leave a file behind.
# A model is its owner's business, and the thread runs beside measured ones. A variable that is set already stays.
# Source: ONNX Runtime's Privacy.md, "Disabling Telemetry".
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}


def open_session(
    path: str | Path, *, provider: str = "cpu", num_threads: int | None = None, spin_between_runs: bool = True
) -> onnxruntime.InferenceSession:
    """A session that runs the file on `provider` and nowhere else; `num_threads` None leaves ONNX Runtime to choose.

    `spin_between_runs` lets idle threads go on waiting in a loop when a run is over, as ONNX Runtime does by default.

    Raises:
        InputError: the provider is unknown, or this installation does not have it.
        CorruptFileError: the file is missing, no ONNX model, or keeps weights in other files.
        BuildError: ONNX Runtime does not run the graph on this provider.
    """
    onnxruntime = load_runtime()
    wanted = provider_name(provider)
    check_self_contained(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions; they need not be printed as well
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    if not spin_between_runs:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # its exception classes share no public base
        if type(error).__name__ in ("InvalidProtobuf", "NoModel"):
            raise CorruptFileError(f"{path} is not an ONNX file") from error
        raise BuildError(f"{path}: ONNX Runtime cannot run it on {provider}: {_first_line(error)}") from error
    if wanted not in session.get_providers():
        raise InputError(f"provider {provider!r} did not start; the session has {', '.join(session.get_providers())}")
    return session


def load_runtime() -> ModuleType:
    """The module onnxruntime, told before its first import that it shall not report what it runs."""
    os.environ.update(NO_TELEMETRY | os.environ)
    return importlib.import_module("onnxruntime")


def make_inputs(
    config: TransformerConfig, *, batch_size: int, sequence_length: int, past_length: int = 0, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Random inputs of the config's ONNX file by name: ids, and positions and past key-values N(0, 1) of a decoder.

    Prefill is `past_length` 0; a decode step has `sequence_length` 1. An encoder gets an attention mask of ones.

    Raises:
        InputError: the lengths do not fit the config.
    """
    _check_lengths(config, batch_size, sequence_length, past_length)
    generator = np.random.default_rng(seed)
    shape = (batch_size, sequence_length)
    inputs: dict[str, NDArray[Any]] = {"input_ids": generator.integers(0, config.vocab_size, shape)}
    if config.type_vocab_size:
        inputs["token_type_ids"] = np.zeros(shape, np.int64)
    if not config.is_causal:
        inputs["attention_mask"] = np.ones(shape, np.int64)
        return inputs
    positions = np.arange(past_length, past_length + sequence_length)
    inputs["position_ids"] = np.broadcast_to(positions, shape).copy()
    for layer in config.layers:
        past = (batch_size, layer.num_key_value_heads, past_length, layer.head_dim)
        inputs |= {name: generator.standard_normal(past, dtype=np.float32) for name in past_names(layer.index)}
    return inputs


def past_names(layer_index: int) -> tuple[str, str]:
    """Names of a decoder's key and value inputs."""
    return f"past_key_values.{layer_index}.key", f"past_key_values.{layer_index}.value"


def present_names(layer_index: int) -> tuple[str, str]:
    """Names of a decoder's key and value outputs."""
    return f"present.{layer_index}.key", f"present.{layer_index}.value"


def _check_lengths(config: TransformerConfig, batch_size: int, sequence_length: int, past_length: int) -> None:
    if min(batch_size, sequence_length) < 1 or past_length < 0:
        raise InputError("batch_size and sequence_length must be at least 1, past_length at least 0")
    if past_length and not config.is_causal:
        raise InputError("an encoder has no past; past_length must be 0")
    length, most = past_length + sequence_length, config.max_position_embeddings
    if config.position_embedding == "learned" and length > most:
        raise InputError(f"{length} tokens do not fit max_position_embeddings {most}")


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of a provider.

    Raises:
        InputError: the provider is unknown, or this installation does not have it.
    """
    onnxruntime = load_runtime()
    if provider not in PROVIDERS:
        raise InputError(f"provider must be one of {', '.join(PROVIDERS)}, not {provider!r}")
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        names = {name: short for short, name in PROVIDERS.items()}
        here = [names[name] for name in onnxruntime.get_available_providers() if name in names]
        raise InputError(f"provider {provider!r} is not in this ONNX Runtime installation, which has {', '.join(here)}")
    return PROVIDERS[provider]


def _first_line(error: Exception) -> str:
    return next(_lines(str(error)), type(error).__name__)


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())
