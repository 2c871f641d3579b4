"""What this machine does with ONNX Runtime: products per second by type and threads, bytes per second, call overhead.

Peaks of data sheets do not hold for a shared machine, a container's share of one, or a laptop on battery; these do.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from estimator.achievable import Achievable
from estimator.calibrating.profiles import THIS_MACHINE
from estimator.devices import Device, Source
from estimator.measuring.cores import default_num_threads, others_cpu_s
from estimator.measuring.fingerprint import host_fingerprint
from estimator.measuring.protocol import measure_quiet
from estimator.ort_session import load_runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Probe", "machine_achievable", "machine_device", "probe_machine"]

_SECONDS_PER_GRAPH = 2.0
_OPSET = 17
# Rows, width and number of square matrices of each graph: compute reuses what the caches hold, stream reads 192 MB that
# no cache holds, step is many products of next to nothing.
_COMPUTE, _STREAM, _STEP = (256, 1024, 6), (1, 2048, 12), (1, 64, 100)
# What a transformer's forward pass reaches of these rates, and by how much single ones differ: norms, softmax, small
# and odd shapes take their part. Checked against measured latencies by benchmarks/machine_profile.py.
_COMPUTE_FRACTION, _BANDWIDTH_FRACTION, _SPREAD = 0.8, 0.8, 1.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was measured with `num_threads` threads: rates, and seconds of one operator that has nothing to do.

    `others_share` is the part of the machine's cores that other work took meanwhile.
    """

    num_threads: int
    fp32_flops_per_s: float
    int8_flops_per_s: float
    bandwidth_bytes_per_s: float
    operator_s: float
    others_share: float


def probe_machine(
    say: Callable[[str], None] = lambda text: None, seconds: float = _SECONDS_PER_GRAPH
) -> tuple[Probe, ...]:
    """Probes with one thread and with all that this process may use; four graphs each, so many seconds per graph."""
    most = default_num_threads()
    probes = []
    for num_threads in sorted({1, most}):
        say(f"measuring products, memory and calls with {num_threads} thread{'s' * (num_threads > 1)} ...")
        calls = {name: _call(name, num_threads) for name in ("fp32", "int8", "stream", "step")}
        started = time.perf_counter(), others_cpu_s()
        times = measure_quiet(calls, min_seconds=seconds)
        elapsed_s = time.perf_counter() - started[0]
        probes.append(
            Probe(
                num_threads=num_threads,
                fp32_flops_per_s=_flops(_COMPUTE) / times["fp32"],
                int8_flops_per_s=_flops(_COMPUTE) / times["int8"],
                bandwidth_bytes_per_s=4 * _STREAM[1] ** 2 * _STREAM[2] / times["stream"],
                operator_s=times["step"] / _STEP[2],
                others_share=max(0.0, others_cpu_s() - started[1]) / elapsed_s / (psutil.cpu_count() or 1),
            )
        )
    return tuple(probes)


def machine_device(probes: tuple[Probe, ...]) -> Device:
    """This machine as a device, with the rates of its fastest probe."""
    host = host_fingerprint()
    best = max(probes, key=lambda probe: probe.fp32_flops_per_s)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()[:7]
    source = Source(title=f"estimator calibrate, {host.onnxruntime_version}", url="", date=today)
    numbers = ("num_cores", "memory_bytes", "memory_bandwidth_bytes_per_s", "peak_flops_per_s")
    return Device(
        name=THIS_MACHINE,
        label=f"this machine: {host.cpu_model or host.architecture}, {best.num_threads} threads",
        kind="cpu",
        family=THIS_MACHINE,
        segment="server",
        num_cores=host.physical_cores,
        clock_hz=None,
        instruction_set=" ".join(host.instruction_sets) or None,
        memory_bytes=host.memory_bytes,
        memory_bandwidth_bytes_per_s=best.bandwidth_bytes_per_s,
        l2_cache_bytes=None,
        l3_cache_bytes=None,
        peak_flops_per_s={"fp32": best.fp32_flops_per_s, "int8": best.int8_flops_per_s},
        tdp_w=None,
        price_usd=None,
        note="rates are those that ONNX Runtime reached",
        sources=dict.fromkeys(numbers, source),
        origin="measured",
    )


def machine_achievable(probes: tuple[Probe, ...]) -> Achievable:
    """What forward passes reach of the measured rates, and what each operator takes beside its work."""
    best = max(probes, key=lambda probe: probe.fp32_flops_per_s)
    return Achievable(
        name=THIS_MACHINE,
        fp32_fraction=_COMPUTE_FRACTION,
        matrix_fraction=_COMPUTE_FRACTION,
        bandwidth_fraction=_BANDWIDTH_FRACTION,
        spread=_SPREAD,
        origin="predicted",
        source="rates measured by `estimator calibrate`; fractions of them by benchmarks/machine_profile.py",
        operator_s=best.operator_s,
    )


def _flops(sizes: tuple[int, int, int]) -> int:
    rows, width, count = sizes
    return 2 * rows * width * width * count


def _call(name: str, num_threads: int) -> Callable[[], Any]:
    runtime = load_runtime()
    rows, width, count = {"stream": _STREAM, "step": _STEP}.get(name, _COMPUTE)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = _model(rows, width, count, quantized=name == "int8")
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": np.random.default_rng(1).standard_normal((rows, width), dtype=np.float32)}
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
