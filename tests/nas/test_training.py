"""Training: it learns, it repeats, it keeps its budget and it refuses what cannot be trained."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from estimator.config import TransformerConfig
from estimator.weights import weight_shapes
from nas.errors import EvaluationError
from nas.quality.corpus import Corpus
from nas.quality.training import (
    IGNORED,
    MASK_TOKEN,
    TrainedWeights,
    initial_weights,
    learning_rate_factor,
    mask_tokens,
    train_weights,
)
from nas.spec import QualitySettings

DECODER = TransformerConfig(
    vocab_size=256,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=48,
    max_position_embeddings=32,
)
ENCODER = TransformerConfig(
    architecture="encoder",
    vocab_size=257,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=32,
    head="masked_lm",
    hidden_act="gelu",
    gated_mlp=False,
    norm_type="layer_norm",
    norm_placement="post",
    position_embedding="learned",
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    embedding_norm=True,
    type_vocab_size=2,
)
SETTINGS = QualitySettings(tokens=8_192, sequence_length=32, batch_size=8, heldout_tokens=1_024)


def _corpus(text: bytes = b"abcdefghij" * 400) -> Corpus:
    array = np.frombuffer(text, np.uint8)
    return Corpus(
        name="letters",
        train=array[: len(text) // 2],
        heldout=array[len(text) // 2 :],
        fingerprint="0" * 64,
        num_files=1,
        num_heldout_files=1,
        num_binary_files=0,
        num_duplicate_files=0,
    )


def _train(config: TransformerConfig, **changes: object) -> TrainedWeights:
    return train_weights(config, _corpus(), replace(SETTINGS, **changes), num_threads=1)


def _is_equal(a: TrainedWeights, b: TrainedWeights) -> bool:
    return all(a.weights[name].tobytes() == b.weights[name].tobytes() for name in a.weights)


@pytest.mark.parametrize(("config", "tokens"), [(DECODER, 32_768), (ENCODER, 131_072)], ids=["decoder", "encoder"])
def test_train_weights_learns_a_repeating_text(config: TransformerConfig, tokens: int) -> None:
    """Ten letters in a fixed order: the loss falls from about ln 256 to half of ln 10, which needs the context."""
    trained = _train(config, tokens=tokens)
    first, last = trained.learning_curve[0][1], trained.learning_curve[-1][1]
    assert first > 3.0
    assert last == trained.final_loss
    assert last < math.log(10) / 2


@pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_train_weights_returns_every_weight_by_name(config: TransformerConfig) -> None:
    """Names and shapes are those of `weight_shapes`, in fp32, and all matrices have moved."""
    trained = _train(config)
    assert {name: weight.shape for name, weight in trained.weights.items()} == weight_shapes(config)
    assert {weight.dtype for weight in trained.weights.values()} == {np.dtype(np.float32)}
    start = initial_weights(config, SETTINGS.seed)
    assert all((trained.weights[name] != start[name]).any() for name in start)


def test_train_weights_repeats_to_the_bit() -> None:
    """The same seed and thread count give the same weights, whatever happened to PyTorch's own generator before."""
    first = _train(DECODER)
    torch.manual_seed(99)
    assert _is_equal(first, _train(DECODER))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"learning_rate": 1e-3}, {"batch_size": 4}, {"sequence_length": 16}, {"tokens": 4_096}],
    ids=lambda change: next(iter(change)),
)
def test_train_weights_depends_on_every_setting(change: dict[str, object]) -> None:
    """No option is accepted and ignored."""
    assert not _is_equal(_train(DECODER), _train(DECODER, **change))


@pytest.mark.parametrize(("tokens", "expected"), [(8_192, 8_192), (8_193, 8_448), (1, 256)])
def test_train_weights_spends_the_tokens_rounded_up_to_a_step(tokens: int, expected: int) -> None:
    """A step of 8 sequences of 32 tokens is 256 tokens; there is at least one."""
    trained = _train(DECODER, tokens=tokens)
    assert trained.tokens == expected == trained.learning_curve[-1][0]


def test_train_weights_follows_the_clock_when_the_budget_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once per look, a budget of ticks sets the number of steps."""
    clock = itertools.count()
    monkeypatch.setattr("nas.quality.training.time.perf_counter", lambda: float(next(clock)))
    short = _train(DECODER, tokens=None, seconds=20.0)
    long = _train(DECODER, tokens=None, seconds=40.0)
    assert 256 < short.tokens < long.tokens <= 40 * 256
    assert long.learning_curve[-1][0] == long.tokens


def test_train_weights_cuts_sequences_at_the_longest_position() -> None:
    """A model of 32 positions trains on sequences of 32 when more are asked for."""
    assert _is_equal(_train(DECODER, sequence_length=32), _train(DECODER, sequence_length=128))


def test_train_weights_reports_progress_up_to_the_end() -> None:
    """The fraction never falls and ends at 1."""
    seen: list[float] = []
    train_weights(DECODER, _corpus(), SETTINGS, num_threads=1, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_train_weights_leaves_pytorch_as_it_was() -> None:
    """Thread count and determinism are set for the training alone."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    train_weights(DECODER, _corpus(), replace(SETTINGS, tokens=1), num_threads=before[0] + 1)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_train_weights_names_a_loss_that_is_not_finite() -> None:
    """A learning rate that blows up is a failed candidate, not a NaN in the store."""
    with pytest.raises(EvaluationError, match="the training loss became") as caught:
        _train(DECODER, learning_rate=1e30)
    assert caught.value.reason == "numerics"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(DECODER, vocab_size=255), "vocab_size 255 is too small for text as bytes; causal_lm needs 256"),
        (replace(ENCODER, vocab_size=256), "vocab_size 256 is too small for text as bytes; masked_lm needs 257"),
        (replace(ENCODER, head="pooler"), "head 'pooler' predicts no text"),
    ],
)
def test_train_weights_refuses_a_model_without_bytes(config: TransformerConfig, words: str) -> None:
    """The message names the field and what would be right."""
    with pytest.raises(EvaluationError, match=words) as caught:
        _train(config)
    assert caught.value.reason == "data"


def test_train_weights_refuses_text_shorter_than_a_sequence() -> None:
    """The message says how many bytes one sequence needs."""
    with pytest.raises(EvaluationError, match="letters has fewer than 33 bytes to train on") as caught:
        train_weights(DECODER, _corpus(b"x" * 64), SETTINGS, num_threads=1)
    assert caught.value.reason == "data"


def test_train_weights_never_reads_heldout_text() -> None:
    """Other held-out bytes change nothing."""
    corpus = _corpus()
    other = replace(corpus, heldout=np.zeros_like(corpus.heldout))
    assert _is_equal(
        train_weights(DECODER, corpus, SETTINGS, num_threads=1), train_weights(DECODER, other, SETTINGS, num_threads=1)
    )


def test_learning_rate_factor_warms_up_then_falls_to_a_tenth() -> None:
    """A line from 0 to 1 over the first 5 %, half a cosine down to 0.1: closed forms."""
    assert learning_rate_factor(0.0) == 0.0
    assert learning_rate_factor(0.025) == pytest.approx(0.5)
    assert learning_rate_factor(0.05) == pytest.approx(1.0)
    assert learning_rate_factor(0.525) == pytest.approx(0.55)
    assert learning_rate_factor(1.0) == pytest.approx(0.1)


def test_initial_weights_start_every_layer_as_the_identity() -> None:
    """The last matrices of attention and feed-forward are 0; the others keep the variance of their input."""
    weights = initial_weights(replace(DECODER, hidden_size=256, intermediate_size=256), seed=0)
    assert not weights["layers.0.self_attn.o_proj.weight"].any()
    assert not weights["layers.1.mlp.down_proj.weight"].any()
    assert weights["layers.0.mlp.up_proj.weight"].std() == pytest.approx(1 / 16, rel=0.02)
    assert weights["embed_tokens.weight"].std() == pytest.approx(0.1, rel=0.02)
    assert (weights["norm.weight"] == 1).all()


def test_mask_tokens_hides_the_same_number_in_every_row() -> None:
    """15 % of 40 places are 6; targets are the hidden tokens, everything else is ignored."""
    tokens = np.random.default_rng(0).integers(0, 256, (50, 40))
    masked, targets = mask_tokens(tokens, np.random.default_rng(1))
    hidden = masked == MASK_TOKEN
    assert (hidden.sum(axis=1) == 6).all()
    assert (targets[hidden] == tokens[hidden]).all()
    assert (targets[~hidden] == IGNORED).all()
    assert (masked[~hidden] == tokens[~hidden]).all()
    assert (hidden.mean(axis=0) > 0).all()
