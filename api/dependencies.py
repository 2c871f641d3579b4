"""What a route needs of the application, from the request: nothing is global."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from api.workers import Workers
from nas.store import Store

__all__ = ["StoreOfApp", "WorkersOfApp"]


def _store(request: Request) -> Store:
    return cast(Store, request.app.state.store)


def _workers(request: Request) -> Workers:
    return cast(Workers, request.app.state.workers)


StoreOfApp = Annotated[Store, Depends(_store)]
WorkersOfApp = Annotated[Workers, Depends(_workers)]
