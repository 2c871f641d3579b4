"""What a file of weights holds, as far as its header says: the record that every reader of weight files fills."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimator.errors import CorruptFileError, InputError

__all__ = [
    "MOST_NAME_BYTES",
    "MOST_TENSORS",
    "FileTensor",
    "WeightFile",
    "check_shape",
    "check_totals",
    "file_size",
    "path_inside",
    "show_name",
]

MOST_TENSORS = 200_000  # Kimi-K2 with fp8 scales, the largest published, has about 140,000
MOST_NAME_BYTES = 24_000_000  # of all names together; those of Kimi-K2 take 8 MB
_MOST_DIMS, _MOST_ELEMENTS = 8, 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """One tensor. `shape` is in PyTorch's order, `dtype` a number type (fp32, bf16, int8) or a ggml type (Q4_K).

    `num_bytes` is what the file stores for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """The product of the dimensions."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One model's weights, in one file or several.

    tensors: everything stored. parameters: the weights that the tensors stand for, so that a 4-bit matrix that is
    packed into int32 beside scales is one weight of its true shape, with the bytes of all its parts; buffers (causal
    masks, position ids, rotary frequencies) are none. None where the packing is not known; a warning says which.
    metadata: key-values of the header. `format` is safetensors, gguf or onnx.
    """

    paths: tuple[Path, ...]
    format: str
    tensors: tuple[FileTensor, ...]
    parameters: tuple[FileTensor, ...] | None
    metadata: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, without headers and padding."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def num_elements(self) -> int:
        """Elements of all tensors as stored: packed ones count as the integers that they are packed into."""
        return sum(tensor.num_elements for tensor in self.tensors)

    @property
    def num_parameters(self) -> int | None:
        """Weights of the model, None where a packing is not known."""
        return None if self.parameters is None else sum(weight.num_elements for weight in self.parameters)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of the tensors by number type, the largest first."""
        counter: Counter[str] = Counter()
        for tensor in self.tensors:
            counter[tensor.dtype] += tensor.num_bytes
        return dict(counter.most_common())

    @property
    def elements_by_dtype(self) -> dict[str, int]:
        """Stored elements by number type, the most first."""
        counter: Counter[str] = Counter()
        for tensor in self.tensors:
            counter[tensor.dtype] += tensor.num_elements
        return dict(counter.most_common())


def check_shape(shape: tuple[Any, ...], name: str, path: Path) -> tuple[int, ...]:
    """The shape, if it can be one.

    Raises:
        CorruptFileError: a dimension is negative or no integer, or the tensor would be larger than any.
    """
    if len(shape) > _MOST_DIMS:
        raise CorruptFileError(
            f"{path}: tensor {show_name(name)} has {len(shape)} dimensions; {_MOST_DIMS} is the most"
        )
    if not all(type(size) is int and 0 <= size < _MOST_ELEMENTS for size in shape):
        raise CorruptFileError(f"{path}: tensor {show_name(name)} has an impossible dimension in {list(shape)!r:.80}")
    if math.prod(size for size in shape if size) >= _MOST_ELEMENTS:
        raise CorruptFileError(f"{path}: tensor {show_name(name)} of shape {list(shape)!r:.80} is larger than any file")
    return shape


def check_totals(num_tensors: int, name_bytes: int, path: Path) -> None:
    """Raises CorruptFileError if no model has so many tensors, or such long names."""
    if num_tensors > MOST_TENSORS:
        raise CorruptFileError(f"{path} has more than {MOST_TENSORS:,} tensors; no model has")
    if name_bytes > MOST_NAME_BYTES:
        raise CorruptFileError(f"{path} has more than {MOST_NAME_BYTES:,} bytes of names; no model has")


def file_size(path: Path) -> int:
    """Bytes of the regular file at `path`.

    Raises:
        InputError: there is none, it cannot be looked at, or it is no regular file.
    """
    try:
        if path.is_file():
            return path.stat().st_size
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)[:200]!r}: {getattr(error, 'strerror', None) or error}") from error
    raise InputError(f"{path} is not a regular file" if exists else f"{path} does not exist")


def path_inside(folder: Path, name: str, owner: Path, *, subfolders: bool = False) -> Path:
    """The file that `owner` names, which must lie in `folder`, also after its links are followed.

    A snapshot folder of the Hugging Face cache may link to the blobs beside it: that is how the cache stores files.

    Raises:
        CorruptFileError: the name leads out of the folder.
        InputError: there is no such file.
    """
    parts = name.split("/")
    is_plain = all(part not in ("", ".", "..") for part in parts) and not any(c in name for c in "\\:\0")
    if not is_plain or (len(parts) > 1 and not subfolders):
        raise CorruptFileError(f"{owner} names a file outside its folder: {show_name(name)}")
    path = folder / name
    try:
        target, home = path.resolve(), folder.resolve()
        is_there = target.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CorruptFileError(f"{owner} names {show_name(name)}, which cannot be a file's name") from error
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(place) for place in allowed):
        raise CorruptFileError(f"{owner} names {show_name(name)}, which is a link out of its folder")
    if not is_there:
        raise InputError(f"{owner} names {show_name(name)}, which is not in {folder}")
    return path


def show_name(name: str) -> str:
    """A name for messages: quoted, control characters escaped, cut where it is long."""
    text = ascii(name)
    return text if len(text) <= 100 else f"{text[:97]}...'"
