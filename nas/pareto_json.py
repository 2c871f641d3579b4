"""The JSON document of a study's front: `nas pareto --json` and the service answer it alike."""

from __future__ import annotations

from typing import Any

from nas.pareto import front_of
from nas.records import StudyRecord, TrialRecord
from nas.store import Store

__all__ = ["pareto_document"]


def pareto_document(store: Store, study: StudyRecord) -> dict[str, Any]:
    """The front of a study: its points best first in the first objective, the reference and the hypervolume."""
    trials = store.trials(study.id)
    front = front_of(study.spec, trials)
    by_number = {trial.number: trial for trial in trials}
    return {
        "study": study.name,
        "study_id": study.id,
        "objectives": [objective.to_dict() for objective in study.spec.objectives],
        "points": [_point(by_number[number], study) for number in front.trials],
        "reference": front.reference,
        "hypervolume": front.hypervolume,
    }


def _point(trial: TrialRecord, study: StudyRecord) -> dict[str, Any]:
    """`values` has the objectives alone, `figures` everything that was observed."""
    figures = {name: figure.to_dict() for name, figure in trial.figures.items()}
    return {
        "trial": trial.number,
        "config": trial.config.to_dict(),
        "architecture_hash": trial.architecture_hash,
        "values": {objective.name: figures[objective.name] for objective in study.spec.objectives},
        "figures": figures,
    }
