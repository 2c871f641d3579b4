"""Every error of every route is one shape: a problem document (RFC 9457)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.problems import PROBLEM_TYPES
from nas.errors import StoreError

JSON = {"Content-Type": "application/json"}
METHODS = ("get", "put", "post", "delete", "patch", "options", "head")
INSTANCE = r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def check_problem(response, name: str) -> dict:
    """The response is this problem, complete, and its type leads to a page."""
    kind = PROBLEM_TYPES[name]
    assert response.status_code == kind.status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "errors"}
    assert (body["type"], body["title"], body["status"]) == (f"/problems/{name}", kind.title, kind.status)
    assert re.fullmatch(INSTANCE, body["instance"])
    assert body["detail"]
    assert all(set(error) == {"detail", "part", "pointer"} for error in body["errors"])
    return body


def operations(client) -> list[tuple[str, str, dict]]:
    """Method, path and description of every operation of the OpenAPI document."""
    paths = client.get("/openapi.json").json()["paths"]
    return [(method, path, about) for path, methods in paths.items() for method, about in methods.items()]


def fill_path(path: str, study: str = "first", number: str = "0") -> str:
    return path.format(study=study, number=number, name="not-found")


def test_every_route_refuses_another_host(client, study):
    """A page elsewhere that reaches this machine under a name of its own gets nothing from any route."""
    for method, path, _ in operations(client):
        response = client.request(method, fill_path(path), headers={"Host": "evil.example"}, json={})
        check_problem(response, "wrong-host")


def test_every_route_refuses_other_methods(client, study):
    """405 with all methods of the path in Allow."""
    by_path: dict[str, set[str]] = {}
    for method, path, _ in operations(client):
        by_path.setdefault(path, set()).add(method)
    for path, methods in by_path.items():
        for method in set(METHODS) - methods - {"head"}:
            response = client.request(method, fill_path(path))
            check_problem(response, "method-not-allowed")
            assert set(response.headers["allow"].lower().split(", ")) == methods


def test_every_route_with_a_study_says_that_there_is_none(client, study):
    """404 with the names that do exist."""
    paths = [path for method, path, _ in operations(client) if "{study}" in path]
    assert len(paths) == 4
    for path in paths:
        body = check_problem(client.get(fill_path(path, study="nobody")), "not-found")
        assert "first" in body["detail"]
    check_problem(client.get(fill_path("/v1/studies/{study}/trials/{number}", number="99")), "not-found")


def test_every_route_with_a_body_refuses_what_is_no_json(client, study):
    """413, 415 and 422 for each way a body can be wrong, whatever the route."""
    posts = [path for method, path, _ in operations(client) if method == "post"]
    assert len(posts) == 2
    for path in posts:
        too_large = b'{"space": "' + b"x" * 2**20 + b'"}'
        check_problem(client.post(path, content=too_large, headers=JSON), "body-too-large")
        chunks = (b"x" * 2**16 for _ in range(64))
        check_problem(client.post(path, content=chunks, headers=JSON), "body-too-large")
        check_problem(client.post(path, content="x=1", headers={"Content-Type": "text/plain"}), "not-json")
        check_problem(client.post(path, content='{"space"}', headers=JSON), "invalid-request")
        check_problem(client.post(path, content="[" * 100_000, headers=JSON), "invalid-request")
        check_problem(client.post(path, content="1" * 10_000, headers=JSON), "invalid-request")
        check_problem(client.post(path, content="[]", headers=JSON), "invalid-request")
        check_problem(client.post(path, content="", headers=JSON), "invalid-request")


@pytest.mark.parametrize(
    ("address", "pointer"),
    [
        ("/v1/studies?limit=0", "/limit"),
        ("/v1/studies?limit=501", "/limit"),
        ("/v1/studies?cursor=bm9uc2Vuc2U", "/cursor"),
        ("/v1/studies?cursor=WzEsNV0", "/cursor"),
        ("/v1/studies?cursor=WzEsIngiLCJ5Il0", "/cursor"),
        ("/v1/studies/first/trials?cursor=%FF", "/cursor"),
        ("/v1/studies/first/trials?state=done", "/state"),
        ("/v1/studies/first/trials?cursor=WzEsLTFd", "/cursor"),
        ("/v1/studies/first/trials/one", "/number"),
        ("/v1/studies/first/trials/99999999999999999999999", "/number"),
    ],
)
def test_every_parameter_is_checked(client, study, address, pointer):
    """422 that points to the parameter; a cursor of another list is none."""
    (error,) = check_problem(client.get(address), "invalid-request")["errors"]
    assert error["pointer"] == pointer


def test_every_route_refuses_unknown_parameters(client, study):
    """A misspelt parameter is named with those that there are, and changes nothing in silence."""
    for method, path, about in operations(client):
        response = client.request(method, fill_path(path) + "?stat/e=fail", json={"space": "decoder-nano"})
        body = check_problem(response, "invalid-request")
        assert [(error["part"], error["pointer"]) for error in body["errors"]] == [("query", "/stat~1e")]
        known = [entry["name"] for entry in about.get("parameters", []) if entry["in"] == "query"]
        assert body["errors"][0]["detail"].endswith(f"takes {', '.join(known) or 'none'}")
    assert len(client.get("/v1/studies").json()["studies"]) == 1


def test_every_route_survives_a_fault_of_the_store(client, app, monkeypatch):
    """A damaged store is 503 and a fault of ours is 500, without the cause; the log has it."""
    paths = [path for method, path, _ in operations(client) if "{study}" in path or path in ("/readyz", "/v1/studies")]
    for error, name in ((StoreError, "store-unavailable"), (RuntimeError, "internal-error")):

        def fail(*_: object, error=error, **__: object) -> None:
            raise error("secret cause")

        monkeypatch.setattr(app.state.store, "find_study", fail)
        monkeypatch.setattr(app.state.store, "list_studies", fail)
        for path in paths:
            body = check_problem(client.get(fill_path(path)), name)
            assert "secret" not in json.dumps(body)


def test_an_unknown_path_is_a_problem(client):
    """404 for what is no route at all."""
    assert "/v2/studies" in check_problem(client.get("/v2/studies"), "not-found")["detail"]
    check_problem(client.get("/problems/nonsense"), "not-found")


def test_problems_do_not_send_the_input_back(client):
    """However long a wrong value is, the answer stays short."""
    long = "x" * 100_000
    for body in ({"space": long}, {"space": "decoder-nano", "sampler": long}, {long: 1}, {"space": {long: long}}):
        response = client.post("/v1/studies", json=body)
        check_problem(response, "invalid-request")
        assert len(response.text) < 4_000


def test_every_problem_type_has_a_page(client):
    """The URI in `type` leads to title and advice."""
    for name, kind in PROBLEM_TYPES.items():
        body = client.get(f"/problems/{name}").json()
        assert (body["title"], body["status"], body["advice"]) == (kind.title, kind.status, kind.advice)


def test_openapi_describes_every_operation(client):
    """An id, a summary, tags; each error as a problem document; an example for each body."""
    ids = []
    document = client.get("/openapi.json").json()
    for method, path, about in operations(client):
        ids.append(about["operationId"])
        assert about["summary"]
        assert about["description"]
        assert about["tags"]
        errors = {status: r for status, r in about["responses"].items() if int(status) >= 400}
        assert {"421", "500", "503"} <= set(errors), (method, path)
        for response in errors.values():
            assert list(response["content"]) == ["application/problem+json"]
        if method == "post":
            schema = about["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            examples = document["components"]["schemas"][schema]["examples"]
            assert examples
            assert all(client.post(path, json=example).status_code in (200, 202) for example in examples)
    assert len(set(ids)) == len(ids) == 10
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_howto_names_every_route(client):
    """A route that is missing in the documentation, or is there alone, fails here."""
    text = (Path(__file__).parents[2] / "docs" / "howto" / "api.md").read_text(encoding="utf-8")
    table = text.split("## Routes")[1].split("##")[0]
    documented = set(re.findall(r"`(GET|POST) ([^`]+)`", table))
    assert documented == {(method.upper(), path) for method, path, _ in operations(client)}


def test_docs_is_a_page_of_our_own(client):
    """The page about the API loads nothing but the API's description, and its policy says so."""
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'none'; connect-src 'self'")
    assert not re.findall(r"""(?:src|href)=["'](?!/)""", response.text)
    nonces = set(re.findall(r'nonce="([^"]+)"', response.text))
    assert len(nonces) == 1
    assert f"script-src 'nonce-{nonces.pop()}'" in response.headers["content-security-policy"]


def test_the_limit_of_running_searches_is_a_problem(store_url):
    """With no room left, 429 says when to try again, and no study is stored."""
    app = create_app(store_url, max_running=0)
    with TestClient(app, base_url="http://localhost") as client:
        response = client.post("/v1/studies", json={"space": "decoder-nano"})
        check_problem(response, "too-many-searches")
        assert response.headers["retry-after"] == "60"
        assert client.get("/v1/studies").json()["studies"] == []
