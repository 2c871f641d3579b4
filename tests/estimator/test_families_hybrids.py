"""Hybrids, state spaces and linear attention: totals, states and FLOPs against transformers on the meta device."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from estimator.errors import ConfigError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes, count_state_bytes
from estimator.network import Chunks, Recurrence
from estimator.params import count_params
from estimator.readers.networks import read_network
from estimator.workload import Workload

GOLDEN = Path(__file__).parents[2] / "estimator" / "reference"
LINEAR, FULL, HYBRID = "linear_attention", "full_attention", "hybrid"
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1}
TINY |= {"eos_token_id": 2}
GROUPED = TINY | {"num_attention_heads": 4, "num_key_value_heads": 2}
HEADS = GROUPED | {"intermediate_size": 80}
BAMBA = HEADS | {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_chunk_size": 8}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "head_dim": 16}
DELTA |= {"linear_value_head_dim": 24}
SPARSE = DELTA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
SPARSE |= {"shared_expert_intermediate_size": 24}
LATENT = HEADS | {"num_key_value_heads": 4, "kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
LATENT |= {"v_head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
NEMOTRON = HEADS | {"head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2}
NEMOTRON |= {"chunk_size": 8, "n_routed_experts": 4, "moe_intermediate_size": 40, "moe_latent_size": 24}
NEMOTRON |= {"moe_shared_expert_intermediate_size": 48}
CASES = {
    "MambaForCausalLM": TINY,
    "FalconMambaForCausalLM": TINY,
    "Mamba2ForCausalLM": TINY | {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8},
    "JambaForCausalLM": HEADS
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2},
    "NemotronHForCausalLM": NEMOTRON | {"layers_block_type": [LINEAR, "mlp", FULL, "moe"]},
    "BambaForCausalLM": BAMBA | {"attn_layer_indices": [1]},
    "FalconH1ForCausalLM": BAMBA | {"mamba_d_ssm": 96, "mamba_rms_norm": True},
    "GraniteMoeHybridForCausalLM": BAMBA
    | {"layer_types": [LINEAR, FULL, LINEAR, FULL], "num_local_experts": 4, "shared_intermediate_size": 48},
    "Qwen3NextForCausalLM": HEADS | SPARSE | {"mlp_only_layers": [2]},
    "Qwen3_5ForCausalLM": HEADS | DELTA,
    "Qwen3_5MoeForCausalLM": GROUPED | SPARSE,
    "OlmoHybridForCausalLM": HEADS,
    "LaraMiniForCausalLM": GROUPED | SPARSE | {"sliding_window": 64},
    "KimiLinearForCausalLM": LATENT | {"num_hidden_layers": 5, "linear_num_heads": 4, "linear_head_dim": 16},
    "BailingHybridForCausalLM": LATENT | {"layer_group_size": 2, "head_dim": 16, "n_group": 2, "topk_group": 1},
    "Lfm2ForCausalLM": HEADS | {"full_attn_idxs": [1]},
    "Lfm2MoeForCausalLM": HEADS
    | {"layer_types": ["conv", FULL, "conv", FULL], "num_dense_layers": 1, "num_experts": 4},
    "Lfm3ForCausalLM": HEADS | {"head_dim": 16},
    "MiniMaxForCausalLM": HEADS | {"block_size": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "RecurrentGemmaForCausalLM": HEADS,
    "RwkvForCausalLM": TINY,
    "xLSTMForCausalLM": TINY
    | {"hidden_size": 128, "num_heads": 4, "chunk_size": 8, "autocast_kernel_dtype": "float32"},
    "ZambaForCausalLM": HEADS | {"layers_block_type": [LINEAR, HYBRID, LINEAR, HYBRID]},
    "Zamba2ForCausalLM": HEADS
    | {"layers_block_type": [LINEAR, HYBRID, HYBRID, LINEAR, HYBRID], "num_hidden_layers": 5, "num_mem_blocks": 2}
    | {"n_mamba_heads": 8, "mamba_d_state": 16, "chunk_size": 8, "adapter_rank": 6, "num_key_value_heads": 4}
    | {"use_shared_attention_adapter": True},
    "InklingForCausalLM": GROUPED
    | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 1, "swa_head_dim": 24, "head_dim": 16}
    | {"sliding_window_size": 64, "rel_extent": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 40, "intermediate_size": 48, "local_layer_ids": [0, 3]}
    | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "ZayaForCausalLM": GROUPED
    | {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 40, "router_hidden_size": 24, "cca_time0": 3},
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def build(torch, monkeypatch):
    """A class of transformers and its network, in bf16 on the meta device; its masks ask for no values there."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)

    def made(class_name):
        model_class = getattr(transformers, class_name)
        dtype = torch.float32 if class_name.startswith("xLSTM") else torch.bfloat16  # its kernels want fp32
        with torch.device("meta"):
            model = model_class(model_class.config_class(**CASES[class_name])).eval().to(dtype)
        model.set_experts_implementation("batched_mm")
        values = json.loads(json.dumps(model.config.to_dict(), default=str)) | {"architectures": [class_name]}
        return model, read_network(values)[0]

    return made


def _ids(torch, batch_size, length):
    return torch.zeros(batch_size, length, dtype=torch.long, device="meta")


def _counted(torch, call):
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _run(torch, model, length):
    """The cache after a prompt, and how to hand it over for the next token."""
    from transformers import DynamicCache

    if type(model).__name__.startswith("RecurrentGemma"):  # returns none
        given = {"cache": DynamicCache(config=model.config)}
        with torch.no_grad():
            model(_ids(torch, 1, length), use_cache=True, **given)
        return given
    with torch.no_grad():
        output = model(_ids(torch, 1, length), use_cache=True)
    return {"state": output.state} if "state" in output else {"cache": output.cache}


def _bytes(tensor):
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _cache_bytes(model, given):
    """Bytes of keys and values, and of states, wherever a class keeps them."""
    cache = next(iter(given.values()))
    layers = getattr(cache, "layers", ())
    kept = sum(_bytes(getattr(layer, name, None)) for layer in layers for name in ("keys", "values"))
    states = [
        s for layer in layers for n in ("conv_states", "recurrent_states") for s in getattr(layer, n, {}).values()
    ]
    states += [state for state in getattr(cache, "linear_cache", ()) if len(state)]
    states += cache if isinstance(cache, list) else ()
    states += [state for layer in getattr(cache, "rnn_state", {}).values() for state in layer]
    states += [getattr(m, n, None) for m in model.modules() for n in ("conv1d_state", "recurrent_states")]
    return kept, sum(map(_bytes, states))


@pytest.mark.parametrize("class_name", CASES)
def test_parameters_equal_transformers(build, class_name):
    """Every weight once, whatever shares it."""
    model, network = build(class_name)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("class_name", CASES)
def test_prefill_flops_equal_pytorchs_counter(torch, build, class_name):
    """Prompts that fill no chunk, and several chunks of each recurrence."""
    model, network = build(class_name)
    for length in (19, 70):
        flops = count_flops(network, Workload(batch_size=2, prompt_length=length)).prefill_flops
        assert flops == _counted(torch, lambda: model(_ids(torch, 2, length), use_cache=False))  # noqa: B023


@pytest.mark.parametrize("class_name", [name for name in CASES if CASES[name].get("kv_lora_rank") is None])
def test_decode_flops_equal_pytorchs_counter(torch, build, class_name):
    """One more token of products with the states; RG-LRU's convolution is elementwise there, and counts here."""
    model, network = build(class_name)
    given = _run(torch, model, 19)
    step = _counted(torch, lambda: model(_ids(torch, 1, 1), use_cache=True, **given))
    blocks = [block for block in network.main.blocks if block.name == "temporal_block"]
    step += sum(2 * w.num_elements for block in blocks for w in block.weights if w.role == "convolution")
    assert count_flops(network, Workload(prompt_length=19)).decode_flops_per_token == step


@pytest.mark.parametrize("class_name", CASES)
def test_cache_and_state_bytes_equal_real_ones(torch, build, class_name):
    """Keys and values of attention alone; convolutions in bf16 and recurrent states in fp32, as they are kept."""
    model, network = build(class_name)
    dtype = "fp32" if class_name.startswith("xLSTM") else "bf16"
    workload = Workload(batch_size=1, prompt_length=19, activation_dtype=dtype, kv_cache_dtype=dtype)
    ours = count_kv_cache_bytes(network, workload, 19), count_state_bytes(network, workload)
    assert ours == _cache_bytes(model, _run(torch, model, 19))
    assert ours[1] > 0


def _golden(folder, model_types):
    with (folder / "params_truth.tsv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["params"]]
    found = [(row, json.loads((folder / "configs" / f"{row['config']}.json").read_text())) for row in rows]
    return [(row, values) for row, values in found if values["model_type"] in model_types]


OURS = ("mamba", "mamba2", "jamba", "nemotron_h", "qwen3_next", "qwen3_5")
PUBLISHED = _golden(GOLDEN, OURS) + _golden(GOLDEN / "published", OURS)


@pytest.mark.parametrize(("row", "values"), PUBLISHED, ids=lambda value: value.get("config", ""))
def test_published_configs_count_exactly(row, values):
    """Totals, and the cache of 4,096 tokens where it is known: only attention layers hold keys and values."""
    network, hf_class, _ = read_network(values)
    assert (hf_class, count_params(network).total) == (row["class"], int(row["params"]))
    if row["kv_cache_mib_4096_bf16_batch1"]:
        kept = count_kv_cache_bytes(network, Workload(kv_cache_dtype="bf16"), 4096)
        assert kept == float(row["kv_cache_mib_4096_bf16_batch1"]) * 2**20


def test_golden_hybrids_are_there():
    """The two configs whose counts are published are among those that were read."""
    assert {"nemotron-h-56b", "qwen3.5-27b"} <= {row["config"] for row, _ in PUBLISHED}


def test_jamba_uses_two_of_sixteen_experts():
    """51.6 billion parameters, of which 14 experts of 3*4096*14336 in 16 layers rest: 12.1 billion are active."""
    values = next(values for row, values in PUBLISHED if row["config"] == "jamba-v0.1")
    params = count_params(read_network(values)[0])
    assert params.total - params.active == 16 * 14 * 3 * 4096 * 14336
    assert round(params.active / 1e9, 1) == 12.1


ZAMBA2 = ["mamba"] * 5 + ["hybrid"]
LFM2 = ["conv", "conv", FULL] * 3 + ["conv", FULL] * 3 + ["conv"]
HUB = {
    # tiiuae/falcon-mamba-7b:
    # 64*(8192*(2*4096 + 4096 + 256 + 32 + 256 + 1 + 4 + 1 + 16 + 1) + 4096) + 2*65024*4096 + 4096
    "falcon_mamba": (
        7_272_665_088,
        {"hidden_size": 4096, "expand": 16, "intermediate_size": 8192}
        | {"num_hidden_layers": 64, "time_step_rank": 256, "vocab_size": 65024, "tie_word_embeddings": False},
    ),
    # LiquidAI/LFM2-1.2B: two thirds of 12288 is the width, and the head is tied
    "lfm2": (
        1_170_340_608,
        {"hidden_size": 2048, "num_hidden_layers": 16, "layer_types": LFM2, "block_dim": 2048}
        | {"block_ff_dim": 12288, "num_heads": 32, "conv_dim_out": 2048, "use_pos_enc": True},
    ),
    # Zyphra/Zamba2-1.2B: one shared block, 6 hybrid layers with adapters of their own
    "zamba2": (
        1_215_064_704,
        {"hidden_size": 2048, "num_hidden_layers": 38, "layers_block_type": ZAMBA2 * 6 + ZAMBA2[:2]}
        | {"n_mamba_heads": 64, "mamba_d_state": 128, "use_shared_attention_adapter": True, "intermediate_size": 8192}
        | {"attention_hidden_size": 4096, "hybrid_layer_ids": [5, 11, 17, 23, 29, 35], "mamba_headdim": 64},
    ),
}


@pytest.mark.parametrize("model_type", HUB)
def test_checkpoints_of_the_hub_count_exactly(model_type):
    """Published sizes, with the names that those configs carry beside their class's."""
    total, fields = HUB[model_type]
    assert count_params(_read(model_type, **fields)).total == total


def test_state_does_not_grow_with_the_prompt(build):
    """Ten times the tokens: ten times the keys and values, the same state."""
    _, network = build("BambaForCausalLM")
    short, long = Workload(prompt_length=10), Workload(prompt_length=100)
    assert count_state_bytes(network, short) == count_state_bytes(network, long) > 0
    assert 10 * count_kv_cache_bytes(network, short, 10) == count_kv_cache_bytes(network, long, 100)


def _read(model_type, **fields):
    return read_network({"model_type": model_type, **fields})[0]


def test_nemotron_pattern_means_the_same_as_words():
    """M, *, - and E stand for the four kinds of blocks; the number of layers is the pattern's."""
    words = [LINEAR, FULL, "mlp", "moe"]
    network = _read("nemotron_h", layers_block_type=words)
    assert _read("nemotron_h", hybrid_override_pattern="M*-E", num_hidden_layers=4) == network
    assert [layer.blocks[-1].part for layer in network.main.layers] == [
        "state_space",
        "attention",
        "feed_forward",
        "experts",
    ]


def test_words_of_older_configs_are_understood():
    """mamba and attention are what linear_attention and full_attention used to be called."""
    old, new = (
        _read("granitemoehybrid", num_hidden_layers=2, layer_types=t) for t in (["mamba", "attention"], [LINEAR, FULL])
    )
    assert old == new


def test_zamba_shares_one_attention_block():
    """A second hybrid layer adds its own state space and projection, but no second attention block."""
    sizes = [
        count_params(_read("zamba", **HEADS, layers_block_type=[LINEAR, *kinds])).by_part
        for kinds in ([HYBRID, LINEAR], [HYBRID, HYBRID])
    ]
    assert sizes[0]["attention"] == sizes[1]["attention"] > 0
    assert sizes[1]["feed_forward"] - sizes[0]["feed_forward"] == 64 * 64


def test_given_inner_width_overrides_the_factor():
    """falcon-mamba-7b says expand 16 and intermediate_size 8192; the class takes the latter."""
    given = _read("falcon_mamba", hidden_size=64, num_hidden_layers=1, expand=16, intermediate_size=96)
    assert given.main.layers[0].blocks[1].weights[0].shape == (96, 1, 4)


def test_kimi_layout_may_be_nested():
    """Published configs count layers from 1 in linear_attn_config."""
    layout = {"full_attn_layers": [2], "kda_layers": [1, 3], "head_dim": 16, "num_heads": 4}
    fields = {**LATENT, "num_hidden_layers": 3}
    nested = _read("kimi_linear", **fields, linear_attn_config=layout | {"short_conv_kernel_size": 3})
    types = {"layer_types": [LINEAR, FULL, LINEAR], "linear_conv_kernel_dim": 3}
    assert nested == _read("kimi_linear", **fields, **types, linear_head_dim=16, linear_num_heads=4)


def test_vision_tower_runs_only_for_images():
    """A prompt without images costs what the text part costs; each image adds the same."""
    values = json.loads((GOLDEN / "configs" / "qwen3.5-27b.json").read_text())
    network = read_network(values)[0]
    flops = [count_flops(network, Workload(prompt_length=8, num_images=n)).prefill_flops for n in (0, 1, 2)]
    assert flops[2] - flops[1] == flops[1] - flops[0] > 0
    text = read_network(values | {"architectures": ["Qwen3_5ForCausalLM"]})[0]
    assert [stack.name for stack in text.stacks] == ["decoder"]
    assert flops[0] == count_flops(text, Workload(prompt_length=8)).prefill_flops


def test_vision_tower_flops_equal_pytorchs_counter(torch, build):
    """An image of as many patches as there are learned positions."""
    transformers = pytest.importorskip("transformers")
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "num_position_embeddings": 64}
    sizes |= {"out_hidden_size": 64, "patch_size": 4}
    config = transformers.models.qwen3_5.configuration_qwen3_5.Qwen3_5VisionConfig(**sizes)
    tower = transformers.models.qwen3_5.modeling_qwen3_5.Qwen3_5VisionModel(config).eval()
    grid = torch.tensor([[1, 8, 8]])
    network = _read("qwen3_5_vision", **sizes)
    weights = [w for block in network.main.blocks for w in block.weights if w.role in ("linear", "convolution")]
    assert sum(w.num_elements for w in weights) + 64 * 32 == sum(p.numel() for p in tower.parameters() if p.dim() > 1)
    products = _counted(torch, lambda: tower(torch.zeros(64, 3 * 2 * 4 * 4), grid_thw=grid))
    scores = 2 * 2 * 2 * 64 * 64 * 32  # attention, which the counter does not see on a CPU
    assert count_flops(network, Workload(prompt_length=1)).prefill_flops == products + scores


def test_chunks_count_what_is_left_in_three_ways():
    """7 tokens in chunks of 4, at 10 per token and 1 per pair: 2*(40+16), 40+16 + 30+9, or 40+16 + 3 steps of 5."""
    made = {
        rest: Recurrence(
            state_elements=1, token_flops=5, chunks=Chunks(num_tokens=4, token_flops=10, pair_flops=1, rest=rest)
        )
        for rest in ("padded", "short", "steps")
    }
    assert {rest: recurrence.prefill_flops(7) for rest, recurrence in made.items()} == {
        "padded": 112,
        "short": 95,
        "steps": 71,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "hybrid_override_pattern must be a text of"),
        ({"model_type": "nemotron_h", "layers_block_type": []}, "must be a list of 1 to"),
        ({"model_type": "nemotron_h", "attention_head_dim": 64}, "attention_head_dim must be one of"),
        ({"model_type": "bamba", "mamba_d_head": 7}, "heads of 7 do not make up"),
        ({"model_type": "mamba2", "num_heads": 3}, "3 heads of 64 do not make up"),
        ({"model_type": "recurrent_gemma", "block_types": ["mamba"]}, "block_types must list"),
        ({"model_type": "lfm2_moe"}, "layer_types must list"),
        ({"model_type": "kimi_linear", "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [1]}}, "each of"),
        ({"model_type": "jamba", "mamba_d_state": "16"}, "mamba_d_state must be a positive integer"),
        ({"model_type": "qwen3_5", "vision_config": {"patch_size": [0, 4]}}, "patch_size must hold sizes"),
        ({"model_type": "mamba", "state_dims": 3}, "state_dims"),
    ],
)
def test_bad_configs_are_named(values, message):
    """One line that names the field."""
    with pytest.raises(ConfigError, match=message):
        read_network(values)


def test_class_for_an_unknown_task_is_refused():
    """A class that transformers has, but whose head is not known here."""
    with pytest.raises(UnsupportedModelError, match="decision"):
        read_network({"model_type": "qwen3_5", "architectures": ["JevForDecision"]})
