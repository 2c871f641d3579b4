"""The score of an ONNX file: equal to PyTorch's, exact where it has a closed form, refused where it has no meaning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from estimator.config import TransformerConfig
from estimator.errors import CorruptFileError
from estimator.model import TransformerModel
from estimator.onnx_builder import build_onnx
from estimator.weights import random_weights
from nas.errors import EvaluationError
from nas.quality.corpus import Corpus
from nas.quality.scoring import Quality, score_onnx
from nas.quality.training import IGNORED, mask_tokens
from nas.spec import QualitySettings

DECODER = TransformerConfig(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=48,
    max_position_embeddings=64,
)
ENCODER = TransformerConfig(
    architecture="encoder",
    vocab_size=257,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    head="masked_lm",
    position_embedding="learned",
    type_vocab_size=2,
)
SETTINGS = QualitySettings(sequence_length=32, heldout_tokens=4_096)
CORPUS = Corpus(
    name="noise",
    train=np.zeros(100, np.uint8),
    heldout=np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8),
    fingerprint="f" * 64,
    num_files=2,
    num_heldout_files=1,
    num_binary_files=0,
    num_duplicate_files=0,
)
Weights = Mapping[str, NDArray[np.float32]]


def _weights(config: TransformerConfig, scale: float = 6.0) -> dict[str, NDArray[np.float32]]:
    """Random matrices large enough that the logits are far from uniform."""
    weights = random_weights(config, seed=1)
    return {name: weight * np.float32(scale) if weight.ndim > 1 else weight for name, weight in weights.items()}


def _build(folder: Path, config: TransformerConfig, weights: Weights, weight_dtype: str = "fp32") -> Path:
    return build_onnx(config, weights, path=folder / f"{weight_dtype}.onnx", weight_dtype=weight_dtype).path


def _score(path: Path, settings: QualitySettings = SETTINGS, corpus: Corpus = CORPUS) -> Quality:
    return score_onnx(path, corpus, settings, num_threads=1)


def _torch_bits(config: TransformerConfig, weights: Weights, input_ids: np.ndarray, targets: np.ndarray) -> float:
    """Cross-entropy of the project's PyTorch module in bits per target, by PyTorch's own function."""
    model = TransformerModel(config).eval()
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    with torch.no_grad():
        logits = model(torch.from_numpy(input_ids.copy()))
    flat = torch.from_numpy(targets.copy()).flatten()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), flat, ignore_index=IGNORED)) / math.log(2)


def _evenly_spaced_windows(length: int, count: int) -> np.ndarray:
    """`count` windows of length + 1 bytes, the first at the beginning and the last at the end of the held-out text."""
    last = CORPUS.heldout.size - length - 1
    starts = [int(last * index / (count - 1)) for index in range(count)]
    return np.stack([CORPUS.heldout[start : start + length + 1] for start in starts]).astype(np.int64)


def test_score_onnx_equals_pytorch_for_a_decoder(tmp_path: Path) -> None:
    """128 windows of 32 next bytes: the file's score is the module's cross-entropy over ln 2."""
    weights = _weights(DECODER)
    quality = _score(_build(tmp_path, DECODER, weights))
    windows = _evenly_spaced_windows(32, 128)
    expected = _torch_bits(DECODER, weights, windows[:, :-1], windows[:, 1:])
    assert abs(expected - math.log2(300)) > 0.2
    assert quality.bits_per_byte.value == pytest.approx(expected, abs=1e-4)
    assert quality.tokens_scored == 4_096
    assert quality.metric == "bits_per_byte"


def test_score_onnx_equals_pytorch_for_an_encoder(tmp_path: Path) -> None:
    """Only masked bytes count; the mask is that of the seed, for every candidate."""
    weights = _weights(ENCODER)
    quality = _score(_build(tmp_path, ENCODER, weights))
    tokens = _evenly_spaced_windows(32, 128)[:, :-1]
    input_ids, targets = mask_tokens(tokens, np.random.default_rng(SETTINGS.seed))
    assert quality.bits_per_byte.value == pytest.approx(_torch_bits(ENCODER, weights, input_ids, targets), abs=1e-4)
    assert quality.tokens_scored == 128 * 5
    assert quality.metric == "masked_bits_per_byte"


@pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])
def test_score_onnx_gives_log2_of_the_vocabulary_for_uniform_logits(tmp_path: Path, config: TransformerConfig) -> None:
    """A file that knows nothing needs log2(vocab_size) bits, in every window: the interval has no width."""
    figure = _score(_build(tmp_path, config, _weights(config, scale=0.0))).bits_per_byte
    assert figure.value == pytest.approx(math.log2(config.vocab_size), abs=1e-12)
    assert (figure.low, figure.high) == pytest.approx((figure.value, figure.value), abs=1e-12)
    assert figure.origin == "measured"


def test_score_onnx_of_int8_is_close_to_fp32(tmp_path: Path) -> None:
    """Quantisation moves the score a little: the int8 file itself is run."""
    weights = _weights(DECODER)
    fp32 = _score(_build(tmp_path, DECODER, weights)).bits_per_byte.value
    int8 = _score(_build(tmp_path, DECODER, weights, "int8")).bits_per_byte.value
    assert int8 != fp32
    assert int8 == pytest.approx(fp32, abs=0.1)


def test_score_onnx_repeats(tmp_path: Path) -> None:
    """Two runs differ in nothing but their cost."""
    path = _build(tmp_path, DECODER, _weights(DECODER))
    first, second = _score(path), _score(path)
    assert replace(first, cost_s=0.0) == replace(second, cost_s=0.0)
    assert first.data_fingerprint == CORPUS.fingerprint
    assert first.cost_s > 0


def test_score_onnx_interval_narrows_with_the_square_root_of_the_windows(tmp_path: Path) -> None:
    """Sixteen times the windows give a quarter of the width, and the interval holds the value."""
    path = _build(tmp_path, DECODER, _weights(DECODER))
    widths = []
    for heldout_tokens in (512, 8_192):
        figure = _score(path, replace(SETTINGS, heldout_tokens=heldout_tokens)).bits_per_byte
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
        widths.append(figure.high - figure.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"heldout_tokens": 320}, 320),
        ({"heldout_tokens": 10**9}, 9_984),
        ({"sequence_length": 1_000, "heldout_tokens": 640}, 640),
        ({"heldout_tokens": 1}, 32),
    ],
)
def test_score_onnx_scores_what_is_asked_and_there(tmp_path: Path, change: dict[str, int], expected: int) -> None:
    """Whole windows up to `heldout_tokens`, all there are at most, cut at the model's longest position."""
    quality = _score(_build(tmp_path, DECODER, _weights(DECODER)), replace(SETTINGS, **change))
    assert quality.tokens_scored == expected


def test_score_onnx_masks_otherwise_with_another_seed(tmp_path: Path) -> None:
    """The seed chooses an encoder's masks."""
    path = _build(tmp_path, ENCODER, _weights(ENCODER))
    assert _score(path).bits_per_byte != _score(path, replace(SETTINGS, seed=1)).bits_per_byte


def test_score_onnx_refuses_a_vocabulary_smaller_than_a_byte(tmp_path: Path) -> None:
    """The message names the size and what would be right."""
    config = replace(DECODER, vocab_size=128)
    with pytest.raises(EvaluationError, match="vocab_size 128 is too small for text as bytes") as caught:
        _score(_build(tmp_path, config, random_weights(config)))
    assert caught.value.reason == "data"


def test_score_onnx_refuses_text_shorter_than_a_window(tmp_path: Path) -> None:
    """The message says how many bytes one window needs."""
    corpus = replace(CORPUS, heldout=CORPUS.heldout[:32])
    with pytest.raises(EvaluationError, match="noise has fewer than 33 held-out bytes") as caught:
        _score(_build(tmp_path, DECODER, _weights(DECODER)), corpus=corpus)
    assert caught.value.reason == "data"


def test_score_onnx_names_logits_that_are_not_finite(tmp_path: Path) -> None:
    """A model that overflows is a failed candidate, not a NaN in the store."""
    weights = _weights(DECODER)
    weights["norm.weight"] = np.full_like(weights["norm.weight"], 3e38)
    with pytest.raises(EvaluationError, match="logits that are not finite") as caught:
        _score(_build(tmp_path, DECODER, weights))
    assert caught.value.reason == "numerics"


def test_score_onnx_names_a_corrupt_file(tmp_path: Path) -> None:
    """A file that is no ONNX model is named."""
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(CorruptFileError, match=r"broken\.onnx"):
        _score(path)


def test_quality_round_trips_through_json(tmp_path: Path) -> None:
    """What is stored is what was scored; keys added beside it do not disturb."""
    quality = _score(_build(tmp_path, DECODER, _weights(DECODER)))
    document = json.loads(json.dumps(quality.to_dict() | {"training": {"tokens": 1}}))
    assert Quality.from_dict(document) == quality
