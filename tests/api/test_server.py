"""What `nas serve` does before it serves, and that it ends cleanly."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from api.server import serve
from nas.errors import NasError, StoreCorruptError, UsageError


def test_serve_refuses_addresses_that_others_reach(store_url):
    """No keys yet, so no other machine."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UsageError, match="no keys yet"):
            serve(store_url, host)


def test_serve_refuses_a_store_in_memory():
    """No worker would find it."""
    with pytest.raises(UsageError, match="in memory"):
        serve("sqlite://")


def test_serve_names_a_port_in_use(store_url):
    """One line with the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NasError, match=f"port {port} of 127.0.0.1 is in use; choose another one with --port"):
            serve(store_url, port=port)


def test_serve_refuses_a_port_that_is_none(store_url):
    """Ports end at 65535."""
    with pytest.raises(UsageError, match="65535"):
        serve(store_url, port=70_000)


def test_serve_refuses_a_file_that_is_no_store(tmp_path):
    """Before it listens."""
    path = tmp_path / "notes.db"
    path.write_text("not a database, only some notes that somebody keeps here")
    with pytest.raises(StoreCorruptError):
        serve(f"sqlite:///{path}")


def test_serve_answers_and_ends_with_an_interrupt(store_url):
    """The command prints where it serves and an example, answers there, and ends with exit code 0."""
    command = [sys.executable, "-m", "nas.cli", "serve", "--port", "0", "--store", store_url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = process.stderr.readline().split()[1]
            example = [process.stderr.readline() for _ in range(2)]
            assert f"{address}/v1/studies" in example[1]
            with urllib.request.urlopen(f"{address}/livez", timeout=30) as response:
                assert response.read() == b'{"status":"ok"}'
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in rest
