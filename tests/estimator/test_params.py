"""count_params: published counts, closed forms and properties. transformers is the judge in test_readers.py."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from pathlib import Path

import pytest

from estimator.config import TransformerConfig
from estimator.params import ALWAYS_SHOWN, count_params
from estimator.readers.source import read_source
from estimator.weights import weight_shapes

GOLDEN = Path(__file__).parents[2] / "estimator" / "reference"
TRUTH = list(csv.DictReader((GOLDEN / "params_truth.tsv").read_text("utf-8").splitlines(), delimiter="\t"))


@pytest.mark.parametrize("row", [row for row in TRUTH if row["params"]], ids=lambda row: row["config"])
def test_count_equals_the_truth_table(row):
    """Every public config that the readers cover has exactly its published count and class."""
    source = read_source(GOLDEN / "configs" / f"{row['config']}.json")
    assert count_params(source.network).total == int(row["params"])
    assert source.hf_class == row["class"]


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_241_732_096),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_bundled_model_has_its_published_count(name, total):
    """Counts as published on the model cards."""
    assert count_params(read_source(name).network).total == total


def test_llama_block_by_hand(small):
    """V=100 D=64 N=4 K=2 H=16 F=96, 2 layers, untied.

    embedding 100*64 = 6400; head the same; attention 64*64 + 2*32*64 + 64*64 = 12288; gated MLP 3*64*96 = 18432;
    norms 2*64 a layer + 64.
    """
    assert count_params(small).by_part == {
        "embedding": 6400,
        "attention": 2 * 12288,
        "feed_forward": 2 * 18432,
        "norm": 2 * 128 + 64,
        "head": 6400,
    }


def test_parts_sum_to_the_total(random_configs):
    """The parts are a partition; embedding and non-embedding too."""
    for config in random_configs:
        count = count_params(config)
        assert tuple(count.by_part) == ALWAYS_SHOWN
        assert sum(count.by_part.values()) == count.total == count.active
        assert count.embedding + count.non_embedding == count.total
        assert count.total == sum(math.prod(shape) for shape in weight_shapes(config).values())


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "head_dim"])
def test_count_grows_with_every_size(small, field):
    """More of anything is more parameters."""
    grown = dataclasses.replace(small, **{field: getattr(small, field) + 2})
    assert count_params(grown).total > count_params(small).total


def test_count_is_linear_in_layers(small):
    """Each layer adds the same."""
    counts = [count_params(dataclasses.replace(small, num_hidden_layers=n)).total for n in (1, 2, 3, 4)]
    assert len({b - a for a, b in itertools.pairwise(counts)}) == 1


def test_tying_saves_vocabulary_times_width(small):
    """A tied head costs nothing of its own."""
    tied = dataclasses.replace(small, tie_word_embeddings=True)
    assert count_params(small).total - count_params(tied).total == small.vocab_size * small.hidden_size


def test_sharing_all_layers_leaves_one(small):
    """A stack that reuses its first layer has the parameters of one layer."""
    shared = dataclasses.replace(small, num_hidden_layers=4, weight_source_per_layer=(0, 0, 0, 0))
    assert count_params(shared).total == count_params(dataclasses.replace(small, num_hidden_layers=1)).total


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"attention_output_bias": True},
        {"mlp_bias": True},
        {"qk_norm": True},
        {"embedding_norm": True},
        {"type_vocab_size": 2},
        {"norm_type": "layer_norm"},
        {"position_embedding": "learned"},
        {"gated_mlp": False},
        {"norm_placement": "post"},
        {"head": "none"},
        {"num_key_value_heads": 4},
        {"intermediate_size_per_layer": (96, 97)},
    ],
)
def test_every_option_changes_the_count(small, changes):
    """No switch is accepted and then not counted."""
    assert count_params(dataclasses.replace(small, **changes)).total != count_params(small).total


def test_masked_lm_head_by_hand():
    """BERT's head: dense D*D + D, layer norm 2*D, bias V; the projection is the token table."""
    base = {
        "architecture": "encoder",
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 10,
        "norm_type": "layer_norm",
    }
    bare = count_params(TransformerConfig(**base, head="none"))
    masked = count_params(TransformerConfig(**base, head="masked_lm"))
    assert masked.total - bare.total == 8 * 8 + 8 + 2 * 8 + 50
    assert masked.by_part["head"] == 8 * 8 + 8 + 50
