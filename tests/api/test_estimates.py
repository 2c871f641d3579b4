"""Sizing a model over HTTP."""

from __future__ import annotations

import json

import pytest

from estimator.cli import main
from estimator.config import TransformerConfig
from estimator.readers.family_data import known_model_types
from estimator.readers.networks import find_reader


def command_line(capsys, *options: str) -> dict:
    assert main(["size", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("request_body", "options"),
    [
        ({"model": "gpt2"}, ("gpt2",)),
        ({"model": "GPT2", "device": "t4"}, ("gpt2", "--device", "t4")),
        ({"model": "gemma-3-4b", "num_images": 2}, ("gemma-3-4b", "--images", "2")),
        (
            {
                "model": "llama-3.1-8b",
                "batch_size": 2,
                "prompt_length": 4096,
                "generated_length": 256,
                "weight_dtype": "int4",
                "kv_cache_dtype": "int8",
            },
            (
                *("llama-3.1-8b", "--batch-size", "2", "--sequence-length", "4096", "--generate", "256"),
                *("--weight-dtype", "int4", "--kv-dtype", "int8"),
            ),
        ),
    ],
)
def test_estimate_is_the_document_of_the_command_line(client, capsys, request_body, options):
    """The same JSON as `estimator size --json`; GPT-2 has 124,439,808 parameters."""
    response = client.post("/v1/estimates", json=request_body)
    assert response.status_code == 200
    assert response.json() == command_line(capsys, *options)
    if "gpt2" in options:
        assert response.json()["params"]["total"] == 124_439_808


def test_estimate_reads_a_config(client):
    """A config of our own is sized as one in a file is."""
    config = TransformerConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    body = client.post("/v1/estimates", json={"config": {"model_type": "archfront", **config.to_dict()}}).json()
    # 256*64 embedding; a layer: 4*64*64 attention, 3*64*128 gated feed-forward, 2*64 norms; 64 the last norm
    assert body["params"]["total"] == 256 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert body["model"]["architecture_hash"] == config.architecture_hash()


@pytest.mark.parametrize(
    ("request_body", "pointer", "words"),
    [
        ({}, "", "either model or config"),
        ({"model": "gpt2", "config": {}}, "", "either model or config"),
        ({"model": "/etc/passwd"}, "", "not a bundled model"),
        ({"model": "gpt2", "device": "abacus"}, "/device", "abacus"),
        ({"model": "gpt2", "batch_size": 0}, "/batch_size", "greater than or equal to 1"),
        ({"config": {"model_type": "perceptron"}}, "/config", "perceptron"),
        ({"config": {"model_type": "archfront", "hidden_size": 10**12}}, "/config", "missing"),
        ({"config": {"model_type": "archfront", "colour": "red"}}, "/config/colour", "unknown field 'colour'"),
    ],
)
def test_estimate_refuses_what_it_does_not_understand(client, request_body, pointer, words):
    """422 that points to the part, with what would be right."""
    response = client.post("/v1/estimates", json=request_body)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["pointer"].startswith(pointer)
    assert words in error["detail"]


def test_estimate_never_counts_through_transformers(client, monkeypatch):
    """A family that only transformers knows is refused by the service, which imports no torch."""

    def refuse(values):
        pytest.fail(f"asked transformers for {values}")

    monkeypatch.setattr("estimator.readers.meta_device.network_through_transformers", refuse)
    unread = next(model_type for model_type in known_model_types() if find_reader(model_type) is None)
    response = client.post("/v1/estimates", json={"config": {"model_type": unread}})
    assert response.status_code == 422
    assert unread in response.text
