"""Runs the service: `nas serve`."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
import sys

import uvicorn

from api.app import LOCAL_HOSTS, create_app
from nas.database import resolve_url, sqlite_path
from nas.errors import NasError, UsageError
from nas.store import Store

__all__ = ["serve"]


def serve(store_url: str | None, host: str = "127.0.0.1", port: int = 8000, *, allow_remote: bool = False) -> int:
    """Serves one study store until it is interrupted, and returns the exit code 0.

    Args:
        store_url: as `Store.open` takes it.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.
        allow_remote: listen on an address that other machines reach, although the service has no keys yet.

    Raises:
        UsageError: the address is another machine's business, or the store is in memory, where no worker finds it.
        StoreError: the store cannot be opened.
        NasError: the port is in use, or the address is not this machine's.
    """
    if not (allow_remote or _is_loopback(host)):
        raise UsageError(
            f"{host} can be reached by other machines, and the service has no keys yet; serve on 127.0.0.1 and "
            "forward the port: ssh -L 8000:127.0.0.1:8000 MACHINE"
        )
    url = resolve_url(store_url)
    if url.get_backend_name() == "sqlite" and sqlite_path(url) is None:
        raise UsageError("a store in memory cannot be served: its searches run in processes of their own")
    Store.open(store_url).close()  # what is wrong with it is one line now, and no traceback of the server's
    listener = _listen(host, port)
    address = _address(host, listener.getsockname()[1])
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    app = create_app(store_url, hosts=tuple(dict.fromkeys((*LOCAL_HOSTS, host))))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10))
    print(_greeting(address), file=sys.stderr)  # noqa: T201 - what the command says
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """The socket to serve on, taken before anything else so that a port in use is one line."""
    if not 0 <= port < 2**16:
        raise UsageError(f"--port must be from 0 to 65535, not {port}")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise NasError(f"port {port} of {host} is in use; choose another one with --port") from error
        raise NasError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _greeting(address: str) -> str:
    return (
        f"serving {address} (its API: {address}/docs); Ctrl-C ends it and its searches, which can be resumed\n"
        f"start a search:\n"
        f'  curl -H \'Content-Type: application/json\' -d \'{{"space": "decoder-nano", "trials": 6}}\' '
        f"{address}/v1/studies"
    )
