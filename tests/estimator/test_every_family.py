"""Every causal, masked and sequence-to-sequence family that transformers knows: the reader is exact, or it refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from compare_families import Outcome, compare  # noqa: E402 - tools/, which needs transformers
from transformers.models.auto import modeling_auto  # noqa: E402

from estimator.errors import UnsupportedModelError  # noqa: E402
from estimator.readers.family_data import family_data  # noqa: E402
from estimator.readers.networks import network_families, read_network  # noqa: E402

SEED = 20261124
MAPPINGS = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM")
LEAST_EXACT = 80


def _families() -> Iterator[str]:
    names = [getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES") for mapping in MAPPINGS]
    return iter(sorted({model_type for mapping in names for model_type in mapping}))


FAMILIES = tuple(_families())
EXACT: set[str] = set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_family_is_exact_or_refused(model_type: str) -> None:
    """Few layers with the defaults, single changes and combinations: no count is off, whichever fields are left out."""
    print(f"seed {SEED}")
    if model_type not in network_families():
        with pytest.raises(UnsupportedModelError, match=model_type):
            read_network({"model_type": model_type})
        return
    assert family_data(model_type) is not None
    outcome: Outcome = compare(model_type, random.Random(f"{SEED} {model_type}"), 2, singles=4)
    assert outcome.wrong == []
    if outcome.exact:
        EXACT.add(model_type)


def test_at_least_eighty_families_are_exact() -> None:
    """Runs after the families above, of which so many were exact in at least the defaults."""
    print(f"{len(EXACT)} of {len(FAMILIES)} families are exact, seed {SEED}")
    assert len(EXACT) >= LEAST_EXACT
