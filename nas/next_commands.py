"""What to type after a search: the terminal and the report say the same."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from nas.pareto import ParetoFront
from nas.records import StudyRecord

__all__ = ["command_line", "next_commands"]


def next_commands(study: StudyRecord, front: ParetoFront, store: str | None) -> tuple[tuple[str, str], ...]:
    """Pairs (command, what it does); the trial in them is the best of the front in the first objective.

    `store` is the URL to name, None for the default store.
    """
    trial = front.trials[0] if front.trials else "TRIAL"
    commands = (
        (("show", study.name, trial), "everything about one trial"),
        (("pareto", study.name, "--json"), "the front for a program"),
        (("export", study.name, trial, "model/"), "ship one trial: ONNX file, checkpoint and card"),
        (("generate", study.name, trial, "--prompt", "def "), "let it write"),
        (("resume", study.name, "--trials", 2 * study.spec.num_trials), "search on"),
    )
    return tuple((command_line(*words, store=store), what) for words, what in commands)


def command_line(*words: object, store: str | None) -> str:
    """A command of `nas`, quoted for the shell; by its path where it is not found by its name."""
    started = Path(sys.argv[0])
    by_path = started.name == "nas" and shutil.which("nas") is None
    return shlex.join([str(started) if by_path else "nas", *map(str, words), *(["--store", store] if store else [])])
