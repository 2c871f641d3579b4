"""The probe of this machine: what it runs, and the device that comes of it. No figure of time is asserted."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest

from estimator.calibrating import machine
from estimator.calibrating.machine import (
    MOST_BUSY_SHARE,
    Probe,
    is_busy,
    machine_achievable,
    machine_device,
    probe_machine,
)
from estimator.config import TransformerConfig
from estimator.latency import count_operators, estimate_latency
from estimator.measuring.fingerprint import host_fingerprint
from estimator.measuring.quiet_times import QuietTimes, keep_quiet_times
from estimator.phases import decode_runs
from estimator.weights import network_of
from estimator.workload import Workload

QUIET = Probe(
    num_threads=1,
    fp32_flops_per_s=1e11,
    int8_flops_per_s=3e11,
    bandwidth_bytes_per_s=1e10,
    operator_s=1e-6,
    others_share=0.0,
)

SMALL = TransformerConfig(
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=256,
)


def probe(**changes):
    return Probe(**{name: changes.get(name, getattr(QUIET, name)) for name in QUIET.__slots__})


def test_probing_gives_rates(monkeypatch):
    """A real probe of small graphs: positive, finite, with one thread and with all."""
    monkeypatch.setattr(machine, "_STREAM", (1, 256, 1))
    said = []
    probes = probe_machine(said.append, seconds=0.02, max_attempts=1)
    assert probes[0].num_threads == 1
    assert len(said) == len(probes) <= 2
    for found in probes:
        for name in ("fp32_flops_per_s", "int8_flops_per_s", "bandwidth_bytes_per_s", "operator_s"):
            assert 0 < getattr(found, name) < math.inf
        assert found.others_share >= 0


@pytest.mark.parametrize("quantized", [False, True])
def test_graphs_are_valid_and_compute_products(quantized):
    """The checker accepts them, and the result is the chain of products, but for the rounding of int8."""
    data = machine._model(4, 32, 3, quantized=quantized)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    session = machine.load_runtime().InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32)
    (found,) = session.run(None, {"x": x})
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = x
    for layer in range(3):
        scale = weights[f"ws{layer}"] if quantized else 1.0
        expected = expected @ (weights[f"w{layer}"].astype(np.float32) * scale)
    assert np.abs(found - expected).max() <= (0.1 if quantized else 1e-4) * np.abs(expected).max()


def test_rates_divide_the_work_by_the_time(monkeypatch):
    """fp32 and int8: 2 FLOPs per multiply-add; the stream: four bytes per weight; the step: one operator."""
    monkeypatch.setattr(machine, "_call", lambda name, num_threads: name)
    times = dict.fromkeys(machine.YARDSTICKS, 1.0) | {"fp32": 0.5, "int8": 0.25, "stream": 2.0, "step": 0.1}
    monkeypatch.setattr(machine, "measure_quiet", lambda calls, min_seconds: {name: times[name] for name in calls})
    monkeypatch.setattr(machine, "others_cpu_s", lambda: 0.0)
    found = probe_machine()[0]
    rows, width, count = machine._COMPUTE
    assert found.fp32_flops_per_s == 2 * rows * width**2 * count / 0.5
    assert found.int8_flops_per_s == 2 * found.fp32_flops_per_s
    assert found.bandwidth_bytes_per_s == 4 * machine._STREAM[1] ** 2 / 2.0
    assert found.operator_s == pytest.approx(0.1 / machine._STEP[2])


def test_streams_take_turns(monkeypatch):
    """Each call reads a matrix that the calls before it did not; all of them give the same product."""
    made = []

    def session_call(model, inputs, num_threads):
        made.append(model)
        number = len(made)
        return lambda: number

    monkeypatch.setattr(machine, "_session_call", session_call)
    monkeypatch.setattr(machine, "_STREAM", (1, 8, 1))
    call = machine._call("stream", 1)
    assert [call() for _ in range(14)] == [*range(1, 13), 1, 2]
    assert len(set(made)) == 1


def test_disturbed_probes_are_repeated(monkeypatch):
    """Until others leave the machine alone; the least disturbed attempt counts."""
    monkeypatch.setattr(machine, "_call", lambda name, num_threads: name)
    monkeypatch.setattr(machine, "default_num_threads", lambda: 1)
    found = iter([1.0, 3.0, 0.1])
    monkeypatch.setattr(machine, "measure_quiet", lambda calls, min_seconds: dict.fromkeys(calls, next(found)))
    monkeypatch.setattr(machine, "_quiet_times", lambda num_threads: {})
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda: 1)
    monkeypatch.setattr(machine.time, "perf_counter", iter(range(100)).__next__)  # each attempt lasts a second
    monkeypatch.setattr(machine, "others_cpu_s", iter([0.0, 0.9, 1.0, 1.05]).__next__)
    said = []
    (best,) = probe_machine(said.append, max_attempts=3)
    assert best.fp32_flops_per_s == machine._flops(machine._COMPUTE) / 3.0
    assert best.others_share == pytest.approx(0.05)
    assert len(said) == 2
    assert "again" in said[1]


def test_what_slowed_the_yardsticks_down_is_taken_out():
    """Half the speed for the yardstick is half the speed for the graphs of its regime; a faster one changes nothing."""
    found = {"fp32": 8.0, "int8": 4.0, "stream": 6.0, "step": 1.0, "compute-3": 2.0, "stream-3": 0.5, "step-4": 1.0}
    quiet = {"compute-3": 1.0, "stream-3": 1.0, "step-4": 0.25}
    assert machine._undisturbed(found, quiet) == {"fp32": 4.0, "int8": 2.0, "stream": 6.0, "step": 0.25}
    assert machine._undisturbed(found, {}) == {"fp32": 8.0, "int8": 4.0, "stream": 6.0, "step": 1.0}


def test_provisional_quiet_times_correct_nothing(monkeypatch, tmp_path):
    """Only what measuring found on a quiet machine is used."""
    monkeypatch.setenv("ARCHFRONT_DATA", str(tmp_path))
    seconds = dict.fromkeys(machine.YARDSTICKS, 1.0)
    for is_final, expected in ((False, {}), (True, seconds)):
        times = QuietTimes(seconds=seconds, is_final=is_final)
        keep_quiet_times(host_fingerprint(num_threads=1), times)
        assert machine._quiet_times(1) == expected


def test_the_machine_is_a_device_with_measured_rates():
    """The best rate of each kind with its source; JSON as any device's."""
    fast = probe(num_threads=4, fp32_flops_per_s=4e11, int8_flops_per_s=2e11, bandwidth_bytes_per_s=2e10)
    device = machine_device((QUIET, fast))
    assert (device.name, device.kind, device.origin) == ("this-machine", "cpu", "measured")
    assert device.peak_flops_per_s == {"fp32": 4e11, "int8": 3e11}
    assert device.memory_bandwidth_bytes_per_s == 2e10
    assert device.memory_bytes > 0
    assert {"peak_flops_per_s", "memory_bandwidth_bytes_per_s", "memory_bytes"} <= set(device.sources)
    assert json.loads(json.dumps(device.to_dict()))["origin"] == "measured"


def test_a_busy_machine_says_so():
    """Its note asks for another calibration, and the interval is wider."""
    busy = probe(others_share=2 * MOST_BUSY_SHARE)
    assert (is_busy((QUIET,)), is_busy((QUIET, busy))) == (False, True)
    assert "calibrate again" in machine_device((busy,)).note
    assert "calibrate again" not in machine_device((QUIET,)).note
    assert machine_achievable((busy,)).learnt_spread > machine_achievable((QUIET,)).learnt_spread


def test_times_are_predicted_from_the_profile():
    """A step reads its weights at the measured bandwidth, and every operator takes its time."""
    device, achievable = machine_device((QUIET,)), machine_achievable((QUIET,))
    phase = estimate_latency(SMALL, Workload(), device, achievable).decode_s_per_token
    operators = count_operators(decode_runs(network_of(SMALL), Workload()))
    moved_s = phase.bytes_moved / (1e10 * achievable.bandwidth_fraction)
    assert phase.time_s.value == pytest.approx(moved_s + 1e-6 * operators)
    assert phase.time_s.origin == "predicted"


def test_measured_rates_bound_no_interval():
    """A quieter machine beats them: the interval reaches as far down as up."""
    time = estimate_latency(SMALL, Workload(), machine_device((QUIET,)), machine_achievable((QUIET,))).prefill_s.time_s
    assert time.value / time.low == pytest.approx(time.high / time.value)
