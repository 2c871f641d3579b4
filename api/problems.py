"""Every error as an RFC 9457 problem document: one table of problem types, one body shape.

Source: https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from estimator.errors import ConfigError, InputError, UnknownDeviceError, UnsupportedModelError
from nas.errors import DataError, NotFoundError, SpaceError, StoreError, UsageError

__all__ = [
    "PROBLEM_TYPES",
    "ApiError",
    "InvalidPart",
    "Problem",
    "ProblemType",
    "declare",
    "describe_problems",
    "install",
    "to_pointer",
]

PROBLEM_JSON = "application/problem+json"
_MAX_TEXT = 400  # characters of a detail: enough for one clear line, too few to send a whole input back

# The field of a body that an error of the packages below is about.
_PLACES = {ConfigError: "config", UnsupportedModelError: "config", UnknownDeviceError: "device", SpaceError: "space"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemType:
    """A kind of problem: its name (the last part of its URI), HTTP status, title, and what a caller can do about it."""

    name: str
    status: int
    title: str
    advice: str


_TYPES = (
    ProblemType(
        name="not-found",
        status=404,
        title="There is no such thing",
        advice="No such path, study or trial. GET /v1/studies lists the studies; /docs lists the paths.",
    ),
    ProblemType(
        name="method-not-allowed",
        status=405,
        title="The path does not take this method",
        advice="Use a method that the Allow header of the answer lists.",
    ),
    ProblemType(
        name="body-too-large",
        status=413,
        title="The request body is too large",
        advice="Send at most 1 MiB of JSON.",
    ),
    ProblemType(
        name="not-json",
        status=415,
        title="The request body is not declared as JSON",
        advice="Send the header Content-Type: application/json.",
    ),
    ProblemType(
        name="wrong-host",
        status=421,
        title="The request is meant for another host",
        advice="Use the address that `nas serve` printed. Other host names are refused: the service has no keys yet.",
    ),
    ProblemType(
        name="invalid-request",
        status=422,
        title="The request is not understood",
        advice="Each entry of `errors` points to the part that is wrong and says what would be right.",
    ),
    ProblemType(
        name="too-many-searches",
        status=429,
        title="Enough searches are running already",
        advice="Wait until one has ended, or start this search on another machine.",
    ),
    ProblemType(
        name="internal-error",
        status=500,
        title="Something went wrong in the service",
        advice="The service's log has the cause under the identifier that `instance` gives.",
    ),
    ProblemType(
        name="store-unavailable",
        status=503,
        title="The study store cannot be used",
        advice="Look at the file or the database that `nas serve` was started with; its log names the cause.",
    ),
)
PROBLEM_TYPES: Mapping[str, ProblemType] = {kind.name: kind for kind in _TYPES}
_OF_ANY_ROUTE = ("wrong-host", "invalid-request", "internal-error", "store-unavailable")
_BY_STATUS = {kind.status: kind for kind in _TYPES}


class InvalidPart(BaseModel):
    """One thing that is wrong with a request."""

    detail: str
    part: str = Field(description="body, query or path", examples=["body"])
    pointer: str = Field(description="JSON pointer (RFC 6901) within that part", examples=["/quality/tokens"])


class Problem(BaseModel):
    """An error, as RFC 9457 defines it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/invalid-request",
                    "title": "The request is not understood",
                    "status": 422,
                    "detail": "1 part of the request is wrong",
                    "instance": "urn:uuid:6f8ffdd8-05c5-4a1b-9a4e-3b6d2a3f6e55",
                    "errors": [
                        {
                            "detail": "Input should be greater than or equal to 1",
                            "part": "body",
                            "pointer": "/trials",
                        }
                    ],
                }
            ]
        }
    )

    type: str = Field(description="URI of the problem's type; it leads to a page that explains it")
    title: str
    status: int
    detail: str
    instance: str = Field(description="identifier of this occurrence, also in the service's log")
    errors: list[InvalidPart] = Field(default_factory=list)


class ApiError(Exception):
    """A request ends with a problem of this type."""

    def __init__(
        self, kind: str, detail: str, *, errors: Sequence[InvalidPart] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.type = PROBLEM_TYPES[kind]
        self.detail = detail
        self.errors = errors
        self.headers = headers


def declare(*names: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that can end with these problem types, and those that any route can."""
    kinds = [PROBLEM_TYPES[name] for name in dict.fromkeys((*names, *_OF_ANY_ROUTE))]
    return {kind.status: {"description": kind.title, "model": Problem} for kind in kinds}


def describe_problems(document: dict[str, Any]) -> None:
    """Makes an OpenAPI document say of every error what is true: a problem, as application/problem+json."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["description"] = _BY_STATUS[int(status)].title
                    response["content"] = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape, which nothing here answers
        document["components"]["schemas"].pop(name, None)


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem document."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_bug)
    for refused in (UsageError, DataError, InputError):
        app.add_exception_handler(refused, _on_refused_input)
    app.add_exception_handler(NotFoundError, _on_not_found)
    app.add_exception_handler(StoreError, _on_store_error)


def _respond(
    kind: ProblemType,
    detail: str,
    *,
    errors: Sequence[InvalidPart] = (),
    headers: Mapping[str, str] | None = None,
    instance: str | None = None,
) -> JSONResponse:
    problem = Problem(
        type=f"/problems/{kind.name}",
        title=kind.title,
        status=kind.status,
        detail=_shorten(detail),
        instance=instance or _new_instance(),
        errors=list(errors),
    )
    return JSONResponse(problem.model_dump(), kind.status, headers, PROBLEM_JSON)


def _new_instance() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def to_pointer(path: Sequence[str | int]) -> str:
    """RFC 6901: each step with ~ as ~0 and / as ~1."""
    return "".join("/" + _shorten(str(step)).replace("~", "~0").replace("/", "~1") for step in path)


def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _respond(error.type, error.detail, errors=error.errors, headers=error.headers)


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if request.method == "POST" and not _is_json(request):
        return _respond(PROBLEM_TYPES["not-json"], "the body must come with Content-Type: application/json")
    parts = [_invalid_part(entry, error.body) for entry in error.errors()]
    detail = f"{len(parts)} parts of the request are wrong" if len(parts) > 1 else "1 part of the request is wrong"
    return _respond(PROBLEM_TYPES["invalid-request"], detail, errors=parts)


def _is_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _invalid_part(entry: Mapping[str, Any], body: Any) -> InvalidPart:
    part, *path = entry["loc"]
    if entry["type"] == "json_invalid":
        return InvalidPart(detail=f"not valid JSON at character {path[0]}", part=part, pointer="")
    if part == "body":
        path = _path_in(body, path, may_lack_last=entry["type"] == "missing")
    return InvalidPart(detail=_shorten(entry["msg"].removeprefix("Value error, ")), part=part, pointer=to_pointer(path))


def _path_in(body: Any, path: Sequence[str | int], *, may_lack_last: bool) -> list[str | int]:
    """The steps that lead somewhere in the body: pydantic adds the names of the types it tried."""
    steps: list[str | int] = []
    for step in path:
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            return [*steps, step] if may_lack_last else steps
        steps.append(step)
    return steps


def _on_refused_input(request: Request, error: Exception) -> JSONResponse:
    path = [place for kind, place in _PLACES.items() if isinstance(error, kind)]
    if isinstance(error, ConfigError) and error.field:
        path.append(error.field)
    part = InvalidPart(detail=_shorten(str(error)), part="body", pointer=to_pointer(path))
    return _respond(PROBLEM_TYPES["invalid-request"], str(error), errors=[part])


def _on_not_found(request: Request, error: Exception) -> JSONResponse:
    return _respond(PROBLEM_TYPES["not-found"], str(error))


def _on_store_error(request: Request, error: Exception) -> JSONResponse:
    instance = _new_instance()
    _log.error("%s: %s %s: %s", instance, request.method, request.url.path, error)
    return _respond(PROBLEM_TYPES["store-unavailable"], "the study store cannot be used", instance=instance)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    instance = _new_instance()
    _log.error("%s: %s %s", instance, request.method, request.url.path, exc_info=error)
    return _respond(
        PROBLEM_TYPES["internal-error"], "this is a fault of the service, not of the request", instance=instance
    )


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = _allowed_methods(request)
        detail = f"{request.url.path} takes {allowed}"
        return _respond(PROBLEM_TYPES["method-not-allowed"], detail, headers={"Allow": allowed})
    details = {
        400: "the body cannot be read as JSON",  # nested too deeply, or a number of thousands of digits
        404: f"there is no path {request.url.path}",
        413: "the body has more than 1 MiB",
    }
    kind = _BY_STATUS[422 if error.status_code == 400 else error.status_code]
    return _respond(kind, details[error.status_code], headers=error.headers)


def _allowed_methods(request: Request) -> str:
    """All methods of the path; Starlette's own header stops at the first route that matches it."""
    methods: set[str] = set()
    for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] == Match.FULL for route in request.app.router.routes):
            methods.add(method)
    return ", ".join(sorted(methods))
