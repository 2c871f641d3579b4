"""Creating and reading studies over HTTP."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from nas.commands.options import add_search_options, spec_from_options
from nas.pareto_json import pareto_document
from nas.spec import StudySpec


def command_line_spec(*options: str) -> StudySpec:
    import argparse

    parser = argparse.ArgumentParser()
    add_search_options(parser)
    return spec_from_options(parser.parse_args(options))


def test_create_study_stores_it_and_starts_its_search(client, store, launched):
    """202, the study's address, a row in the store, one worker."""
    response = client.post("/v1/studies", json={"space": "decoder-nano", "trials": 6})
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/v1/studies/{body['id']}"
    assert client.get(response.headers["location"]).json()["name"] == body["name"]
    assert launched == [body["id"]]
    assert store.find_study(body["id"]).spec.num_trials == 6


def test_create_study_has_the_command_lines_defaults(client, store):
    """The space and the trials alone ask for what `nas search --trials 6` asks for."""
    body = client.post("/v1/studies", json={"space": "decoder-nano", "trials": 6}).json()
    assert store.find_study(body["id"]).spec == command_line_spec("--space", "decoder-nano", "--trials", "6")


def test_create_study_takes_every_field(client, store):
    """Each field changes the stored search as the option of the command line does."""
    request = {
        "space": "encoder-small",
        "trials": 9,
        "name": "for the kiosk",
        "objectives": ["bits_per_byte", "latency", "memory"],
        "max_latency": "20ms",
        "max_memory": 2e8,
        "max_params": "9M",
        "max_prefill_latency": None,
        "sampler": "nsga2",
        "seed": 3,
        "num_threads": 1,
        "workload": {"batch_size": 2, "prompt_length": 64, "weight_dtype": "int8"},
        "quality": {"seconds": 5.0, "seed": 3},
    }
    body = client.post("/v1/studies", json=request).json()
    expected = command_line_spec(
        *("--space", "encoder-small", "--trials", "9", "--sampler", "nsga2", "--seed", "3", "--threads", "1"),
        *("--objective", "bits_per_byte", "--objective", "latency", "--objective", "memory"),
        *("--max-latency", "20ms", "--max-memory", "200MB", "--max-params", "9M"),
        *("--batch-size", "2", "--prompt-length", "64", "--weight-dtype", "int8", "--train-seconds", "5"),
    )
    assert body["name"] == "for the kiosk"
    assert store.find_study(body["id"]).spec == expected


def test_create_study_takes_a_space_of_ones_own(client, store):
    """A space as a table, a device and a time limit for a trial, a limit by any name."""
    space = StudySpec.from_dict({"space": "decoder-nano"}).space.to_dict() | {"name": "mine"}
    request = {
        "space": space,
        "device": "cpu",
        "trial_time_limit_s": 60.0,
        "constraints": [{"objective": "file_size", "limit": "2MB"}],
    }
    body = client.post("/v1/studies", json=request).json()
    spec = store.find_study(body["id"]).spec
    assert (spec.space.name, spec.trial_time_limit_s) == ("mine", 60.0)
    assert [(limit.objective, limit.limit) for limit in spec.constraints] == [("file_bytes", 2e6)]


@pytest.mark.parametrize(
    ("request_body", "pointer", "words"),
    [
        ({}, "/space", "required"),
        ({"space": "decoder-nan"}, "/space", "decoder-nano, decoder-small, encoder-small"),
        ({"space": {"name": "mine"}}, "/space", "lacks 'base'"),
        ({"space": 3}, "/space", "string"),
        ({"space": "decoder-nano", "trials": 0}, "/trials", "greater than or equal to 1"),
        ({"space": "decoder-nano", "trials": "6"}, "/trials", "integer"),
        ({"space": "decoder-nano", "epochs": 3}, "/epochs", "not permitted"),
        ({"space": "decoder-nano", "objectives": ["lateny"]}, "", "unknown objective 'lateny'"),
        ({"space": "decoder-nano", "objectives": [3]}, "/objectives/0", "string"),
        ({"space": "decoder-nano", "max_latency": "20MB"}, "", "a time such as 20ms"),
        ({"space": "decoder-nano", "max_params": 1}, "", "nearest reachable"),
        ({"space": "decoder-nano", "sampler": "cmaes"}, "/sampler", "auto, random, nsga2, tpe, gp"),
        ({"space": "decoder-nano", "workload": {"weight_dtype": "int3"}}, "/workload/weight_dtype", "int4"),
        ({"space": "decoder-nano", "quality": {"evaluator": "os:system"}}, "/quality/evaluator", "train, none"),
        ({"space": "decoder-nano", "quality": {"data": ["notes"]}}, "/quality/data/0", "absolute path"),
        ({"space": "decoder-nano", "quality": {"data": ["/", "/no/such/text"]}}, "/quality/data/1", "No such file"),
        ({"space": "decoder-nano", "quality": {"data": ["/a\0b"]}}, "/quality/data/0", "null"),
        ({"space": "decoder-nano", "name": "a/b"}, "/name", "no /"),
        ({"space": "decoder-nano", "name": ".."}, "/name", "neither"),
        ({"space": "decoder-nano", "quality": {"evaluator": "none"}}, "", "needs an evaluator"),
        ({"space": "decoder-nano", "quality": {"tokens": 5, "seconds": 5.0}}, "", "exactly one of the two"),
        ({"space": "encoder-small", "objectives": ["decode_latency_s"]}, "", "do not decode"),
    ],
)
def test_create_study_refuses_what_it_cannot_do(client, store, launched, request_body, pointer, words):
    """422 names the part and what would be right; nothing is stored or started."""
    response = client.post("/v1/studies", json=request_body)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert pointer in [error["pointer"] for error in errors]
    assert words in " ".join(error["detail"] for error in errors)
    assert store.list_studies() == ()
    assert launched == []


def test_create_study_refuses_a_name_that_is_taken(client, study, launched):
    """One clear line, and no second search."""
    response = client.post("/v1/studies", json={"space": "decoder-nano", "name": "first"})
    assert response.status_code == 422
    assert "there is a study 'first' already" in response.json()["detail"]
    assert launched == []


@pytest.mark.parametrize("address", ["first", "latest", "id"])
def test_get_study_takes_name_id_or_latest(client, study, address):
    """All three lead to the same study, with its counts and its whole spec."""
    body = client.get(f"/v1/studies/{study.id if address == 'id' else address}").json()
    assert body["id"] == study.id
    assert body["trials"] == {"running": 0, "complete": 4, "pruned": 1, "fail": 1, "repeated": 0}
    assert StudySpec.from_dict(body["spec"]) == study.spec


@pytest.mark.parametrize("name", ["what?", "50 % #1", "größer"])
def test_get_study_takes_a_percent_encoded_name(client, name):
    """Whatever the service takes as a name leads to the study."""
    client.post("/v1/studies", json={"space": "decoder-nano", "name": name})
    address = f"/v1/studies/{quote(name, safe='')}"
    assert client.get(address).json()["name"] == name
    assert client.get(f"{address}/trials").json()["trials"] == []


def test_get_study_counts_repeated_trials_apart(client, store, study):
    """A proposal that the store answered is no further complete trial."""
    first = store.trial(study.id, 0)
    store.start_trial(study.id, params=first.params, config=first.config, state="complete", duplicate_of=0)
    counts = client.get("/v1/studies/first").json()["trials"]
    assert (counts["complete"], counts["repeated"]) == (4, 1)


def test_get_study_says_that_a_killed_search_is_stopped(client, store, study):
    """`running` without a process that holds the study means that somebody killed it."""
    store.set_study_state(study.id, "running")
    assert client.get("/v1/studies/first").json()["state"] == "stopped"
    with store.lock_study(study.id):
        assert client.get("/v1/studies/first").json()["state"] == "running"


def test_list_studies_pages_through_all_of_them(client, store, study):
    """Each study once, the newest first, and no next page after the last."""
    names = ["first"] + [store.create_study(study.spec).name for _ in range(4)]
    seen, address = [], "/v1/studies?limit=2"
    while address is not None:
        page = client.get(address).json()
        seen += [entry["name"] for entry in page["studies"]]
        address = page["next"]
    assert sorted(seen) == sorted(names)
    times = [client.get(f"/v1/studies/{name}").json()["created_at"] for name in seen]
    assert times == sorted(times, reverse=True)


def test_list_trials_pages_by_number(client, study):
    """A page that starts after the last one, also when trials are asked for by state."""
    page = client.get("/v1/studies/first/trials?limit=2&state=complete").json()
    assert [trial["number"] for trial in page["trials"]] == [0, 1]
    page = client.get(page["next"]).json()
    assert [trial["number"] for trial in page["trials"]] == [2, 3]
    assert client.get(page["next"]).json() == {"trials": [], "next": None}


def test_list_trials_gives_the_reason_of_a_failure(client, study):
    """A failed trial says why in the list already."""
    (trial,) = client.get("/v1/studies/first/trials?state=fail").json()["trials"]
    assert (trial["error_type"], trial["error_text"]) == ("out_of_memory", "memory ran out")


def test_get_trial_has_everything_that_is_stored(client, store, study):
    """The record as `TrialRecord.to_dict` gives it; times compare as times."""
    body = client.get("/v1/studies/first/trials/1").json()
    stored = store.trial(study.id, 1).to_dict()
    for name in ("created_at", "finished_at"):
        assert body.pop(name).replace("Z", "+00:00") == stored.pop(name)
    assert body == stored


def test_get_pareto_is_the_document_of_the_command_line(client, store, study):
    """The same JSON as `nas pareto --json`: the front by hand is trials 3, 1 and 0."""
    body = client.get("/v1/studies/first/pareto").json()
    assert body == pareto_document(store, study)
    assert [point["trial"] for point in body["points"]] == [3, 1, 0]
    assert body["points"][0]["values"]["bits_per_byte"] == {
        "value": 2.2,
        "low": 2.2 * 0.99,
        "high": 2.2 * 1.01,
        "origin": "measured",
    }
    # Reference: the worst value and a tenth, (3.3, 8.8e-4). Staircase from the fastest: widths to the next latency.
    staircase = (3.3 - 3.0) * (2e-4 - 1e-4) + (3.3 - 2.5) * (8e-4 - 2e-4) + (3.3 - 2.2) * (8.8e-4 - 8e-4)
    assert body["hypervolume"] == pytest.approx(staircase, rel=1e-9)


def test_get_pareto_of_a_study_without_points_is_empty(client, store, study):
    """No complete trial: no points, no reference, hypervolume 0."""
    store.create_study(study.spec, "new")
    body = client.get("/v1/studies/new/pareto").json()
    assert (body["points"], body["reference"], body["hypervolume"]) == ([], {}, 0.0)
