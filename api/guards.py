"""What is refused before a route sees it: large bodies, requests meant for another host, unknown parameters."""

from __future__ import annotations

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import ApiError, InvalidPart, to_pointer

__all__ = ["MAX_BODY_BYTES", "BodyLimit", "check_host", "check_parameters"]

MAX_BODY_BYTES = 1024 * 1024


class BodyLimit:
    """ASGI middleware that counts the bytes of a body as they come, whatever its headers promise."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


def check_host(request: Request) -> None:
    """Refuses a Host that is not this service's: a web page elsewhere must not reach it by a name of its own.

    Raises:
        ApiError: the host is not one of the application's `hosts`.
    """
    hosts: tuple[str, ...] = request.app.state.hosts
    if (request.url.hostname or "").strip("[]") not in hosts:
        raise ApiError("wrong-host", f"this service answers to {', '.join(hosts)} alone")


def check_parameters(request: Request) -> None:
    """Refuses query parameters that the route does not take: a misspelt one would silently change nothing.

    Raises:
        ApiError: names each of them, and those that the route takes.
    """
    operations = request.app.openapi()["paths"].get(request.scope["route"].path, {})
    parameters = operations.get(request.method.lower(), {}).get("parameters", ())
    known = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        detail = f"unknown parameter; this path takes {', '.join(known) or 'none'}"
        parts = [InvalidPart(detail=detail, part="query", pointer=to_pointer([name])) for name in unknown]
        raise ApiError("invalid-request", detail, errors=parts)
