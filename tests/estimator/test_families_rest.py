"""Families that hear, read pages or images, or run layers twice: counts, caches and FLOPs against transformers."""

from __future__ import annotations

import json
import random

import pytest

from estimator.errors import ConfigError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes
from estimator.params import count_params
from estimator.readers.families import (
    audio_language,
    encoder_kin,
    gemma4_models,
    looping_decoders,
    multimodal_kin,
    odd_decoders,
    pyramids,
    seeing_pairs,
    t5gemma2,
    vision_kin,
)
from estimator.readers.networks import read_network
from estimator.workload import Workload

SEED = 20261124
MODULES = (
    audio_language,
    encoder_kin,
    gemma4_models,
    looping_decoders,
    multimodal_kin,
    odd_decoders,
    pyramids,
    seeing_pairs,
    t5gemma2,
    vision_kin,
)
FAMILIES = sorted({name for module in MODULES for name in module.READERS})
# What cannot be built from its declared defaults with few layers, or stands in other models only.
UNBUILT = ("cohere_compass_text", "dory", "gemma4_assistant", "ovis2_vision", "voxtral_realtime_text")
LENGTH = 24
SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = SMALL | {"num_key_value_heads": 2, "head_dim": 12, "vocab_size": 100, "pad_token_id": 0}
BERT = SMALL | {"vocab_size": 100}
VIT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT |= {"image_size": 32, "patch_size": 8}
AUDIO = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
AUDIO |= {"num_mel_bins": 16, "max_source_positions": 40}
ROPE = {name: {"rope_type": "default", "rope_theta": 1e4} for name in ("full_attention", "sliding_attention")}
GEMMA4 = TEXT | {"num_hidden_layers": 6, "vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8}
GEMMA4 |= {"global_head_dim": 24}
SWIN = {"embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 2, 4], "window_size": 4, "image_size": 64}
STAGES = {"hidden_sizes": [16, 32, 48], "depths": [1, 2, 1]}
TROCR = {"d_model": 48, "decoder_ffn_dim": 80, "decoder_layers": 3, "decoder_attention_heads": 4, "vocab_size": 100}
XLNET = {"d_model": 48, "d_inner": 80, "n_layer": 3, "n_head": 4, "vocab_size": 100}
DORY = TEXT | {"num_hidden_layers": 6, "n_input_layers": 1, "n_output_layers": 2, "n_recurrent_loops": 3}


def _model(class_name: str, device: str = "cpu", **values):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**json.loads(json.dumps(values)), attn_implementation="eager")
    with torch.device(device):
        return model_class(config).eval()


def _network(model):
    values = json.loads(json.dumps(model.config.to_dict(), default=str))
    return read_network(values | {"architectures": [type(model).__name__]})[0]


def _counted(call) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _cache_bytes(cache) -> int:
    tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(4 * tensor.numel() for tensor in tensors if tensor is not None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in UNBUILT])
def test_every_class_has_the_count_of_transformers(model_type):
    """Defaults with few layers, some single changes and a combination, of every class on the meta device."""
    pytest.importorskip("transformers")
    from compare_families import compare

    print(f"seed {SEED}")
    outcome = compare(model_type, random.Random(f"{SEED} {model_type}"), 1, singles=2)
    assert outcome.wrong == []
    assert outcome.exact > 0


DECODERS = {
    "TrOCRForCausalLM": TROCR,
    "GitForCausalLM": BERT | {"vision_config": VIT},
    "FuyuForCausalLM": {"text_config": BERT | {"model_type": "persimmon"}, "image_size": 60},
    "Gemma4ForConditionalGeneration": {"text_config": GEMMA4}
    | {f"{kind}_config": {"num_hidden_layers": 1} for kind in ("vision", "audio")},
    "HrmTextForCausalLM": BERT | {"head_dim": 12, "num_hidden_layers": 2},
    "DoryForCausalLM": DORY,
    "CohereCompassForCausalLM": {k: v for k, v in TEXT.items() if k != "head_dim"} | {"rope_parameters": ROPE},
    "VoxtralForConditionalGeneration": {"text_config": TEXT, "audio_config": AUDIO},
    "LlavaNextVideoForConditionalGeneration": {"text_config": TEXT, "vision_config": VIT},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", DECODERS)
def test_text_has_the_flops_and_cache_of_transformers(class_name):
    """A prompt of two sequences, what one of them leaves in the cache, and one token more."""
    import torch

    model = _model(class_name, **DECODERS[class_name])
    network = _network(model)
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    ours = count_flops(network, Workload(batch_size=2, prompt_length=LENGTH))
    assert ours.prefill_flops == _counted(lambda: model(input_ids=ids))
    with torch.no_grad():
        output = model(input_ids=ids[:1], use_cache=True)
    cache = output.get("past_key_values") or output.cache
    assert count_kv_cache_bytes(network, Workload(prompt_length=LENGTH)) == _cache_bytes(cache)
    assert ours.decode_flops_per_token == _counted(lambda: model(input_ids=ids[:1, :1], cache=cache, use_cache=True))


ENCODERS = {
    "XLNetModel": (XLNET, {}),
    "XLNetForQuestionAnsweringSimple": (XLNET, {}),
    "LiltForSequenceClassification": (BERT, {"bbox": 4}),
    "BrosModel": (BERT | {"hidden_size": 64}, {"bbox": 8}),
    "BrosSpadeELForTokenClassification": (BERT | {"hidden_size": 64}, {"bbox": 8}),
    "MarkupLMForQuestionAnswering": (BERT, {}),
    "LayoutLMv3ForTokenClassification": (BERT | {"coordinate_size": 8, "shape_size": 8, "input_size": 32}, {"bbox": 4}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", ENCODERS)
def test_encoders_have_the_flops_of_transformers(class_name):
    """Boxes stand beside the tokens where the class reads them; Bros takes them as numbers."""
    import torch

    values, boxes = ENCODERS[class_name]
    model = _model(class_name, **values)
    kind = torch.float if class_name.startswith("Bros") else torch.long
    inputs = {name: torch.zeros(2, LENGTH, width, dtype=kind) for name, width in boxes.items()}
    inputs["input_ids"] = torch.zeros(2, LENGTH, dtype=torch.long)
    ours = count_flops(_network(model), Workload(batch_size=2, prompt_length=LENGTH)).prefill_flops
    assert ours == _counted(lambda: model(**inputs))


PICTURES = {
    "ViTMAEForPreTraining": (VIT | {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2}, 32),
    "SwinForImageClassification": (SWIN | {"image_size": 56}, 56),
    "DonutSwinModel": (SWIN, 64),
    "ConvNextForImageClassification": (STAGES | {"num_stages": 3, "image_size": 64}, 64),
    "ConvNextV2Model": (STAGES | {"num_stages": 3, "image_size": 64}, 64),
    "ResNetForImageClassification": (STAGES | {"embedding_size": 16}, 224),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", PICTURES)
def test_one_picture_has_the_flops_of_transformers(class_name):
    """Windows that do not fill the grid are filled up (56 / 4 places in windows of 4)."""
    import torch

    values, side = PICTURES[class_name]
    model = _model(class_name, "meta" if "MAE" not in class_name else "cpu", **values)
    pixels = torch.zeros(1, 3, side, side, device=model.device)
    assert count_flops(_network(model), Workload()).prefill_flops == _counted(lambda: model(pixels))


@pytest.mark.filterwarnings("ignore")
def test_one_clip_has_the_flops_of_tower_and_projector():
    """Voxtral lays four rows of the tower side by side before the projector."""
    import torch

    model = _model("VoxtralForConditionalGeneration", "meta", text_config=TEXT, audio_config=AUDIO)
    network = _network(model)
    clip = torch.zeros(1, AUDIO["num_mel_bins"], 2 * AUDIO["max_source_positions"], device="meta")

    def hear():
        rows = model.model.audio_tower(clip).last_hidden_state
        return model.model.multi_modal_projector(rows.reshape(-1, AUDIO["intermediate_size"]))

    with_clip, without = (count_flops(network, Workload(num_images=number)).prefill_flops for number in (1, 0))
    assert with_clip - without == _counted(hear)


@pytest.mark.filterwarnings("ignore")
def test_chunked_tower_has_the_flops_of_transformers():
    """Qwen3-ASR: 30 chunks of 100 frames become 13 rows each, which attend within 8 chunks."""
    import torch

    tower = {"d_model": 64, "encoder_ffn_dim": 96, "encoder_layers": 2, "encoder_attention_heads": 4}
    model = _model("Qwen3ASREncoder", **tower, num_mel_bins=16, downsample_hidden_size=24)
    frames, mask = torch.zeros(1, 16, 3000), torch.ones(1, 3000, dtype=torch.long)
    network = _network(model)
    assert network.main.length == 30 * 13
    assert count_flops(network, Workload()).prefill_flops == _counted(lambda: model(frames, mask))


PAIRS = {
    "trocr": (VIT | {"model_type": "vit"}, TROCR | {"model_type": "trocr"}, 32),
    "trocr of another width": (
        VIT | {"model_type": "deit"},
        TROCR | {"model_type": "trocr", "cross_attention_hidden_size": 64},
        32,
    ),
    "bert": (
        VIT | {"model_type": "vit"},
        BERT | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
        32,
    ),
    "gpt2": (
        VIT | {"model_type": "vit"},
        {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 100, "add_cross_attention": True},
        32,
    ),
    "donut": (
        SWIN | {"model_type": "donut-swin"},
        TROCR | {"model_type": "mbart", "is_decoder": True, "add_cross_attention": True},
        64,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pair", PAIRS)
def test_pair_of_image_and_text_equals_transformers(pair):
    """Parameters, FLOPs of an image and the first token, and both caches after nine tokens."""
    import torch

    encoder, decoder, side = PAIRS[pair]
    model = _model("VisionEncoderDecoderModel", encoder=encoder, decoder=decoder)
    network = _network(model)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())
    pixels, ids = torch.zeros(1, 3, side, side), torch.zeros(1, 9, dtype=torch.long)
    ours = count_flops(network, Workload(prompt_length=1)).prefill_flops
    assert ours == _counted(lambda: model(pixel_values=pixels, decoder_input_ids=ids[:, :1]))
    with torch.no_grad():
        output = model(pixel_values=pixels, decoder_input_ids=ids, use_cache=True)
    caches = output.get("past_key_values") or output.cache
    both = _cache_bytes(caches.self_attention_cache) + _cache_bytes(caches.cross_attention_cache)
    assert count_kv_cache_bytes(network, Workload(prompt_length=1, generated_length=8)) == both


@pytest.mark.filterwarnings("ignore")
def test_gemma_4_image_has_the_flops_of_tower_and_embedder():
    """280 tokens of an image are 2,520 patches, averaged by a product."""
    import torch

    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower |= {"num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "position_embedding_size": 60}
    model = _model("Gemma4ForConditionalGeneration", text_config=GEMMA4, vision_config=tower)
    network = _network(model)
    places = torch.stack(torch.meshgrid(torch.arange(60), torch.arange(42), indexing="ij"), -1).reshape(1, -1, 2)

    def see():
        rows = model.model.vision_tower(torch.zeros(1, 60 * 42, 3 * 16), places).last_hidden_state
        return model.model.embed_vision(rows)

    seeing, reading = (count_flops(network, Workload(num_images=number)).prefill_flops for number in (1, 0))
    assert seeing - reading == _counted(see)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_gemma_4_assistant_keeps_no_cache_and_has_the_flops_of_transformers(ordered):
    """It reads the keys and values of the model that it guesses for; ordered: a few groups of tokens are scored."""
    import torch

    text = GEMMA4 | {"vocab_size_per_layer_input": 0, "hidden_size_per_layer_input": 0}
    sizes = {"backbone_hidden_size": 64, "num_centroids": 10, "centroid_intermediate_top_k": 2}
    model = _model("Gemma4AssistantForCausalLM", text_config=text, use_ordered_embeddings=ordered, **sizes)
    network = _network(model)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())
    assert count_kv_cache_bytes(network, Workload(prompt_length=LENGTH)) == 0
    shared = {"full_attention": (torch.zeros(1, 2, LENGTH, 24),) * 2}
    shared |= {"sliding_attention": (torch.zeros(1, 2, LENGTH, 12),) * 2}
    inputs = {"inputs_embeds": torch.zeros(1, 1, 128), "position_ids": torch.zeros(1, 1, dtype=torch.long)}
    counted = _counted(lambda: model(**inputs, shared_kv_states=shared))
    assert count_flops(network, Workload(prompt_length=LENGTH - 1)).decode_flops_per_token == counted


@pytest.mark.filterwarnings("ignore")
def test_merged_attention_has_the_flops_and_caches_of_transformers():
    """t5gemma2: one attention over the decoder's own rows and the encoder's, with the same matrices."""
    import torch

    encoder = {"text_config": TEXT, "vision_config": VIT, "mm_tokens_per_image": 4, "eoi_token_index": 5}
    values = {"encoder": encoder, "decoder": TEXT, "eoi_token_index": 5, "image_token_index": 7}
    model = _model("T5Gemma2ForConditionalGeneration", **values)
    network = _network(model)
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    ours = count_flops(network, Workload(prompt_length=LENGTH)).prefill_flops
    assert ours == _counted(lambda: model(input_ids=ids, decoder_input_ids=ids[:, :1]))
    with torch.no_grad():
        output = model(input_ids=ids, decoder_input_ids=ids[:, :9], use_cache=True)
    caches = output.get("past_key_values") or output.cache
    both = _cache_bytes(caches.self_attention_cache) + _cache_bytes(caches.cross_attention_cache)
    assert count_kv_cache_bytes(network, Workload(prompt_length=LENGTH, generated_length=8)) == both


def test_dory_keeps_keys_and_values_of_the_last_loop_only_where_it_says_so():
    """Three loops over three layers: six caches fewer."""
    values = DORY | {"model_type": "dory", "architectures": ["DoryForCausalLM"]}
    each, last = (
        count_kv_cache_bytes(read_network(values | {"recurrent_kv_cache_mode": mode})[0], Workload(prompt_length=8))
        for mode in ("per_loop", "last_loop")
    )
    assert (each, last) == (12 * 8 * 2 * 24 * 4, 6 * 8 * 2 * 24 * 4)


def test_dory_reads_published_configs_that_list_attention_and_feed_forward():
    """Every layer is two entries there, and all numbers of layers are twice as large."""
    doubled = {name: 2 * DORY[name] for name in ("num_hidden_layers", "n_input_layers", "n_output_layers")}
    kinds = ["sliding_attention", "mlp"] * 3 + ["full_attention", "mlp"] + ["sliding_attention", "mlp"] * 2
    plain, listed = (
        read_network({"model_type": "dory", "architectures": ["DoryForCausalLM"]} | values)[0]
        for values in (DORY, DORY | doubled | {"n_recurrent_layers": 6, "layer_types": kinds})
    )
    assert plain == listed


def test_cpm_ant_keeps_its_learned_rows_as_a_state():
    """Four rows of keys and values of 48 elements in each of three layers."""
    values = {"model_type": "cpmant", "architectures": ["CpmAntForCausalLM"], "hidden_size": 48, "dim_ff": 80}
    values |= {"num_attention_heads": 4, "dim_head": 12, "num_hidden_layers": 3, "prompt_length": 4}
    blocks = [block for layer in read_network(values)[0].main.layers for block in layer.blocks]
    assert sum(block.recurrence.state_elements for block in blocks if block.recurrence) == 3 * 2 * 4 * 48


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "lilt", "channel_shrink_ratio": 5}, "channel_shrink_ratio must divide"),
        ({"model_type": "swin", "depths": [2], "num_heads": [5]}, "num_heads must divide the width 96, not 5"),
        ({"model_type": "hrm_text", "H_cycles": 10**6}, "H_cycles 1000000"),
        ({"model_type": "dory", "n_input_layers": 40}, "must be num_hidden_layers"),
        ({"model_type": "xlnet", "d_head": 3}, "d_head must be one of 64"),
        ({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "bert"}}, "add_cross_attention true"),
    ],
)
def test_bad_values_are_refused_by_name(values, message):
    """One line that names the field."""
    with pytest.raises(ConfigError, match=message):
        read_network(values)


def test_unknown_towers_are_refused():
    """A model whose tower has no reader is not sized without it."""
    with pytest.raises(UnsupportedModelError, match="audio_config of model_type 'whisper'"):
        read_network({"model_type": "qwen2_audio", "audio_config": {"model_type": "whisper"}})
