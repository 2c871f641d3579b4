"""What is known of a candidate before anything is built, and which limit it already breaks.

A limit on a measured figure is compared with what `estimate()` says of it. A counted figure is exact; a modelled one
has to exceed the limit by `MODELLED_MARGIN` before it rules a candidate out, so that no good one is lost to the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from estimator.config import TransformerConfig
from estimator.figures import Figure
from estimator.sizing import estimate
from nas.errors import ImpossibleConstraintError
from nas.objectives import OBJECTIVES, Constraint
from nas.space import Params, SearchSpace, cheapest_choice
from nas.spec import StudySpec

__all__ = ["MODELLED_MARGIN", "broken_limit", "candidates", "check_reachable", "known_figures"]

# Share by which the modelled memory may exceed the measured one: at most 0.36 in the 24 runs of
# benchmarks/results/runtime_memory.md (ONNX Runtime 1.32, decoders and encoders of 0.7 to 124 million parameters).
MODELLED_MARGIN = 0.4
_NUM_SAMPLES = 4096
_NUM_ENUMERATED = 4096
_MUTATION_RATE = 0.15
_MAX_PASSES = 10


def known_figures(spec: StudySpec, config: TransformerConfig) -> dict[str, Figure]:
    """Every objective that counting alone answers, whether the study asks for it or not."""
    known = _estimates(spec, config)
    return {name: known[name] for name, info in OBJECTIVES.items() if info.source == "estimate" and name in known}


def broken_limit(spec: StudySpec, config: TransformerConfig) -> str | None:
    """Why a candidate cannot meet the study's limits, or None if nothing known speaks against it."""
    if not spec.constraints:
        return None
    known = _estimates(spec, config)
    for constraint in spec.constraints:
        figure = _screened_figure(constraint, known)
        if figure is not None and not constraint.is_met(_least(figure)):
            limit = _amount(constraint, constraint.limit)
            return f"{_describe(constraint)} would be {_amount(constraint, figure.value)}; the limit is {limit}"
    return None


def check_reachable(spec: StudySpec) -> None:
    """Descends for each limit from the smallest candidate, one choice at a time, to where the figure is least.

    Raises:
        ImpossibleConstraintError: a limit cannot be met even there; names it and the nearest reachable value.
    """
    for constraint in spec.constraints:
        nearest = spec.space.to_config(_nearest(spec, (constraint,)))
        figure = _screened_figure(constraint, _estimates(spec, nearest))
        if figure is not None and not constraint.is_met(_least(figure)):
            raise ImpossibleConstraintError(
                f"no candidate of {spec.space.name} keeps {_describe(constraint)} within "
                f"{_amount(constraint, constraint.limit)}: the nearest reachable is {_amount(constraint, figure.value)}"
            )


def candidates(spec: StudySpec, known: Sequence[Params], seed: int) -> Iterator[Params]:
    """Raw choices to try when a sampler finds nothing new: all of a small space in random order, else samples.

    Every second sample is a mutation of one of the `known` choices or of those nearest to the limits, because the
    candidates that meet a tight limit are few and close together.
    """
    generator = random.Random(seed)  # noqa: S311 - proposals, no secrets
    if spec.space.size() <= _NUM_ENUMERATED:
        everything = list(spec.space.enumerate())
        generator.shuffle(everything)
        yield from everything
        return
    parents = [*known, _nearest(spec, spec.constraints)]
    for params in spec.space.sample(_NUM_SAMPLES, seed):
        yield params
        yield _mutate(spec.space, generator.choice(parents), generator)


def _mutate(space: SearchSpace, parent: Params, generator: random.Random) -> Params:
    def pick(name: str, values: tuple[Any, ...]) -> Any:
        if name in parent and generator.random() >= _MUTATION_RATE:
            return parent[name]
        return generator.choice(values)

    return space.choose(pick)


def _nearest(spec: StudySpec, constraints: Sequence[Constraint]) -> Params:
    """The choices at which the worst excess over the limits is smallest, by coordinate descent."""
    best = spec.space.smallest()
    lowest = _excess(spec, constraints, best)
    for _ in range(_MAX_PASSES):
        improved = False
        for params in _neighbours(spec.space, best):
            excess = _excess(spec, constraints, params)
            if excess < lowest:
                best, lowest, improved = params, excess, True
        if not improved:
            break
    return best


def _neighbours(space: SearchSpace, params: Params) -> Iterator[Params]:
    """The candidates that differ in one choice; dimensions that appear with it take their cheapest."""

    def changed(name: str, value: Any) -> Callable[[str, tuple[Any, ...]], Any]:
        def pick(other: str, values: tuple[Any, ...]) -> Any:
            if other == name:
                return value
            return params[other] if other in params else cheapest_choice(other, values)

        return pick

    for name in params:
        for value in space.choices[name.split("[")[0]]:
            if value != params[name]:
                yield space.choose(changed(name, value))


def _excess(spec: StudySpec, constraints: Sequence[Constraint], params: Params) -> float:
    """The largest share by which a limit is exceeded; zero or less when all are met."""
    known = _estimates(spec, spec.space.to_config(params))
    figures = ((constraint, _screened_figure(constraint, known)) for constraint in constraints)
    return max((constraint.violation(_least(figure)) for constraint, figure in figures if figure), default=0.0)


def _estimates(spec: StudySpec, config: TransformerConfig) -> dict[str, Figure]:
    """Figures by the names that `ObjectiveInfo.screened_by` uses."""
    found = estimate(config, spec.workload)
    counted = {
        "params": found.params.total,
        "prefill_flops": found.compute.prefill_flops,
        "decode_flops_per_token": found.compute.decode_flops_per_token,
        "weights_bytes": found.memory.weights_bytes,
    }
    figures = {name: Figure(value=value, origin="counted") for name, value in counted.items() if value is not None}
    total = found.memory.total_bytes
    # The model is of ONNX Runtime on a CPU; elsewhere only the weights are sure to be there.
    on_cpu = Figure(value=total, low=total / (1 + MODELLED_MARGIN), origin="modelled")
    return figures | {"memory_bytes": on_cpu if spec.device == "cpu" else figures["weights_bytes"]}


def _screened_figure(constraint: Constraint, known: dict[str, Figure]) -> Figure | None:
    """What is known of the limited figure, or None when only building and running can tell."""
    info = OBJECTIVES.get(constraint.objective)
    return None if info is None or info.screened_by is None else known.get(info.screened_by)


def _least(figure: Figure) -> float:
    """The value that it can be at least, as far as is known."""
    return figure.value if figure.low is None else figure.low


def _describe(constraint: Constraint) -> str:
    info = OBJECTIVES[constraint.objective]
    return constraint.objective if info.source == "estimate" else f"{constraint.objective}, as estimated,"


def _amount(constraint: Constraint, value: float) -> str:
    """A value with its unit, whole and with thousands separated where it is a count."""
    unit = OBJECTIVES[constraint.objective].unit
    number = f"{value:,.0f}" if value >= 1000 else f"{value:g}"
    return f"{number} {unit}".rstrip()
