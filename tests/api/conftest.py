"""A service over a throwaway store, whose workers are harmless processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from estimator.figures import Figure
from nas.objectives import Constraint
from nas.space import SearchSpace
from nas.spec import StudySpec
from nas.store import Store

FIGURES = ((3.0, 1e-4), (2.5, 2e-4), (2.6, 3e-4), (2.2, 8e-4))


@pytest.fixture
def store_url(tmp_path):
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def launched():
    """The ids of the studies whose workers were started."""
    return []


@pytest.fixture
def app(store_url, launched):
    def launch(store, study_id):
        launched.append(study_id)
        return subprocess.Popen([sys.executable, "-c", ""])

    return create_app(store_url, launch=launch)


@pytest.fixture
def client(app):
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def store(client, store_url):
    """The same store, seen from outside, as a worker sees it."""
    with Store.open(store_url) as store:
        yield store


@pytest.fixture
def study(store):
    """Four complete trials, of which 0, 1 and 3 are on the front, one failed, one pruned."""
    spec = StudySpec(
        space=SearchSpace.preset("decoder-nano"), num_trials=6, constraints=(Constraint("decode_latency_s", 9e-4),)
    )
    study = store.create_study(spec, "first")
    params = list(spec.space.sample(len(FIGURES) + 1, seed=1))
    for choice, (bits, latency_s) in zip(params, FIGURES, strict=False):
        trial = store.start_trial(study.id, params=choice, config=spec.space.to_config(choice))
        figures = {
            "bits_per_byte": Figure(value=bits, low=bits * 0.99, high=bits * 1.01, origin="measured"),
            "decode_latency_s": Figure(value=latency_s, low=latency_s * 0.9, high=latency_s * 1.1, origin="measured"),
            "params": Figure(value=90_000, origin="counted"),
        }
        store.finish_trial(study.id, trial.number, "complete", figures=figures)
    config = spec.space.to_config(params[-1])
    trial = store.start_trial(study.id, params=params[-1], config=config)
    store.finish_trial(study.id, trial.number, "fail", error_type="out_of_memory", error_text="memory ran out")
    store.start_trial(study.id, params=params[-1], config=config, state="pruned", error_text="over the limit")
    return study
