"""The families that are read twice: as a network, and as a config to build from."""

from __future__ import annotations

import pytest

from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes, count_weight_bytes
from estimator.params import count_params
from estimator.readers.source import bundled_models, read_bundled
from estimator.weights import network_of
from estimator.workload import Workload

BUILDABLE = [name for name in bundled_models() if read_bundled(name).buildable is not None]
WORKLOADS = (
    Workload(batch_size=2, prompt_length=300, generated_length=7000),
    Workload(prompt_length=64, weight_dtype="int8", activation_dtype="bf16", kv_cache_dtype="bf16"),
    Workload(prompt_length=5000, weight_dtype="int4"),
)


@pytest.mark.parametrize("name", BUILDABLE)
def test_network_and_config_agree(name: str) -> None:
    """Parameters, weight bytes, cache and FLOPs are the same whichever of the two is counted."""
    source = read_bundled(name)
    built = network_of(source.config)
    ours, theirs = count_params(built), count_params(source.network)
    assert (ours.total, ours.embedding, ours.by_part) == (theirs.total, theirs.embedding, theirs.by_part)
    for workload in WORKLOADS:
        assert count_weight_bytes(built, workload) == count_weight_bytes(source.network, workload)
        assert count_kv_cache_bytes(built, workload) == count_kv_cache_bytes(source.network, workload)
        assert count_flops(built, workload) == count_flops(source.network, workload)


def test_all_six_families_are_among_them() -> None:
    """Nothing is skipped without notice."""
    types = {read_bundled(name).network.model_type for name in BUILDABLE}
    assert {"llama", "mistral", "qwen2", "qwen3", "gpt2", "bert"} <= types
