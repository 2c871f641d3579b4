"""The text: which files are read, how they are split, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import DataError
from nas.quality.corpus import Corpus, load_corpus


def _write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _folder(root: Path, num_files: int = 20, num_bytes: int = 1000) -> Path:
    """Files whose text names them, so that a stray byte can be traced."""
    return _write(root, {f"sub{i % 3}/file{i}.txt": (f"<{i:04}>" * num_bytes)[:num_bytes] for i in range(num_files)})


def _marks(part: np.ndarray) -> set[bytes]:
    return {piece for piece in part.tobytes().split(b"<") if len(piece) == 5}


def _is_equal(a: Corpus, b: Corpus) -> bool:
    return (
        a.fingerprint == b.fingerprint
        and a.train.tobytes() == b.train.tobytes()
        and bytes(a.heldout) == bytes(b.heldout)
    )


def test_load_corpus_takes_the_standard_library_by_default() -> None:
    """Real text is at hand on every machine, without the library's own tests."""
    corpus = load_corpus(heldout_tokens=32_768)
    assert corpus.train.dtype == corpus.heldout.dtype == np.uint8
    assert corpus.train.size > 5_000_000
    assert corpus.heldout.size >= 32_768
    assert corpus.heldout.size / (corpus.train.size + corpus.heldout.size) == pytest.approx(0.1, abs=0.05)
    assert b"import " in corpus.train.tobytes()
    assert b"class SortTest" not in corpus.train.tobytes() + corpus.heldout.tobytes()


def test_load_corpus_splits_by_file(tmp_path: Path) -> None:
    """No file is on both sides, none is lost, and a tenth is held out."""
    corpus = load_corpus([_folder(tmp_path)], heldout_tokens=100)
    train, heldout = _marks(corpus.train), _marks(corpus.heldout)
    assert not train & heldout
    assert len(train | heldout) == corpus.num_files == 20
    assert len(heldout) == corpus.num_heldout_files == 2


def test_load_corpus_holds_out_as_much_as_is_asked(tmp_path: Path) -> None:
    """More held-out tokens than a tenth take more files, up to half of the text."""
    _folder(tmp_path)
    assert load_corpus([tmp_path], heldout_tokens=5_500).heldout.size == 6_000
    assert load_corpus([tmp_path], heldout_tokens=10**9).heldout.size == 10_000


def test_load_corpus_splits_a_single_file_at_its_end(tmp_path: Path) -> None:
    """The last bytes of the only file are held out, the rest is trained on."""
    text = "".join(chr(97 + i % 26) for i in range(5_000))
    corpus = load_corpus([_write(tmp_path, {"one.txt": text}) / "one.txt"], heldout_tokens=700)
    assert corpus.train.tobytes() == text[:-700].encode()
    assert corpus.heldout.tobytes() == text[-700:].encode()
    assert (corpus.num_files, corpus.num_heldout_files) == (1, 1)


def test_load_corpus_takes_the_end_of_a_file_that_outweighs_the_rest(tmp_path: Path) -> None:
    """A file of more than half the bytes is never held out whole."""
    _write(tmp_path, {"big.txt": "b" * 90_000, "small.txt": "s" * 100})
    corpus = load_corpus([tmp_path], heldout_tokens=2_000)
    assert corpus.heldout.size == 90_100 // 10
    assert set(corpus.train.tobytes()) == {ord("b")}


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12), wanted=st.integers(0, 3_000))
def test_load_corpus_keeps_every_byte_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], wanted: int
) -> None:
    """Whatever the sizes: the parts hold all bytes, and held-out has what was wanted but at most half."""
    root = tmp_path_factory.mktemp("corpus")
    contents = {f"{i}": bytes([65 + i]) * size for i, size in enumerate(sizes)}
    total = sum(sizes)
    _write(root, dict(contents) | {"enough": b"z" * 600})
    corpus = load_corpus([root], heldout_tokens=wanted, sequence_length=1)
    total += 600
    both = corpus.train.tobytes() + corpus.heldout.tobytes()
    assert sorted(both) == sorted(b"".join(contents.values()) + b"z" * 600)
    assert min(total // 2, max(wanted, total // 10)) <= corpus.heldout.size <= total // 2


def test_load_corpus_is_the_same_wherever_the_folder_lies(tmp_path: Path) -> None:
    """Order, split and fingerprint depend on relative paths and contents alone."""
    assert _is_equal(
        load_corpus([_folder(tmp_path / "a")], heldout_tokens=100),
        load_corpus([_folder(tmp_path / "b" / "c")], heldout_tokens=100),
    )


def test_load_corpus_splits_otherwise_with_another_seed(tmp_path: Path) -> None:
    """The seed chooses the held-out files."""
    _folder(tmp_path)
    seeds = [load_corpus([tmp_path], heldout_tokens=100, seed=seed) for seed in range(5)]
    assert len({corpus.heldout.tobytes() for corpus in seeds}) > 1
    assert len({corpus.fingerprint for corpus in seeds}) > 1


@pytest.mark.parametrize(
    "change", [{"sub0/file0.txt": "other text"}, {"new.txt": "a new file"}, {"sub0/file0.txt": b""}]
)
def test_load_corpus_fingerprint_changes_with_the_contents(tmp_path: Path, change: dict[str, str | bytes]) -> None:
    """A changed, added or emptied file gives another fingerprint."""
    before = load_corpus([_folder(tmp_path)], heldout_tokens=100)
    _write(tmp_path, change)
    assert load_corpus([tmp_path], heldout_tokens=100).fingerprint != before.fingerprint


def test_load_corpus_fingerprint_changes_with_the_split(tmp_path: Path) -> None:
    """Equal files split otherwise are other data."""
    _folder(tmp_path)
    assert (
        load_corpus([tmp_path], heldout_tokens=100).fingerprint
        != load_corpus([tmp_path], heldout_tokens=5_500).fingerprint
    )


def test_load_corpus_uses_equal_contents_once(tmp_path: Path) -> None:
    """A copy of a file cannot carry held-out text into training."""
    _folder(tmp_path / "a")
    _folder(tmp_path / "b")
    corpus = load_corpus([tmp_path], heldout_tokens=100)
    assert (corpus.num_files, corpus.num_duplicate_files) == (20, 20)
    assert not _marks(corpus.train) & _marks(corpus.heldout)


def test_load_corpus_skips_and_counts_binary_files(tmp_path: Path) -> None:
    """NUL bytes and bytes that are no UTF-8 are left out of a folder; any ending counts as text."""
    _folder(tmp_path)
    _write(tmp_path, {"a.png": b"\x89PNG\0\0" * 100, "latin.txt": "Käse".encode("latin-1") * 50, "notes": "ä" * 900})
    corpus = load_corpus([tmp_path], heldout_tokens=100)
    assert (corpus.num_files, corpus.num_binary_files) == (21, 2)


def test_load_corpus_reads_no_hidden_names(tmp_path: Path) -> None:
    """Version control and caches in a folder are not its text."""
    _folder(tmp_path)
    before = load_corpus([tmp_path], heldout_tokens=100)
    _write(tmp_path, {".git/config": "secret" * 50, ".hidden": "secret" * 50})
    assert _is_equal(load_corpus([tmp_path], heldout_tokens=100), before)


def test_load_corpus_ends_on_links_that_loop(tmp_path: Path) -> None:
    """A link back to the folder, a link to itself and a broken link are passed over."""
    _folder(tmp_path)
    before = load_corpus([tmp_path], heldout_tokens=100)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert _is_equal(load_corpus([tmp_path], heldout_tokens=100), before)


def test_load_corpus_stops_at_the_byte_limit(tmp_path: Path) -> None:
    """A huge folder is read up to the limit, even in the middle of a character."""
    _write(tmp_path, {"a.txt": "ä" * 4_000, "b.txt": "ö" * 4_000})
    corpus = load_corpus([tmp_path], heldout_tokens=100, max_bytes=9_001)
    assert corpus.train.size + corpus.heldout.size == 9_001
    assert (corpus.num_files, corpus.num_binary_files) == (2, 0)


def test_load_corpus_reads_files_and_folders_together(tmp_path: Path) -> None:
    """Several paths make one corpus."""
    folder = _folder(tmp_path / "folder")
    single = _write(tmp_path, {"single.txt": "x" * 300}) / "single.txt"
    corpus = load_corpus([folder, str(single)], heldout_tokens=100)
    assert corpus.num_files == 21
    assert corpus.name == f"{folder}, {single}"


def _missing(root: Path) -> Path:
    return root / "nowhere"


def _empty_folder(root: Path) -> Path:
    return _write(root, {}) / "."


def _only_binary(root: Path) -> Path:
    return _write(root, {"a.bin": b"\0\1", "b.bin": b"\xff\xfe"})


def _binary_file(root: Path) -> Path:
    return _write(root, {"model.onnx": b"\x08\x07\0"}) / "model.onnx"


def _only_empty_files(root: Path) -> Path:
    return _write(root, {"a.txt": "", "b.txt": ""})


def _too_short(root: Path) -> Path:
    return _write(root, {"short.txt": "too short"}) / "short.txt"


def _pipe(root: Path) -> Path:
    os.mkfifo(root / "pipe")
    return root / "pipe"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "nowhere does not exist; name text files or folders"),
        (_empty_folder, "is an empty folder; name a folder with text files"),
        (_only_binary, r"holds only binary files \(2\); name files of UTF-8 text"),
        (_binary_file, "model.onnx is binary; name a file of UTF-8 text"),
        (_only_empty_files, r"holds only empty files \(2\)"),
        (_too_short, "short.txt is too short: the training part has 5 bytes, .* needs 129; give at least 258 bytes"),
        (_pipe, "pipe is neither a file nor a folder"),
    ],
)
def test_load_corpus_refuses_what_is_no_text(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    """Each fault is one line that names the path and what would be right, with exit code 3."""
    path = make(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        load_corpus([path], heldout_tokens=100)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["sub0/file0.txt", "sub0"])
def test_load_corpus_names_what_it_may_not_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or folder without permission is named, not passed over: the data would differ silently."""
    _folder(tmp_path)
    denied = tmp_path / name
    real_open, real_scandir = Path.open, os.scandir

    def open_unless_denied(path, *args, **kwargs):  # type: ignore[no-untyped-def]
        if path == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    def scandir_unless_denied(path):  # type: ignore[no-untyped-def]
        if Path(path) == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return real_scandir(path)

    monkeypatch.setattr(Path, "open", open_unless_denied)
    monkeypatch.setattr(os, "scandir", scandir_unless_denied)
    with pytest.raises(DataError, match=f"{name} cannot be read: Permission denied"):
        load_corpus([tmp_path], heldout_tokens=100)


def test_load_corpus_accepts_exactly_what_it_asks_for(tmp_path: Path) -> None:
    """The smallest text that the message about short text promises is enough, and a byte less is not."""
    path = _write(tmp_path, {"a.txt": "x" * 258}) / "a.txt"
    assert load_corpus([path], heldout_tokens=1).heldout.size == 129
    path.write_text("x" * 257)
    with pytest.raises(DataError, match="at least 258 bytes"):
        load_corpus([path], heldout_tokens=1)
