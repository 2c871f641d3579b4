"""Where this user's own data lives, and how files in it are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["user_data_dir", "write_bytes_atomically", "write_text_atomically"]

_FILE_MODE = 0o644  # temporary files are made for their owner alone; a report or a model is for others to read


def user_data_dir() -> Path:
    """`$ARCHFRONT_DATA`, else `$XDG_DATA_HOME/archfront`, else `~/.local/share/archfront`; it may not exist yet.

    A user without a home has `archfront-<uid>` in the folder for temporary files.
    """
    own = os.environ.get("ARCHFRONT_DATA")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_DATA_HOME")
    if shared:
        return Path(shared) / "archfront"
    try:
        return Path.home() / ".local" / "share" / "archfront"
    except RuntimeError:  # a user without a name and a home, as containers have
        return Path(tempfile.gettempdir()) / f"archfront-{os.getuid()}"


def write_text_atomically(path: Path, text: str) -> None:
    """As `write_bytes_atomically`, with the text in UTF-8."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Writes a file that others see either as it was or complete; makes its folder.

    A link stays, and what it points to is written. A device or a pipe is written into, never replaced.

    Raises:
        OSError: the folder cannot be made or written, or its disk is full; the file is then as it was.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(partial).chmod(_FILE_MODE)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
