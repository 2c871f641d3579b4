"""Trains one candidate from scratch on bytes: the same budget, schedule and seeds for every candidate.

A token is a byte; an encoder has one more, `MASK_TOKEN`. With a budget in tokens the weights repeat to the bit at a
fixed seed and thread count; with a budget in seconds the learning rate follows the clock.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.weights import weight_shapes
from nas.errors import EvaluationError
from nas.quality.corpus import Corpus
from nas.spec import QualitySettings

if TYPE_CHECKING:
    import torch

__all__ = [
    "IGNORED",
    "MASK_FRACTION",
    "MASK_TOKEN",
    "NUM_BYTES",
    "TrainedWeights",
    "check_trainable",
    "initial_weights",
    "learning_rate_factor",
    "mask_tokens",
    "train_weights",
]

_FEW_PARAMS = 2_000_000
NUM_BYTES = 256
MASK_TOKEN = 256
IGNORED = -100  # the target of a token that is not predicted; PyTorch's own default
MASK_FRACTION = 0.15  # Source: BERT, arXiv:1810.04805, section 3.1
WARM_UP_FRACTION = 0.05
FINAL_FRACTION = 0.1  # of the peak learning rate, at the end of the cosine
WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
MAX_GRADIENT_NORM = 1.0
REFERENCE_WIDTH = 64  # matrices with this many inputs learn at the learning rate as given
EMBEDDING_STD = 0.1
_CURVE_POINTS = 32
_REPORT_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedWeights:
    """Trained weights by the names of `weight_shapes`, fp32, and how the training went.

    learning_curve: pairs (tokens seen, mean training loss in nats per token since the pair before).
    final_loss: last loss of the curve.
    """

    weights: dict[str, NDArray[np.float32]]
    tokens: int
    seconds: float
    learning_curve: tuple[tuple[int, float], ...]
    final_loss: float


def check_trainable(config: TransformerConfig) -> None:
    """Refuses an architecture that cannot be trained and scored on bytes.

    Raises:
        EvaluationError: reason data; says which field would have to be what.
    """
    if config.head not in ("causal_lm", "masked_lm"):
        raise EvaluationError(f"head {config.head!r} predicts no text; causal_lm or masked_lm does", reason="data")
    least = NUM_BYTES if config.is_causal else NUM_BYTES + 1
    if config.vocab_size < least:
        raise EvaluationError(
            f"vocab_size {config.vocab_size} is too small for text as bytes; {config.head} needs {least} or more",
            reason="data",
        )


def train_weights(
    config: TransformerConfig,
    corpus: Corpus,
    settings: QualitySettings,
    *,
    num_threads: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> TrainedWeights:
    """Weights trained from scratch by AdamW with linear warm-up, cosine decay and gradient clipping.

    A decoder predicts the next byte, an encoder the masked ones. Sequences are cut at the config's longest position.
    `progress` gets the fraction of the budget that is spent, a few times a second.

    Raises:
        EvaluationError: reason numerics (the loss is not finite) or data (the config cannot predict bytes).
    """
    import torch

    from estimator.model import TransformerModel

    check_trainable(config)
    sequence_length = min(settings.sequence_length, config.max_position_embeddings)
    tokens_per_step = sequence_length * settings.batch_size
    batches = _batches(config, corpus, sequence_length, settings.batch_size, settings.seed)
    with _repeatable(num_threads or default_num_threads(config)):
        model = TransformerModel(config).train()
        model.load_state_dict({name: torch.from_numpy(w) for name, w in initial_weights(config, settings.seed).items()})
        optimizer = _optimizer(model)
        log = _Log(tokens_per_step, progress)
        for fraction, (input_ids, targets) in zip(_fractions(settings, tokens_per_step), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * group["scale"] * learning_rate_factor(fraction)
            log.add(fraction, _step(model, optimizer, input_ids, targets))
    return TrainedWeights(
        weights={name: tensor.detach().numpy() for name, tensor in model.state_dict().items()},
        tokens=log.tokens,
        seconds=log.seconds,
        learning_curve=tuple(log.curve),
        final_loss=log.curve[-1][1],
    )


def initial_weights(config: TransformerConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Weights by name to start from: matrices N(0, 1 / fan_in), embeddings N(0, 0.1), gains 1, biases 0.

    The last matrix of attention and of the feed-forward is 0, so that every layer starts as the identity.
    """
    generator = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in weight_shapes(config).items():
        if name.endswith((".bias", "o_proj.weight", "down_proj.weight")):
            weights[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        else:
            std = EMBEDDING_STD if name.startswith("embed_") else shape[1] ** -0.5
            weights[name] = generator.standard_normal(shape, dtype=np.float32) * np.float32(std)
    return weights


def default_num_threads(config: TransformerConfig) -> int:
    """Threads to train with: all cores for large models, one for small ones.

    The products of a small model are too short to share: two threads gain nothing on a quiet machine, and on a busy
    one they wait for each other at every step.
    """
    import torch

    num_params = sum(math.prod(shape) for shape in weight_shapes(config).values())
    return 1 if num_params < _FEW_PARAMS else torch.get_num_threads()


def learning_rate_factor(fraction: float) -> float:
    """Learning rate over its peak when `fraction` of the budget is spent: a line up, then a cosine down to a tenth."""
    if fraction < WARM_UP_FRACTION:
        return fraction / WARM_UP_FRACTION
    down = (fraction - WARM_UP_FRACTION) / (1 - WARM_UP_FRACTION)
    return FINAL_FRACTION + (1 - FINAL_FRACTION) * (1 + math.cos(math.pi * down)) / 2


def _fractions(settings: QualitySettings, tokens_per_step: int) -> Iterator[float]:
    """The fraction of the budget that each step brings to its end; there is at least one step."""
    if settings.seconds is None:
        assert settings.tokens is not None
        num_steps = max(1, math.ceil(settings.tokens / tokens_per_step))
        yield from ((step + 1) / num_steps for step in range(num_steps))
        return
    start_s, fraction = time.perf_counter(), 0.0
    while fraction < 1.0:
        fraction = min(1.0, (time.perf_counter() - start_s) / settings.seconds)
        yield fraction


def _batches(
    config: TransformerConfig, corpus: Corpus, sequence_length: int, batch_size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless input ids and targets, int64 [batch_size, sequence_length], from random places of the training text."""
    import torch

    generator = np.random.default_rng(seed)
    num_starts = corpus.train.size - sequence_length
    if num_starts < 1:
        raise EvaluationError(f"{corpus.name} has fewer than {sequence_length + 1} bytes to train on", reason="data")
    offsets = np.arange(sequence_length + 1)
    while True:
        starts = generator.integers(0, num_starts, batch_size)
        windows = corpus.train[starts[:, None] + offsets].astype(np.int64)
        if config.is_causal:
            input_ids, targets = windows[:, :-1], windows[:, 1:]
        else:
            input_ids, targets = mask_tokens(windows[:, :-1], generator)
        yield torch.from_numpy(np.ascontiguousarray(input_ids)), torch.from_numpy(np.ascontiguousarray(targets))


def mask_tokens(
    tokens: NDArray[np.int64], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens with `MASK_TOKEN` in 15 % of the places of each row, and targets: the token there, `IGNORED` elsewhere.

    Both are int64 [batch_size, sequence_length]. Every row has the same number of masked places, at least one.
    """
    num_masked = max(1, round(MASK_FRACTION * tokens.shape[1]))
    masked = generator.random(tokens.shape).argsort(axis=1) < num_masked
    return np.where(masked, MASK_TOKEN, tokens), np.where(masked, tokens, IGNORED)


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, and a learning rate that falls with the width of a matrix's input.

    Source: Tensor Programs V, arXiv:2203.03466, table 8: one learning rate then serves every width of a search.
    """
    import torch

    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        scale = REFERENCE_WIDTH / weight.shape[1] if weight.ndim > 1 and not name.startswith("embed_") else 1.0
        groups.setdefault((scale, WEIGHT_DECAY if weight.ndim > 1 else 0.0), []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights, "scale": scale, "weight_decay": decay} for (scale, decay), weights in groups.items()],
        betas=BETAS,
        fused=True,
    )


def _step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, input_ids: torch.Tensor, targets: torch.Tensor
) -> float:
    """One update; returns the loss before it, in nats per predicted token."""
    import torch

    logits = model(input_ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise EvaluationError(f"the training loss became {value}; a lower learning rate may help", reason="numerics")
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    optimizer.step()
    return value


@contextlib.contextmanager
def _repeatable(num_threads: int) -> Iterator[None]:
    """Deterministic algorithms and the thread count asked for, for the time of one training."""
    import torch

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


class _Log:
    """Learning curve, tokens and seconds of one training, and the reports on the way."""

    def __init__(self, tokens_per_step: int, progress: Callable[[float], None] | None) -> None:
        self.tokens = 0
        self.curve: list[tuple[int, float]] = []
        self._tokens_per_step = tokens_per_step
        self._progress = progress
        self._start_s = self._reported_s = time.perf_counter()
        self._losses: list[float] = []

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start_s

    def add(self, fraction: float, loss: float) -> None:
        self.tokens += self._tokens_per_step
        self._losses.append(loss)
        if fraction >= (len(self.curve) + 1) / _CURVE_POINTS:
            self.curve.append((self.tokens, float(np.mean(self._losses))))
            self._losses.clear()
        now_s = time.perf_counter()
        if self._progress is not None and (fraction == 1.0 or now_s - self._reported_s >= _REPORT_EVERY_S):
            self._reported_s = now_s
            self._progress(fraction)
