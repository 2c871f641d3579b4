"""A file of weights, whatever its format; and where it differs from what its config says."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from estimator.errors import InputError
from estimator.network import Network, stored_weights
from estimator.readers.files.weight_records import FileTensor, WeightFile, file_size, path_inside, show_name

__all__ = ["Comparison", "FileTensor", "WeightFile", "compare_with_config", "find_weights", "read_weight_file"]

_SAFE = "safetensors, GGUF and ONNX files are"
_OTHERS = {
    b"PK\x03\x04": "a zip archive, such as torch.save writes (.bin, .pt, .pth) or numpy's .npz",
    b"PK\x05\x06": "an empty zip archive",
    b"\x80": "a Python pickle, which can run any code when it is loaded",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy array",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"ggml": "a GGML file, older than GGUF",
    b"ggmf": "a GGML file, older than GGUF",
    b"ggjt": "a GGML file, older than GGUF",
    b"ggla": "a GGML adapter, older than GGUF",
    b"version https://git-lfs": "a Git LFS pointer: the weights themselves were not downloaded",
}
_INDEX = "model.safetensors.index.json"
_WEIGHT_ENDINGS = (".safetensors", ".gguf", ".onnx")
_MOST_LISTED, _MOST_SHAPES, _MOST_FUSED, _MOST_LAYERS = 5, 16, 4, 1000
_LAYER = re.compile(r"(?:^|[._/])(?:layers?|h|blk|blocks?|stages)\.(\d{1,5})(?=\.)")
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """One weight, or `copies` equal ones, as it is compared."""

    name: str
    shape: Shape
    copies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Where a file and a config differ; both sides are empty where they agree, weight by weight.

    only_in_file, only_in_config: names that the other does not have, by shape. `messages` says it in sentences.
    """

    file_parameters: int
    config_parameters: int
    only_in_file: tuple[str, ...]
    only_in_config: tuple[str, ...]
    messages: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether both have the same weights, apart from how they are fused, stacked, transposed and named."""
        return not self.only_in_file and not self.only_in_config


def read_weight_file(path: str | Path) -> WeightFile:
    """The tensors of a safetensors, GGUF or ONNX file, of a safetensors index, or of a folder that holds one of these.

    The format is known by the first bytes, not by the name.

    Raises:
        InputError: there is no such file, or it is of another format; the message names it, and what would be right.
        CorruptFileError: the header cannot be right; the message says why.
    """
    path = Path(path)
    found = find_weights(path) if _is_folder(path) else path
    if found is None:
        raise InputError(f"folder {path} holds no weights that can be read; {_SAFE}")
    size = file_size(found)
    try:
        with found.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"cannot read {found}: {error.strerror}") from error
    if not size:
        raise InputError(f"{found} is empty")
    return _read(found, start)


def _read(path: Path, start: bytes) -> WeightFile:
    from estimator.readers.files.gguf_file import GGUF_MAGIC, read_gguf
    from estimator.readers.files.onnx_file import looks_like_onnx, read_onnx
    from estimator.readers.files.safetensors_file import (
        looks_like_safetensors,
        read_safetensors,
        read_safetensors_index,
    )

    if start.startswith(GGUF_MAGIC):
        return read_gguf(path)
    if looks_like_safetensors(start):
        return read_safetensors(path)
    if start.lstrip()[:1] == b"{":
        return read_safetensors_index(path)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise InputError(f"{path} is {what}; only {_SAFE} read")
    if path.suffix == ".safetensors":
        return read_safetensors(path)  # says what is wrong with it
    if looks_like_onnx(start) or path.suffix == ".onnx":
        return read_onnx(path)
    raise InputError(f"{path} is in no format that is known; {_SAFE} read")


def find_weights(folder: Path) -> Path | None:
    """The file in `folder` that holds, or lists, the model's weights; None without any.

    Raises:
        InputError: several could be meant; the message names them.
        CorruptFileError: it is a link out of the folder.
    """
    try:
        names = sorted(name for name in itertools.islice(_names(folder), 100_000))
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror}") from error
    for wanted in (_INDEX, "model.safetensors", "model.onnx"):
        if wanted in names:
            return path_inside(folder, wanted, folder)
    found = [name for name in names if name.endswith(".safetensors.index.json")]
    found = found or [name for name in names if name.endswith(_WEIGHT_ENDINGS) and not _is_later_part(name)]
    if len(found) > 1:
        shown = ", ".join(show_name(name) for name in found[:_MOST_LISTED])
        raise InputError(f"folder {folder} holds {len(found)} files of weights ({shown} ...); give one of them")
    return path_inside(folder, found[0], folder) if found else None


def _names(folder: Path) -> Iterator[str]:
    return (entry.name for entry in folder.iterdir())


def _is_later_part(name: str) -> bool:
    match = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
    return match is not None and int(match[1]) != 1


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)[:200]!r}: {error}") from error


def compare_with_config(weight_file: WeightFile, network: Network) -> Comparison:
    """Which weights only the file has, and which only the network that its config describes.

    Weights are matched by shape: files name, transpose, fuse (q, k and v in one matrix) and stack (experts) them in
    many ways that change no size.

    Raises:
        InputError: the file packs weights in a way that is not known, so that they cannot be counted.
    """
    if weight_file.parameters is None:
        raise InputError(f"{weight_file.paths[0]}: {weight_file.warnings[-1]}")
    in_file = _items((tensor.name, tensor.shape, 1) for tensor in weight_file.parameters)
    in_config = _items((name, weight.shape, weight.copies) for name, _, weight in stored_weights(network))
    only_in_file, only_in_config = _differences(in_file, in_config)
    totals = weight_file.num_parameters or 0, sum(weight.num_elements for _, _, weight in stored_weights(network))
    return Comparison(
        file_parameters=totals[0],
        config_parameters=totals[1],
        only_in_file=only_in_file,
        only_in_config=only_in_config,
        messages=_messages(*totals, only_in_file, only_in_config),
    )


def _items(weights: Iterable[tuple[str, Shape, int]]) -> list[_Item]:
    """Weights with shapes as they are compared: without dimensions of 1, in rising order, a stack as copies."""
    items = []
    for name, shape, copies in weights:
        dims = [size for size in shape if size != 1]
        stacked = dims.pop(0) if len(dims) == 3 else 1
        if math.prod(dims) * stacked:
            items.append(_Item(name, tuple(sorted(dims)), stacked * copies))
    return items


def _differences(in_file: list[_Item], in_config: list[_Item]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that only one side has: matched layer by layer, or over all layers at once where that fits better."""
    at_once = _match(in_file, in_config)
    if not any(at_once):
        return (), ()
    names = [_names_of(left, items) for left, items in zip(at_once, (in_file, in_config), strict=True)]
    layers = sorted({_layer(item.name) for item in in_file + in_config})
    if 1 < len(layers) <= _MOST_LAYERS:
        by_layer, left_elements = _match_layers(in_file, in_config, layers)
        if left_elements <= _size(at_once):
            names = by_layer
    return tuple(sorted(names[0], key=_natural)), tuple(sorted(names[1], key=_natural))


def _match_layers(in_file: list[_Item], in_config: list[_Item], layers: list[int]) -> tuple[list[list[str]], int]:
    """Names that are left over on both sides, and their elements; -1 is what stands outside the layers."""
    sides: list[dict[int, list[_Item]]] = [{layer: [] for layer in layers} for _ in range(2)]
    for side, items in zip(sides, (in_file, in_config), strict=True):
        for item in items:
            side[_layer(item.name)].append(item)
    names: list[list[str]] = [[], []]
    left_elements = 0
    for layer in layers:
        rest = _match(sides[0][layer], sides[1][layer])
        left_elements += _size(rest)
        for found, left, side in zip(names, rest, sides, strict=True):
            found += _names_of(left, side[layer])
    return names, left_elements


def _match(in_file: list[_Item], in_config: list[_Item]) -> tuple[Counter[Shape], Counter[Shape]]:
    """The shapes that are left over on both sides."""
    shapes: tuple[Counter[Shape], Counter[Shape]] = (Counter(), Counter())
    for side, items in zip(shapes, (in_file, in_config), strict=True):
        for item in items:
            side[item.shape] += item.copies
    rest_file, rest_config = shapes[0] - shapes[1], shapes[1] - shapes[0]
    _match_fused(rest_file, rest_config)
    _match_fused(rest_config, rest_file)
    _match_flat(rest_file, rest_config)
    return +rest_file, +rest_config


def _size(rest: tuple[Counter[Shape], Counter[Shape]]) -> int:
    return sum(math.prod(shape) * count for side in rest for shape, count in side.items())


def _layer(name: str) -> int:
    """The layer that a weight belongs to by its name, -1 for none."""
    match = _LAYER.search(name)
    return int(match[1]) if match else -1


def _match_fused(whole: Counter[Shape], parts: Counter[Shape]) -> None:
    """Takes out of both what is one tensor in `whole` and two to four, side by side, in `parts`."""
    if len(whole) > _MOST_SHAPES or len(parts) > _MOST_SHAPES:
        return
    for shape in sorted(whole, key=math.prod, reverse=True):
        for common in {(size,) for size in shape} if len(shape) == 2 else {()}:
            _match_one(shape, common, whole, parts)


def _match_one(shape: Shape, common: Shape, whole: Counter[Shape], parts: Counter[Shape]) -> None:
    length = math.prod(shape) // math.prod(common)
    lengths = {
        math.prod(part) // math.prod(common): part
        for part in parts
        if (not common and len(part) == 1) or (common and (common == part or (len(part) == 2 and common[0] in part)))
    }
    for count in range(2, _MOST_FUSED + 1):
        for chosen in itertools.combinations_with_replacement(sorted(lengths), count):
            if sum(chosen) != length:
                continue
            needed = Counter(lengths[size] for size in chosen)
            times = min(whole[shape], *(parts[part] // number for part, number in needed.items()))
            whole[shape] -= times
            for part, number in needed.items():
                parts[part] -= number * times


def _match_flat(in_file: Counter[Shape], in_config: Counter[Shape]) -> None:
    """Takes out of both the weights whose shape the file does not tell, only their size (bitsandbytes)."""
    sizes: dict[int, list[Shape]] = {}
    for shape in in_config:
        sizes.setdefault(math.prod(shape), []).append(shape)
    for shape in [shape for shape in in_file if len(shape) == 1]:
        for other in sizes.get(shape[0], ()):
            times = min(in_file[shape], in_config[other])
            in_file[shape] -= times
            in_config[other] -= times


def _names_of(left: Counter[Shape], items: list[_Item]) -> list[str]:
    """Names of weights of the shapes that are left over: of equal ones the last layers', and a head before a table."""
    found: list[str] = []
    left = Counter(left)
    for item in sorted(items, key=_lateness, reverse=True):
        if left[item.shape] > 0:
            left[item.shape] -= item.copies
            found.append(item.name)
    return found


def _lateness(item: _Item) -> tuple[int, bool]:
    return _layer(item.name), "head" in item.name or item.name == "output.weight"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() and len(part) < 7 else (0, part) for part in re.split(r"(\d+)", name)]


def _messages(
    in_file: int, in_config: int, only_in_file: tuple[str, ...], only_in_config: tuple[str, ...]
) -> tuple[str, ...]:
    messages: list[str] = []
    if in_file != in_config:
        messages.append(f"the file holds {in_file:,} parameters, its config makes {in_config:,}")
    for names, where in ((only_in_file, "the file has"), (only_in_config, "the config has")):
        if names:
            shown = ", ".join(show_name(name) for name in names[:_MOST_LISTED])
            more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
            messages.append(f"only {where}: {shown}{more}")
    return tuple(messages)
