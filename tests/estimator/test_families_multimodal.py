"""Language models that read images: counts, caches and FLOPs against transformers on the meta device."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from estimator.errors import ConfigError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes
from estimator.params import count_params
from estimator.readers.families.multimodal_families import MULTIMODAL
from estimator.readers.networks import read_network
from estimator.workload import Workload

GOLDEN = Path(__file__).parents[2] / "estimator" / "reference"
SEED = 20261124
# Their declared defaults do not build: 1152 is no multiple of 14 heads.
UNBUILT = ("aya_vision",)
VIT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT |= {"image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA = TEXT | {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA |= {"num_hidden_layers": 4}
QWEN_TOWER = {"depth": 2, "num_heads": 4, "patch_size": 14, "embed_dim": 64, "hidden_size": 48}
IMAGE_TOKEN = {"image_token_id": 99}
CASES = {
    "Gemma3ForConditionalGeneration": {
        "text_config": GEMMA,
        "vision_config": VIT | {"vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "LlavaForConditionalGeneration": {"text_config": TEXT, "vision_config": VIT | {"model_type": "clip_vision_model"}},
    "PaliGemmaForConditionalGeneration": {
        "text_config": TEXT | {"head_dim": 12},
        "vision_config": VIT | {"vision_use_head": False},
        "projection_dim": 48,
    },
    "AyaVisionForConditionalGeneration": {"text_config": TEXT, "vision_config": VIT | {"vision_use_head": False}},
    "Idefics3ForConditionalGeneration": {"text_config": TEXT, "vision_config": VIT},
    "InternVLForConditionalGeneration": {
        "text_config": TEXT,
        "vision_config": VIT | {"image_size": [32, 32], "patch_size": [8, 8]},
    },
}


def _model(class_name: str, **values):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model_class = getattr(transformers, class_name)
    with torch.device("meta"):
        return model_class(model_class.config_class(**json.loads(json.dumps(values)))).eval()


def _network(model):
    return read_network(model.config.to_dict() | {"architectures": [type(model).__name__]})[0]


def _read(model_type: str, hf_class: str, **values):
    return read_network({"model_type": model_type, "architectures": [hf_class]} | values)[0]


def _counted(call) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_gemma_3_27b_has_its_published_count_and_cache():
    """27,432,406,640 parameters; at 4,096 tokens 10 full layers and 52 that keep 1,024 tokens take 736 MiB."""
    values = json.loads((GOLDEN / "configs" / "gemma-3-27b.json").read_text("utf-8"))
    network, hf_class, _ = read_network(values)
    assert hf_class == "Gemma3ForConditionalGeneration"
    assert count_params(network).total == 27_432_406_640
    cache = count_kv_cache_bytes(network, Workload(prompt_length=4096, kv_cache_dtype="bf16"))
    assert cache == 736 * 2**20
    assert network.architecture == "decoder"
    assert [(stack.name, stack.optional, stack.length) for stack in network.stacks] == [
        ("vision", True, (896 // 14) ** 2),
        ("decoder", False, None),
    ]


PUBLISHED = {
    # Qwen/Qwen2-VL-2B-Instruct: 2,208,985,600
    "Qwen2VLForConditionalGeneration": (
        {"model_type": "qwen2_vl", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        | {"num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
        | {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28}
        | {"vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 1536}},
        2_208_985_600,
    ),
    # llava-hf/llava-1.5-7b-hf: 7,063,427,072
    "LlavaForConditionalGeneration": (
        {"model_type": "llava", "ignore_index": -100, "vocab_size": 32064}
        | {"text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096}}
        | {"vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096}
           | {"num_attention_heads": 16, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}},
        7_063_427_072,
    ),
    # HuggingFaceTB/SmolVLM-256M-Instruct: 256,484,928
    "Idefics3ForConditionalGeneration": (
        {"model_type": "idefics3", "scale_factor": 4, "image_seq_len": 64}
        | {"text_config": {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64}
           | {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30, "vocab_size": 49280}
           | {"perceiver_config": {}, "pixel_shuffle_factor": 4, "use_resampler": False, "qk_layer_norms": False}}
        | {"vision_config": {"model_type": "idefics3_vision", "hidden_size": 768, "intermediate_size": 3072}
           | {"num_attention_heads": 12, "image_size": 512, "patch_size": 16, "size": {"longest_edge": 2048}}},
        256_484_928,
    ),
}  # fmt: skip


@pytest.mark.parametrize("hf_class", PUBLISHED)
def test_published_config_has_its_published_count(hf_class):
    """Totals of the safetensors files on the model's page."""
    values, total = PUBLISHED[hf_class]
    network, _, _ = read_network(values | {"architectures": [hf_class]})
    assert count_params(network).total == total


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", [name for name in CASES if not name.startswith("PaliGemma")])
def test_parameters_and_text_flops_equal_transformers(class_name):
    """Without images only the text model runs."""
    model = _model(class_name, **CASES[class_name])
    import torch

    network = _network(model)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())
    ids = torch.zeros(2, 24, dtype=torch.long, device="meta")
    ours = count_flops(network, Workload(batch_size=2, prompt_length=24))
    assert ours.prefill_flops == _counted(lambda: model(input_ids=ids))
    with torch.no_grad():
        past = model(input_ids=ids[:1], use_cache=True).past_key_values
    assert ours.decode_flops_per_token == _counted(lambda: model(input_ids=ids[:1, :1], cache=past, use_cache=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", [name for name in CASES if not name.startswith("Idefics3")])
def test_flops_of_an_image_equal_pytorchs_counter(class_name):
    """What two images add is the tower and the projector, as often as there are images."""
    model = _model(class_name, **CASES[class_name])
    import torch

    network = _network(model)
    pixels = torch.zeros(2, 3, 32, 32, device="meta")
    none, two = (count_flops(network, Workload(prompt_length=24, num_images=n)).prefill_flops for n in (0, 2))
    assert two - none == _counted(lambda: model.model.get_image_features(pixel_values=pixels))


@pytest.mark.filterwarnings("ignore")
def test_cache_of_gemma_3_equals_its_tensors():
    """Windowed layers keep one token less than their window, as transformers holds it: the next one is read first."""
    model = _model("Gemma3ForConditionalGeneration", **CASES["Gemma3ForConditionalGeneration"])
    import torch

    ids = torch.zeros(1, 5, dtype=torch.long, device="meta")
    with torch.no_grad():
        past = model(input_ids=ids, use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in past.layers)
    assert count_kv_cache_bytes(_network(model), Workload(prompt_length=5)) == 4 * held


def test_images_fill_the_cross_attention_of_mllama():
    """The layers that look at images keep keys and values of every tile's rows, per image; the others the text's."""
    vision = VIT | {"attention_heads": 4, "num_global_layers": 1, "vision_output_dim": 384}
    network = _read(
        "mllama",
        "MllamaForConditionalGeneration",
        text_config=TEXT | {"cross_attention_layers": [1]},
        vision_config={name: value for name, value in vision.items() if name != "num_attention_heads"},
    )
    per_token = 2 * 2 * 12  # keys and values of two heads of 48 / 4
    rows = 4 * (16 + 1)  # of four tiles, each with its class token
    for images in (0, 1, 3):
        cache = count_kv_cache_bytes(network, Workload(prompt_length=10, num_images=images))
        assert cache == 4 * per_token * (2 * 10 + images * rows)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text_type", ["opt", "t5"])
def test_querying_transformer_stands_between_tower_and_any_text(text_type):
    """BLIP-2: FLOPs of an image are those of the tower, the querying transformer and the projection."""
    texts = {
        "opt": {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
        | {"word_embed_proj_dim": 48},
        "t5": {"d_model": 48, "d_ff": 80, "d_kv": 12, "num_layers": 2, "num_heads": 4, "vocab_size": 100},
    }
    query = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    parts = {"vision_config": VIT, "qformer_config": query, "num_query_tokens": 5}
    model = _model("Blip2ForConditionalGeneration", text_config=texts[text_type] | {"model_type": text_type}, **parts)
    import torch

    network = _network(model)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())
    assert network.architecture == ("decoder" if text_type == "opt" else "encoder-decoder")

    def see() -> None:
        rows = model.vision_model(pixel_values=torch.zeros(2, 3, 32, 32, device="meta")).last_hidden_state
        queries = torch.zeros(2, 5, 64, device="meta")
        model.language_projection(model.qformer(query_embeds=queries, encoder_hidden_states=rows).last_hidden_state)

    none, two = (count_flops(network, Workload(prompt_length=24, num_images=n)).prefill_flops for n in (0, 2))
    assert two - none == _counted(see)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [name for name in sorted(MULTIMODAL) if name not in UNBUILT])
def test_family_is_exact_or_refused(model_type):
    """The defaults with few layers, one changed field and a combination, for every class of the family."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from compare_families import compare

    print(f"seed {SEED}")
    outcome = compare(model_type, random.Random(f"{SEED} {model_type}"), 1, singles=1)
    assert outcome.wrong == []
    assert outcome.exact > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["Llava", "LlavaNext", "Gemma3", "Qwen2VL", "Mistral3"])
@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_head_is_tied_where_transformers_ties_it(family, outer, inner):
    """Some families take the text's own word for it as well, as older configs have it."""
    tower = QWEN_TOWER if family == "Qwen2VL" else VIT
    text = TEXT | {"tie_word_embeddings": inner} | ({"model_type": "mistral"} if family == "Mistral3" else {})
    model = _model(
        f"{family}ForConditionalGeneration", text_config=text, vision_config=tower, tie_word_embeddings=outer
    )
    values = {"text_config": text, "vision_config": tower, "tie_word_embeddings": outer}
    ours = _read(model.config.model_type, f"{family}ForConditionalGeneration", **values)
    assert count_params(ours).total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen2_5_VL"])
def test_older_flat_config_is_read(family):
    """The first configs of Qwen2-VL hold the text's fields themselves, and vision fields that no class reads."""
    transformers = pytest.importorskip("transformers")
    hf_class = f"{family}ForConditionalGeneration"
    tower = {"depth": 2, "num_heads": 4, "patch_size": 14, "in_chans": 3, "spatial_patch_size": 14}
    values = TEXT | {
        "hidden_size": 64,
        "vision_config": tower,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }
    config = getattr(transformers, f"{family}Config")(**json.loads(json.dumps(values)))
    import torch

    with torch.device("meta"):
        model = getattr(transformers, hf_class)(config)
    ours = _read(config.model_type, hf_class, **values)
    assert count_params(ours).total == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(ConfigError, match="'num_glue_layers' is not known"):
        _read(config.model_type, hf_class, **values, num_glue_layers=2)


def test_image_of_any_size_is_said_to_be_assumed():
    """Qwen2-VL names no size of an image; 448 x 448 are 32 x 32 patches, merged by 2 x 2."""
    values = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    network, _, warnings = read_network(values)
    assert any("448" in warning for warning in warnings)
    assert network.stacks[0].length == 32 * 32
    assert network.stacks[0].after[-1].positions == 16 * 16


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"text_config": {"model_type": "nonesuch"}}, UnsupportedModelError, "text_config: model_type 'nonesuch'"),
        ({"text_config": {"model_type": "vit"}}, UnsupportedModelError, "text_config of model_type 'vit'"),
        ({"vision_config": {"model_type": "llama"}}, UnsupportedModelError, "vision_config of model_type 'llama'"),
        ({"vision_config": [1]}, ConfigError, "vision_config must be an object"),
        ({"vision_config": {"num_layers_of_glue": 3}}, ConfigError, "num_layers_of_glue' is not known"),
        ({"text_config": {"hidden_size": 0}}, ConfigError, "text_config.hidden_size must be a positive integer"),
        ({"vision_feature_layer": []}, ConfigError, "vision_feature_layer must be one or more layers"),
    ],
)
def test_wrong_part_is_named(changes, error, words):
    """One line that names the part and the field."""
    with pytest.raises(error, match=words):
        _read("llava", "LlavaForConditionalGeneration", **changes)
