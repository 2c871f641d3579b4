"""Damaged config.json files of every family: they are sized or refused in one line, and stay small and quick.

benchmarks/fuzz_readers.py runs the same with more configs, and with the largest ones that the limits allow.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_configs import config_outcome, good_config, mutate_config
from benchmarks.fuzz_readers import LIMIT_BYTES
from estimator.errors import ConfigError, InputError
from estimator.params import count_params
from estimator.readers.family_data import family_data
from estimator.readers.networks import network_families, read_network

SEED = 20261124
_SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _complete_families() -> list[str]:
    """Those whose declared defaults describe a model."""
    found = []
    for model_type in network_families():
        try:
            read_network({"model_type": model_type})
        except InputError:
            continue
        found.append(model_type)
    return found


FAMILIES = _complete_families()


def test_almost_every_family_is_read_from_its_defaults() -> None:
    """What is damaged below is whole at first; a few families declare defaults that describe no model."""
    assert len(network_families()) - len(FAMILIES) < len(network_families()) // 10


def test_damaged_configs_are_sized_or_refused_in_one_line() -> None:
    """600 configs of all families with one to five faults each; every outcome occurs."""
    print(f"seed {SEED}")
    outcomes = {config_outcome(mutate_config(random.Random(f"{SEED} {index}"))) for index in range(600)}
    assert outcomes == {"sized", "ConfigError", "UnsupportedModelError"}


@_SETTINGS
@given(model_type=st.sampled_from(FAMILIES), data=st.data(), value=_JSON)
def test_any_value_in_a_field_is_sized_or_refused(model_type: str, data: st.DataObject, value: Any) -> None:
    """Every type of JSON in a field that the family declares."""
    declared = family_data(model_type)
    assert declared is not None
    name = data.draw(st.sampled_from(sorted(declared.defaults)))
    config_outcome({"model_type": model_type, name: value})


@_SETTINGS
@given(values=st.dictionaries(st.sampled_from(["model_type", "architectures", "text_config"]) | st.text(), _JSON))
def test_any_object_is_sized_or_refused(values: dict[str, Any]) -> None:
    """Objects that are no config at all."""
    assert config_outcome(values) == "UnsupportedModelError"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_unknown_size_is_refused_by_its_name(model_type: str) -> None:
    """What could be a size, a list of layers, a switch or a second tower is never passed over."""
    unknown: dict[str, Any] = {
        "num_extra_layers": 4,
        "ffn_size": 999,
        "expert_capacity_layers": [1, 2],
        "use_second_stream": True,
        "side_config": {"hidden_size": 8},
        "block_kind": "wide",
    }
    for name, value in unknown.items():
        with pytest.raises(ConfigError, match=name) as caught:
            read_network({"model_type": model_type, name: value})
        assert caught.value.field == name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_changes_no_size_is_read(model_type: str) -> None:
    """Fields that published configs carry beside those of their class."""
    junk: dict[str, Any] = {
        "torch_dtype": "float16",
        "transformers_version": "4.33.0.dev0",
        "_name_or_path": "somewhere/model",
        "_attn_implementation_internal": "eager",
        "_flash_attn_2_enabled": True,
        "unsloth_version": "2024.9",
        "auto_map": {"AutoModel": "modeling_x.X"},
        "quantization_config": {"quant_method": "awq", "bits": 4},
        "pad_token_id": -1,
        "use_bfloat16": True,
        "min_p": 0.1,
        "num_assistant_tokens": 5,
        "adapter_layers_removed": None,
        "n_special": 0,
        "init_device": "meta",
        "router_dropout": 0.1,
    }
    bare = {"model_type": model_type}
    assert count_params(read_network(bare | junk)[0]) == count_params(read_network(bare)[0])


@pytest.mark.parametrize(
    ("changes", "ends_well"),
    [
        ({"n_head": 71, "n_layer": 32, "n_embed": 4544}, True),  # falcon's own defaults once more
        ({"num_attention_heads": 16, "n_head": 16, "hidden_size": 1024}, True),
        ({"num_attention_heads": 16, "n_head": 71, "hidden_size": 1024}, False),
        ({"n_layer": 31}, False),
        ({"n_layer": 32.0}, False),
    ],
)
def test_a_field_under_a_second_name_must_say_the_same(changes: dict[str, Any], *, ends_well: bool) -> None:
    """Falcon's published configs name heads and layers twice; the class reads only one of the names."""
    expected = "sized" if ends_well else "ConfigError"
    assert config_outcome({"model_type": "falcon", **changes}) == expected


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("gemma3n_text", "altup_num_inputs"), ("mobilebert", "num_feedforward_networks")],
)
def test_counts_that_multiply_blocks_are_bounded(model_type: str, name: str) -> None:
    """A number that the reader loops over has a limit as the number of layers has."""
    with pytest.raises(ConfigError, match=name):
        read_network(good_config(model_type) | {name: 2**30})
    with pytest.raises(ConfigError, match="blocks together"):
        read_network(good_config("mobilebert") | {"num_feedforward_networks": 4096, "num_hidden_layers": 4096})


def test_damaged_configs_take_little_memory() -> None:
    """Read, sized and explained in a process of its own, whose peak stays under 200 MB."""
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", "--child", "configs", "300", str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    answer = json.loads(done.stdout)
    assert sum(answer["results"].values()) == 300
    assert answer["peak_bytes"] <= LIMIT_BYTES


def test_sizes_that_come_out_negative_are_refused() -> None:
    """A factor below 0 makes matrices of no shape; the first one is named."""
    with pytest.raises(ConfigError, match=r"would have the shape \[-1536"):
        read_network({"model_type": "mamba", "expand": -2})
