"""The PyTorch module: its names, its fresh weights, what reaches what."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from estimator.config import TransformerConfig
from estimator.errors import BuildError
from estimator.model import TransformerModel
from estimator.rotary import inverse_frequencies
from estimator.weights import part_of, weight_shapes

LINEAR = json.dumps({"rope_type": "linear", "factor": 4.0})


def _model(config, weights=None):
    torch.manual_seed(0)
    model = TransformerModel(config).eval()
    if weights is not None:
        model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()})
    return model


def _ids(config, length, batch_size=1):
    return torch.from_numpy(np.random.default_rng(1).integers(0, config.vocab_size, (batch_size, length)))


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def test_state_dict_is_weight_shapes(random_configs):
    """Names, shapes and order; tied and shared weights stand once."""
    for config in random_configs:
        shapes = {name: tuple(tensor.shape) for name, tensor in TransformerModel(config).state_dict().items()}
        assert shapes == weight_shapes(config)


def test_fresh_weights_have_gpt2_statistics(small):
    """Matrices N(0, 0.02), those in front of a residual addition divided by sqrt(2 layers), biases 0, gains 1."""
    config = dataclasses.replace(small, hidden_size=256, head_dim=64, intermediate_size=512, attention_bias=True)
    for name, tensor in _model(config).state_dict().items():
        if name.endswith("bias"):
            assert not tensor.any()
        elif part_of(name) == "norm":
            assert (tensor == 1).all()
        else:
            divisor = math.sqrt(2 * 2) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            assert tensor.std().item() * divisor == pytest.approx(0.02, rel=0.05)


def test_every_weight_is_trained(random_configs):
    """A loss over all outputs sends a gradient to every stored weight."""
    for config in random_configs[:40]:
        if config.position_embedding != "rotary" and config.attention_bias:
            continue  # without positions a bias of the keys shifts all scores alike, and softmax removes it
        model, length = _model(config), min(8, config.max_position_embeddings)
        outputs = model(_ids(config, length, batch_size=2))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.any(), name


@pytest.mark.parametrize("window", [None, 3])
def test_decoder_sees_the_past_alone_and_no_more_than_its_window(small, window, noisy_weights):
    """Logits at position 8 of one layer depend on exactly the tokens that the mask lets through."""
    config = dataclasses.replace(small, num_hidden_layers=1, sliding_window=window)
    model, ids = _model(config, noisy_weights(config)), _ids(config, 12)
    before, reached = model(ids)[0, 8], set()
    for position in range(12):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1) % config.vocab_size
        if not torch.equal(model(changed)[0, 8], before):
            reached.add(position)
    assert reached == set(range(9) if window is None else (6, 7, 8))


def test_encoder_window_reaches_both_ways(small, noisy_weights):
    """Position 6 of one layer sees the tokens fewer than `sliding_window` away, on both sides."""
    config = dataclasses.replace(small, architecture="encoder", head="none", num_hidden_layers=1, sliding_window=3)
    model, ids = _model(config, noisy_weights(config)), _ids(config, 12)
    before, reached = model(ids)[0, 6], set()
    for position in range(12):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 1) % config.vocab_size
        if not torch.equal(model(changed)[0, 6], before):
            reached.add(position)
    assert reached == {4, 5, 6, 7, 8}


SAME_WEIGHTS = [
    ("hidden_act", "relu"),
    ("hidden_act", "gelu"),
    ("hidden_act", "gelu_new"),
    ("norm_eps", 1.0),
    ("rope_theta", 100.0),
    ("rope_scaling", LINEAR),
    ("sliding_window", 4),
    ("position_embedding", "none"),
    ("weight_source_per_layer", (0, 0)),
    ("num_key_value_heads", 1),
]


@pytest.mark.parametrize(("field", "value"), SAME_WEIGHTS)
def test_option_changes_the_output(small, field, value, noisy_weights):
    """An option that leaves most weights as they are still changes what is computed."""
    changed = dataclasses.replace(small, **{field: value})
    weights = noisy_weights(small)
    shapes = weight_shapes(changed)
    others = {name: weights[name][: shape[0]] for name, shape in shapes.items()}
    ids = _ids(small, 10)
    assert not torch.allclose(_model(small, weights)(ids), _model(changed, others)(ids), atol=1e-4)


def test_padding_changes_nothing_for_the_tokens(small, noisy_weights):
    """An encoder gives a padded sequence the outputs of the sequence alone."""
    config = dataclasses.replace(small, architecture="encoder", head="masked_lm", norm_placement="post")
    model, ids = _model(config, noisy_weights(config)), _ids(config, 10)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    torch.testing.assert_close(model(ids, mask)[:, :6], model(ids[:, :6]), atol=1e-5, rtol=0)
    assert not torch.allclose(model(ids)[:, :6], model(ids[:, :6]), atol=1e-3)


def test_token_types_default_to_the_first(small, noisy_weights):
    """Without token types, all are of type 0, and type 1 differs."""
    config = dataclasses.replace(small, type_vocab_size=2)
    model, ids = _model(config, noisy_weights(config)), _ids(config, 6)
    torch.testing.assert_close(model(ids), model(ids, token_type_ids=torch.zeros_like(ids)))
    assert not torch.allclose(model(ids), model(ids, token_type_ids=torch.ones_like(ids)))


def test_frequencies_follow_the_closed_form(small):
    """theta^(-2i/H); linear scaling divides all of them by its factor."""
    head_dim = small.head_dim
    expected = np.array([10_000.0 ** (-2 * index / head_dim) for index in range(head_dim // 2)])
    np.testing.assert_allclose(inverse_frequencies(small), expected, rtol=1e-6)
    scaled = dataclasses.replace(small, rope_scaling=LINEAR)
    np.testing.assert_allclose(inverse_frequencies(scaled), expected / 4, rtol=1e-6)


def test_llama3_frequencies_equal_those_of_transformers():
    """Long waves, short waves and those between, against the reference implementation."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    table = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theirs = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=table | {"rope_theta": 500_000.0})
    ours = TransformerConfig(
        vocab_size=10,
        hidden_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=8,
        max_position_embeddings=8,
        rope_theta=500_000.0,
        rope_scaling=json.dumps(table),
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    np.testing.assert_allclose(inverse_frequencies(ours), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "'yarn'.*linear, llama3"),
        ({"rope_type": "linear"}, "factor of rope_scaling must be a positive number"),
    ],
)
def test_unknown_rope_scaling_is_refused_by_name(small, table, words):
    """What cannot be built is named, with what can."""
    config = dataclasses.replace(small, rope_scaling=json.dumps(table))
    with pytest.raises(BuildError, match=words):
        TransformerModel(config)
