"""Scores the ONNX file itself on held-out text: bits per byte, with an interval.

Bits per byte is the cross-entropy of the next byte (decoder) or of the masked bytes (encoder) in bits, over all of
the file's vocabulary; log2(vocab_size) is a file that knows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.figures import Figure
from nas.errors import EvaluationError
from nas.quality.corpus import Corpus
from nas.quality.training import IGNORED, check_trainable, mask_tokens
from nas.spec import QualitySettings

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["METRICS", "Quality", "score_onnx"]

METRICS = {"causal_lm": "bits_per_byte", "masked_lm": "masked_bits_per_byte"}
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What a file scored on held-out text.

    bits_per_byte: mean over the scored tokens; the interval is a 95 % bootstrap over windows.
    metric: bits_per_byte (next byte) or masked_bits_per_byte (bytes behind a mask).
    tokens_scored: tokens whose prediction was scored.
    data_fingerprint: of the corpus. cost_s: wall time of the scoring.
    """

    bits_per_byte: Figure
    metric: str
    tokens_scored: int
    data_fingerprint: str
    cost_s: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "bits_per_byte": self.bits_per_byte.to_dict(),
            "metric": self.metric,
            "tokens_scored": self.tokens_scored,
            "data_fingerprint": self.data_fingerprint,
            "cost_s": self.cost_s,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quality:
        """Reads what `to_dict` wrote; keys that were added to it are passed over."""
        names = ("metric", "tokens_scored", "data_fingerprint", "cost_s")
        figure = Figure(**values["bits_per_byte"])
        return cls(bits_per_byte=figure, **{name: values[name] for name in names})


def score_onnx(
    path: str | Path,
    corpus: Corpus,
    settings: QualitySettings,
    *,
    provider: str = "cpu",
    num_threads: int | None = None,
) -> Quality:
    """Bits per byte of an ONNX file on the held-out text, run by ONNX Runtime on the provider it was built for.

    Windows of `sequence_length` tokens (at most the config's longest position) lie evenly over the held-out text and
    do not overlap; there are as many as `heldout_tokens` and the text allow. An encoder's masks are the same for
    every candidate.

    Raises:
        EvaluationError: reason data (the config cannot predict bytes, or the text is shorter than one window) or
            numerics (an output is not finite).
        CorruptFileError: not a file that `build_onnx` wrote.
    """
    from estimator.onnx_builder import read_config
    from estimator.ort_session import open_session

    start_s = time.perf_counter()
    config = read_config(path)
    check_trainable(config)
    input_ids, targets = _windows(config, corpus, settings)
    session = open_session(path, provider=provider, num_threads=num_threads)
    window_bits = np.concatenate(list(_bits_per_window(session, config, input_ids, targets)))
    return Quality(
        bits_per_byte=_mean_with_interval(window_bits),
        metric=METRICS[config.head],
        tokens_scored=int((targets != IGNORED).sum()),
        data_fingerprint=corpus.fingerprint,
        cost_s=time.perf_counter() - start_s,
    )


def _windows(
    config: TransformerConfig, corpus: Corpus, settings: QualitySettings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input ids and targets, int64 [num_windows, sequence_length]; every window has the same number of targets."""
    sequence_length = min(settings.sequence_length, config.max_position_embeddings)
    available = (corpus.heldout.size - 1) // sequence_length
    if available < 1:
        raise EvaluationError(f"{corpus.name} has fewer than {sequence_length + 1} held-out bytes", reason="data")
    num_windows = min(max(1, settings.heldout_tokens // sequence_length), available)
    starts = np.linspace(0, corpus.heldout.size - sequence_length - 1, num_windows).astype(np.int64)
    windows = corpus.heldout[starts[:, None] + np.arange(sequence_length + 1)].astype(np.int64)
    if config.is_causal:
        return windows[:, :-1], windows[:, 1:]
    return mask_tokens(windows[:, :-1], np.random.default_rng(settings.seed))


def _bits_per_window(
    session: onnxruntime.InferenceSession,
    config: TransformerConfig,
    input_ids: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> Iterator[NDArray[np.float64]]:
    """Mean bits per scored token of each window, one at a time: int8 activations are scaled over a whole batch."""
    from estimator.ort_session import make_inputs

    for row in range(len(input_ids)):
        ids, wanted = input_ids[row : row + 1], targets[row : row + 1]
        inputs = make_inputs(config, batch_size=ids.shape[0], sequence_length=ids.shape[1])
        (logits,) = session.run(["logits"], inputs | {"input_ids": np.ascontiguousarray(ids)})
        if not np.isfinite(logits).all():
            raise EvaluationError("the ONNX file gives logits that are not finite", reason="numerics")
        yield _cross_entropy_bits(logits, wanted)


def _cross_entropy_bits(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over each row's targets of -log2 softmax(logits)[target], float64 [batch_size].

    logits: [batch_size, sequence_length, vocab_size]; targets: [batch_size, sequence_length].
    """
    scored = targets != IGNORED
    rows = logits[scored].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    nats = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), targets[scored]]
    result: NDArray[np.float64] = nats.reshape(len(targets), -1).mean(axis=1) / np.log(2)
    return result


def _mean_with_interval(values: NDArray[np.float64]) -> Figure:
    """Mean of the windows, with the 2.5th and 97.5th percentile of its bootstrap; repeatable."""
    generator = np.random.default_rng(0)
    resampled = values[generator.integers(0, len(values), (_NUM_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    mean = float(values.mean())
    return Figure(value=mean, origin="measured", low=min(float(low), mean), high=max(float(high), mean))
