"""The largest architecture within limits, held against every architecture of small spaces."""

from __future__ import annotations

import itertools
import random

import pytest

from estimator.config import TransformerConfig
from estimator.devices import get_device
from estimator.errors import InputError
from estimator.fitting.limits import Limits
from estimator.sizing import estimate
from estimator.space_fitting.find import find_space
from estimator.space_fitting.largest import largest_config
from estimator.workload import Workload
from nas.space import SearchSpace

PI, L4 = get_device("raspberry-pi-5"), get_device("l4")
WORKLOAD = Workload(batch_size=2, prompt_length=24, generated_length=8)
BASE = {"vocab_size": 64, "max_position_embeddings": 64, "num_hidden_layers": 3, "hidden_size": 32}
SIZES = {"num_attention_heads": 4, "intermediate_size": 48}


def space_of(choices, **base):
    """A space of these choices over a small decoder."""
    fixed = {k: v for k, v in (BASE | SIZES | base).items() if f"{k}_per_layer" not in choices and k not in choices}
    return SearchSpace(name="tiny", base=fixed, choices=choices)


SPACES = {
    "layers of their own": space_of({"num_hidden_layers": (2, 3), "intermediate_size_per_layer": (16, 40, 48)}),
    "heads and feed-forwards by layer": space_of(
        {
            "num_attention_heads_per_layer": (2, 4),
            "num_key_value_heads_per_layer": (1, 2, 4),
            "intermediate_size_per_layer": (16, 40),
        },
        head_dim=8,
    ),
    "shared weights": space_of(
        {
            "num_hidden_layers": (3, 4),
            "weight_sharing": ("none", "pairs", "all"),
            "intermediate_size_per_layer": (16, 40),
            "sliding_window_per_layer": (None, 8),
        }
    ),
    "encoder": space_of(
        {
            "hidden_size": (24, 32),
            "num_attention_heads": (2, 3, 8),
            "intermediate_size_per_layer": (16, 40),
            "hidden_act": ("gelu", "relu"),
            "norm_placement": ("pre", "post"),
        },
        architecture="encoder",
        head="masked_lm",
        position_embedding="learned",
        gated_mlp=False,
    ),
    "no layer differs": space_of(
        {"hidden_size": (16, 24, 32), "gated_mlp": (True, False), "sliding_window": (None, 4)}
    ),
}


def fits(result, limits, max_params):
    """Whether an estimate is within the limits, by its own figures."""
    step = result.latency and (result.latency.decode_s_per_token or result.latency.prefill_s).time_s.value
    return (
        (max_params is None or result.params.total <= max_params)
        and (limits.memory_bytes is None or result.memory.total_bytes <= limits.memory_bytes)
        and (limits.max_latency_s is None or step <= limits.max_latency_s)
        and (limits.max_first_token_s is None or result.latency.prefill_s.time_s.value <= limits.max_first_token_s)
    )


def size_of(result):
    """What is made as large as possible."""
    return result.params.total, result.compute.prefill_flops


@pytest.fixture(scope="module", params=SPACES, ids=str)
def counted(request):
    """A space, and the estimate of each of its candidates by device."""
    space = SPACES[request.param]
    configs = {space.to_config(params) for params in space.enumerate()}
    return space, {device.name: [estimate(c, WORKLOAD, device) for c in configs] for device in (PI, L4)}


def budgets(results):
    """Limits that cut the space at several places, one figure and two at once."""
    rng = random.Random(3)
    for share in (0.0, 0.2, 0.5, 0.9):
        chosen = sorted(results, key=lambda r: r.memory.total_bytes)[int(share * (len(results) - 1))]
        step = (chosen.latency.decode_s_per_token or chosen.latency.prefill_s).time_s.value
        other = rng.choice(results)
        yield {"max_memory_bytes": chosen.memory.total_bytes}, None
        yield {"max_latency_s": step}, None
        yield {"max_first_token_s": chosen.latency.prefill_s.time_s.value}, other.params.total
        yield {"max_memory_bytes": other.memory.total_bytes, "max_latency_s": step * 1.1}, None


def test_counting_out_finds_what_brute_force_finds(counted):
    """Parameters, and FLOPs among equals, on a CPU and a GPU, for many budgets; and the answer is within them."""
    space, by_device = counted
    for device in (PI, L4):
        results = by_device[device.name]
        for limit, max_params in budgets(results):
            limits = Limits(device=device, **limit)
            answer = largest_config(space, WORKLOAD, limits, max_params=max_params)
            fitting = [size_of(result) for result in results if fits(result, limits, max_params)]
            assert answer.method == "exact"
            if not fitting:
                assert answer.config is None
                continue
            found = estimate(answer.config, WORKLOAD, device)
            assert size_of(found) == max(fitting), limit
            assert fits(found, limits, max_params)
            assert space.to_config(answer.choices) == answer.config


def test_sampling_stays_within_the_limits_and_close_to_the_best(counted):
    """Small spaces are sampled whole, so local steps end at the best or near it; the seed decides everything."""
    space, by_device = counted
    results = by_device[PI.name]
    for limit, max_params in itertools.islice(budgets(results), 4, 10):
        limits = Limits(device=PI, **limit)
        answers = [largest_config(space, WORKLOAD, limits, max_params=max_params, most_exact=0, seed=1) for _ in (1, 2)]
        assert answers[0] == answers[1]
        assert (answers[0].method, answers[0].seed) == ("sampled", 1)
        best = max((size_of(r) for r in results if fits(r, limits, max_params)), default=None)
        if best is None:
            assert answers[0].config is None
            continue
        found = estimate(answers[0].config, WORKLOAD, PI)
        assert fits(found, limits, max_params)
        assert found.params.total >= 0.95 * best[0]


def test_what_binds_is_named():
    """A limit between two sizes binds; without one the space does; when nothing fits, the smallest says why."""
    space = SPACES["layers of their own"]
    assert largest_config(space, WORKLOAD, Limits(device=PI)).binds == "space"
    params = sorted({estimate(space.to_config(p), WORKLOAD).params.total for p in space.enumerate()})
    middle = largest_config(space, WORKLOAD, Limits(), max_params=params[3])
    assert middle.binds == "parameters"
    assert estimate(middle.config, WORKLOAD).params.total == params[3]
    nothing = largest_config(space, WORKLOAD, Limits(device=PI, max_latency_s=1e-12))
    assert (nothing.config, nothing.binds) == (None, "latency budget")


def test_windows_are_as_wide_as_the_limits_allow():
    """Windows change no parameters: with room there are none, and with little each is still among its choices."""
    space = SPACES["shared weights"]
    wide = largest_config(space, WORKLOAD, Limits(device=L4))
    assert all(layer.sliding_window is None for layer in wide.config.layers)
    tight = Limits(device=L4, max_memory_bytes=wide.demand.memory.total_bytes - 1)
    assert any(layer.sliding_window == 8 for layer in largest_config(space, WORKLOAD, tight).config.layers)


class Entangled:
    """A space in which the first layer's heads decide the size of every head."""

    name = "entangled"

    def choose(self, pick):
        return {
            f"num_attention_heads_per_layer[{i}]": pick(f"num_attention_heads_per_layer[{i}]", (2, 4)) for i in (0, 1)
        }

    def to_config(self, params):
        heads = tuple(params.values())
        return TransformerConfig(
            **(BASE | SIZES | {"num_hidden_layers": 2}),
            head_dim=32 // heads[0],
            num_key_value_heads=1,
            num_attention_heads_per_layer=heads,
        )


def test_layers_that_are_not_independent_are_sampled():
    """Such layers cannot be exchanged, so the space is not counted out, whatever its size, and says so."""
    answer = largest_config(Entangled(), WORKLOAD, Limits(device=PI))
    assert answer.method == "sampled"
    assert [layer.num_attention_heads for layer in answer.config.layers] == [2, 4]


def test_energy_limits_a_space():
    """The largest within a budget of energy is that of all candidates, each asked."""
    from estimator.cost.energy import estimate_energy

    space = SPACES["layers of their own"]
    results = [estimate(space.to_config(params), WORKLOAD, L4) for params in space.enumerate()]
    joules = [estimate_energy(r.latency, L4, WORKLOAD).request_j.value for r in results]
    limit = sorted(joules)[len(joules) // 2]
    answer = largest_config(space, WORKLOAD, Limits(device=L4, max_energy_j=limit))
    assert estimate(answer.config, WORKLOAD).params.total == max(
        r.params.total for r, j in zip(results, joules, strict=True) if j <= limit
    )
    assert answer.binds == "energy budget"


def test_presets_are_found_by_name_through_the_entry_point(tmp_path):
    """What `estimator fit --space` takes: a preset, a TOML file, and one line for what is neither."""
    assert find_space("decoder-nano").name == "decoder-nano"
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\n[base]\nvocab_size = 9\nhidden_size = 8\nnum_attention_heads = 2\n'
        "intermediate_size = 8\nmax_position_embeddings = 8\n[choices]\nnum_hidden_layers = [1, 2]\n"
    )
    assert find_space(str(path)).name == "mine"
    with pytest.raises(InputError, match="unknown space 'nope'; choose decoder-nano"):
        find_space("nope")


def test_a_preset_is_counted_out_and_reports_progress():
    """decoder-nano has 425,088 raw choices; those that differ in size are counted, and progress ends at all of them."""
    heard = []
    answer = largest_config(
        SearchSpace.preset("decoder-nano"),
        Workload(),
        Limits(device=PI),
        max_params=300_000,
        say=lambda done, total: heard.append((done, total)),
    )
    assert answer.method == "exact"
    assert heard[-1] == (answer.num_candidates, answer.num_candidates)
    assert 290_000 < estimate(answer.config).params.total <= 300_000
