"""What this machine does with ONNX Runtime: products per second by type and threads, bytes per second, call overhead.

Peaks of data sheets do not hold for a shared machine, a container's share of one, or a laptop on battery; these do.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from estimator.achievable import FRACTIONS, Achievable
from estimator.calibrating.profiles import THIS_MACHINE
from estimator.devices import Device, Source
from estimator.measuring.cores import default_num_threads, others_cpu_s
from estimator.measuring.fingerprint import host_fingerprint
from estimator.measuring.protocol import measure_quiet
from estimator.measuring.quiet_times import known_quiet_times
from estimator.measuring.yardstick import YARDSTICKS, yardstick_input, yardstick_model
from estimator.ort_session import load_runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MOST_BUSY_SHARE", "Probe", "is_busy", "machine_achievable", "machine_device", "probe_machine"]

# A probe during which others took more than this part of the cores is done again, so many times at most.
MOST_BUSY_SHARE = 0.1
_MAX_ATTEMPTS = 3
_SECONDS_PER_GRAPH = 1.5
_OPSET = 17
# Rows, width and number of square matrices of each graph: compute reuses what the caches hold; stream reads a matrix of
# 17 MB in turn with eleven others, 200 MB that no cache holds; step is many products of next to nothing. A call takes a
# millisecond or less, so that most calls run undisturbed on a shared machine. Each with the yardstick of its regime.
_COMPUTE, _STREAM, _STEP = (128, 1024, 1), (1, 2048, 1), (1, 64, 100)
_NUM_STREAMS = 12
_YARDSTICK_OF = {"fp32": "compute-3", "int8": "compute-3", "stream": "stream-3", "step": "step-4"}
# What a transformer's forward pass reaches of these rates, and by how much single ones differ: norms, softmax, small
# and odd shapes take their part, and weights that stay in the caches give some back. Chosen by
# benchmarks/machine_profile.py on a shared machine, whose result file names the load.
_COMPUTE_FRACTION, _BANDWIDTH_FRACTION, _SPREAD = 0.75, 0.85, 1.8
_BUSY_SPREAD = 1.5
_BUSY_NOTE = "; others were at work meanwhile, so calibrate again on a quieter machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was measured with `num_threads` threads: rates, and seconds of one operator that has nothing to do.

    `others_share` is the part of the machine's cores that other work took in the quietest attempt.
    """

    num_threads: int
    fp32_flops_per_s: float
    int8_flops_per_s: float
    bandwidth_bytes_per_s: float
    operator_s: float
    others_share: float


def probe_machine(
    say: Callable[[str], None] = lambda text: None,
    *,
    seconds: float = _SECONDS_PER_GRAPH,
    max_attempts: int = _MAX_ATTEMPTS,
) -> tuple[Probe, ...]:
    """Probes with one thread and with all that this process may use; four graphs each, so many seconds per graph.

    A probe that others disturbed is repeated, and the least disturbed one counts. Yardsticks take turns with the
    graphs: where `measure` has found their quiet times, what slowed them down is taken out (docs/measuring.md).
    """
    return tuple(_probe(num_threads, say, seconds, max_attempts) for num_threads in sorted({1, default_num_threads()}))


def is_busy(probes: tuple[Probe, ...]) -> bool:
    """Whether others took over a tenth of the cores in every attempt of a probe; its rates may then be too low."""
    return any(probe.others_share > MOST_BUSY_SHARE for probe in probes)


def _probe(num_threads: int, say: Callable[[str], None], seconds: float, max_attempts: int) -> Probe:
    calls = {name: _call(name, num_threads) for name in (*_YARDSTICK_OF, *YARDSTICKS)}
    quiet_s = _quiet_times(num_threads)
    attempts: list[tuple[float, dict[str, float]]] = []
    while len(attempts) < max_attempts and all(share > MOST_BUSY_SHARE for share, _ in attempts):
        again = ", again: others were at work" if attempts else ""
        say(f"measuring products, memory and calls with {num_threads} thread{'s' * (num_threads > 1)}{again} ...")
        started = time.perf_counter(), others_cpu_s()
        found = measure_quiet(calls, min_seconds=seconds)
        elapsed_s = time.perf_counter() - started[0]
        share = max(0.0, others_cpu_s() - started[1]) / elapsed_s / (psutil.cpu_count() or 1)
        attempts.append((share, _undisturbed(found, quiet_s)))
    share, times = min(attempts, key=lambda attempt: attempt[0])
    return Probe(
        num_threads=num_threads,
        fp32_flops_per_s=_flops(_COMPUTE) / times["fp32"],
        int8_flops_per_s=_flops(_COMPUTE) / times["int8"],
        bandwidth_bytes_per_s=4 * _STREAM[1] ** 2 / times["stream"],
        operator_s=times["step"] / _STEP[2],
        others_share=share,
    )


def _undisturbed(found: Mapping[str, float], quiet_s: Mapping[str, float]) -> dict[str, float]:
    """Times without what slowed down their yardsticks meanwhile, as far as these have final quiet times."""
    slowdowns = {name: max(1.0, found[name] / quiet_s.get(name, found[name])) for name in YARDSTICKS}
    return {name: found[name] / slowdowns[yardstick] for name, yardstick in _YARDSTICK_OF.items()}


def _quiet_times(num_threads: int) -> dict[str, float]:
    """The yardsticks' quiet times that measuring found on this machine; none while they are provisional."""
    known, _ = known_quiet_times(host_fingerprint(num_threads=num_threads))
    return known.seconds if known is not None and known.is_final else {}


def machine_device(probes: tuple[Probe, ...]) -> Device:
    """This machine as a device, with the best rate of each kind: more threads are never slower on a quiet machine."""
    host, num_threads = host_fingerprint(), max(probe.num_threads for probe in probes)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()[:7]
    source = Source(title=f"estimator calibrate, {host.onnxruntime_version}", url="", date=today)
    numbers = ("num_cores", "memory_bytes", "memory_bandwidth_bytes_per_s", "peak_flops_per_s")
    return Device(
        name=THIS_MACHINE,
        label=f"this machine: {host.cpu_model or host.architecture}, {num_threads} threads",
        kind="cpu",
        family=THIS_MACHINE,
        segment="server",
        num_cores=host.physical_cores,
        clock_hz=None,
        instruction_set=" ".join(host.instruction_sets) or None,
        memory_bytes=host.memory_bytes,
        memory_bandwidth_bytes_per_s=max(probe.bandwidth_bytes_per_s for probe in probes),
        l2_cache_bytes=None,
        l3_cache_bytes=None,
        peak_flops_per_s={
            "fp32": max(probe.fp32_flops_per_s for probe in probes),
            "int8": max(probe.int8_flops_per_s for probe in probes),
        },
        tdp_w=None,
        price_usd=None,
        note="rates are those that ONNX Runtime reached" + (_BUSY_NOTE if is_busy(probes) else ""),
        sources=dict.fromkeys(numbers, source),
        origin="measured",
    )


def machine_achievable(probes: tuple[Probe, ...]) -> Achievable:
    """What forward passes reach of the measured rates, and what each operator takes beside its work.

    Rates from a busy machine are lower bounds, and the interval is wider.
    """
    spread = _SPREAD * (_BUSY_SPREAD if is_busy(probes) else 1.0)
    return Achievable(
        name=THIS_MACHINE,
        fp32_fraction=_COMPUTE_FRACTION,
        matrix_fraction=_COMPUTE_FRACTION,
        bandwidth_fraction=_BANDWIDTH_FRACTION,
        spread=spread,
        origin="predicted",
        source="rates measured by `estimator calibrate`; fractions of them by benchmarks/machine_profile.py",
        operator_s=min(probe.operator_s for probe in probes),
        learnt=FRACTIONS,
        learnt_spread=spread,
    )


def _flops(sizes: tuple[int, int, int]) -> int:
    rows, width, count = sizes
    return 2 * rows * width * width * count


def _call(name: str, num_threads: int) -> Callable[[], Any]:
    """One call of a yardstick or of a graph of the probe; of the streams, each call reads another one."""
    if name in YARDSTICKS:
        return _session_call(yardstick_model(name), yardstick_input(name), num_threads)
    rows, width, count = {"stream": _STREAM, "step": _STEP}.get(name, _COMPUTE)
    model = _model(rows, width, count, quantized=name == "int8")
    inputs = {"x": np.random.default_rng(1).standard_normal((rows, width), dtype=np.float32)}
    copies = [_session_call(model, inputs, num_threads) for _ in range(_NUM_STREAMS if name == "stream" else 1)]
    turns = itertools.cycle(copies)
    return lambda: next(turns)()


def _session_call(model: bytes, inputs: dict[str, NDArray[Any]], num_threads: int) -> Callable[[], Any]:
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def _model(rows: int, width: int, count: int, *, quantized: bool) -> bytes:
    """So many products with square matrices, one after the other; quantised ones as `measure` builds them."""
    import onnx
    from onnx import helper

    nodes, weights = [], []
    for own_nodes, initializers in _layers(width, count, quantized):
        nodes += own_nodes
        weights += [onnx.numpy_helper.from_array(values, name) for name, values in initializers]
    shape = [rows, width]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"y{count - 1}", onnx.TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def _layers(width: int, count: int, quantized: bool) -> Iterator[tuple[list[Any], list[tuple[str, NDArray[Any]]]]]:
    from onnx import helper

    generator, current = np.random.default_rng(0), "x"
    for layer in range(count):
        matrix = generator.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
        out = f"y{layer}"
        if quantized:
            scale = np.float32(np.abs(matrix).max() / 127)
            nodes = [
                helper.make_node("DynamicQuantizeLinear", [current], [f"q{layer}", f"s{layer}", f"z{layer}"]),
                helper.make_node("MatMulInteger", [f"q{layer}", f"w{layer}", f"z{layer}"], [f"i{layer}"]),
                helper.make_node("Cast", [f"i{layer}"], [f"f{layer}"], to=1),
                helper.make_node("Mul", [f"s{layer}", f"ws{layer}"], [f"b{layer}"]),
                helper.make_node("Mul", [f"f{layer}", f"b{layer}"], [out]),
            ]
            yield nodes, [(f"w{layer}", np.rint(matrix / scale).astype(np.int8)), (f"ws{layer}", np.asarray(scale))]
        else:
            yield [helper.make_node("MatMul", [current, f"w{layer}"], [out])], [(f"w{layer}", matrix)]
        current = out
