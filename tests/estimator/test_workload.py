"""Workload: defaults and refusals."""

from __future__ import annotations

import pytest

from estimator.errors import InputError
from estimator.workload import Workload


def test_context_is_prompt_and_generated_tokens():
    """The cache holds both at the end."""
    assert Workload(prompt_length=100, generated_length=28).context_length == 128


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"prompt_length": 0},
        {"prompt_length": 1.5},
        {"generated_length": -1},
        {"generated_length": 2**31},
        {"weight_dtype": "fp8"},
        {"activation_dtype": "int8"},
        {"kv_cache_dtype": "int4"},
    ],
)
def test_impossible_values_are_refused_by_name(changes):
    """The error names the field and what would be right."""
    (name,) = changes
    with pytest.raises(InputError, match=f"{name} must be"):
        Workload(**changes)
