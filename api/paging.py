"""Pages by keyset: a cursor says where the last page ended, so that new rows move nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query, Request

from api.problems import ApiError, InvalidPart

__all__ = ["Cursor", "Limit", "next_link", "read_cursor"]

T = TypeVar("T")
Limit = Annotated[int, Query(ge=1, le=500, description="rows of a page")]
Cursor = Annotated[str | None, Query(max_length=200, description="opaque; comes with `next` of the page before")]

_VERSION = 1


def next_link(request: Request, page: Sequence[object], limit: int, key: Sequence[str | int]) -> str | None:
    """The address of the next page, or None when this page is not full; `key` is that of the page's last row."""
    if len(page) < limit:
        return None
    text = json.dumps([_VERSION, *key], separators=(",", ":"))
    cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    url = request.url.include_query_params(limit=limit, cursor=cursor)
    return f"{url.path}?{url.query}"


def read_cursor(cursor: str | None, read_key: Callable[..., T]) -> T | None:
    """What `read_key` makes of the key that `next_link` wrote, or None without a cursor.

    Raises:
        ApiError: not a cursor of this list.
    """
    if cursor is None:
        return None
    try:
        version, *key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if version == _VERSION:
            return read_key(*key)
    except (ValueError, TypeError, AttributeError):
        pass
    detail = "not a cursor of this list; take it from `next` of the page before"
    raise ApiError("invalid-request", detail, errors=[InvalidPart(detail=detail, part="query", pointer="/cursor")])
