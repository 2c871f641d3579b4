"""`estimator measure --compare A B`: which of two is faster here, and by how much."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from estimator.measuring.comparison import Comparison, PhaseComparison, measure_pair
from estimator.measuring.records import MeasurementPlan
from estimator.measuring.subject import Subject, check, prepare, sizes_of, talk
from estimator.workload import Workload

__all__ = ["compare"]


def compare(
    sources: Sequence[str],
    weight_dtypes: tuple[str, ...] | None,
    workloads: Sequence[Workload],
    plan: MeasurementPlan,
    provider: str,
    *,
    as_json: bool,
) -> int:
    """Builds what is not built yet, measures both in alternation under every workload, and prints the results.

    One weight type is that of both, two are A's and B's, None is each one's own.
    """
    types = (None, None) if weight_dtypes is None else (weight_dtypes[0], weight_dtypes[-1])
    for source in sources:
        check(source)  # what is missing is refused before a model is built
    with tempfile.TemporaryDirectory(prefix="archfront-") as folder:
        a, b = (
            prepare(source, Path(folder), weight_dtype=kind, provider=provider, name=f"{name}.onnx")
            for source, kind, name in zip(sources, types, "ab", strict=True)
        )
        found = []
        for workload in workloads:
            talk(f"measuring A and B in alternation, {sizes_of(workload)}, in a child process ...")
            found.append(measure_pair(a.path, b.path, workload, plan=plan, provider=provider))
    if as_json:
        documents = [_document(comparison, sources, (a, b)) for comparison in found]
        json.dump(documents[0] if len(documents) == 1 else {"workloads": documents}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write("\n".join(_table(comparison, sources, (a, b)) for comparison in found))
    return 0


def _document(comparison: Comparison, sources: Sequence[str], subjects: tuple[Subject, Subject]) -> dict[str, Any]:
    """The JSON of `estimator measure --compare --json`; its keys are a contract."""
    whole = comparison.to_dict()
    # The two may differ in their weight types, which stand with the artefacts.
    workload = {name: value for name, value in whole["workload"].items() if name != "weight_dtype"}
    artifacts = {
        name: {
            "source": source,
            "sha256": whole[f"{name}_sha256"],
            "file_bytes": whole[f"{name}_file_bytes"],
            "weight_dtype": subject.weight_dtype,
        }
        for name, source, subject in zip("ab", sources, subjects, strict=True)
    }
    return {
        "prefill": whole["prefill"],
        "decode": whole["decode"],
        **artifacts,
        "workload": workload,
        "device": whole["device"] | {"hash": comparison.device.hash},
        "machine": {"before": whole["machine_before"], "after": whole["machine_after"]},
        "protocol": whole["plan"],
        "origins": {"prefill": "measured", "decode": "measured"},
        "warnings": whole["warnings"],
    }


def _table(comparison: Comparison, sources: Sequence[str], subjects: tuple[Subject, Subject]) -> str:
    device = comparison.device
    sizes = (comparison.a_file_bytes, comparison.b_file_bytes)
    phases = [phase for phase in (comparison.prefill, comparison.decode) if phase is not None]
    lines = [
        f"{device.cpu_model or device.architecture}, {device.num_threads} threads, "
        f"ONNX Runtime {device.onnxruntime_version} on {device.provider}; {sizes_of(comparison.workload)}",
        *(
            f"{name}: {source}, {subject.weight_dtype} weights, {file_bytes / 1e6:.2f} MB"
            for name, source, subject, file_bytes in zip("AB", sources, subjects, sizes, strict=True)
        ),
        f"{'':<8}{'B over A':>10}{'95 % interval':>20}{'raw median A':>16}{'raw median B':>16}  B is",
        *(_line(phase) for phase in phases),
        *(f"warning: {text}" for text in comparison.warnings),
    ]
    return "\n".join(lines) + "\n"


def _line(phase: PhaseComparison) -> str:
    interval = f"[{phase.low:.3f}, {phase.high:.3f}]"
    medians = "".join(f"{value * 1e3:>13.3f} ms" for value in (phase.a_raw_median_s, phase.b_raw_median_s))
    return f"{phase.phase:<8}{phase.ratio:>10.3f}{interval:>20}{medians}  {phase.verdict}"
