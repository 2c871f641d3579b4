"""The service about itself: whether it lives, whether it can work, what its problems mean."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
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


@router.get(
    "/problems/{name}", operation_id="getProblemType", summary="What a problem means", responses=declare("not-found")
)
def get_problem_type(name: str) -> ProblemTypeBody:
    """The page that the `type` of a problem document leads to."""
    if name not in PROBLEM_TYPES:
        raise ApiError("not-found", f"there is no such problem; there are {', '.join(PROBLEM_TYPES)}")
    return ProblemTypeBody.model_validate(asdict(PROBLEM_TYPES[name]))
