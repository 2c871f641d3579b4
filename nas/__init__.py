"""The search: proposes transformers, measures and scores them, keeps the Pareto front in a study store.

The names below load their modules on first use: what needs no search library loads none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.objectives import Constraint, Objective
    from nas.space import SearchSpace
    from nas.spec import QualitySettings, StudySpec
    from nas.store import Store
    from nas.study import Study, Trial

__all__ = ["Constraint", "Objective", "QualitySettings", "SearchSpace", "Store", "Study", "StudySpec", "Trial"]

_HOMES = {
    "Constraint": "nas.objectives",
    "Objective": "nas.objectives",
    "QualitySettings": "nas.spec",
    "SearchSpace": "nas.space",
    "Store": "nas.store",
    "Study": "nas.study",
    "StudySpec": "nas.spec",
    "Trial": "nas.study",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
