"""Workload: defaults and refusals."""

from __future__ import annotations

import pytest

from estimator.errors import InputError
from estimator.weight_formats import FORMATS
from estimator.workload import Workload


def test_context_is_prompt_and_generated_tokens():
    """The cache holds both at the end."""
    assert Workload(prompt_length=100, generated_length=28).context_length == 128


def test_scales_are_for_a_cache_that_has_some():
    """A cache of floats is refused scales; the others have their usual ones."""
    with pytest.raises(InputError, match="kv_scales is for a quantised cache; fp32 has no scales"):
        Workload(kv_scales="token")
    scales = {dtype: Workload(kv_cache_dtype=dtype).cache_scales for dtype in ("bf16", "fp8", "int8", "int4")}
    assert scales == {"bf16": None, "fp8": "head", "int8": "token", "int4": "token"}


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"prompt_length": 0},
        {"prompt_length": 1.5},
        {"generated_length": -1},
        {"generated_length": 2**31},
        {"weight_dtype": "fp4"},
        {"activation_dtype": "int8"},
        {"kv_cache_dtype": "int2"},
        {"weight_format": FORMATS["int8"]},
        {"weight_format": "int8"},
        {"kv_scales": "layer"},
        {"attention": "flash"},
        {"logits": "none"},
        {"runtime": "vllm"},
    ],
)
def test_impossible_values_are_refused_by_name(changes):
    """The error names the field and what would be right."""
    (name,) = changes
    with pytest.raises(InputError, match=f"{name} must be"):
        Workload(**changes)
