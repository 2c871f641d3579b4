"""Bundled models: every name has a total that was counted outside of this project."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from estimator.params import count_params
from estimator.readers.source import bundled_models, read_source
from estimator.sizing import estimate
from estimator.workload import Workload

PACKAGE = Path(__file__).parents[2] / "estimator"
ROWS = list(
    csv.DictReader((PACKAGE / "reference" / "bundled_models.tsv").read_text("utf-8").splitlines(), delimiter="\t")
)
# Totals that the models are known by, each where it was published.
ARTICLES = {
    "gpt2": (124_439_808, "Radford et al. 2019, as counted with tied weights"),
    "gpt2-xl": (1_557_611_200, "Radford et al. 2019, 1.5 billion"),
    "gpt-3-175b": (174_604_259_328, "Brown et al., arXiv:2005.14165, table 2.1, 175 billion"),
    "bert-large-uncased": (335_141_888, "Devlin et al., arXiv:1810.04805, 340 million, without heads"),
    "t5-11b": (11_307_321_344, "Raffel et al., arXiv:1910.10683, 11 billion"),
    "llama-65b": (65_285_660_672, "Touvron et al., arXiv:2302.13971, 65.2 billion"),
    "mixtral-8x7b": (46_702_792_704, "Jiang et al., arXiv:2401.04088, 47 billion"),
}


def test_every_name_has_an_outside_count():
    """At least 80 names, and the table has exactly those."""
    assert tuple(row["model"] for row in ROWS) == bundled_models()
    assert len(ROWS) >= 80


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["model"])
def test_bundled_model_has_its_counted_total(row):
    """Equal to transformers 5.24 on the meta device, by the class that the config names."""
    source = read_source(row["model"])
    assert count_params(source.network).total == int(row["params"])
    assert source.hf_class == row["class"]


@pytest.mark.parametrize("name", ARTICLES)
def test_models_of_articles_have_their_published_totals(name):
    """The numbers that papers round."""
    assert count_params(read_source(name).network).total == ARTICLES[name][0]


def test_bundled_configs_are_sized_in_both_phases():
    """Each one gives an estimate with FLOPs, and decodes if it generates."""
    for name in bundled_models():
        network = read_source(name).network
        result = estimate(network, Workload(prompt_length=8, generated_length=2, num_images=0))
        assert result.compute.prefill_flops > 0
        assert (result.compute.decode_flops_per_token is not None) == network.is_causal
        json.dumps(result.to_dict())


def test_bundled_names_are_lower_case_and_files_are_plain():
    """Names are found in any case; no file says where it was downloaded to or by which version."""
    for name in bundled_models():
        assert name == name.lower()
        text = (PACKAGE / "models" / f"{name}.json").read_text("utf-8")
        assert len(text) < 20_000
        assert json.loads(text)["architectures"]
