"""Samplers: by name, seeded for each trial, told of limits, quiet."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import optuna
import pytest

from nas.errors import UsageError
from nas.objectives import Constraint, Objective
from nas.records import TrialRecord
from nas.samplers import Proposer, make_sampler
from nas.space import SearchSpace
from nas.spec import SAMPLERS
from nas.study import Study

NANO = SearchSpace.preset("decoder-nano")
GOALS = (Objective("loss", "minimize"), Objective("params"))


def run(study: Study, count: int) -> None:
    """Tells a loss that falls with size and prefers four layers."""
    for _ in range(count):
        trial = study.ask()
        loss = 1e6 / trial.figures["params"].value + abs(trial.config.num_hidden_layers - 4)
        study.tell(trial, {"loss": loss})


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [
        ("random", 0, optuna.samplers.RandomSampler),
        ("nsga2", 0, optuna.samplers.NSGAIISampler),
        ("tpe", 5000, optuna.samplers.TPESampler),
        ("gp", 0, optuna.samplers.GPSampler),
        ("auto", 999, optuna.samplers.TPESampler),
        ("auto", 1000, optuna.samplers.NSGAIISampler),
    ],
)
def test_name_stands_for_a_sampler(name: str, number: int, kind: type) -> None:
    """auto is tpe while it is quick, then nsga2."""
    assert type(make_sampler(name, seed=0, trial_number=number)) is kind


def test_every_name_of_the_spec_is_known_here() -> None:
    """What a spec accepts can be made; anything else is refused with the list."""
    for name in SAMPLERS:
        make_sampler(name, seed=0, trial_number=0)
    with pytest.raises(UsageError, match="unknown sampler 'bayes'; choose one of auto, random, nsga2, tpe, gp"):
        make_sampler("bayes", seed=0, trial_number=0)


def test_gp_without_pytorch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's library is optional."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"gp needs PyTorch: pip install 'archfront\[train\]'"):
        make_sampler("gp", seed=0, trial_number=0)


def test_gp_proposes_for_several_objectives_under_a_limit() -> None:
    """After its random start it fits its models; the limit on a told figure is passed on."""
    study = Study.create(
        space=SearchSpace(
            name="narrow",
            base={"vocab_size": 256, "max_position_embeddings": 512, "num_attention_heads": 2, "head_dim": 16}
            | {"intermediate_size": 32, "num_hidden_layers": 1},
            choices={"hidden_size": list(range(16, 112, 2))},
        ),
        objectives=GOALS,
        constraints=[Constraint("loss", 50.0)],
        sampler="gp",
    )
    run(study, 12)
    assert study.store.count_trials(study.id)["complete"] >= 12


def test_nsga2_breeds_from_the_trials_before() -> None:
    """After its first generation, proposals carry the next one's number and mix the parents' choices."""
    study = Study.create(space=NANO, objectives=GOALS, sampler="nsga2")
    run(study, 50)
    generations = [_generation(trial) for trial in study.trials()]
    assert generations[:20] == [0] * 20
    assert max(generations) >= 2
    assert generations == sorted(generations)


def test_tpe_learns_what_random_does_not() -> None:
    """With one objective that one choice in four decides, half of the later proposals make it."""
    study = Study.create(space=NANO, objectives=[Objective("loss", "minimize")], sampler="tpe", seed=3)
    for _ in range(40):
        trial = study.ask()
        study.tell(trial, {"loss": float(trial.config.num_hidden_layers != 3)})
    evaluated = [trial for trial in study.trials() if trial.duplicate_of is None]
    assert sum(trial.config.num_hidden_layers == 3 for trial in evaluated[-20:]) >= 10


def test_optuna_is_told_values_limits_and_failures() -> None:
    """A restored study is what the live one is: states, values, distributions, and how far limits are broken."""
    study = Study.create(space=NANO, objectives=GOALS, sampler="random", constraints=[Constraint("loss", 8.0)])
    run(study, 6)
    study.tell(study.ask(), state="fail", error="crash")
    study.ask()
    live, restored = study._proposals()._study.trials, Proposer(study.spec, study.trials())._study.trials
    assert len(live) == len(restored) == 8
    for trial, a, b in zip(study.trials(), live, restored, strict=True):
        assert (a.state, a.values, a.params, a.distributions) == (b.state, b.values, b.params, b.distributions)
        assert a.constraints == b.constraints
        if trial.state == "complete":
            assert a.values == [trial.figures["loss"].value, trial.figures["params"].value]
            assert a.constraints == {"loss": trial.figures["loss"].value / 8.0 - 1.0}
    assert [trial.state.name for trial in live[-2:]] == ["FAIL", "RUNNING"]


def test_proposals_do_not_depend_on_the_order_of_hashes() -> None:
    """Two processes with different string hashing propose the same, for the samplers that use sets of names."""
    code = (
        "import json, sys\n"
        "from nas.objectives import Objective\n"
        "from nas.space import SearchSpace\n"
        "from nas.study import Study\n"
        "asked = []\n"
        "for sampler in ('nsga2', 'tpe'):\n"
        "    goals = [Objective('loss', 'minimize'), Objective('params')]\n"
        "    study = Study.create(space=SearchSpace.preset('decoder-nano'), objectives=goals, sampler=sampler)\n"
        "    for number in range(25):\n"
        "        trial = study.ask()\n"
        "        study.tell(trial, {'loss': float(number % 7)})\n"
        "    asked.append([trial.params for trial in study.trials()])\n"
        "print(json.dumps(asked))\n"
    )
    outputs = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        outputs.append(json.loads(done.stdout))
    assert outputs[0] == outputs[1]


def test_optuna_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """No line on the terminal and no warning, whatever Optuna thinks of its own features; its settings are kept."""
    before = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in ("random", "nsga2", "tpe"):
            run(Study.create(space=NANO, objectives=GOALS, sampler=sampler), 12)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before


def test_records_are_read_without_optuna() -> None:
    """The service, which has no Optuna, uses the store, specs, spaces and fronts, and reads studies."""
    code = (
        "import sys\n"
        "import nas.store, nas.spec, nas.space, nas.objectives, nas.records, nas.pareto, nas.screening, nas.study\n"
        "from nas.objectives import Objective\n"
        "study = nas.study.Study.create(space=nas.space.SearchSpace.preset('decoder-nano'))\n"
        "study.front()\n"
        "print(sorted({'optuna', 'torch', 'onnx', 'onnxruntime', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _generation(trial: TrialRecord) -> int:
    """What NSGA-II noted on the trial."""
    assert trial.sampler_state is not None
    return next(value for key, value in trial.sampler_state["trial"].items() if key.endswith(":generation"))
