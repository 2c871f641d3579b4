"""Walks through a large JSON object in a file, entry by entry, in memory that does not grow with the file.

The headers of weight files may be 100 MB, and Python's own parser needs ten times that for a hostile one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["JsonScanner"]

_CHUNK_BYTES = 1 << 16
_SPACE = b" \t\r\n"
# An object without objects inside, an array of numbers, a string, or a number or word with the character behind it.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_VALUE = re.compile(
    rb"\{(?:[^{}\"]++|" + _STRING + rb")*+\}|\[[^][{}\"]*+\]|" + _STRING + rb"|[-+.0-9A-Za-z]++(?=[\s,}])", re.DOTALL
)


class JsonScanner:
    """Reads `num_bytes` of `file`, from where it stands, as one JSON object.

    Every method raises ValueError, with what is wrong, when the text is not what it asks for.
    """

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file = file
        self._left = num_bytes
        self._buffer = b""
        self._position = 0

    def entries(self) -> Iterator[str]:
        """The keys of the object that comes next. The caller reads the value of each before it asks for the next."""
        self._expect(b"{")
        if self._peek() == b"}":
            self._position += 1
            return
        while True:
            key = self.value(most_bytes=1 << 16)
            if not isinstance(key, str):
                raise ValueError("a name is not a string")
            self._expect(b":")
            yield key
            if self._peek() == b"}":
                self._position += 1
                return
            self._expect(b",")

    def value(self, *, most_bytes: int) -> Any:
        """The value that comes next, of at most `most_bytes`: a scalar, or an object or array of scalars."""
        self._peek()
        while (match := _VALUE.match(self._buffer, self._position)) is None:
            if len(self._buffer) - self._position > most_bytes:
                raise ValueError(f"an entry is longer than {most_bytes:,} bytes")
            if not self._fill():
                raise ValueError("it is cut off, nested too deeply or not JSON")
        if match.end() - match.start() > most_bytes:
            raise ValueError(f"an entry is longer than {most_bytes:,} bytes")
        self._position = match.end()
        return json.loads(match.group().decode("utf-8"), object_pairs_hook=_unique)

    def finish(self) -> None:
        """Makes sure that nothing but white space follows."""
        if self._peek():
            raise ValueError("more follows after its end")

    def _expect(self, character: bytes) -> None:
        if self._peek() != character:
            raise ValueError(f"{character.decode()} was expected instead of {self._peek() or b'its end'!r}")
        self._position += 1

    def _peek(self) -> bytes:
        """The next character that is not white space; empty at the end."""
        while True:
            rest = self._buffer[self._position : self._position + 64].lstrip(_SPACE)
            if rest:
                self._position += len(self._buffer[self._position : self._position + 64]) - len(rest)
                return rest[:1]
            self._position = min(self._position + 64, len(self._buffer))
            if self._position == len(self._buffer) and not self._fill():
                return b""

    def _fill(self) -> bool:
        chunk = self._file.read(min(max(_CHUNK_BYTES, len(self._buffer)), self._left))
        self._left -= len(chunk)
        self._buffer, self._position = self._buffer[self._position :] + chunk, 0
        return bool(chunk)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands twice")
    return values
