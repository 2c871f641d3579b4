"""SIGKILL at random moments: nothing paid for is lost, and the search ends as if it had never been disturbed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nas.records import TrialRecord
from nas.store import Store

NUM_KILLS = 20
NUM_TRIALS = 40
SEED = 20_261_124

# A search with a deterministic evaluator of two steps, as the real one has; each step's result is stored at once. It
# prints a line before and after everything that it does, so that the test can kill it in between.
SEARCH = """
import sys
from estimator.figures import Figure
from nas.loop import run_study
from nas.objectives import Objective
from nas.space import SearchSpace
from nas.store import Store
from nas.study import Study

class View:
    def trial_started(self, number): mark("started", number)
    def step(self, name, fraction): pass
    def trial_ended(self, trial): mark("ended", trial.number)
    def note(self, text): mark("note", text)

def mark(*words):
    print(*words, flush=True)

def paid_step(trial, name, value):
    stored = store.trial(study.id, trial.number).figures
    if name in stored:
        mark("known", trial.config.architecture_hash(), name)
        return stored[name]
    mark("paying", trial.config.architecture_hash(), name)
    figure = Figure(value=value, origin="measured")
    store.add_observation(study.id, trial.number, name, figure, cost_s=1.0)
    mark("paid", trial.config.architecture_hash(), name)
    return figure

def evaluate(trial, progress):
    config = trial.config
    loss = paid_step(trial, "loss", 1e6 / (config.hidden_size * config.num_hidden_layers) + config.num_attention_heads)
    speed = paid_step(trial, "speed", float(config.hidden_size * config.num_hidden_layers))
    return {"loss": loss, "speed": speed}

url, sampler, num_trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store.open(url) as store:
    names = [record.name for record in store.list_studies()]
    if "s" in names:
        study = Study.load(store, "s")
    else:
        study = Study.create(
            space=SearchSpace.preset("decoder-small"),
            objectives=[Objective("loss", "minimize"), Objective("speed", "minimize")],
            sampler=sampler, seed=7, store=store, name="s", num_trials=num_trials,
        )
    run_study(study, evaluate, View())
"""


def start(folder: Path, name: str, sampler: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SEARCH, f"sqlite:///{folder / name}.db", sampler, str(NUM_TRIALS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run_and_kill(folder: Path, sampler: str, generator: random.Random) -> list[str]:
    """Runs until a random line, then kills a random fraction of a millisecond later; returns all lines printed."""
    process = start(folder, "killed", sampler)
    assert process.stdout is not None
    lines = []
    for _ in range(generator.randrange(1, 14)):
        lines.append(process.stdout.readline())
    until = time.perf_counter() + generator.random() * 0.004
    while time.perf_counter() < until:
        pass
    process.kill()
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return [line for line in lines if line]


def finish(folder: Path, name: str, sampler: str) -> list[str]:
    process = start(folder, name, sampler)
    output, _ = process.communicate()
    assert process.returncode == 0
    return output.splitlines()


def essence(trial: TrialRecord) -> tuple[object, ...]:
    figures = {name: (figure.value, figure.origin) for name, figure in trial.figures.items()}
    return trial.number, trial.state, trial.params, trial.architecture_hash, figures, trial.duplicate_of


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_search_killed_at_random_moments_ends_as_if_undisturbed(tmp_path: Path, sampler: str) -> None:
    """20 kills: the same trials as in one run, every acknowledged payment kept, none made twice."""
    print(f"seed {SEED}")
    generator = random.Random(SEED)
    lines: list[str] = []
    for _ in range(NUM_KILLS):
        lines += run_and_kill(tmp_path, sampler, generator)
    lines += finish(tmp_path, "killed", sampler)
    finish(tmp_path, "undisturbed", sampler)

    with Store.open(f"sqlite:///{tmp_path / 'killed'}.db") as store:
        study = store.find_study("s")
        killed = store.trials(study.id)
        assert study.state == "finished"
    with Store.open(f"sqlite:///{tmp_path / 'undisturbed'}.db") as store:
        undisturbed = store.trials(store.find_study("s").id)

    assert [essence(trial) for trial in killed] == [essence(trial) for trial in undisturbed]
    assert sum(trial.state == "complete" and trial.duplicate_of is None for trial in killed) == NUM_TRIALS
    assert all(
        max(Counter(observation.objective for observation in trial.observations).values()) == 1 for trial in killed
    )
    paid = Counter(tuple(line.split()[1:]) for line in lines if line.startswith("paid"))
    assert set(paid.values()) == {1}
    # What was being paid when the kill came may be paid again: once a kill, at most.
    paying = Counter(tuple(line.split()[1:]) for line in lines if line.startswith("paying"))
    assert sum(count - 1 for count in paying.values()) <= NUM_KILLS
