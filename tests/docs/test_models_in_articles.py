"""docs/models-in-articles.md says what the commands print."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def writer():
    path = ROOT / "tools" / "write_models_in_articles.py"
    spec = importlib.util.spec_from_file_location("write_models_in_articles", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_what_the_commands_print(writer):
    """Written again, it is the same; if not: python tools/write_models_in_articles.py."""
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page()


def test_page_reproduces_the_articles(writer):
    """Counts within 7 % of what articles round to, and GPT-3's training within 0.2 %."""
    words = {"billion": 1e9, "million": 1e6}
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[2:] for line in writer.page().splitlines() if "GB |" in line
    }
    for model, article, *_ in writer.SIZES:
        number, word = article.split()
        counted = int(rows[model][1].replace(",", ""))
        assert counted == pytest.approx(float(number) * words[word], rel=0.07)
    text = writer.page()
    for shown in ("3,638", "14.79", "1,288 MWh", "552.7 t"):
        assert shown in text
