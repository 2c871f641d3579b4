"""The child process of one measurement: `python -m estimator.measuring.child FOLDER`.

Reads one line of JSON from standard input and writes one JSON document to standard output. It ends itself when
standard input closes, that is, when its parent is gone. ONNX Runtime is imported before the baseline is taken, and
memory is read before the yardsticks are loaded, so that neither counts as the candidate's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime
import psutil

from estimator.config import TransformerConfig
from estimator.errors import EstimatorError, InputError
from estimator.measuring.cores import choose_cores, others_cpu_s
from estimator.measuring.limits import limit_this_process
from estimator.measuring.machine_state import read_machine_state
from estimator.measuring.protocol import MIN_PAIRS, SHORT_CALL_S, measure_paired, measure_quiet
from estimator.measuring.records import MeasurementPlan
from estimator.measuring.whole_request import middle_past_length, request_call
from estimator.measuring.yardstick import YARDSTICKS, choose_yardstick, is_parallel, yardstick_input, yardstick_model
from estimator.onnx_builder import read_config
from estimator.ort_session import make_inputs, open_session, past_names
from estimator.workload import Workload

__all__ = ["main"]

_CALIBRATION_S = 0.6
# A request takes a hundred times as long as a step, and is longer than most of what disturbs it.
_MIN_REQUESTS = 5
_SHARE_S = 0.05
_REST_S = 0.05
# Others may use so much of the machine's cores while the yardsticks are calibrated: with half of two cores busy the
# fast end of the calls is still undisturbed, with all of them it is not.
_QUIET_SHARE = 0.25
_OUT_OF_MEMORY = ("failed to allocate", "bad_alloc", "unable to allocate", "out of memory")
_STATUS = Path("/proc/self/status")


def main() -> int:
    """Measures what the request on standard input asks for."""
    folder, line = sys.argv[1], sys.stdin.readline()
    if not line:  # the parent was gone before it could ask
        shutil.rmtree(folder, ignore_errors=True)
        return 1
    request = json.loads(line)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    _be_first_to_go()
    limit_this_process(
        memory_bytes=request["memory_limit_bytes"],
        time_s=request["time_limit_s"],
        num_threads=request["num_threads"],
    )
    answer: dict[str, Any]
    try:
        answer = {"result": _measure_pair(request) if "other_path" in request else _measure(request)}
    except EstimatorError as error:
        answer = {"error": {"type": _kind_of(error), "message": str(error)}}
    except MemoryError as error:
        answer = {"error": {"type": "MemoryError", "message": str(error) or "memory ran out"}}
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        answer = {"error": {"type": _kind_of(error), "message": f"{type(error).__name__}: {error}"}}
    json.dump(answer, sys.stdout)
    return 0


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    path, provider, num_threads = request["path"], request["provider"], request["num_threads"]
    plan, workload = MeasurementPlan(**request["plan"]), Workload(**request["workload"])
    cores = _pin(num_threads)
    config = read_config(path)  # onnx is loaded, and its copy of the file freed, before the baseline
    if request["whole_request"] and not config.is_causal:
        raise InputError("an encoder generates no tokens; only a decoder has a whole request")
    baseline_bytes = _reset_peak()
    calls = _phase_inputs(config, workload, plan.seed)  # the past key-values are part of what the model takes
    started = time.perf_counter()
    session = open_session(path, provider=provider, num_threads=num_threads, spin_between_runs=False)
    load_s = time.perf_counter() - started
    bound = {phase: _bind(session, inputs, provider) for phase, inputs in calls.items()}
    started = time.perf_counter()
    bound["prefill"]()
    first_inference_s = time.perf_counter() - started
    if "decode" in bound:
        bound["decode"]()
    peak_bytes = _peak_bytes() - baseline_bytes
    if request["whole_request"]:
        step = _step_inputs(config, workload, middle_past_length(workload), plan.seed)
        calls["step"], bound["step"] = step, _bind(session, step, provider)
        bound["request"] = request_call(session, config, workload, device=_device(provider), seed=plan.seed)
    return {
        "load_s": load_s,
        "first_inference_s": first_inference_s,
        "peak_memory_bytes": max(0, peak_bytes),
        "past_length": {phase: _past_length(inputs) for phase, inputs in calls.items()},
        **_time(bound, plan, num_threads, cores, request["calibration_attempts"]),
    }


def _measure_pair(request: dict[str, Any]) -> dict[str, Any]:
    """Blocks of the second file's calls between blocks of the first one's, in every phase that both have."""
    provider, num_threads = request["provider"], request["num_threads"]
    plan, workload = MeasurementPlan(**request["plan"]), Workload(**request["workload"])
    cores = _pin(num_threads)
    inputs, calls = [], []
    for path in (request["path"], request["other_path"]):
        inputs.append(_phase_inputs(read_config(path), workload, plan.seed))
        session = open_session(path, provider=provider, num_threads=num_threads, spin_between_runs=False)
        calls.append({phase: _bind(session, values, provider) for phase, values in inputs[-1].items()})
    lengths = [{phase: _past_length(values) for phase, values in one.items()} for one in inputs]
    shared = [phase for phase in calls[0] if phase in calls[1]]
    for phase in shared:
        if lengths[0][phase] != lengths[1][phase]:
            found = " and ".join(str(one[phase]) for one in lengths)
            raise InputError(f"the two would decode at different contexts, {found} tokens; choose a shorter one")
    before = read_machine_state(cores)
    blocks = {
        phase: measure_paired(
            calls[1][phase],
            calls[0][phase],
            is_parallel=any(_counts_by_means(one[phase]) for one in calls),
            precision=plan.precision,
            max_seconds=plan.max_seconds,
            seed=plan.seed,
        )
        for phase in shared
    }
    return {
        "past_length": lengths[0],
        "blocks": {phase: asdict(found) for phase, found in blocks.items()},
        "machine": {"before": asdict(before), "after": asdict(read_machine_state(cores))},
    }


def _counts_by_means(call: Callable[[], None]) -> bool:
    """Whether blocks of these calls hold what a scheduler took from them: several threads, or calls that last."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started > SHORT_CALL_S or is_parallel(_helper_share(call))


def _time(
    calls: dict[str, Callable[[], None]], plan: MeasurementPlan, num_threads: int, cores: list[int], attempts: int
) -> dict[str, Any]:
    """Every call beside its yardstick, the yardsticks' quiet times if they are wanted, and the machine's state."""
    yardsticks = {name: _yardstick(name, num_threads) for name in YARDSTICKS}
    quiet = _calibrate(yardsticks, attempts) if attempts else None
    before = read_machine_state(cores)
    parallel = {phase: is_parallel(_helper_share(call)) for phase, call in calls.items()}
    chosen = {phase: choose_yardstick(phase, num_threads=num_threads, parallel=parallel[phase]) for phase in calls}
    blocks = {
        phase: measure_paired(
            call,
            yardsticks[chosen[phase]],
            is_parallel=parallel[phase],
            precision=plan.precision,
            max_seconds=plan.max_seconds,
            seed=plan.seed,
            min_pairs=_MIN_REQUESTS if phase == "request" else MIN_PAIRS,
        )
        for phase, call in calls.items()
    }
    return {
        "quiet": quiet,
        "yardstick": chosen,
        "blocks": {phase: asdict(found) for phase, found in blocks.items()},
        "machine": {"before": asdict(before), "after": asdict(read_machine_state(cores))},
    }


def _helper_share(call: Callable[[], None]) -> float:
    """The part of a call's CPU time that is spent by other threads than this one, once those have come to rest."""
    time.sleep(_REST_S)
    started, process_s, thread_s = time.perf_counter(), time.process_time(), time.thread_time()
    while time.perf_counter() - started < _SHARE_S:
        call()
    process_s, thread_s = time.process_time() - process_s, time.thread_time() - thread_s
    return 1 - thread_s / process_s if process_s > 0 else 0.0


def _calibrate(yardsticks: dict[str, Callable[[], None]], most_attempts: int) -> dict[str, Any]:
    """The yardsticks' quiet times, from the first attempt that others left alone, else the least of all attempts."""
    attempts = []
    for _ in range(most_attempts):
        started, others_s = time.perf_counter(), others_cpu_s()
        seconds = measure_quiet(yardsticks, min_seconds=_CALIBRATION_S)
        cores_s = (time.perf_counter() - started) * (psutil.cpu_count() or 1)
        if (others_cpu_s() - others_s) / cores_s <= _QUIET_SHARE:
            return {"seconds": seconds, "is_final": True}
        attempts.append(seconds)
    return {"seconds": {name: min(a[name] for a in attempts) for name in attempts[0]}, "is_final": False}


def _phase_inputs(config: TransformerConfig, workload: Workload, seed: int) -> dict[str, dict[str, Any]]:
    """Inputs by phase: the whole prompt, and for a decoder one token on a context of `context_length` tokens.

    Learned positions end at `max_position_embeddings`; a context that fills them all ends one token earlier.
    """
    if config.position_embedding == "learned" and workload.context_length > config.max_position_embeddings:
        raise InputError(
            f"prompt and generated tokens are {workload.context_length} together; the model has "
            f"{config.max_position_embeddings} learned positions"
        )
    batch = workload.batch_size
    phases = {"prefill": make_inputs(config, batch_size=batch, sequence_length=workload.prompt_length, seed=seed)}
    if config.is_causal:
        is_bounded = config.position_embedding == "learned"
        most = config.max_position_embeddings - 1 if is_bounded else workload.context_length
        phases["decode"] = _step_inputs(config, workload, min(workload.context_length, most), seed)
    return phases


def _step_inputs(config: TransformerConfig, workload: Workload, past_length: int, seed: int) -> dict[str, Any]:
    return make_inputs(config, batch_size=workload.batch_size, sequence_length=1, past_length=past_length, seed=seed)


def _past_length(inputs: dict[str, Any]) -> int:
    key = inputs.get(past_names(0)[0])
    return 0 if key is None else int(key.shape[2])


def _bind(session: onnxruntime.InferenceSession, inputs: dict[str, Any], provider: str) -> Callable[[], None]:
    """A call that runs the session on inputs that already lie where it reads them."""
    device = _device(provider)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def _device(provider: str) -> str:
    return "cuda" if provider == "cuda" else "cpu"


def _yardstick(name: str, num_threads: int) -> Callable[[], None]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(yardstick_model(name), options, providers=["CPUExecutionProvider"])
    return _bind(session, yardstick_input(name), "cpu")


def _pin(num_threads: int) -> list[int]:
    """Keeps this process on as many physical cores as it has threads, where the platform allows it; those cores."""
    process, cores = psutil.Process(), choose_cores(num_threads)
    if hasattr(process, "cpu_affinity"):
        process.cpu_affinity(cores)
    return cores


def _reset_peak() -> int:
    """Resident bytes now; where the kernel allows it, the peak starts again from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(psutil.Process().memory_info().rss)


def _peak_bytes() -> int:
    """The highest resident bytes so far: since `_reset_peak` on Linux, since the start elsewhere."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _end_with_parent(folder: str) -> None:
    """The parent removes the folder when this process ends; when it is gone itself, nobody else does."""
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _be_first_to_go() -> None:
    """When memory runs out, Linux ends this process and not the search that started it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _kind_of(error: Exception) -> str:
    """ONNX Runtime has no exception of its own for a failed allocation; its text tells."""
    out_of_memory = any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return "MemoryError" if out_of_memory else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
