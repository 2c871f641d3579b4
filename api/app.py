"""The application: one FastAPI object for one store, made by a function. Nothing happens at import."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import Depends, FastAPI

from api import problems
from api.guards import BodyLimit, check_host, check_parameters
from api.routes import estimates, service, studies
from api.workers import Launch, Workers, launch_worker
from nas.store import Store

__all__ = ["LOCAL_HOSTS", "create_app"]

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
_DESCRIPTION = """Searches for transformers that fit your hardware, and sizes any transformer.

Every figure carries its origin (counted, modelled, predicted, measured or published) and, where there is one, its
interval. Every error is a problem document (RFC 9457)."""


class _Application(FastAPI):
    """FastAPI, whose OpenAPI document describes errors as they are."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            problems.describe_problems(super().openapi())
        return super().openapi()


def create_app(
    store_url: str | None,
    *,
    hosts: Sequence[str] = LOCAL_HOSTS,
    launch: Launch = launch_worker,
    max_running: int = 4,
) -> FastAPI:
    """The service over one study store, which is open while the application runs.

    Args:
        store_url: as `Store.open` takes it.
        hosts: names under which the service may be addressed.
        launch: starts the worker of a study.
        max_running: searches that may run at once.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Store.open(store_url) as store:
            app.state.store = store
            app.state.workers = Workers(store, launch, max_running)
            yield
            await to_thread.run_sync(app.state.workers.stop)

    app = _Application(
        title="Archfront",
        version="1",
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(check_host), Depends(check_parameters)],
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.hosts = tuple(hosts)
    app.add_middleware(BodyLimit)
    problems.install(app)
    for module in (studies, estimates, service):
        app.include_router(module.router)
    return app
