"""weight_shapes: the one list of weights, and what is said about each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from estimator.network import stored_weights
from estimator.params import ALWAYS_SHOWN
from estimator.weights import is_linear, network_of, part_of, random_weights, weight_shapes


def test_every_weight_belongs_to_a_part(random_configs):
    """No name falls through, and together the configs use all parts."""
    parts = {part_of(name) for config in random_configs for name in weight_shapes(config)}
    assert parts == set(ALWAYS_SHOWN)


def test_names_and_records_agree(random_configs):
    """The part and the quantisation told by a weight's name are those of its record."""
    for config in random_configs:
        for name, part, weight in stored_weights(network_of(config)):
            assert part_of(name) == part
            assert is_linear(name) == (weight.role == "linear" and weight.quantized)


def test_shared_layers_store_no_weights(small):
    """A layer that reuses another one's weights has none under its own index."""
    names = weight_shapes(dataclasses.replace(small, weight_source_per_layer=(0, 0)))
    assert any(name.startswith("layers.0.") for name in names)
    assert not any(name.startswith("layers.1.") for name in names)


def test_linear_weights_are_block_matrices_and_the_untied_head(random_configs):
    """What int8 and int4 quantise is two-dimensional and no embedding."""
    for config in random_configs:
        for name, shape in weight_shapes(config).items():
            if is_linear(name):
                assert len(shape) == 2
                assert part_of(name) in ("attention", "feed_forward", "head")
            elif len(shape) == 2:
                assert name.startswith(("embed_", "head.transform", "pooler"))


def test_tied_head_has_no_matrix_of_its_own(small):
    """Tying removes exactly lm_head.weight."""
    tied = weight_shapes(dataclasses.replace(small, tie_word_embeddings=True))
    assert set(weight_shapes(small)) - set(tied) == {"lm_head.weight"}


@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_repeat_and_have_the_promised_shapes(small, seed):
    """Same seed, same weights; biases 0, gains 1, matrices N(0, 0.02)."""
    first, second = random_weights(small, seed), random_weights(small, seed)
    assert {name: array.shape for name, array in first.items()} == weight_shapes(small)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array.dtype == np.float32
        if part_of(name) == "norm":
            assert (array == 1).all()
        else:
            assert 0.015 < array.std() < 0.025
    assert (random_weights(small, seed + 1)["embed_tokens.weight"] != first["embed_tokens.weight"]).any()
