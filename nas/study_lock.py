"""One process at a time works on a study.

The lock is the operating system's, on a file beside the store: it is gone the moment its holder is, however it ended.
It guards one machine; several machines on one database need leases.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nas.errors import StoreError

__all__ = ["lock_holder", "locked"]


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file, which names this process, until the block ends.

    Raises:
        StoreError: another process, or another place in this one, holds it; or the file cannot be written.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _read_holder(path) or "unknown"
            raise StoreError(f"{what} is being run by process {holder}; stop it or wait for it") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock_holder(path: Path) -> int | None:
    """The process that holds the lock file, or None."""
    import fcntl

    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(path)
    except OSError:
        return None
    return None


def _read_holder(path: Path) -> int | None:
    text = path.read_text()
    return int(text) if text.isdecimal() else None
