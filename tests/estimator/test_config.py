"""TransformerConfig: canonical form, equality, round trip, refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest

from estimator.config import TransformerConfig
from estimator.errors import ConfigError

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
}


def make(**changes):
    return TransformerConfig(**(SIZES | changes))


def test_defaults_are_resolved():
    """Omitted key-value heads are the heads; an omitted head_dim divides the width."""
    assert (make().num_key_value_heads, make().head_dim) == (4, 16)


def test_equal_networks_are_equal_and_share_a_hash():
    """A per-layer tuple of equal entries is the plain field."""
    plain = make(intermediate_size=80)
    layered = make(intermediate_size_per_layer=(80, 80, 80, 80))
    assert plain == layered
    assert plain.architecture_hash() == layered.architecture_hash()


def test_hash_differs_for_every_field_that_changes():
    """No two of these networks share a hash."""
    configs = [
        make(),
        make(vocab_size=101),
        make(hidden_act="gelu"),
        make(qk_norm=True),
        make(sliding_window=8),
        make(intermediate_size_per_layer=(80, 80, 80, 96)),
        make(weight_source_per_layer=(0, 0, 2, 3)),
    ]
    assert len({config.architecture_hash() for config in configs}) == len(configs)


def test_round_trip_through_json_gives_an_equal_config(random_configs):
    """from_dict reads what to_dict wrote."""
    for config in random_configs:
        text = json.dumps(config.to_dict())
        assert TransformerConfig.from_dict(json.loads(text)) == config


def test_replace_keeps_a_canonical_config(random_configs):
    """Rebuilding a config from its own fields changes nothing."""
    for config in random_configs:
        assert dataclasses.replace(config) == config


def test_sharing_layer_takes_the_shape_of_its_source():
    """Layer 1 reuses layer 0, so its own width is void."""
    config = make(intermediate_size_per_layer=(80, 33, 80, 96), weight_source_per_layer=(0, 0, 2, 3))
    assert [layer.intermediate_size for layer in config.layers] == [80, 80, 80, 96]
    assert [layer.owns_weights for layer in config.layers] == [True, False, True, True]


def test_chain_of_sharing_ends_at_the_owner():
    """Layer 3 reuses 2, which reuses 1, which reuses 0: all use layer 0's weights."""
    config = make(weight_source_per_layer=(0, 0, 1, 2))
    assert config.weight_source_per_layer == (0, 0, 0, 0)
    assert config == make(weight_source_per_layer=(0, 0, 0, 0))


def test_layers_report_per_layer_values():
    """Each layer has its own heads, window and width."""
    config = make(
        num_attention_heads_per_layer=(4, 2, 4, 8),
        num_key_value_heads_per_layer=(1, 2, 4, 8),
        sliding_window_per_layer=(None, 8, None, 8),
    )
    assert [(layer.query_size, layer.key_value_size, layer.sliding_window) for layer in config.layers] == [
        (64, 16, None),
        (32, 32, 8),
        (64, 64, None),
        (128, 128, 8),
    ]
    assert not config.is_uniform


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 2**31}, "vocab_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"type_vocab_size": True}, "type_vocab_size"),
        ({"type_vocab_size": -1}, "type_vocab_size"),
        ({"norm_eps": 0}, "norm_eps"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_type": "batch_norm"}, "norm_type"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"gated_mlp": 1}, "gated_mlp"),
        ({"head": "masked_lm"}, "head"),
        ({"architecture": "encoder"}, "head"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling"),
        ({"intermediate_size_per_layer": (1, 2)}, "intermediate_size_per_layer"),
        ({"intermediate_size_per_layer": (1, 2, 0, 4)}, "intermediate_size_per_layer"),
        ({"weight_source_per_layer": (0, 2, 2, 3)}, "weight_source_per_layer"),
        ({"num_key_value_heads_per_layer": (4, 4, 3, 4)}, "num_key_value_heads"),
    ],
)
def test_impossible_values_are_refused_by_name(changes, field):
    """The error names the field, in its text and as an attribute, in one line."""
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert caught.value.field == field
    assert field.removesuffix("_per_layer") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_stays_short_for_huge_values():
    """A value of a million characters is not repeated in full."""
    with pytest.raises(ConfigError) as caught:
        make(hidden_act="x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_from_dict_names_unknown_and_missing_fields():
    """Nothing is ignored and nothing is made up."""
    with pytest.raises(ConfigError, match="n_layer"):
        TransformerConfig.from_dict(SIZES | {"n_layer": 3})
    with pytest.raises(ConfigError, match="vocab_size"):
        TransformerConfig.from_dict({name: value for name, value in SIZES.items() if name != "vocab_size"})
