"""Continuing a text: decoding with the past equals full recomputation, sampling follows the distribution."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.model import TransformerModel
from estimator.onnx_builder import build_onnx
from estimator.ort_session import make_inputs, open_session
from estimator.weights import random_weights
from nas.errors import DataError, UsageError
from nas.generate import generate

LLAMA = TransformerConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=48,
    sliding_window_per_layer=(None, 8, None),
    weight_source_per_layer=(0, 1, 1),
)
GPT2 = replace(
    LLAMA,
    position_embedding="learned",
    norm_type="layer_norm",
    gated_mlp=False,
    hidden_act="gelu_new",
    tie_word_embeddings=False,
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    sliding_window_per_layer=None,
    sliding_window=None,
)
ENCODER = TransformerConfig(
    architecture="encoder",
    vocab_size=257,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=48,
    head="masked_lm",
)
PROMPT = "def f(x):"


def _weights(config: TransformerConfig) -> dict[str, NDArray[np.float32]]:
    weights = random_weights(config, seed=3)
    return {name: weight * np.float32(8) if weight.ndim > 1 else weight for name, weight in weights.items()}


def _build(folder: Path, config: TransformerConfig) -> Path:
    return build_onnx(config, _weights(config), path=folder / "model.onnx").path


def _next_logits(path: Path, config: TransformerConfig, tokens: bytes) -> NDArray[np.float32]:
    """Logits of the byte after `tokens`, from one call over all of them."""
    inputs = make_inputs(config, batch_size=1, sequence_length=len(tokens))
    inputs["input_ids"] = np.frombuffer(tokens, np.uint8).astype(np.int64)[None]
    (logits,) = open_session(path, num_threads=1).run(["logits"], inputs)
    row: NDArray[np.float32] = logits[0, -1, :256]
    return row


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_generate_equals_full_recomputation(tmp_path: Path, config: TransformerConfig) -> None:
    """Every greedy byte is the one that a call over the whole text, and PyTorch's module, would choose."""
    path = _build(tmp_path, config)
    continuation = b"".join(generate(path, PROMPT, max_new_tokens=20, num_threads=1))
    model = TransformerModel(config).eval()
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in _weights(config).items()})
    text = PROMPT.encode()
    for byte in continuation:
        assert byte == _next_logits(path, config, text).argmax()
        with torch.no_grad():
            assert byte == int(model(torch.tensor([list(text)]))[0, -1, :256].argmax())
        text += bytes([byte])
    assert len(set(continuation)) > 3
    assert len(continuation) == 20


def test_generate_streams_single_bytes(tmp_path: Path) -> None:
    """Bytes come one at a time, before the rest is computed."""
    stream = generate(_build(tmp_path, LLAMA), PROMPT, max_new_tokens=5, num_threads=1)
    first = next(stream)
    assert len(first) == 1
    assert [len(piece) for piece in stream] == [1, 1, 1, 1]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_generate_stops_at_the_longest_position(tmp_path: Path, config: TransformerConfig) -> None:
    """Prompt and continuation together never exceed `max_position_embeddings`."""
    path = _build(tmp_path, config)
    assert len(list(generate(path, PROMPT, max_new_tokens=1_000, num_threads=1))) == 48 - len(PROMPT)
    assert list(generate(path, "x" * 48, max_new_tokens=1, num_threads=1)) == []


def test_generate_repeats_with_the_seed(tmp_path: Path) -> None:
    """Sampling at one seed gives one text, another seed another."""
    path = _build(tmp_path, LLAMA)
    texts = [
        b"".join(generate(path, PROMPT, max_new_tokens=20, temperature=1.0, seed=seed, num_threads=1))
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_generate_samples_from_the_softmax(tmp_path: Path) -> None:
    """Frequencies of 300 first bytes agree with softmax(logits / temperature) among the top 4 (chi-square, 99.9 %)."""
    path = _build(tmp_path, LLAMA)
    logits = _next_logits(path, LLAMA, PROMPT.encode()).astype(np.float64)
    top = np.argsort(-logits)[:4]
    weights = np.exp(logits[top] / 5.0 - logits[top].max() / 5.0)
    expected = dict(zip(top.tolist(), 300 * weights / weights.sum(), strict=True))
    drawn = Counter(
        next(generate(path, PROMPT, max_new_tokens=1, temperature=5.0, top_k=4, seed=seed, num_threads=1))[0]
        for seed in range(300)
    )
    assert set(drawn) <= set(expected)
    assert min(expected.values()) > 5
    assert sum((drawn[byte] - count) ** 2 / count for byte, count in expected.items()) < 16.27


def test_generate_with_top_k_one_is_greedy(tmp_path: Path) -> None:
    """Sampling among one candidate is choosing the likeliest."""
    path = _build(tmp_path, LLAMA)
    greedy = list(generate(path, PROMPT, max_new_tokens=12, num_threads=1))
    assert list(generate(path, PROMPT, max_new_tokens=12, temperature=2.0, top_k=1, num_threads=1)) == greedy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.5}, r"temperature must be 0 or a positive number, not -0\.5"),
        ({"temperature": float("nan")}, "temperature must be 0 or a positive number, not nan"),
        ({"top_k": 0}, "top_k must be from 1 to 256, not 0"),
        ({"top_k": 257}, "top_k must be from 1 to 256, not 257"),
        ({"seed": -1, "temperature": 1.0}, "seed must be 0 or more, not -1"),
    ],
)
def test_generate_refuses_arguments_out_of_range(tmp_path: Path, arguments: dict[str, float], words: str) -> None:
    """The message names the argument and its range, at the call and not at the first byte."""
    with pytest.raises(UsageError, match=words):
        generate(_build(tmp_path, LLAMA), PROMPT, **({"max_new_tokens": 5} | arguments))  # type: ignore[arg-type]


def test_generate_refuses_prompts_without_room(tmp_path: Path) -> None:
    """No prompt, or more than the model reads."""
    path = _build(tmp_path, LLAMA)
    with pytest.raises(DataError, match="the prompt is empty"):
        generate(path, "", max_new_tokens=5)
    with pytest.raises(DataError, match="the prompt has 50 bytes; this model reads at most 48"):
        generate(path, "ä" * 25, max_new_tokens=5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ENCODER, "an encoder cannot continue a text"),
        (replace(LLAMA, vocab_size=128), "does not predict bytes: head causal_lm, vocab_size 128"),
        (replace(LLAMA, head="none"), "does not predict bytes: head none"),
    ],
)
def test_generate_refuses_a_model_without_next_bytes(tmp_path: Path, config: TransformerConfig, words: str) -> None:
    """An encoder, a small vocabulary and a headless stack are named."""
    with pytest.raises(UsageError, match=words):
        generate(build_onnx(config, path=tmp_path / "model.onnx").path, PROMPT, max_new_tokens=5)
