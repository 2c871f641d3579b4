"""Studies, their trials and their fronts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response

from api.dependencies import StoreOfApp, WorkersOfApp
from api.paging import Cursor, Limit, next_link, read_cursor
from api.problems import declare
from api.schemas import ParetoBody, StudyBody, StudyPage, StudyRequest, TrialBody, TrialPage
from nas.pareto_json import pareto_document
from nas.records import TRIAL_STATES, StudyRecord
from nas.screening import check_reachable
from nas.standing import as_it_stands, stored_counts
from nas.store import Store

__all__ = ["router"]

router = APIRouter(prefix="/v1/studies", tags=["studies"])

Number = Annotated[int, Path(ge=0, lt=2**31)]
State = Annotated[str | None, Query(pattern=f"^({'|'.join(TRIAL_STATES)})$", description=", ".join(TRIAL_STATES))]


@router.post(
    "",
    status_code=202,
    operation_id="createStudy",
    summary="Start a search",
    response_description="the study; its search runs in a process of its own",
    responses=declare("body-too-large", "not-json", "too-many-searches")
    | {202: {"headers": {"Location": {"description": "where the study is", "schema": {"type": "string"}}}}},
)
def create_study(
    request: Annotated[StudyRequest, Body()], response: Response, store: StoreOfApp, workers: WorkersOfApp
) -> StudyBody:
    """Checks the whole request, stores the study and starts its search; answers at once.

    The search goes on whatever becomes of the client. Follow it at the address in `Location`.
    """
    spec = request.to_spec()
    spec.check_evaluable()
    check_reachable(spec)
    workers.check_room()
    study = store.create_study(spec, request.name)
    workers.start(study.id)
    response.headers["Location"] = f"/v1/studies/{study.id}"
    return _study_body(store, study)


@router.get("", operation_id="listStudies", summary="All studies", responses=declare())
def list_studies(request: Request, store: StoreOfApp, limit: Limit = 50, cursor: Cursor = None) -> StudyPage:
    """The newest first."""
    page = store.list_studies(after=read_cursor(cursor, _study_key), limit=limit)
    last = (page[-1].created_at.isoformat(), page[-1].id) if page else ()
    return StudyPage(studies=[_study_body(store, study) for study in page], next=next_link(request, page, limit, last))


@router.get("/{study}", operation_id="getStudy", summary="One study", responses=declare("not-found"))
def get_study(study: str, store: StoreOfApp) -> StudyBody:
    """By its id or name, or `latest`."""
    return _study_body(store, store.find_study(study))


@router.get(
    "/{study}/trials",
    operation_id="listTrials",
    summary="Trials of a study",
    responses=declare("not-found"),
)
def list_trials(
    request: Request, study: str, store: StoreOfApp, limit: Limit = 50, cursor: Cursor = None, state: State = None
) -> TrialPage:
    """By number, without samples and history; those of one state on request."""
    after_number = read_cursor(cursor, _trial_key)
    page = store.trials(store.find_study(study).id, after_number=after_number, limit=limit, state=state)
    last = (page[-1].number,) if page else ()
    return TrialPage.model_validate(
        {"trials": [trial.to_dict() for trial in page], "next": next_link(request, page, limit, last)}
    )


@router.get(
    "/{study}/trials/{number}",
    operation_id="getTrial",
    summary="One trial",
    responses=declare("not-found"),
)
def get_trial(study: str, number: Number, store: StoreOfApp) -> TrialBody:
    """Everything known of it: figures, samples, files, why it failed."""
    return TrialBody.model_validate(store.trial(store.find_study(study).id, number).to_dict())


@router.get("/{study}/pareto", operation_id="getPareto", summary="The Pareto front", responses=declare("not-found"))
def get_pareto(study: str, store: StoreOfApp) -> ParetoBody:
    """The trials that no other one beats in every objective, among those that keep every limit."""
    return ParetoBody.model_validate(pareto_document(store, store.find_study(study)))


def _study_key(created_at: str, study_id: str) -> tuple[datetime, str]:
    time = datetime.fromisoformat(created_at)
    if time.tzinfo is None or not isinstance(study_id, str):
        raise ValueError
    return time, study_id


def _trial_key(number: int) -> int:
    if type(number) is not int or not 0 <= number < 2**31:
        raise ValueError
    return number


def _study_body(store: Store, study: StudyRecord) -> StudyBody:
    study = as_it_stands(store, study)
    return StudyBody(
        id=study.id,
        name=study.name,
        state=study.state,
        error=_error(store, study),
        created_at=study.created_at,
        revision=study.revision,
        num_trials=study.spec.num_trials,
        trials=stored_counts(store, study.id),
        spec=study.spec.to_dict(),
    )


def _error(store: Store, study: StudyRecord) -> str | None:
    """What the last worker that failed said, while nothing has run since."""
    if study.state not in ("fail", "stopped"):
        return None
    failures: list[dict[str, Any]] = [e.payload for e in store.events(study.id) if e.kind == "worker_failed"]
    return str(failures[-1]["detail"]) if failures else None
