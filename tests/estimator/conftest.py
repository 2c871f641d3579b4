"""Configs that many test files of this folder draw on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from estimator.config import TransformerConfig
from estimator.weights import weight_shapes


def _random_config(rng: random.Random) -> TransformerConfig:
    layers, group = rng.randint(1, 6), rng.choice([1, 2, 4])
    architecture = rng.choice(["decoder", "decoder", "encoder"])
    heads = {"decoder": ["causal_lm", "none"], "encoder": ["masked_lm", "pooler", "none"]}[architecture]

    def per_layer(draw):
        return tuple(draw(index) for index in range(layers)) if rng.random() < 0.4 else None

    return TransformerConfig(
        architecture=architecture,
        head=rng.choice(heads),
        vocab_size=rng.randint(10, 600),
        hidden_size=rng.randint(8, 80),
        num_hidden_layers=layers,
        num_attention_heads=group * rng.randint(1, 3),
        num_key_value_heads=group,
        head_dim=rng.choice([4, 8, 10]),
        intermediate_size=rng.randint(4, 200),
        max_position_embeddings=rng.randint(3, 99),
        gated_mlp=rng.random() < 0.5,
        norm_type=rng.choice(["layer_norm", "rms_norm"]),
        norm_placement=rng.choice(["pre", "post"]),
        position_embedding=rng.choice(["rotary", "learned", "none"]),
        attention_bias=rng.random() < 0.5,
        attention_output_bias=rng.random() < 0.5,
        mlp_bias=rng.random() < 0.5,
        qk_norm=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5,
        embedding_norm=rng.random() < 0.5,
        type_vocab_size=rng.choice([0, 2]),
        sliding_window=rng.choice([None, 3, 50]),
        num_attention_heads_per_layer=per_layer(lambda index: group * rng.randint(1, 3)),
        intermediate_size_per_layer=per_layer(lambda index: rng.randint(4, 99)),
        sliding_window_per_layer=per_layer(lambda index: rng.choice([None, 2, 7])),
        weight_source_per_layer=per_layer(lambda index: rng.randint(0, index)),
    )


@pytest.fixture(scope="session")
def random_configs() -> list[TransformerConfig]:
    """120 valid configs that together use every option."""
    rng = random.Random(7)
    return [_random_config(rng) for _ in range(120)]


@pytest.fixture
def small() -> TransformerConfig:
    """A small Llama-style decoder with grouped heads and an untied head."""
    return TransformerConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def noisy_weights():
    """A function: weights of a config in which no bias is zero and no gain is one, so that each of them matters."""

    def make(config, seed=0):
        generator = np.random.default_rng(seed)
        return {
            name: (generator.standard_normal(shape) * 0.1 + (len(shape) == 1 and name.endswith("weight"))).astype("f4")
            for name, shape in weight_shapes(config).items()
        }

    return make
