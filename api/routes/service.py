"""The service about itself: whether it lives, whether it can work, what its problems mean."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from api.dependencies import StoreOfApp
from api.problems import PROBLEM_TYPES, ApiError, declare

__all__ = ["router"]

router = APIRouter(tags=["service"])


class Health(BaseModel):
    """Healthy, since it answers."""

    status: str = "ok"


class ProblemTypeBody(BaseModel):
    """A kind of problem, and what a caller can do about it."""

    name: str
    status: int
    title: str
    advice: str


@router.get("/livez", operation_id="getLiveness", summary="Does the process answer", responses=declare())
def get_liveness() -> Health:
    """Always ok."""
    return Health()


@router.get("/readyz", operation_id="getReadiness", summary="Can the store be read", responses=declare())
def get_readiness(store: StoreOfApp) -> Health:
    """Ok, or the problem store-unavailable."""
    store.list_studies(limit=1)
    return Health()


@router.get("/docs", include_in_schema=False)
def get_docs() -> HTMLResponse:
    """The page that shows the OpenAPI document; like the whole service it needs no other host."""
    nonce = secrets.token_urlsafe()
    page = resources.files("api").joinpath("docs.html").read_text(encoding="utf-8").replace("{nonce}", nonce)
    policy = f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@router.get(
    "/problems/{name}", operation_id="getProblemType", summary="What a problem means", responses=declare("not-found")
)
def get_problem_type(name: str) -> ProblemTypeBody:
    """The page that the `type` of a problem document leads to."""
    if name not in PROBLEM_TYPES:
        raise ApiError("not-found", f"there is no such problem; there are {', '.join(PROBLEM_TYPES)}")
    return ProblemTypeBody.model_validate(asdict(PROBLEM_TYPES[name]))
