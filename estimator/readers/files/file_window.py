"""A file's bytes by position, of which only a small window is in memory: headers of any size, without mapping."""

from __future__ import annotations

from typing import BinaryIO, overload

__all__ = ["FileWindow"]

_WINDOW_BYTES = 1 << 14


class FileWindow:
    """Bytes of `file`, which holds `size`, by index and slice.

    Raises:
        ValueError: more than `most_reads` bytes were asked for one by one, as only a hostile file needs.
    """

    def __init__(self, file: BinaryIO, size: int, *, most_reads: int) -> None:
        self._file = file
        self._size = size
        self._reads_left = most_reads
        self._start = 0
        self._window = b""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int) -> int: ...

    @overload
    def __getitem__(self, key: slice) -> bytes: ...

    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, slice):
            start, stop, _ = key.indices(self._size)
            self._file.seek(start)
            return self._file.read(stop - start)
        index = key - self._start
        if not 0 <= index < len(self._window):
            self._load(key)
            index = 0
        return self._window[index]

    def _load(self, position: int) -> None:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("it has more parts than any model")
        self._file.seek(position)
        self._start, self._window = position, self._file.read(_WINDOW_BYTES)
        if not self._window:
            raise ValueError("it ends too early")
