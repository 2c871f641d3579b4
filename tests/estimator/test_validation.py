"""The estimator against the reference data: what every class reaches, and may never fall below again."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass

import pytest

from estimator.devices import load_devices
from estimator.errors import InputError
from estimator.figures import Figure
from estimator.readers.source import read_source
from estimator.training.memory import LoraPlan
from estimator.validating import comparisons as validation
from estimator.validating.comparisons import CLASSES, Comparison, compare_class, summarise
from estimator.validating.rows import Mode, named_network, read_mode, reference_network, reference_rows


@dataclass(frozen=True, kw_only=True)
class Limit:
    """`error` and `coverage` are what was promised, `reached` and `worst` what is reached: neither may get worse."""

    rows: int
    error: float
    reached: float
    worst: float
    coverage: float | None = None


# Errors as fractions. gpu-latency: 35 % and 80 %, from one point 15 %; memory 5 %; KV cache 0.5 %; parameters exact.
LIMITS = {
    "parameters": Limit(rows=100, error=0.0, reached=0.0, worst=0.0),
    "kv-cache": Limit(rows=12, error=0.005, reached=0.0, worst=0.0),
    "gpu-latency": Limit(rows=25, error=0.35, reached=0.07, worst=0.15, coverage=1.0),
    "gpu-latency-one-point": Limit(rows=100, error=0.15, reached=0.065, worst=0.19, coverage=1.0),
    "decode-latency": Limit(rows=3, error=0.35, reached=0.1, worst=0.18, coverage=1.0),
    "inference-memory": Limit(rows=2, error=0.05, reached=0.005, worst=0.01),
    "training-memory": Limit(rows=3, error=0.05, reached=0.025, worst=0.05),
    "request-energy": Limit(rows=3, error=0.25, reached=0.03, worst=0.06, coverage=1.0),
    "request-power": Limit(rows=3, error=0.25, reached=0.04, worst=0.06, coverage=1.0),
    "training-energy": Limit(rows=9, error=0.05, reached=0.005, worst=0.01),
    "training-co2e": Limit(rows=9, error=0.05, reached=0.005, worst=0.01),
    "training-hours": Limit(rows=4, error=0.15, reached=0.08, worst=0.14, coverage=1.0),
}


@pytest.mark.parametrize("name", CLASSES)
def test_no_class_gets_worse(name):
    """Mean and worst error, coverage and refusals of every class of `estimator validate`."""
    limit, found = LIMITS[name], summarise(name, compare_class(name))
    assert found.refused == 0
    assert found.count >= limit.rows
    assert found.mean_absolute_error <= min(limit.error, limit.reached)
    assert abs(found.worst.error) <= limit.worst
    if limit.coverage is None:
        assert found.coverage is None
    else:
        assert found.coverage >= limit.coverage


def test_every_measured_row_is_compared():
    """No row of the tables is left out: each pair of rows of a device counts once from either."""
    latencies = reference_rows("gpu_latency_fp32.tsv")
    by_device = [row["device"] for row in latencies]
    pairs = sum(by_device.count(name) - 1 for name in by_device)
    memories = reference_rows("training_memory.tsv")
    assert len(compare_class("gpu-latency")) == len(latencies)
    assert len(compare_class("gpu-latency-one-point")) == pairs
    assert len(compare_class("inference-memory")) + len(compare_class("training-memory")) == len(memories)
    assert len(compare_class("decode-latency")) == len(reference_rows("energy_h100.tsv"))


def test_references_are_the_files_own_figures():
    """In base units: seconds from milliseconds, bytes from GB."""
    found = {c.name: c.reference for c in compare_class("gpu-latency")}
    assert found["L4: gpt2-large, 4 x 1024"] == pytest.approx(1.276)
    found = {c.name: c.reference for c in compare_class("training-memory")}
    assert found["llama-3.2-1b, 1 x 2048, full training, pure bf16, AdamW"] == pytest.approx(17.51e9)


def test_summary_by_hand():
    """Means over what was not refused; coverage over what has an interval."""
    rows = (
        Comparison(name="exact", reference=10.0, value=10.0),
        Comparison(name="high", reference=10.0, value=12.0, low=9.0, high=13.0),
        Comparison(name="low", reference=10.0, value=6.0, low=5.0, high=7.0),
        Comparison(name="refused", reference=10.0, value=None, refusal="unknown"),
    )
    found = summarise("any", rows)
    assert (found.count, found.exact, found.refused, found.worst, found.coverage) == (4, 1, 1, rows[2], 0.5)
    assert found.mean_absolute_error == pytest.approx(0.2)
    assert [row.is_covered for row in rows] == [None, True, False, None]


def test_nothing_but_refusals_has_no_error():
    """No mean of nothing."""
    found = summarise("any", (Comparison(name="refused", reference=1.0, value=None, refusal="unknown"),))
    assert (found.mean_absolute_error, found.worst, found.coverage) == (None, None, None)


def _with_rows(monkeypatch, **tables):
    """The reference data with other rows in some of its tables."""
    files = {name.replace("__", ".") + ".tsv": text for name, text in tables.items()}

    def rows(*names):
        return list(csv.DictReader(files[names[-1]].splitlines())) if names[-1] in files else reference_rows(*names)

    monkeypatch.setattr(validation, "reference_rows", rows)


def test_rows_of_every_device_are_timed(monkeypatch):
    """Each device with rates gets an error and an interval; one without is refused, not left out."""
    names = [name for name, device in load_devices().items() if device.memory_bandwidth_bytes_per_s]
    lines = [f"bert-large,512,8,{name},100" for name in names]
    _with_rows(monkeypatch, gpu_latency_fp32="\n".join(["model,sequence_length,batch_size,device,latency_ms", *lines]))
    for name, found in zip(names, compare_class("gpu-latency"), strict=True):
        if "fp32" in load_devices()[name].peak_flops_per_s:
            assert found.low <= found.value <= found.high
        else:
            assert found.refusal == f"{name} has no published arithmetic rate or bandwidth to calibrate"


def test_unknown_models_and_devices_are_refusals(monkeypatch):
    """A row that cannot be answered is counted as refused and says why."""
    head = "model,sequence_length,batch_size,device,latency_ms"
    _with_rows(monkeypatch, gpu_latency_fp32=f"{head}\ngpt-5,512,8,l4,100\ngpt2,512,8,l44,100")
    first, second = compare_class("gpu-latency")
    assert "'gpt-5' is not a bundled model" in first.refusal
    assert "unknown device 'l44'" in second.refusal


def test_decoding_on_several_gpus_takes_a_share(monkeypatch):
    """A large model on four takes between a quarter and all of the time on one; a faster device less."""
    head = "model,batch_size,inter_token_latency_ms,num_gpus,device"
    rows = "\n".join(f"llama-3.1-70b,8,20,{rest}" for rest in ("1,h100", "4,h100", "1,b200"))
    _with_rows(monkeypatch, energy_h100=f"{head}\n{rows}")
    one, four, newer = compare_class("decode-latency")
    assert one.value / 4 < four.value < one.value
    assert newer.value < one.value
    assert "x 4" in four.name


MODES = {
    "inference bf16": Mode(is_training=False, dtype="bf16"),
    "inference bf16, eager": Mode(is_training=False, dtype="bf16", fused_attention=False),
    "inference fp16 (SDPA)": Mode(is_training=False, dtype="fp16"),
    "full training, pure bf16, AdamW": Mode(is_training=True, dtype="bf16"),
    "full training, AMP bf16, AdamW": Mode(is_training=True, dtype="bf16", scheme="amp"),
    "full training, AMP, SGD": Mode(is_training=True, dtype="bf16", scheme="amp", optimizer="sgd"),
    "training fp32, adam-8bit, gradient checkpointing, eager attention": Mode(
        is_training=True, dtype="fp32", optimizer="adam-8bit", checkpointing="full", fused_attention=False
    ),
    "LoRA training, r=8, pure bf16, AdamW": Mode(is_training=True, dtype="bf16", adapters="lora", rank=8),
    "QLoRA training, bf16": Mode(is_training=True, dtype="bf16", adapters="qlora"),
}


@pytest.mark.parametrize("text", MODES)
def test_modes_are_read(text):
    """The words of a measured row as a plan."""
    assert read_mode(text) == MODES[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("full training, pure bf16, DoRA", "'dora' is not understood"),
        ("bf16", "must say inference or training"),
        ("inference", "must say inference or training, and bf16"),
        ("", "must say"),
    ],
)
def test_modes_that_say_something_else_are_refused(text, message):
    """No word is passed over."""
    with pytest.raises(InputError, match=message):
        read_mode(text)


def test_adapters_have_their_plan():
    """QLoRA freezes the weights in nf4; without adapters there is no plan for them."""
    assert read_mode("QLoRA training, rank 64, bf16").lora == LoraPlan(rank=64, base_dtype="nf4")
    assert read_mode("LoRA training, bf16").lora == LoraPlan()
    assert read_mode("training, bf16").lora is None


def test_precisions_have_their_names():
    """Those of a TrainingPlan."""
    assert MODES["full training, AMP bf16, AdamW"].precision == "amp-bf16"
    assert MODES["full training, pure bf16, AdamW"].precision == "bf16"


@pytest.mark.parametrize(
    "mode", ["AMP bf16, AdamW", "fp32, SGD", "pure bf16, AdamW, checkpointing", "AMP, eager", "bf16, LoRA"]
)
def test_training_modes_differ_as_they_should(monkeypatch, mode):
    """Each mode is more or less than pure bf16 with AdamW, as its bytes per weight and what it keeps say."""
    head = "model,sequence_length,batch_size,mode,peak_gb,device"
    line = 'tinyllama-1.1b,1024,1,"full training, {}",10,rtx-a6000'
    rows = "\n".join([head, line.format("pure bf16, AdamW"), line.format(mode)])
    _with_rows(monkeypatch, training_memory=rows)
    plain, other = compare_class("training-memory")
    assert (other.value > plain.value) is not ("checkpointing" in mode or "LoRA" in mode)


def test_eager_inference_stores_scores(monkeypatch):
    """At 2,048 tokens the scores of one layer outweigh the logits: 8 bytes each."""
    head = "model,sequence_length,batch_size,mode,peak_gb,device"
    rows = "\n".join([head, *(f'tinyllama-1.1b,2048,1,"inference bf16{rest}",3,rtx-a6000' for rest in ("", ", eager"))])
    _with_rows(monkeypatch, training_memory=rows)
    fused, eager = compare_class("inference-memory")
    scores, weights = 8 * 32 * 2048**2, 2 * 1_100_048_384
    assert fused.value < weights + scores < eager.value < fused.value + 1.2 * scores


def test_models_of_rows_are_found_in_the_reference_data_first():
    """A config as published before a bundled one; neither is a refusal."""
    assert named_network("wizardcoder-15b-gpt-bigcode-mqa") is reference_network("wizardcoder-15b-gpt-bigcode-mqa")
    assert named_network("qwen2.5-14b") is reference_network("published", "qwen2.5-14b")
    assert named_network("gpt2-large") == read_source("gpt2-large").network
    with pytest.raises(InputError, match="not a bundled model"):
        named_network("gpt-5")


def test_unknown_classes_are_refused():
    """With the names that there are."""
    with pytest.raises(InputError, match="unknown class 'speed'; there are parameters, kv-cache"):
        compare_class("speed")


def test_comparisons_of_figures_keep_their_interval():
    """As the figure has it."""
    figure = Figure(value=1.0, low=0.5, high=2.0, origin="modelled")
    found = validation._compared("any", 1.5, lambda: figure)
    assert (found.value, found.low, found.high, found.is_covered) == (1.0, 0.5, 2.0, True)
    assert dataclasses.replace(found, high=1.2).is_covered is False
