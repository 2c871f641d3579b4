"""Model types without a reader of their own, counted through transformers on the meta device."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from estimator.errors import ConfigError, UnsupportedModelError  # noqa: E402 - what needs the packages
from estimator.flops import count_flops  # noqa: E402
from estimator.memory import count_kv_cache_bytes  # noqa: E402
from estimator.params import count_params  # noqa: E402
from estimator.readers import meta_device  # noqa: E402
from estimator.readers.meta_device import network_through_transformers  # noqa: E402
from estimator.readers.networks import find_reader, read_network  # noqa: E402
from estimator.readers.source import read_source, source_of_values  # noqa: E402
from estimator.sized_source import size_document, size_source  # noqa: E402
from estimator.workload import Workload  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
# Of families that no reader knows: one whose pass can be counted, and one that reads images.
IMAGEGPT = {"model_type": "imagegpt", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 50}
BIT = {"model_type": "bit", "hidden_sizes": [128, 128, 128, 128], "depths": [1, 1, 1, 1], "embedding_size": 32}
KNOWN: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", **SMALL, "num_key_value_heads": 2},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100},
    "MistralForCausalLM": {"model_type": "mistral", **SMALL, "num_key_value_heads": 2, "sliding_window": 6},
    "Gemma2ForCausalLM": {"model_type": "gemma2", **SMALL, "num_key_value_heads": 2, "sliding_window": 6},
    "BertForMaskedLM": {"model_type": "bert", **SMALL},
}


def _truth(hf_class: str, values: dict[str, Any]) -> int:
    config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
    with torch.device("meta"):
        model = getattr(transformers, hf_class)(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("hf_class", "values"), [("ImageGPTModel", IMAGEGPT), ("BitModel", BIT)])
def test_unknown_family_is_counted_exactly_and_says_how(hf_class: str, values: dict[str, Any]) -> None:
    """Parameters are those of transformers; the warning names the way they were counted."""
    assert find_reader(values["model_type"]) is None
    source = source_of_values(values, "x")
    assert count_params(source.network).total == _truth(hf_class, values)
    assert source.hf_class == hf_class
    assert source.buildable is None
    version = transformers.__version__
    expected = f"model_type {values['model_type']} is not known here: counted through transformers {version}"
    assert source.warnings[0].startswith(expected)


@pytest.mark.parametrize("hf_class", KNOWN)
@pytest.mark.parametrize("tokens", [5, 16, 33])
def test_pass_is_counted_as_the_reader_counts_it(hf_class: str, tokens: int) -> None:
    """Parameters, FLOPs of both phases and the cache, also behind a window; none of the lengths was probed."""
    values = KNOWN[hf_class] | {"architectures": [hf_class]}
    probed, name, _ = network_through_transformers(values)
    read, _, _ = read_network(values)
    workload = Workload(prompt_length=tokens, generated_length=4 if read.is_causal else 0)
    assert name == hf_class
    assert not probed.has_only_weights
    assert probed.is_causal == read.is_causal
    assert count_params(probed).total == count_params(read).total
    for field in ("prefill_flops", "prefill_causal_flops", "decode_flops_per_token"):
        assert getattr(count_flops(probed, workload), field) == getattr(count_flops(read, workload), field), field
    assert count_kv_cache_bytes(probed, workload) == count_kv_cache_bytes(read, workload)


def test_what_one_pass_does_not_show_is_null() -> None:
    """A class that wants images has weights only: memory and compute are null, not 0."""
    source = source_of_values(BIT, "x")
    assert source.network.has_only_weights
    result = size_source(source, batch_size=1, prompt_length=8, generated_length=0)
    document = size_document(result, source)
    assert set(document["compute"].values()) == {None}
    assert {name for name, value in document["memory"].items() if value is not None} == {"weights_bytes"}
    assert document["memory"]["weights_bytes"] == 4 * _truth("BitModel", BIT)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"n_embd": "wide"}, ConfigError, "transformers refuses the config"),
        ({"n_embd": 63}, ConfigError, "transformers cannot build"),
        ({"n_layer": 10**9}, ConfigError, "must be at most"),
        ({"inner": {"num_hidden_layers": 10**9}}, ConfigError, "must be at most"),
        ({"architectures": ["NoSuchModel"]}, UnsupportedModelError, "NoSuchModel"),
        ({"architectures": "ImageGPTModel", "model_type": "funnel_of_one"}, UnsupportedModelError, "funnel_of_one"),
        ({"model_type": "musicgen_decoder"}, UnsupportedModelError, "has no class of its own"),
        ({"architectures": [[]]}, UnsupportedModelError, "is no model"),
        ({"architectures": ["pipeline"]}, UnsupportedModelError, "pipeline"),
        ({"architectures": ["AutoModel"]}, UnsupportedModelError, "AutoModel"),
        ({"architectures": ["Trainer"]}, UnsupportedModelError, "Trainer"),
        ({"model_type": "no-such-family"}, UnsupportedModelError, "no-such-family"),
    ],
)
def test_impossible_config_is_one_line(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    """Whatever transformers raises, the user gets one line; only its models are built."""
    with pytest.raises(error, match=words) as caught:
        network_through_transformers(IMAGEGPT | changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """The family and the command are named; nothing is imported."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == missing else real(name, *a))
    monkeypatch.setattr(meta_device, "network_through_transformers", lambda _: pytest.fail("was called"))
    with pytest.raises(UnsupportedModelError, match=r"'imagegpt'.*pip install 'archfront\[hf") as caught:
        source_of_values(IMAGEGPT, "x")
    assert "\n" not in str(caught.value)


def test_code_of_the_config_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither auto_map nor a kernel that the config names is loaded, and no connection is opened."""

    def connects(*_: object) -> NoReturn:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connects)
    monkeypatch.setattr(socket, "getaddrinfo", connects)
    marker = tmp_path / "ran"
    (tmp_path / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')\n")
    code = {
        "auto_map": {"AutoConfig": "modeling_x.X", "AutoModel": "somebody/code--modeling_x.X"},
        "attn_implementation": "kernels-community/flash-attn",
        "_attn_implementation": "kernels-community/flash-attn",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "trust_remote_code": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(IMAGEGPT | code))
    source = read_source(tmp_path)
    assert count_params(source.network).total == _truth("ImageGPTModel", IMAGEGPT)
    assert not marker.exists()


def test_state_of_the_process_is_as_before() -> None:
    """Logging, warnings and the offline switch are only changed while a model is built."""
    import logging
    import warnings

    from huggingface_hub import constants

    before = (logging.root.manager.disable, list(warnings.filters), constants.HF_HUB_OFFLINE)
    with pytest.raises(ConfigError):
        network_through_transformers(IMAGEGPT | {"n_embd": 63})
    network_through_transformers(IMAGEGPT)
    assert (logging.root.manager.disable, list(warnings.filters), constants.HF_HUB_OFFLINE) == before
