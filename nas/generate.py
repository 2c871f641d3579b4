"""Continues a text with an ONNX file, byte by byte: prefill once, then decode with the past."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError, UsageError
from nas.quality.training import NUM_BYTES

if TYPE_CHECKING:
    import onnxruntime

    from estimator.config import TransformerConfig

__all__ = ["generate"]


def generate(
    onnx_path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    num_threads: int | None = None,
) -> Iterator[bytes]:
    """The bytes that follow `prompt`, one at a time, as ONNX Runtime computes them on the CPU.

    Temperature 0 takes the likeliest byte; above 0, bytes are drawn from softmax(logits / temperature), among the
    `top_k` likeliest if given. It ends after `max_new_tokens` or at the model's `max_position_embeddings`.

    Raises:
        UsageError: an argument is out of range, or the model is an encoder or predicts no bytes.
        DataError: the prompt is empty or longer than the model's positions.
        CorruptFileError: not a file that `build_onnx` wrote.
    """
    from estimator.onnx_builder import read_config
    from estimator.ort_session import open_session

    _check_arguments(max_new_tokens, temperature, top_k, seed)
    config = read_config(onnx_path)
    tokens = prompt.encode("utf-8", "surrogateescape")
    _check_model(config, tokens)
    session = open_session(onnx_path, num_threads=num_threads)
    room = config.max_position_embeddings - len(tokens)
    return _stream(session, config, tokens, min(max_new_tokens, room), _Sampler(temperature, top_k, seed))


def _check_arguments(max_new_tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature must be 0 or a positive number, not {temperature}")
    if top_k is not None and not 1 <= top_k <= NUM_BYTES:
        raise UsageError(f"top_k must be from 1 to {NUM_BYTES}, not {top_k}")
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, not {seed}")


def _check_model(config: TransformerConfig, tokens: bytes) -> None:
    if not config.is_causal:
        raise UsageError("an encoder cannot continue a text; choose a trial whose architecture is decoder")
    if config.head != "causal_lm" or config.vocab_size < NUM_BYTES:
        raise UsageError(f"the model does not predict bytes: head {config.head}, vocab_size {config.vocab_size}")
    if not tokens:
        raise DataError("the prompt is empty; give at least one byte to continue")
    if len(tokens) > config.max_position_embeddings:
        raise DataError(
            f"the prompt has {len(tokens)} bytes; this model reads at most {config.max_position_embeddings}"
        )


class _Sampler:
    """Picks one byte from the logits of the last position."""

    def __init__(self, temperature: float, top_k: int | None, seed: int) -> None:
        self._temperature = temperature
        self._top_k = top_k or NUM_BYTES
        self._generator = np.random.default_rng(seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """`logits`: [vocab_size]; tokens that are no bytes are never picked."""
        scores = logits[:NUM_BYTES].astype(np.float64)
        if self._temperature == 0:
            return int(scores.argmax())
        kept = np.argsort(-scores, kind="stable")[: self._top_k]
        weights = np.exp((scores[kept] - scores[kept[0]]) / self._temperature)
        return int(self._generator.choice(kept, p=weights / weights.sum()))


def _stream(
    session: onnxruntime.InferenceSession, config: TransformerConfig, tokens: bytes, num_tokens: int, pick: _Sampler
) -> Iterator[bytes]:
    from estimator.ort_session import make_inputs, past_names, present_names

    presents = [name for index in range(config.num_hidden_layers) for name in present_names(index)]
    pasts = [name for index in range(config.num_hidden_layers) for name in past_names(index)]
    inputs: dict[str, Any] = make_inputs(config, batch_size=1, sequence_length=len(tokens))
    inputs["input_ids"] = np.frombuffer(tokens, np.uint8).astype(np.int64)[None]
    length = len(tokens)
    for _ in range(num_tokens):
        logits, *states = session.run(["logits", *presents], inputs)
        token = pick(logits[0, -1])
        yield bytes([token])
        inputs = dict(zip(pasts, states, strict=True))
        inputs["input_ids"] = np.array([[token]], np.int64)
        inputs["position_ids"] = np.array([[length]], np.int64)
        length += 1
