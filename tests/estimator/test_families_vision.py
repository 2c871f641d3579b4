"""Vision transformers, dual encoders and speech encoders: counts and FLOPs against transformers on the meta device."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from estimator.errors import ConfigError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes
from estimator.params import count_params
from estimator.readers.families.audio import READERS as AUDIO
from estimator.readers.families.dual_encoders import READERS as DUAL
from estimator.readers.families.vision_families import READERS as VISION
from estimator.readers.family_data import family_data
from estimator.readers.networks import read_network
from estimator.workload import Workload

GOLDEN = Path(__file__).parents[2] / "estimator" / "reference"
SEED = 20261124
FAMILIES = [name for name in sorted({**VISION, **DUAL, **AUDIO}) if family_data(name).classes]
VIT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT |= {"image_size": 32, "patch_size": 8}
DINO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
SPEECH = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
SPEECH |= {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 40}
IMAGE_CASES = {
    "ViTModel": VIT,
    "ViTForImageClassification": VIT,
    "ViTForMaskedImageModeling": VIT | {"encoder_stride": 8},
    "ViTMSNModel": VIT,
    "IJepaModel": VIT,
    "DeiTModel": VIT,
    "DeiTForImageClassificationWithTeacher": VIT,
    "BeitForImageClassification": VIT | {"use_relative_position_bias": True},
    "Dinov2ForImageClassification": DINO,
    "Dinov2WithRegistersModel": DINO | {"use_swiglu_ffn": True},
    "DINOv3ViTModel": VIT | {"num_register_tokens": 4, "use_gated_mlp": True},
    "CLIPVisionModelWithProjection": VIT,
    "SiglipVisionModel": VIT,
    "InternVLVisionModel": VIT | {"image_size": [32, 32], "patch_size": [8, 8]},
}
SPEECH_CASES = {
    "Wav2Vec2Model": SPEECH,
    "Wav2Vec2ForCTC": SPEECH | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "Wav2Vec2ForSequenceClassification": SPEECH,
    "HubertModel": SPEECH | {"conv_kernel": [10, 3, 3, 3, 3, 2, 3]},
    "WavLMModel": SPEECH,
}


def _model(class_name: str, **values):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model_class = getattr(transformers, class_name)
    with torch.device("meta"):
        return model_class(model_class.config_class(**values)).eval()


def _network(model):
    return read_network(model.config.to_dict() | {"architectures": [type(model).__name__]})[0]


def _counted(call) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("path", "hf_class", "total"),
    [
        ("configs/vit-base-patch16-224-in21k.json", "ViTModel", 86_389_248),
        ("published/configs/vit-large-patch16-224.json", "ViTModel", 304_351_232),
        ("published/configs/clip-vit-base-patch32.json", "CLIPModel", 151_277_313),
    ],
)
def test_published_config_has_its_published_count(path, hf_class, total):
    """Counts of the published checkpoints."""
    values = json.loads((GOLDEN / path).read_text("utf-8"))
    network, _, _ = read_network(values | {"architectures": [hf_class]})
    assert count_params(network).total == total
    assert network.architecture == "encoder"


def test_vit_by_hand():
    """D=64 F=96, 2 layers, 16 patches of 3*8*8 values.

    patches 192*64 + 64; class token 64; positions 17*64; a layer 4*(64*64+64) + 2*64*96 + 96 + 64 + 4*64; norm 2*64;
    pooler 64*64 + 64.
    """
    network, _, _ = read_network({"model_type": "vit", "architectures": ["ViTModel"]} | VIT)
    layer = 4 * (64 * 64 + 64) + 2 * 64 * 96 + 96 + 64 + 4 * 64
    by_hand = 192 * 64 + 64 + 64 + 17 * 64 + 2 * layer + 2 * 64 + 64 * 64 + 64
    assert count_params(network).total == by_hand
    assert network.main.length == 4 * 4 + 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", IMAGE_CASES)
def test_flops_of_images_equal_pytorchs_counter(class_name):
    """Two images of the config's size are exactly what FlopCounterMode counts, whatever the prompt's length."""
    model = _model(class_name, **IMAGE_CASES[class_name])
    import torch

    pixels = torch.zeros(2, 3, 32, 32, device="meta")
    network = _network(model)
    for length in (1, 50):
        ours = count_flops(network, Workload(batch_size=2, prompt_length=length))
        assert ours.prefill_flops == _counted(lambda: model(pixels))
        assert ours.decode_flops_per_token is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("class_name", SPEECH_CASES)
def test_flops_of_speech_equal_pytorchs_counter(class_name):
    """As many samples as ten frames take, convolutions included."""
    model = _model(class_name, **SPEECH_CASES[class_name])
    import torch

    samples, config = 10, model.config
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    ours = count_flops(_network(model), Workload(batch_size=2, prompt_length=10))
    assert ours.prefill_flops == _counted(lambda: model(torch.zeros(2, samples, device="meta")))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "width"), [("CLIP", 512), ("Siglip", 64)])
def test_flops_of_both_towers_equal_pytorchs_counter(family, width):
    """One text and one image, but for their one product over the shared space."""
    model = _model(f"{family}Model", text_config=TEXT, vision_config=VIT)
    import torch

    ids, pixels = torch.zeros(1, 24, dtype=torch.long, device="meta"), torch.zeros(1, 3, 32, 32, device="meta")
    network = _network(model)
    ours = count_flops(network, Workload(prompt_length=24))
    assert ours.prefill_flops == _counted(lambda: model(input_ids=ids, pixel_values=pixels)) - 2 * width
    assert count_kv_cache_bytes(network, Workload()) == 0
    assert [stack.name for stack in network.stacks] == ["vision", "text"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", FAMILIES)
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
def test_older_config_dicts_win():
    """CLIP's first configs hold each part twice; the later one counts, with its own defaults."""
    transformers = pytest.importorskip("transformers")
    import torch

    values = {
        "text_config": TEXT,
        "vision_config": VIT,
        "text_config_dict": {"num_hidden_layers": 3},
        "vision_config_dict": VIT | {"num_hidden_layers": 1},
    }
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(**json.loads(json.dumps(values))))
    network, _, _ = read_network({"model_type": "clip", "architectures": ["CLIPModel"]} | values)
    assert count_params(network).total == sum(parameter.numel() for parameter in model.parameters())


def test_image_of_two_sides_is_read():
    """A height and a width, as ViT takes them: 6 x 4 patches and a class token."""
    values = {"model_type": "vit", "architectures": ["ViTModel"]} | VIT | {"image_size": [48, 32]}
    network, _, _ = read_network(values)
    assert network.main.length == 6 * 4 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 4}, "image_size 4 x 4 is smaller than a patch"),
        ({"image_size": [32, 0]}, "image_size must be one or two positive integers"),
        ({"patch_size": "8"}, "patch_size must be a positive integer"),
        ({"num_register_tokens": 4}, "num_register_tokens"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false"),
    ],
)
def test_wrong_field_is_named(changes, words):
    """One line that names the field and what would be right."""
    with pytest.raises(ConfigError, match=words):
        read_network({"model_type": "vit", "architectures": ["ViTModel"]} | VIT | changes)


def test_tower_of_another_width_than_its_heads_is_refused():
    """CLIP's classes refuse it too."""
    values = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"]} | VIT
    with pytest.raises(ConfigError, match="num_attention_heads must divide hidden_size 64, not 7"):
        read_network(values | {"num_attention_heads": 7})


def test_class_for_an_unknown_task_is_refused():
    """Segmentation heads are not sized, and said so."""
    with pytest.raises(UnsupportedModelError, match="semantic_segmentation"):
        read_network({"model_type": "beit", "architectures": ["BeitForSemanticSegmentation"]} | VIT)


def test_adapters_of_speech_models_are_refused():
    """They change the number of frames; no number instead of a wrong one."""
    with pytest.raises(ConfigError, match="add_adapter"):
        read_network({"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"], "add_adapter": True})
