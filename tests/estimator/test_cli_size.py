"""The command line `estimator size` and `estimator devices`, called as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from estimator.cli import main
from estimator.devices import load_devices
from estimator.readers.source import bundled_models

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "transformers", "scipy", "rich")


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments):
    """The JSON document of a command that must succeed and be silent on stderr."""
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_size_answers_for_every_bundled_model(capsys):
    """The table names the model and shows its exact count."""
    for name in bundled_models():
        code, out, _ = run(capsys, "size", name)
        assert code == 0
        assert out.startswith(name)
        assert f"{document(capsys, 'size', name)['params']['total']:,}" in out


def test_size_json_is_the_contract(capsys):
    """GPT-2 with a device: model, params, memory, compute, latency, fits, warnings."""
    answer = document(capsys, "size", "gpt2", "--device", "T4")
    assert answer["model"]["name"] == "gpt2"
    assert answer["model"]["class"] == "GPT2LMHeadModel"
    assert answer["params"]["total"] == 124_439_808
    assert answer["memory"]["weights_bytes"] == 4 * 124_439_808
    assert answer["latency"]["prefill_s"]["origin"] == "modelled"
    assert answer["fits"] is True
    assert document(capsys, "size", "gpt2")["fits"] is None


def test_sequence_length_gives_the_cache_of_the_table(capsys):
    """Llama-3.1-8B at 4,096 tokens in bf16 keeps 512 MiB."""
    answer = document(capsys, "size", "llama-3.1-8b", "--sequence-length", "4096", "--kv-dtype", "bf16")
    assert answer["memory"]["kv_cache_bytes"] == 512 * 2**20


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ([], ("bf16", "bf16", "bf16")),  # as the config says
        (["--weight-dtype", "fp32"], ("fp32", "fp32", "fp32")),
        (["--weight-dtype", "int4"], ("int4", "bf16", "bf16")),
        (["--kv-dtype", "int8"], ("bf16", "bf16", "int8")),
        (["--weight-dtype", "int8", "--kv-dtype", "fp32"], ("int8", "bf16", "fp32")),
    ],
)
def test_number_types_follow_the_weights(capsys, options, types):
    """Activations follow a float weight type, else the config; the cache follows the activations."""
    workload = document(capsys, "size", "qwen3-0.6b", *options)["workload"]
    assert (workload["weight_dtype"], workload["activation_dtype"], workload["kv_cache_dtype"]) == types


@pytest.mark.parametrize(
    "option",
    [
        ("--batch-size", "2"),
        ("--sequence-length", "64"),
        ("--generate", "9"),
        ("--weight-dtype", "int8"),
        ("--kv-dtype", "fp16"),
        ("--device", "l4"),
    ],
)
def test_every_option_changes_the_answer(capsys, option):
    """No option is accepted and then not used."""
    plain, changed = document(capsys, "size", "gpt2"), document(capsys, "size", "gpt2", *option)
    assert {key: changed[key] for key in ("memory", "compute")} != {key: plain[key] for key in ("memory", "compute")}


def test_explain_shows_formula_numbers_and_origin(capsys):
    """Text and JSON hold the same derivations."""
    _, out, _ = run(capsys, "size", "gpt2", "--explain")
    assert "params.total = 124,439,808   (counted)" in out
    figures = document(capsys, "size", "gpt2", "--explain")["explain"]["figures"]
    for figure in figures:
        assert figure["figure"] in out
        assert figure["numbers"] in out
    assert "explain" not in document(capsys, "size", "gpt2")


def test_warnings_of_reader_and_estimate_are_shown(capsys, tmp_path):
    """A config without class, run beyond its positions."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2"}))
    _, out, _ = run(capsys, "size", str(path), "--sequence-length", "2000")
    assert out.count("warning: ") == 2
    assert len(document(capsys, "size", str(path), "--sequence-length", "2000")["warnings"]) == 2


def test_next_step_goes_to_stderr(capsys):
    """Data on stdout, talk on stderr; a model that does not fit is offered a smaller type."""
    _, out, err = run(capsys, "size", "llama-2-7b", "--device", "raspberry-pi-5")
    assert "next: " not in out
    assert err.strip().startswith("next: estimator size llama-2-7b")
    assert "int4" in err


def test_devices_table_and_page(capsys):
    """Every device is in the table; a page shows each number with its source and date."""
    _, table, _ = run(capsys, "devices")
    for name, device in load_devices().items():
        assert name in table
        _, page, _ = run(capsys, "devices", name)
        for source in device.sources.values():
            assert source.url in page
            assert source.date in page


def test_devices_json_is_the_table(capsys):
    """One document for all, one for a single device; unknown numbers are null."""
    rows = document(capsys, "devices")["devices"]
    assert [row["name"] for row in rows] == list(load_devices())
    assert document(capsys, "devices", "T4") == next(row for row in rows if row["name"] == "t4")
    assert document(capsys, "devices", "epyc-9654")["memory_bytes"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["size", "nothing-like-it-xyz"], 3, "bundled"),
        (["size", "gpt2", "--device", "toaster-9000"], 3, "toaster-9000"),
        (["devices", "toaster-9000"], 3, "toaster-9000"),
        (["size"], 2, "SOURCE"),
        ([], 2, "COMMAND"),
        (["fry"], 2, "fry"),
        (["size", "gpt2", "--batch-size", "0"], 2, "--batch-size"),
        (["size", "gpt2", "--batch-size", "1.5"], 2, "--batch-size"),
        (["size", "gpt2", "--generate", "-1"], 2, "--generate"),
        (["size", "gpt2", "--sequence-length", "9" * 5000], 2, "--sequence-length"),
        (["size", "gpt2", "--weight-dtype", "fp4"], 2, "fp4"),
    ],
)
def test_errors_have_their_exit_code_and_no_traceback(capsys, arguments, code, words):
    """2 for wrong usage, 3 for input that is not understood; nothing on stdout."""
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    if code == 3:
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["size", "--help"], ["devices", "--help"]])
def test_help_is_answered(capsys, arguments):
    """Help is data: stdout, exit code 0."""
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "estimator" in out


def test_help_teaches_with_examples(capsys):
    """The examples of the help are commands that work."""
    for page in (["--help"], ["size", "--help"]):
        _, out, _ = run(capsys, *page)
        lines = [line.split("   ")[0].split() for line in out.splitlines() if line.startswith("  estimator ")]
        assert lines
        for line in lines:
            if line[1] != "measure" and not any(word.startswith("./") for word in line):
                assert run(capsys, *line[1:])[0] == 0, line


def _python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_size_loads_no_heavy_library():
    """`estimator size` answers without any of them."""
    code = "import sys; from estimator.cli import main; main(['size', 'gpt2', '--device', 't4', '--explain'])"
    done = _python(f"{code}; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def test_module_runs_as_a_program():
    """python -m estimator.cli is the same command."""
    command = [sys.executable, "-m", "estimator.cli", "size", "gpt2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["params"]["total"] == 124_439_808


def test_closed_pipe_is_no_error():
    """A reader that stops reading gets no traceback."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "estimator.cli", "size", "gpt2", "--explain"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write_end)
    assert done.returncode == 0
    assert "Error" not in done.stderr


def test_full_disk_is_one_line():
    """Output that cannot be written is a failure, told in one line."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "estimator.cli", "devices", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kv-scales", "token"), "kv_scales is for a quantised cache"),
        (("--group-size", "128"), "fp32 weights have neither groups nor zero points"),
        (("--attention", "fused"), "onnxruntime-cpu has no fused attention"),
        (("--runtime", "pytorch-cpu", "--device", "l4"), "needs a CPU"),
        (("--runtime", "pytorch-cuda", "--device", "raspberry-pi-5"), "needs an NVIDIA GPU"),
    ],
)
def test_options_that_do_not_go_together_are_refused(capsys, options, words):
    """One line on stderr, nothing on stdout."""
    code, out, err = run(capsys, "size", "gpt2", *options)
    assert (code != 0, out) == (True, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--group-size", "128"),
        ("--zero-points",),
        ("--kv-dtype", "int4"),
        ("--kv-dtype", "int8", "--kv-scales", "head"),
        ("--attention", "eager"),
        ("--logits", "last"),
        ("--runtime", "onnxruntime-cuda"),
    ],
)
def test_every_option_changes_the_memory(capsys, options):
    """Against int4 weights and an int8 cache on a GPU."""
    base = ("size", "gpt2", "--weight-dtype", "int4", "--device", "l4", "--sequence-length", "900")
    cache = () if "--kv-dtype" in options else ("--kv-dtype", "int8")
    plain = document(capsys, *base, "--kv-dtype", "int8")["memory"]
    assert document(capsys, *base, *cache, *options)["memory"]["total_bytes"] != plain["total_bytes"]


def test_the_length_of_an_image_is_not_the_prompts(capsys):
    """A vision encoder reads as many patches whatever is asked for; CLIP's text does read a prompt."""
    (warning,) = document(capsys, "size", "vit-base-patch16-224", "--sequence-length", "100")["warnings"]
    assert "prompt_length changes nothing" in warning
    assert not document(capsys, "size", "vit-base-patch16-224")["warnings"]
    assert not document(capsys, "size", "clip-vit-base-patch32", "--sequence-length", "70")["warnings"]


def test_products_in_eight_bits_are_said_to_be_assumed(capsys):
    """A GPU multiplies in int8 only what is int8 on both sides, as the activations above the figures are not."""
    said = "activations that are int8 too"
    for dtype, times in (("int8", 1), ("int4", 0)):
        found = document(capsys, "size", "bert-base-uncased", "--device", "t4", "--weight-dtype", dtype)["warnings"]
        assert sum(said in warning for warning in found) == times


def test_a_training_run_takes_the_devices_of_its_plan(capsys):
    """Memory of eight devices and hours of one were in one answer; --num-devices still says otherwise."""
    asked = ("size", "gpt2", "--training", "--data-parallel", "4", "--tensor-parallel", "2", "--training-tokens", "1B")
    assert document(capsys, *asked)["training_compute"]["run"]["num_devices"] == 8
    assert document(capsys, *asked, "--num-devices", "16")["training_compute"]["run"]["num_devices"] == 16


def test_the_cache_of_an_encoder_is_one_warning(capsys):
    """Whatever its type."""
    for dtype in ("bf16", "int8"):
        (warning,) = document(capsys, "size", "bert-base-uncased", "--kv-dtype", dtype)["warnings"]
        assert "changes nothing" in warning
