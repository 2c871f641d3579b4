"""The text that candidates are trained on and scored on: bytes, split so that no scored byte was trained on.

Without files of the user's own it is the source of this Python's standard library, which is at hand on every machine.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError

__all__ = ["MAX_BYTES", "Corpus", "load_corpus"]

MAX_BYTES = 64 * 2**20  # a search trains on far fewer; it keeps a huge folder from filling the memory
_NOT_OUR_SOURCE = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Bytes to train on and bytes to score on, which share no file and no text.

    train, heldout: uint8 arrays [num_bytes], the files of each part one after the other.
    fingerprint: sha256 over the names and contents used and the split, in hexadecimal.
    num_files: files used; num_heldout_files: those of them that are held out, whole or in part.
    num_binary_files, num_duplicate_files: files of a folder left out, because they are no UTF-8 text or repeat another.
    """

    name: str
    train: NDArray[np.uint8]
    heldout: NDArray[np.uint8]
    fingerprint: str
    num_files: int
    num_heldout_files: int
    num_binary_files: int
    num_duplicate_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """One text file: its path relative to the folder that was named, its bytes and their sha256."""

    name: str
    content: bytes
    sha256: str


def load_corpus(
    paths: Sequence[str | Path] = (),
    *,
    heldout_tokens: int,
    seed: int = 0,
    sequence_length: int = 128,
    max_bytes: int = MAX_BYTES,
) -> Corpus:
    """Text of the files and folders named, or of Python's standard library, split into training and held-out bytes.

    Folders are read in depth, without hidden names and without following linked folders. Files come in the order of a
    hash over seed and relative path, up to `max_bytes`; equal contents are used once. The held-out part wants the
    largest of `heldout_tokens`, one sequence and a tenth of all bytes, but at most half of them: whole files in that
    order, none that would bring it over half, and what is then still missing from the end of the largest training
    file (so a single file is split at its end).

    Raises:
        DataError: names the path that is missing, empty, binary, unreadable or too short, and what would be right.
    """
    files = list(_named_files(paths) if paths else _standard_library_files())
    files.sort(key=lambda file: (_order(seed, file[0]), file))
    texts, num_binary, num_duplicate = _read_texts(files, max_bytes, named=[str(path) for path in paths])
    train, heldout = _split(texts, max(heldout_tokens, sequence_length + 1))
    name = ", ".join(map(str, paths)) or f"Python {platform.python_version()} standard library"
    for part, parts in (("training", train), ("held-out", heldout)):
        _check_length(name, part, sum(map(len, parts)), sequence_length)
    return Corpus(
        name=name,
        train=_joined(train),
        heldout=_joined(heldout),
        fingerprint=_fingerprint(texts, len(heldout), sum(map(len, heldout))),
        num_files=len(texts),
        num_heldout_files=len(heldout),
        num_binary_files=num_binary,
        num_duplicate_files=num_duplicate,
    )


def _standard_library_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    found = False
    for name, path in _walk(root):
        if path.suffix == ".py" and not _NOT_OUR_SOURCE.intersection(Path(name).parts):
            found = True
            yield name, path
    if not found:
        raise DataError(f"{root} holds no source of the standard library; name text files of your own with --data")


def _named_files(paths: Sequence[str | Path]) -> Iterator[tuple[str, Path]]:
    for path in map(Path, paths):
        if path.is_dir():
            files = list(_walk(path))
            if not files:
                raise DataError(f"{path} is an empty folder; name a folder with text files in it")
            yield from files
        elif path.is_file():
            yield path.name, path
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder; name text files or folders of them")
        else:
            raise DataError(f"{path} does not exist; name text files or folders of them")


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Regular files under a folder, each with its path relative to it; a linked folder is not entered: it may loop."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; make the folder readable") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _read_texts(
    files: Sequence[tuple[str, Path]], max_bytes: int, named: Sequence[str]
) -> tuple[list[_Text], int, int]:
    """Texts in the order of `files` up to `max_bytes`, and how many files were binary and how many repeated another."""
    texts: list[_Text] = []
    seen: set[str] = set()
    room, num_binary, num_duplicate = max_bytes, 0, 0
    for name, path in files:
        if room <= 0:
            break
        content = _read(path, room)
        sha256 = hashlib.sha256(content).hexdigest()
        if not _is_text(content):
            if str(path) in named:
                raise DataError(f"{path} is binary; name a file of UTF-8 text")
            num_binary += 1
        elif sha256 in seen:
            num_duplicate += 1
        elif content:
            seen.add(sha256)
            texts.append(_Text(name=name, content=content, sha256=sha256))
            room -= len(content)
    if not texts:
        found = f"only binary files ({num_binary})" if num_binary else f"only empty files ({len(files)})"
        raise DataError(f"{', '.join(named)} holds {found}; name files of UTF-8 text")
    return texts, num_binary, num_duplicate


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; make it readable or leave it out") from error


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)  # a character cut off by the limit is no fault
    except UnicodeDecodeError:
        return False
    return True


def _split(texts: Sequence[_Text], heldout_tokens: int) -> tuple[list[bytes], list[bytes]]:
    """Training and held-out contents by the rule of `load_corpus`."""
    total = sum(len(text.content) for text in texts)
    wanted = min(total // 2, max(heldout_tokens, total // 10))
    train: list[bytes] = []
    heldout: list[bytes] = []
    missing = wanted
    for text in texts:
        if missing > 0 and len(text.content) <= total // 2 - (wanted - missing):
            heldout.append(text.content)
            missing -= len(text.content)
        else:
            train.append(text.content)
    if missing > 0:
        largest = max(range(len(train)), key=lambda index: len(train[index]))
        content = train[largest]
        train[largest], end = content[:-missing], content[-missing:]
        heldout.append(end)
    return train, heldout


def _check_length(name: str, part: str, num_bytes: int, sequence_length: int) -> None:
    if num_bytes <= sequence_length:
        raise DataError(
            f"{name} is too short: the {part} part has {num_bytes} bytes, and one sequence needs "
            f"{sequence_length + 1}; give at least {2 * (sequence_length + 1)} bytes of text"
        )


def _joined(contents: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(contents), np.uint8)


def _fingerprint(texts: Sequence[_Text], num_heldout_files: int, num_heldout_bytes: int) -> str:
    digest = hashlib.sha256(f"{num_heldout_files} {num_heldout_bytes}\n".encode())
    for text in texts:
        digest.update(f"{text.sha256} {text.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
