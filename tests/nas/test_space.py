"""Search spaces: presets, TOML files, sizes, repair, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.config import TransformerConfig
from estimator.params import count_params
from nas.errors import SpaceError
from nas.space import PRESETS, SearchSpace

_BASE: dict[str, Any] = {
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
}


def make_space(choices: dict[str, Any], **base: Any) -> SearchSpace:
    """A space over a small decoder; a field that is chosen leaves the base, as does one set to None."""
    fixed = {**_BASE, **base}
    for field in choices:
        fixed.pop(field.removesuffix("_per_layer"), None)
    return SearchSpace(
        name="test", base={name: value for name, value in fixed.items() if value is not None}, choices=choices
    )


@pytest.mark.parametrize("name", PRESETS)
def test_preset_makes_valid_networks_and_survives_json(name: str) -> None:
    """Sampled choices build, with the layers they say, and the space reads back from JSON as itself."""
    space = SearchSpace.preset(name)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    for params in space.sample(50, seed=1):
        assert space.to_config(params).num_hidden_layers == params["num_hidden_layers"]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("decoder-nano", 30e3, 900e3), ("decoder-small", 600e3, 22e6), ("encoder-small", 1e6, 14e6)],
)
def test_preset_has_the_scale_it_promises(name: str, least: float, most: float) -> None:
    """The sizes of the smallest and of sampled networks lie where the preset's comment says."""
    space = SearchSpace.preset(name)
    sizes = [count_params(space.to_config(params)).total for params in (space.smallest(), *space.sample(200, seed=2))]
    assert least <= min(sizes)
    assert max(sizes) <= most


def test_size_counts_what_enumeration_yields() -> None:
    """Conditional dimensions count only where they exist: 3 + 3^2 for 1 or 2 layers with 3 widths each, times 2."""
    space = make_space(
        {"num_hidden_layers": [1, 2], "intermediate_size_per_layer": [32, 64, 96], "gated_mlp": [True, False]}
    )
    assert space.size() == (3 + 9) * 2
    seen = [json.dumps(params, sort_keys=True) for params in space.enumerate()]
    assert len(seen) == len(set(seen)) == space.size()


def test_layer_that_shares_weights_is_no_dimension() -> None:
    """With pairs, layers 1 and 3 take the widths of layers 0 and 2; the window of each layer remains its own."""
    space = make_space(
        {
            "num_hidden_layers": [4],
            "weight_sharing": ["pairs"],
            "intermediate_size_per_layer": [32, 64],
            "sliding_window_per_layer": [None, 8],
        }
    )
    windows = {f"sliding_window_per_layer[{i}]" for i in range(4)}
    widths = {"intermediate_size_per_layer[0]", "intermediate_size_per_layer[2]"}
    assert set(space.dimensions(4, "pairs")) == windows | widths
    params = space.smallest() | {"intermediate_size_per_layer[2]": 64, "sliding_window_per_layer[1]": None}
    config = space.to_config(params)
    assert config.weight_source_per_layer == (0, 0, 2, 2)
    assert config.intermediate_size_per_layer == (32, 32, 64, 64)
    assert config.sliding_window_per_layer == (8, None, 8, 8)


@pytest.mark.parametrize(("sharing", "sources"), [("none", None), ("pairs", (0, 0, 2, 2, 4)), ("all", (0, 0, 0, 0, 0))])
def test_weight_sharing_names_the_owner_of_each_layer(sharing: str, sources: tuple[int, ...] | None) -> None:
    """None shares nothing, pairs shares between neighbours, all shares one layer."""
    space = make_space({"num_hidden_layers": [5], "weight_sharing": ["none", "pairs", "all"]})
    config = space.to_config({"num_hidden_layers": 5, "weight_sharing": sharing})
    assert config.weight_source_per_layer == sources


@settings(deadline=None)
@given(
    hidden=st.integers(1, 40).map(lambda half: 2 * half),
    heads=st.integers(1, 16),
    kv=st.integers(1, 16),
    head_dim=st.sampled_from([None, 2, 8]),
)
def test_head_counts_are_repaired_to_the_largest_that_divides(
    hidden: int, heads: int, kv: int, head_dim: int | None
) -> None:
    """Any combination is a network, and no larger head count up to the choice would have divided."""
    space = make_space(
        {"hidden_size": [hidden], "num_attention_heads": [heads], "num_key_value_heads": [kv]}, head_dim=head_dim
    )
    config = space.to_config(space.smallest())
    n, k = config.num_attention_heads, config.num_key_value_heads
    assert k is not None
    if head_dim is None:
        fits = [m for m in range(1, heads + 1) if hidden % m == 0 and (hidden // m) % 2 == 0]
        assert n == max(fits)
    else:
        assert n == heads
    assert k == max(m for m in range(1, min(kv, n) + 1) if n % m == 0)


def test_key_value_heads_are_repaired_for_each_layer() -> None:
    """One choice of 4 key-value heads becomes 3 in a layer of 6 heads, and stays 4 in one of 8."""
    space = make_space(
        {"num_hidden_layers": [2], "num_attention_heads_per_layer": [6, 8], "num_key_value_heads": [4]}, head_dim=8
    )
    params = {
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "num_attention_heads_per_layer[0]": 6,
        "num_attention_heads_per_layer[1]": 8,
    }
    assert space.to_config(params).num_key_value_heads_per_layer == (3, 4)


def test_smallest_has_the_fewest_parameters_of_an_enumerable_space() -> None:
    """No other candidate has fewer, among every kind of choice that changes the count."""
    space = make_space(
        {
            "num_hidden_layers": [2, 3],
            "weight_sharing": ["none", "all"],
            "hidden_size": [32, 64],
            "intermediate_size_per_layer": [32, 64],
            "gated_mlp": [True, False],
            "norm_type": ["layer_norm", "rms_norm"],
            "position_embedding": ["learned", "rotary"],
            "tie_word_embeddings": [False, True],
            "attention_bias": [True, False],
            "sliding_window": [None, 8],
        }
    )
    counts = [count_params(space.to_config(params)).total for params in space.enumerate()]
    assert count_params(space.to_config(space.smallest())).total == min(counts)


def test_sample_repeats_with_its_seed_and_covers_every_choice() -> None:
    """Same seed, same choices; every value of a dimension turns up about as often."""
    space = make_space({"hidden_size": [32, 64, 96], "gated_mlp": [True, False]})
    assert list(space.sample(20, seed=3)) == list(space.sample(20, seed=3)) != list(space.sample(20, seed=4))
    drawn = Counter(params["hidden_size"] for params in space.sample(600, seed=3))
    assert set(drawn) == {32, 64, 96}
    assert min(drawn.values()) > 150


def test_to_config_refuses_choices_that_are_not_the_candidates() -> None:
    """Missing, foreign and superfluous choices are named."""
    space = make_space({"num_hidden_layers": [1, 2], "intermediate_size_per_layer": [32, 64]})
    good = {"num_hidden_layers": 1, "intermediate_size_per_layer[0]": 32}
    assert isinstance(space.to_config(good), TransformerConfig)
    with pytest.raises(SpaceError, match=r"intermediate_size_per_layer\[0\] is missing"):
        space.to_config({"num_hidden_layers": 1})
    with pytest.raises(SpaceError, match="num_hidden_layers is missing"):
        space.to_config({})
    with pytest.raises(SpaceError, match="must be one of 32, 64, not 48"):
        space.to_config(good | {"intermediate_size_per_layer[0]": 48})
    with pytest.raises(SpaceError, match=r"intermediate_size_per_layer\[1\] is no dimension"):
        space.to_config(good | {"intermediate_size_per_layer[1]": 32})


@pytest.mark.parametrize(
    ("choices", "base", "message"),
    [
        ({"hidden_sizes": [64]}, {}, "unknown field 'hidden_sizes'"),
        ({"hidden_size_per_layer": [64]}, {}, "unknown field 'hidden_size_per_layer'"),
        ({"vocab_size": [256]}, {}, "unknown field 'vocab_size'"),
        ({"hidden_size": []}, {}, "list of 1 to"),
        ({"hidden_size": 64}, {}, "must be a list"),
        ({"hidden_size": [64.0]}, {}, "positive integers, not 64.0"),
        ({"hidden_size": [True]}, {}, "positive integers, not True"),
        ({"hidden_size": [0]}, {}, "positive integers, not 0"),
        ({"hidden_size": [64, 64]}, {}, "name a value twice"),
        ({"gated_mlp": ["yes"]}, {}, "true or false, not 'yes'"),
        ({"weight_sharing": ["triples"]}, {}, "none, pairs, all"),
        ({"hidden_act": ["swish"]}, {}, "hidden_act must be one of"),
        ({"intermediate_size": [64], "intermediate_size_per_layer": [64]}, {}, "keep one"),
        ({"num_attention_heads_per_layer": [2]}, {}, "needs head_dim"),
        ({"head_dim": [7, 8]}, {}, "even values of head_dim, not 7"),
        ({"hidden_size": [63]}, {}, "even values of hidden_size, not 63"),
        ({"gated_mlp": [True]}, {"vocab_size": None}, "vocab_size"),
        ({"gated_mlp": [True]}, {"vocab_size": "many"}, "base in space test: vocab_size"),
        ({"gated_mlp": [True]}, {"colour": 3}, "unknown field 'colour' in base"),
        ({}, {}, "choices is empty"),
    ],
)
def test_wrong_space_is_refused_by_name(choices: dict[str, Any], base: dict[str, Any], message: str) -> None:
    """What is wrong is named when the space is made, not later in the search."""
    with pytest.raises(SpaceError, match=message):
        make_space(choices, **base)


def test_field_in_base_and_choices_is_refused() -> None:
    """A field is fixed or chosen."""
    with pytest.raises(SpaceError, match="hidden_size stands in base and in choices"):
        SearchSpace(name="test", base=_BASE, choices={"hidden_size": [32]})


def test_toml_file_is_read_with_none_as_a_word(tmp_path: Path) -> None:
    """The file's name is the space's name unless it has one; "none" leaves the window out."""
    base = "\n".join(f"{name} = {value}" for name, value in _BASE.items())
    path = tmp_path / "mine.toml"
    path.write_text(f'[base]\n{base}\n[choices]\nsliding_window = ["none", 16]\n')
    space = SearchSpace.from_toml(path)
    assert (space.name, space.choices["sliding_window"]) == ("mine", (None, 16))
    assert space.to_config({"sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[base\n", "not valid TOML"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[base]\nvocab_size = 1\n", "lacks 'choices'"),
        (b"[choices]\n[extra]\n", "unknown key 'extra'"),
        (b"choices = 3\n", "must each be a table"),
    ],
)
def test_wrong_toml_is_refused_with_the_reason(tmp_path: Path, content: bytes, message: str) -> None:
    """Not TOML, not text, or not a space: one line that says which."""
    path = tmp_path / "space.toml"
    path.write_bytes(content)
    with pytest.raises(SpaceError, match=message):
        SearchSpace.from_toml(path)


def test_missing_file_and_unknown_preset_are_named(tmp_path: Path) -> None:
    """The message has the path, or the presets there are."""
    with pytest.raises(SpaceError, match=r"nowhere\.toml"):
        SearchSpace.from_toml(tmp_path / "nowhere.toml")
    with pytest.raises(SpaceError, match="decoder-nano, decoder-small, encoder-small"):
        SearchSpace.preset("decoder-huge")
