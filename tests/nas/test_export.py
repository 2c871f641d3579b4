"""Shipping a trial: the very file, a checkpoint with the same logits, a card whose code runs, and no half folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from estimator.config import TransformerConfig
from estimator.errors import StorageFullError
from estimator.figures import Figure
from estimator.ort_session import make_inputs, open_session
from nas.errors import NotFoundError, StoreError, UsageError
from nas.export import export_trial, find_onnx
from nas.objectives import Objective
from nas.quality.task import QualityTask, train_build_score
from nas.records import Artifact, StudyRecord
from nas.space import SearchSpace
from nas.spec import QualitySettings, StudySpec
from nas.store import Store

UNIFORM = TransformerConfig(
    vocab_size=256,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=48,
    max_position_embeddings=64,
)
PER_LAYER = replace(
    UNIFORM, num_hidden_layers=3, intermediate_size_per_layer=(48, 64, 48), weight_source_per_layer=(0, 1, 0)
)
ENCODER = TransformerConfig(
    architecture="encoder",
    vocab_size=257,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    head="masked_lm",
    hidden_act="gelu",
    gated_mlp=False,
    norm_type="layer_norm",
    norm_eps=1e-12,
    norm_placement="post",
    position_embedding="learned",
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    embedding_norm=True,
    type_vocab_size=2,
)
CONFIGS = {"uniform": UNIFORM, "per_layer": PER_LAYER, "encoder": ENCODER, "int8": UNIFORM}
FIGURES = {
    "params": Figure(value=25_760, origin="counted"),
    "bits_per_byte": Figure(value=5.25, low=5.125, high=5.375, origin="measured"),
    "weights_bytes": Figure(value=103_040, origin="modelled"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shelf:
    """A store with one complete trial for each of CONFIGS, in their order."""

    store: Store
    study: StudyRecord
    artifacts: tuple[Artifact, ...]

    def number(self, name: str) -> int:
        return list(CONFIGS).index(name)

    def onnx_path(self, name: str) -> Path:
        return self.store.artifact_dir / self.artifacts[self.number(name)].path

    def weights_path(self, name: str) -> Path:
        return self.store.artifact_dir / str(self.artifacts[self.number(name)].weights_path)


def _fill(store: Store, text: Path) -> tuple[StudyRecord, tuple[Artifact, ...]]:
    settings = QualitySettings(data=(str(text),), tokens=2_048, sequence_length=32, batch_size=8, heldout_tokens=256)
    spec = StudySpec(space=SearchSpace.preset("decoder-nano"), quality=settings)
    study = store.create_study(spec, "shelf")
    artifacts = []
    for name, config in CONFIGS.items():
        dtype = "int8" if name == "int8" else "fp32"
        task = QualityTask(
            config=config,
            settings=settings,
            weight_dtype=dtype,
            num_threads=1,
            provider="cpu",
            folder=store.artifact_dir,
        )
        scored = train_build_score(task, name, progress=lambda step: None)
        trial = store.start_trial(study.id, params={}, config=config)
        store.save_artifact(scored.artifact)
        store.save_quality(name, scored.artifact.sha256, scored.quality)
        store.attach_artifact(study.id, trial.number, scored.artifact.sha256)
        store.attach_quality(study.id, trial.number, name)
        store.finish_trial(study.id, trial.number, "complete", figures=FIGURES)
        artifacts.append(scored.artifact)
    return study, tuple(artifacts)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a filled store, trained once; tests that damage it work on a copy."""
    root = tmp_path_factory.mktemp("shelf")
    (root / "text.txt").write_text("def main(self):\n    return self.value\n" * 100)
    with Store.open(f"sqlite:///{root}/study.db") as store:
        _fill(store, root / "text.txt")
    return root


@pytest.fixture
def shelf(filled: Path, tmp_path: Path) -> Iterator[_Shelf]:
    """A store of one's own."""
    root = tmp_path / "shelf"
    shutil.copytree(filled, root)
    with Store.open(f"sqlite:///{root}/study.db") as store:
        study = store.find_study("shelf")
        artifacts = tuple(trial.artifact for trial in store.trials(study.id) if trial.artifact is not None)
        yield _Shelf(store=store, study=study, artifacts=artifacts)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize("name", CONFIGS)
def test_export_trial_ships_the_very_file(shelf: _Shelf, tmp_path: Path, name: str) -> None:
    """The ONNX file has the trial's sha256, and the checkpoint lies beside it."""
    exported = export_trial(shelf.store, shelf.study, shelf.number(name), tmp_path / "out")
    assert _sha256(exported.onnx_path) == exported.sha256 == shelf.artifacts[shelf.number(name)].sha256
    assert {"README.md", "config.json", "model.onnx", "model.safetensors"} <= set(exported.files)
    assert {path.name for path in exported.folder.iterdir()} == set(exported.files)


@pytest.mark.parametrize("name", ["uniform", "per_layer", "encoder"])
def test_exported_checkpoint_gives_the_files_logits(shelf: _Shelf, tmp_path: Path, name: str) -> None:
    """`transformers` loads the folder and agrees with ONNX Runtime on the exported file."""
    import transformers

    config = CONFIGS[name]
    folder = export_trial(shelf.store, shelf.study, shelf.number(name), tmp_path / "out").folder
    auto = transformers.AutoModelForCausalLM if config.is_causal else transformers.AutoModelForMaskedLM
    model = auto.from_pretrained(folder, trust_remote_code=name == "per_layer").eval()
    inputs = make_inputs(config, batch_size=2, sequence_length=40)
    (logits,) = open_session(folder / "model.onnx", num_threads=1).run(["logits"], inputs)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(inputs["input_ids"])).logits.numpy()
    assert np.abs(logits).max() > 0.1
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["uniform", "per_layer", "encoder"])
def test_card_has_code_that_runs(shelf: _Shelf, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to load that the card shows work as printed, in the exported folder."""
    folder = export_trial(shelf.store, shelf.study, shelf.number(name), tmp_path / "out").folder
    monkeypatch.chdir(folder)
    onnx_code, transformers_code = _python_blocks((folder / "README.md").read_text())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(onnx_code, {})
    assert re.fullmatch(r"b(['\"]).{1,4}\1\n", printed.getvalue())
    names: dict[str, torch.Tensor] = {}
    exec(transformers_code, names)
    assert names["logits"].shape == (1, 9, CONFIGS[name].vocab_size)


def test_card_has_every_figure_with_its_origin(shelf: _Shelf, tmp_path: Path) -> None:
    """Values, intervals and origins, the budget, the data's fingerprint and the files' sha256."""
    folder = export_trial(shelf.store, shelf.study, 0, tmp_path / "out").folder
    card = (folder / "README.md").read_text()
    trial = shelf.store.trial(shelf.study.id, 0)
    assert trial.quality is not None
    assert "| parameters | 25.8K | - | 25760 | counted |" in card
    assert "| bits per byte | 5.250 | 5.125 to 5.375 | 5.25 bits | measured |" in card
    assert "| weights | 103 kB | - | 103040 bytes | modelled |" in card
    assert f"- data fingerprint: {trial.quality['data_fingerprint']}" in card
    assert "- training budget: 2048 tokens, the same for every trial" in card
    data = Path(shelf.study.spec.quality.data[0])
    assert f"- data: {data.name}" in card
    assert str(data.parent) not in card
    for name in ("model.onnx", "config.json", "model.safetensors"):
        assert f"| `{name}` | {(folder / name).stat().st_size} | `{_sha256(folder / name)}` |" in card


@pytest.mark.parametrize("evaluator", ["none", "mine:score"])
def test_card_of_a_model_that_nobody_trained_says_so(shelf: _Shelf, tmp_path: Path, evaluator: str) -> None:
    """Random weights are called random, with their seed, and never trained."""
    settings = QualitySettings(evaluator=evaluator, seed=11)
    objectives = (Objective("decode_latency_s"), Objective("params"))
    spec = replace(shelf.study.spec, quality=settings, objectives=objectives)
    export_trial(shelf.store, replace(shelf.study, spec=spec), 0, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- weights: random, from seed 11; nothing was trained" in card
    assert "trained weights" not in card


def test_card_of_an_encoder_calls_its_score_masked(shelf: _Shelf, tmp_path: Path) -> None:
    """The score of bytes behind a mask is not that of the next byte."""
    spec = replace(shelf.study.spec, space=SearchSpace.preset("encoder-small"), objectives=())
    export_trial(shelf.store, replace(shelf.study, spec=spec), shelf.number("encoder"), tmp_path / "out")
    assert "| masked bits per byte | 5.250 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("existing", [True, False])
def test_export_trial_makes_or_fills_an_empty_folder(shelf: _Shelf, tmp_path: Path, existing: bool) -> None:
    """An empty folder is as good as none; parents are made."""
    folder = tmp_path / "a" / "b"
    if existing:
        folder.mkdir(parents=True)
    assert export_trial(shelf.store, shelf.study, 0, folder).onnx_path.is_file()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_export_trial_refuses_a_folder_in_use(shelf: _Shelf, tmp_path: Path) -> None:
    """What is there is only replaced by force, and other files stay."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="out is not empty; name another folder, or give --force"):
        export_trial(shelf.store, shelf.study, 0, tmp_path / "out")
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"mine"}
    export_trial(shelf.store, shelf.study, 0, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text() != "mine"
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_export_trial_refuses_a_file_as_folder(shelf: _Shelf, tmp_path: Path) -> None:
    """A path that is a file, or lies under one, is named."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is a file; name a folder"):
        export_trial(shelf.store, shelf.study, 0, tmp_path / "file", force=True)
    with pytest.raises(UsageError, match="below cannot be written: "):
        export_trial(shelf.store, shelf.study, 0, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_export_trial_refuses_a_trial_without_a_file(shelf: _Shelf, tmp_path: Path) -> None:
    """Only a complete trial with an ONNX file is shipped; the message says what the trial is."""
    running = shelf.store.start_trial(shelf.study.id, params={}, config=replace(UNIFORM, hidden_size=64))
    with pytest.raises(UsageError, match=f"trial {running.number} of shelf is running; only a complete trial"):
        export_trial(shelf.store, shelf.study, running.number, tmp_path / "out")
    shelf.store.finish_trial(shelf.study.id, running.number, "complete", figures=FIGURES)
    with pytest.raises(UsageError, match=f"trial {running.number} of shelf was told from outside and has no ONNX file"):
        export_trial(shelf.store, shelf.study, running.number, tmp_path / "out")
    with pytest.raises(NotFoundError, match="no trial 99"):
        export_trial(shelf.store, shelf.study, 99, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _remove_onnx(shelf: _Shelf) -> None:
    shelf.onnx_path("uniform").unlink()


def _flip_a_bit(shelf: _Shelf) -> None:
    content = bytearray(shelf.onnx_path("uniform").read_bytes())
    content[-100] ^= 1
    shelf.onnx_path("uniform").write_bytes(content)


def _remove_weights(shelf: _Shelf) -> None:
    shelf.weights_path("uniform").unlink()


def _cut_weights(shelf: _Shelf) -> None:
    content = shelf.weights_path("uniform").read_bytes()
    shelf.weights_path("uniform").write_bytes(content[: len(content) // 2])


def _change_a_weight(shelf: _Shelf) -> None:
    weights = load_file(shelf.weights_path("uniform"))
    weights["norm.weight"] = weights["norm.weight"] * np.float32(1.5)
    save_file(weights, shelf.weights_path("uniform"))


def _take_other_weights(shelf: _Shelf) -> None:
    shutil.copyfile(shelf.weights_path("encoder"), shelf.weights_path("uniform"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove_onnx, r"the ONNX file .*\.onnx is missing"),
        (_flip_a_bit, r"\.onnx is not the file that was measured: its sha256 is "),
        (_remove_weights, r"the weights .*\.safetensors are missing"),
        (_cut_weights, r"the weights .*\.safetensors are damaged"),
        (_change_a_weight, "the weights do not belong to trial 0: its ONNX file answers otherwise"),
        (_take_other_weights, "the weights do not belong to trial 0: weight "),
    ],
)
def test_export_trial_refuses_damaged_files(shelf: _Shelf, tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    """Each fault is one line, and nothing is left behind."""
    damage(shelf)
    with pytest.raises(StoreError, match=words) as caught:
        export_trial(shelf.store, shelf.study, 0, tmp_path / "new" / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", [_remove_onnx, _flip_a_bit])
def test_find_onnx_refuses_what_export_refuses(shelf: _Shelf, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    """Whoever uses a trial's file gets the very file or the same words."""
    assert find_onnx(shelf.store, shelf.study, 0) == shelf.onnx_path("uniform")
    damage(shelf)
    with pytest.raises(StoreError) as found:
        find_onnx(shelf.store, shelf.study, 0)
    with pytest.raises(StoreError) as exported:
        export_trial(shelf.store, shelf.study, 0, tmp_path / "out")
    assert str(found.value) == str(exported.value)


def test_export_trial_accepts_a_file_built_by_another_version(shelf: _Shelf, tmp_path: Path) -> None:
    """Other bytes with the same outputs are the same model: here the graph carries another producer's version."""
    import onnx

    model = onnx.load(shelf.onnx_path("uniform"))
    model.producer_version = "another"
    content = model.SerializeToString()
    artifact = replace(shelf.artifacts[0], sha256=hashlib.sha256(content).hexdigest(), path="other.onnx")
    (shelf.store.artifact_dir / artifact.path).write_bytes(content)
    shelf.store.save_artifact(artifact)
    trial = shelf.store.start_trial(shelf.study.id, params={}, config=UNIFORM)
    shelf.store.attach_artifact(shelf.study.id, trial.number, artifact.sha256)
    shelf.store.finish_trial(shelf.study.id, trial.number, "complete", figures=FIGURES)
    exported = export_trial(shelf.store, shelf.study, trial.number, tmp_path / "out")
    assert exported.onnx_path.read_bytes() == content


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageFullError, "out: no space left to write the model"),
        (OSError(errno.EACCES, "Permission denied"), UsageError, "out cannot be written: Permission denied"),
    ],
)
def test_export_trial_leaves_nothing_behind_when_the_disk_refuses(
    shelf: _Shelf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: OSError,
    expected: type[Exception],
    words: str,
) -> None:
    """The last file cannot be written: no folder, no scratch, and one line that says why."""

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise fault

    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(expected, match=words):
        export_trial(shelf.store, shelf.study, 0, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_exported_config_keeps_the_architecture(shelf: _Shelf, tmp_path: Path) -> None:
    """The project's own reader reads the exported config.json of a stock class back to the trial's config."""
    from estimator.readers.source import read_source

    folder = export_trial(shelf.store, shelf.study, 0, tmp_path / "out").folder
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 256
    assert read_source(str(folder)).config == UNIFORM
