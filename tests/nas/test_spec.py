"""A search's specification: defaults, JSON, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from estimator.workload import Workload
from nas.errors import NasError, ObjectiveError, UsageError
from nas.objectives import Constraint, Objective
from nas.space import SearchSpace
from nas.spec import QualitySettings, StudySpec


def make_spec(**changes: Any) -> StudySpec:
    """A search over the smallest preset with the given fields changed."""
    return StudySpec(**{"space": SearchSpace.preset("decoder-nano"), **changes})


def test_name_of_a_preset_is_a_complete_spec() -> None:
    """Everything but the space has a default, the same as in Python."""
    assert StudySpec.from_dict({"space": "decoder-nano"}) == make_spec()


def test_default_objectives_follow_the_architecture() -> None:
    """A decoder is judged by decode latency, an encoder by prefill latency."""
    assert [o.name for o in make_spec().objectives] == ["bits_per_byte", "decode_latency_s"]
    encoder = make_spec(space=SearchSpace.preset("encoder-small"))
    assert [o.name for o in encoder.objectives] == ["bits_per_byte", "prefill_latency_s"]


def test_spec_round_trips_through_json() -> None:
    """Every field that differs from its default comes back, also an objective of the caller's own."""
    spec = make_spec(
        objectives=(Objective("accuracy", "maximize"), Objective("params")),
        constraints=(Constraint("peak_memory_bytes", 2e8),),
        num_trials=3,
        sampler="nsga2",
        seed=7,
        num_threads=2,
        workload=Workload(prompt_length=64, weight_dtype="int8"),
        quality=QualitySettings(data=("/text",), tokens=None, seconds=2.5),
        trial_time_limit_s=9.0,
    )
    assert StudySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_people_may_write_names_and_quantities() -> None:
    """An objective by its short name, a limit with its unit, a training budget in seconds alone."""
    spec = StudySpec.from_dict(
        {
            "space": "decoder-nano",
            "objectives": ["latency", {"name": "params"}],
            "constraints": [{"objective": "latency", "limit": "20ms"}],
            "quality": {"seconds": 3},
        }
    )
    assert spec.objectives == (Objective("decode_latency_s"), Objective("params"))
    assert spec.constraints == (Constraint("decode_latency_s", 0.02),)
    assert (spec.quality.tokens, spec.quality.seconds) == (None, 3)


def test_required_figures_are_objectives_and_limits_once() -> None:
    """A figure that is objective and limit is required once, in order."""
    spec = make_spec(
        objectives=(Objective("params"), Objective("file_bytes")),
        constraints=(Constraint("file_bytes", 1e6), Constraint("prefill_latency_s", 1.0)),
    )
    assert spec.required_figures == ("params", "file_bytes", "prefill_latency_s")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"space": None}, "space must be"),
        ({"space": "tiny"}, "unknown space 'tiny'"),
        ({"trials": 6}, "unknown field 'trials' in study"),
        ({"num_trials": 0}, "num_trials must be an integer from 1 to"),
        ({"num_trials": 2.0}, "num_trials must be an integer"),
        ({"num_trials": True}, "num_trials must be an integer"),
        ({"seed": -1}, "seed must be"),
        ({"sampler": "bayes"}, "unknown sampler 'bayes'; choose one of auto, random, nsga2, tpe, gp"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose one of cpu, cuda"),
        ({"num_threads": 0}, "num_threads"),
        ({"trial_time_limit_s": 0}, "trial_time_limit_s must be a number above 0"),
        ({"objectives": "params"}, "objectives must be a list"),
        ({"objectives": ["parms"]}, "unknown objective 'parms'"),
        ({"objectives": [{"title": "params"}]}, "table with name and direction"),
        ({"objectives": ["params", "params"]}, "objectives name params twice"),
        ({"constraints": [{"objective": "latency", "limit": "20MB"}]}, "limit on latency"),
        ({"constraints": [{"objective": "params"}]}, "table with objective and limit"),
        ({"constraints": [{"objective": "loss", "limit": 3}]}, "limit on loss"),
        ({"workload": {"batch": 1}}, "unknown field 'batch' in workload"),
        ({"workload": {"batch_size": 0}}, "workload: batch_size"),
        ({"workload": []}, "workload must be a table"),
        ({"workload": {"prompt_length": 600}}, "600 tokens, but the models of decoder-nano have 512"),
        ({"quality": {"sequence_length": 1024}}, "sequence_length: 1024 tokens"),
        ({"quality": {"epochs": 1}}, "unknown field 'epochs' in quality"),
        ({"quality": {"evaluator": "magic"}}, "train, none or module:function"),
        ({"quality": {"tokens": None}}, "exactly one of the two"),
        ({"quality": {"tokens": 5, "seconds": 5}}, "exactly one of the two"),
        ({"quality": {"seconds": float("nan")}}, "seconds must be"),
        ({"quality": {"data": "text"}}, "data must be a list"),
    ],
)
def test_wrong_field_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    """Each message names the field and what would be right."""
    with pytest.raises(NasError, match=message) as caught:
        StudySpec.from_dict({"space": "decoder-nano"} | values)
    assert caught.value.exit_code == 2


def test_space_is_needed() -> None:
    """There is no default space in a spec."""
    with pytest.raises(UsageError, match="lacks its space"):
        StudySpec.from_dict({})


def test_encoder_has_no_decode_objective() -> None:
    """An objective that no candidate of the space can have is refused at once."""
    with pytest.raises(ObjectiveError, match="decode_latency_s is for decoders"):
        make_spec(space=SearchSpace.preset("encoder-small"), objectives=(Objective("decode_latency_s"),))


def test_evaluable_spec_has_only_what_the_search_can_find_out() -> None:
    """An objective told from outside, or quality without an evaluator, cannot be searched for by the command line."""
    make_spec().check_evaluable()
    with pytest.raises(ObjectiveError, match="accuracy needs an evaluator of your own"):
        make_spec(objectives=(Objective("accuracy", "maximize"),)).check_evaluable()
    with pytest.raises(ObjectiveError, match="bits_per_byte needs an evaluator"):
        replace(make_spec(), quality=QualitySettings(evaluator="none")).check_evaluable()
