"""Who counts right? This estimator and six others from PyPI, on the same config.json files, against known truth.

    python benchmarks/peers.py [--venv FOLDER] [--truth TABLE ...]

Truth: `params_truth.tsv` in `estimator/reference` (config files as published) and in its folder `published` (further
models); the README files there say where the numbers come from.

Protocol: every tool gets each config as a folder that holds one config.json and answers in a process of its own, one
after the other, offline, with a time limit. The others run in a virtual environment of their own, made on first use
from `benchmarks/peers/requirements.txt` (fixed versions, no torch); `benchmarks/peers/ask.py` says how each is asked.
An answer is exact, within the margin (1 % for parameters, 0.5 % for the key-value cache at 4,096 tokens, bf16, batch
1), wrong, or refused; a crash, a time-out and a missing figure are refusals, kept with their reason. Seconds are those
of the whole process, as a ratio to ours on the same config; the median is given.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "estimator" / "reference"
REQUIREMENTS = HERE / "peers" / "requirements.txt"
ASK = HERE / "peers" / "ask.py"
RESULTS = HERE / "results"
TABLES = (GOLDEN / "params_truth.tsv", GOLDEN / "published" / "params_truth.tsv")
DEFAULT_VENV = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "archfront" / "peers"

OURS = "archfront"
PEERS = ("llm-flops", "vramcalc", "sparkfit", "llm-cal", "vramscout", "llm-analysis")
VERDICTS = ("exact", "within", "wrong", "refused")
MARGINS = {"params": 0.01, "kv_cache_bytes": 0.005}
TITLES = {"params": "Parameters", "kv_cache_bytes": "Key-value cache, 4,096 tokens, bf16, batch 1"}
BYTES_PER_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One config and what is known of it; a figure of None is not known and not asked."""

    name: str
    table: str = ""
    path: Path
    truth: Mapping[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one tool said of one config, the reasons of what it did not say, and how long its process took."""

    figures: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    seconds_s: float


def classify(figure: float | None, truth: int, margin: float) -> str:
    """The verdict on one figure: exact, within (off by at most the margin, as a share of the truth), wrong, refused."""
    if figure is None:
        return "refused"
    if figure == truth:
        return "exact"
    return "within" if abs(figure - truth) <= margin * truth else "wrong"


def read_cases(table: Path) -> list[Case]:
    """Every row of a truth table, beside which its configs lie in `configs`."""
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return [read_case(row, table) for row in rows]


def read_case(row: Mapping[str, str | None], table: Path) -> Case:
    """One row; the cache is given in MiB there."""
    cache_mib = row.get("kv_cache_mib_4096_bf16_batch1")
    truth = {
        "params": int(row["params"]) if row["params"] else None,
        "kv_cache_bytes": round(float(cache_mib) * BYTES_PER_MIB) if cache_mib else None,
    }
    name, shown = str(row["config"]), f"{table.parent.name}/{table.name}"
    return Case(name=name, table=shown, path=table.parent / "configs" / f"{name}.json", truth=truth)


def prepare_venv(folder: Path) -> Path:
    """The interpreter of the others' environment, which is made anew when the fixed versions have changed."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = folder / "requirements.sha256", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing the compared tools in {folder}", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(REQUIREMENTS)]
    if subprocess.run(install, check=False).returncode:
        raise SystemExit(f"the compared tools could not be installed in {folder}; see pip's message above")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def command(tool: str, folder: Path, python: Path) -> list[str]:
    """The process that answers for a tool."""
    if tool != OURS:
        return [str(python), str(ASK), tool, str(folder)]
    options = ["--json", "--sequence-length", "4096", "--weight-dtype", "bf16", "--kv-dtype", "bf16"]
    return [sys.executable, "-m", "estimator.cli", "size", str(folder), *options]


def ask(line: Sequence[str], *, ours: bool, limit_s: float) -> Answer:
    """Runs one process and reads its answer; whatever goes wrong is a refusal with its reason."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=limit_s, env=environment)
    except subprocess.TimeoutExpired:
        return refusal(f"no answer within {limit_s:g} s", time.perf_counter() - start)
    seconds_s = time.perf_counter() - start
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return refusal(last[0][:300], seconds_s)
    try:
        return read_answer(json.loads(done.stdout), ours=ours, seconds_s=seconds_s)
    except (ValueError, KeyError, TypeError) as error:
        return refusal(f"its output could not be read: {error!r}", seconds_s)


def refusal(reason: str, seconds_s: float) -> Answer:
    """An answer without any figure."""
    return Answer(figures=dict.fromkeys(MARGINS), reasons=dict.fromkeys(MARGINS, reason), seconds_s=seconds_s)


def read_answer(document: Mapping[str, object], *, ours: bool, seconds_s: float) -> Answer:
    """The figures of our JSON document, or of the one that `ask.py` prints."""
    if not ours:
        figures = {name: document[name] for name in MARGINS}
        return Answer(figures=figures, reasons=document["reasons"], seconds_s=seconds_s)
    figures = {"params": document["params"]["total"], "kv_cache_bytes": document["memory"]["kv_cache_bytes"]}
    return Answer(figures=figures, seconds_s=seconds_s)


def ask_all(cases: Sequence[Case], tools: Sequence[str], python: Path, limit_s: float) -> dict[str, dict[str, Answer]]:
    """Every tool's answer to every case; the tools take turns on each config."""
    answers: dict[str, dict[str, Answer]] = {tool: {} for tool in tools}
    for case in cases:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / case.name
            folder.mkdir()
            (folder / "config.json").write_bytes(case.path.read_bytes())
            for tool in tools:
                line = command(tool, folder, python)
                answers[tool][case.name] = without_folder(ask(line, ours=tool == OURS, limit_s=limit_s), parent)
        print(case.name, file=sys.stderr)
    return answers


def without_folder(answer: Answer, parent: str) -> Answer:
    """The answer, its reasons without the name of the temporary folder."""
    return replace(answer, reasons={name: text.replace(f"{parent}/", "") for name, text in answer.reasons.items()})


def tally(cases: Sequence[Case], answers: Mapping[str, Answer], quantity: str) -> dict[str, int]:
    """How many of the cases with a known truth got each verdict."""
    counts = Counter(verdicts(cases, answers, quantity).values())
    return {verdict: counts[verdict] for verdict in VERDICTS}


def verdicts(cases: Sequence[Case], answers: Mapping[str, Answer], quantity: str) -> dict[str, str]:
    """The verdict on each case with a known truth."""
    known = {case.name: case.truth[quantity] for case in cases if case.truth[quantity] is not None}
    margin = MARGINS[quantity]
    return {name: classify(answers[name].figures[quantity], truth, margin) for name, truth in known.items()}


def time_ratio(answers: Mapping[str, Answer], ours: Mapping[str, Answer]) -> float:
    """Median over the configs of a tool's whole-process seconds divided by ours."""
    return statistics.median(answers[name].seconds_s / ours[name].seconds_s for name in answers)


def summary_table(cases: Sequence[Case], answers: Mapping[str, Mapping[str, Answer]], quantity: str) -> list[str]:
    """Markdown lines: one row per tool, one column per verdict."""
    heads = [
        "tool",
        "exact",
        f"within {MARGINS[quantity]:.1%}".replace(".0%", "%").replace("%", " %"),
        "wrong",
        "refused",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|"]
    for tool, given in answers.items():
        counts = tally(cases, given, quantity)
        lines.append(f"| {tool} | {' | '.join(str(counts[verdict]) for verdict in VERDICTS)} |")
    return lines


def detail_table(cases: Sequence[Case], answers: Mapping[str, Mapping[str, Answer]], quantity: str) -> list[str]:
    """Markdown lines: one row per config, one column per tool, with the error of what is not exact."""
    lines = [f"| config | truth | {' | '.join(answers)} |", f"|---|---:|{'---|' * len(answers)}"]
    for case in cases:
        truth = case.truth[quantity]
        if truth is not None:
            cells = [cell(given[case.name].figures[quantity], truth, MARGINS[quantity]) for given in answers.values()]
            lines.append(f"| {case.name} | {truth:,} | {' | '.join(cells)} |")
    return lines


def cell(figure: float | None, truth: int, margin: float) -> str:
    """The verdict on a figure, or how far it is off."""
    verdict = classify(figure, truth, margin)
    if figure is None or verdict == "exact":
        return verdict
    return f"{'' if verdict == 'within' else 'wrong '}{figure / truth - 1:+.2%}".replace("%", " %")


def page(result: Mapping[str, object], cases: Sequence[Case], answers: Mapping[str, Mapping[str, Answer]]) -> str:
    """The result as a Markdown page."""
    lines = ["# Who counts right?", ""]
    for quantity, title in TITLES.items():
        known = [case for case in cases if case.truth[quantity] is not None]
        for table, group in by_table(known).items():
            lines += [f"## {title}: the {len(group)} configs of `{table}`", ""]
            lines += [*summary_table(group, answers, quantity), ""]
    lines += ["## Whole process", "", "| tool | version | median s | ratio to ours |", "|---|---|---:|---:|"]
    for tool, row in result["time"].items():
        lines.append(f"| {tool} | {result['versions'][tool]} | {row['median_s']:.2f} | {row['ratio']:.1f} |")
    for quantity, title in TITLES.items():
        lines += ["", f"## {title}, by config", "", *detail_table(cases, answers, quantity)]
    hardware = result["hardware"]
    lines += [
        "",
        f"{hardware['cpu']}, {hardware['cores']} cores, load average {hardware['load_average']:.1f} at the end, "
        f"Python {platform.python_version()}. The protocol stands at the top of `benchmarks/peers.py`, which wrote "
        "this page; every figure and the reason of every refusal are in `peers.json`.",
        "",
    ]
    return "\n".join(lines)


def summarise(cases: Sequence[Case], answers: Mapping[str, Mapping[str, Answer]], python: Path) -> dict[str, object]:
    """Everything that is kept of a run."""
    return {
        "summary": {table: summaries(group, answers) for table, group in by_table(cases).items()},
        "time": {
            tool: {
                "median_s": statistics.median(answer.seconds_s for answer in given.values()),
                "ratio": time_ratio(given, answers[OURS]),
            }
            for tool, given in answers.items()
        },
        "truth": {case.name: dict(case.truth) for case in cases},
        "answers": {tool: {name: asdict(one) for name, one in given.items()} for tool, given in answers.items()},
        "margins": MARGINS,
        "versions": {OURS: importlib.metadata.version("archfront")} | peer_versions(python),
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]},
    }


def by_table(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases of each table of truth."""
    return {
        table: [case for case in cases if case.table == table] for table in dict.fromkeys(case.table for case in cases)
    }


def summaries(cases: Sequence[Case], answers: Mapping[str, Mapping[str, Answer]]) -> dict[str, dict[str, object]]:
    """The tally of each quantity and tool."""
    return {quantity: {tool: tally(cases, given, quantity) for tool, given in answers.items()} for quantity in MARGINS}


def peer_versions(python: Path) -> dict[str, str]:
    """The versions that really are in the others' environment."""
    code = f"import importlib.metadata, json; print(json.dumps({{n: importlib.metadata.version(n) for n in {PEERS}}}))"
    return json.loads(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout)


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Asks everybody, prints, writes both result files; returns 1 unless each of our figures is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--venv", type=Path, default=DEFAULT_VENV, help="folder of the others' environment (%(default)s)"
    )
    parser.add_argument("--truth", type=Path, nargs="+", default=TABLES, help="tables of truth")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a process may take (%(default)s)")
    args = parser.parse_args()
    python = prepare_venv(args.venv.absolute())
    cases = [case for table in args.truth for case in read_cases(table)]
    if len({case.name for case in cases}) < len(cases):
        raise SystemExit("a config's name stands in two tables of truth")
    answers = ask_all(cases, (OURS, *PEERS), python, args.limit)
    result = summarise(cases, answers, python)
    text = page(result, cases, answers)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "peers.md").write_text(text, encoding="utf-8")
    print(text)
    wrong = {quantity: set(verdicts(cases, answers[OURS], quantity).values()) for quantity in MARGINS}
    return 0 if wrong["params"] <= {"exact"} and wrong["kv_cache_bytes"] <= {"exact", "within"} else 1


if __name__ == "__main__":
    sys.exit(main())
