"""A user's own evaluator: how it is found, called and held to its promise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from estimator.config import TransformerConfig
from estimator.onnx_builder import build_onnx
from nas.errors import EvaluationError, UsageError
from nas.quality.plugin import evaluate_with_plugin, load_evaluator

CONFIG = TransformerConfig(
    vocab_size=256,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
)


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the current folder and returns its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> str:
        name = f"evaluator_of_{tmp_path.name}"
        Path(f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return config.hidden_size / 10", {"bits_per_byte": 3.2}),
        ("return {'accuracy': 0.5, 'loss': 2}", {"accuracy": 0.5, "loss": 2.0}),
        ("import numpy; return {'loss': numpy.float32(0.25)}", {"loss": 0.25}),
        ("return {onnx_path: 1.0}", {"model.onnx": 1.0}),
    ],
)
def test_evaluate_with_plugin_returns_measured_figures(
    write_module: Callable[[str], str], body: str, expected: dict[str, float]
) -> None:
    """A number is bits per byte, a dict is taken by objective; the function sees the config and the file."""
    module = write_module(f"def score(config, onnx_path):\n    {body}\n")
    figures = evaluate_with_plugin(f"{module}:score", CONFIG, Path("model.onnx"))
    assert {name: figure.value for name, figure in figures.items()} == expected
    assert {figure.origin for figure in figures.values()} == {"measured"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("score", "not of the form module:function"),
        (":score", "not of the form module:function"),
        ("MODULE:", "not of the form module:function"),
        ("no_such_module_here:score", "no module no_such_module_here in .* or among the installed packages"),
        ("MODULE:other", "module MODULE has no function other"),
        ("MODULE:NUMBER", "module MODULE has no function NUMBER"),
    ],
)
def test_load_evaluator_names_what_is_missing(write_module: Callable[[str], str], name: str, words: str) -> None:
    """A wrong name is wrong usage: one line, exit code 2."""
    module = write_module("NUMBER = 3\ndef score(config, onnx_path):\n    return 1.0\n")
    with pytest.raises(UsageError, match=words.replace("MODULE", module)) as caught:
        load_evaluator(name.replace("MODULE", module))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_dependency\n", "cannot be imported: ModuleNotFoundError: .*no_such_dependency"),
        ("def score(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_load_evaluator_names_why_a_module_fails(write_module: Callable[[str], str], text: str, words: str) -> None:
    """A module that is there but broken is told apart from one that is missing."""
    with pytest.raises(UsageError, match=words):
        load_evaluator(f"{write_module(text)}:score")


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        ("raise ValueError('no labels')", "crash", "raised ValueError: no labels"),
        ("return float('nan')", "numerics", "returned nan for bits_per_byte"),
        ("return {'loss': float('inf')}", "numerics", "returned inf for loss"),
        ("return None", "crash", "returned None for bits_per_byte; a number is needed"),
        ("return '3.2'", "crash", "returned '3.2' for bits_per_byte; a number is needed"),
        ("return {}", "crash", "returned an empty dict"),
        ("return {3: 1.0}", "crash", "returned 3 where a name belongs"),
        ("return {'params': 3}", "crash", "returned params, which Archfront counts or measures itself"),
    ],
)
def test_evaluate_with_plugin_fails_the_candidate(
    write_module: Callable[[str], str], body: str, reason: str, words: str
) -> None:
    """What the function does wrong fails the trial, with its reason and the evaluator's name."""
    module = write_module(f"def score(config, onnx_path):\n    {body}\n")
    with pytest.raises(EvaluationError, match=words) as caught:
        evaluate_with_plugin(f"{module}:score", CONFIG, "model.onnx")
    assert caught.value.reason == reason
    assert f"{module}:score" in str(caught.value)


def test_documented_evaluator_runs(write_module: Callable[[str], str], tmp_path: Path) -> None:
    """The example of the how-to page scores a real file."""
    page = Path(__file__).parents[2] / "docs" / "howto" / "own-evaluator.md"
    module = write_module(page.read_text().split("```python\n")[1].split("```")[0])
    artifact = build_onnx(CONFIG, path=tmp_path / "model.onnx")
    figures = evaluate_with_plugin(f"{module}:score", CONFIG, artifact.path)
    assert set(figures) == {"bits_per_byte"}
    assert 0 < figures["bits_per_byte"].value < 8
