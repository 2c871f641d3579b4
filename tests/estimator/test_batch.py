"""estimate_batch: the same numbers as estimate, for every row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.batch import columns_from_configs, estimate_batch
from estimator.config import TransformerConfig
from estimator.errors import ConfigError, InputError
from estimator.runtimes import RUNTIMES
from estimator.sizing import estimate
from estimator.weight_formats import weight_format
from estimator.workload import FLOAT_DTYPES, KV_DTYPES, LOGITS, WEIGHT_DTYPES, Workload

NAMES = ("params", "weights_bytes", "kv_cache_bytes", "total_bytes", "prefill_flops", "decode_flops_per_token")
SIZES = {
    "vocab_size": 100,
    "hidden_size": np.array([64, 32, 48]),
    "num_hidden_layers": np.array([2, 4, 1]),
    "num_attention_heads": 4,
    "intermediate_size": np.array([96, 10, 200]),
    "max_position_embeddings": 128,
}


def scalar_row(config, workload):
    """The figures of `estimate` in the order of NAMES; an encoder decodes 0 FLOPs."""
    result = estimate(config, workload)
    return (
        result.params.total,
        result.memory.weights_bytes,
        result.memory.kv_cache_bytes,
        result.memory.total_bytes,
        result.compute.prefill_flops,
        result.compute.decode_flops_per_token or 0,
    )


def assert_rows_equal(configs, columns, workload):
    batch = estimate_batch(columns, workload)
    for index, config in enumerate(configs):
        assert tuple(int(getattr(batch, name)[index]) for name in NAMES) == scalar_row(config, workload), config


FORMATS = [None, ("int4", "128", True), ("int4", "channel", False), ("int8", "tensor", True), ("fp8", "128x128", False)]


@st.composite
def workloads(draw):
    """Any workload, with every way to run and to store."""
    runtime = draw(st.sampled_from([None, *RUNTIMES]))
    block = draw(st.sampled_from(FORMATS))
    cache = draw(st.sampled_from(KV_DTYPES))
    return Workload(
        batch_size=draw(st.integers(1, 5)),
        prompt_length=draw(st.integers(1, 80)),
        generated_length=draw(st.integers(0, 30)),
        weight_dtype=block[0] if block else draw(st.sampled_from(WEIGHT_DTYPES)),
        weight_format=weight_format(*block) if block else None,
        activation_dtype=draw(st.sampled_from(FLOAT_DTYPES)),
        kv_cache_dtype=cache,
        kv_scales=None if cache in FLOAT_DTYPES else draw(st.sampled_from([None, "head", "token"])),
        attention=draw(st.sampled_from([None, *RUNTIMES[runtime or "onnxruntime-cpu"].attentions])),
        logits=draw(st.sampled_from(LOGITS)),
        runtime=runtime,
    )


@settings(max_examples=25, deadline=None)
@given(workload=workloads())
def test_every_row_equals_the_scalar_estimate(random_configs, workload):
    """120 configs that mix every option, under any workload."""
    assert_rows_equal(random_configs, columns_from_configs(random_configs), workload)


def test_omitted_columns_have_the_defaults_of_a_config():
    """Only the sizes are given; single values stand for all rows."""
    configs = [
        TransformerConfig(
            **{name: int(np.broadcast_to(column, 3)[row]) for name, column in SIZES.items()},
        )
        for row in range(3)
    ]
    assert_rows_equal(configs, SIZES, Workload())


def test_padding_of_shorter_rows_is_ignored():
    """Entries beyond a row's layers may hold anything."""
    widths = np.array([[96, 40, -7, 0], [10, 20, 30, 40], [200, 2**40, 5, 5]])
    columns = SIZES | {"intermediate_size_per_layer": widths}
    configs = [
        TransformerConfig(
            **{name: int(np.broadcast_to(column, 3)[row]) for name, column in SIZES.items()},
            intermediate_size_per_layer=tuple(int(w) for w in widths[row, : SIZES["num_hidden_layers"][row]]),
        )
        for row in range(3)
    ]
    assert_rows_equal(configs, columns, Workload(weight_dtype="int8"))


def test_chains_of_shared_layers_end_at_the_owner():
    """Raw columns may hold chains, which a config follows when it is made."""
    sources, widths = (0, 0, 1, 2, 3, 5), (8, 16, 24, 32, 40, 48)
    columns = SIZES | {
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "intermediate_size": 8,
        "weight_source_per_layer": np.array([sources]),
        "intermediate_size_per_layer": np.array([widths]),
    }
    config = TransformerConfig(
        **{name: int(np.max(column)) for name, column in columns.items() if not name.endswith("_per_layer")},
        weight_source_per_layer=sources,
        intermediate_size_per_layer=widths,
    )
    assert_rows_equal([config], columns, Workload())


def test_real_sizes_do_not_overflow():
    """A 405-billion-parameter model with 131,072 tokens is exact in 64 bits."""
    big = TransformerConfig(
        vocab_size=128256,
        hidden_size=16384,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        intermediate_size=53248,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    )
    assert_rows_equal([big], columns_from_configs([big]), Workload(prompt_length=131072))


def test_no_rows_give_no_numbers():
    """An empty batch is answered with empty arrays."""
    empty = {name: np.zeros(0, np.int64) for name in SIZES}
    assert len(estimate_batch(empty).params) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"n_layer": 3}, "n_layer"),
        ({"hidden_size": np.array([64.0, 1, 2])}, "hidden_size"),
        ({"hidden_size": np.array([64, 0, 48])}, "hidden_size"),
        ({"hidden_size": np.array([64, 30, 48])}, "num_attention_heads"),
        ({"num_key_value_heads": np.array([4, 3, 1])}, "num_key_value_heads"),
        ({"vocab_size": np.array([1, 2])}, "vocab_size"),
        ({"head_dim": np.array([16, 15, 16])}, "head_dim"),
        ({"norm_type": "batch_norm"}, "norm_type"),
        ({"gated_mlp": np.array([1, 0, 1])}, "gated_mlp"),
        ({"head": "pooler"}, "head"),
        ({"intermediate_size_per_layer": np.ones((3, 2), int)}, "intermediate_size_per_layer"),
        ({"intermediate_size_per_layer": np.zeros((3, 4), int)}, "intermediate_size"),
        ({"weight_source_per_layer": np.array([[0, 1, 0, 0], [0, 1, 3, 3], [0, 0, 0, 0]])}, "weight_source_per_layer"),
    ],
)
def test_impossible_columns_are_refused_by_name(changes, field):
    """What a config would refuse, a column refuses too."""
    with pytest.raises(ConfigError) as caught:
        estimate_batch(SIZES | changes)
    assert caught.value.field == field


def test_missing_column_is_named():
    """A size without a default must be given."""
    with pytest.raises(ConfigError, match="vocab_size"):
        estimate_batch({name: column for name, column in SIZES.items() if name != "vocab_size"})


def test_counts_beyond_64_bits_are_refused():
    """Wrong numbers never come back in silence."""
    with pytest.raises(InputError, match="64 bits"):
        estimate_batch(SIZES | {"intermediate_size": 2**31 - 1}, Workload(batch_size=2**30, prompt_length=2**20))
