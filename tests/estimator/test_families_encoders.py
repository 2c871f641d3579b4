"""Text encoders as rows of facts: sizes, caches and FLOPs are those of small real models of transformers."""

from __future__ import annotations

import dataclasses
import json

import pytest

from estimator.errors import ConfigError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes
from estimator.network import stored_weights
from estimator.params import count_params
from estimator.readers.families.encoder_families import ENCODERS
from estimator.readers.family_data import family_data
from estimator.readers.networks import read_network
from estimator.workload import Workload

TOKENS = 16
# One small value for each field that families size by, under every name that they give it.
SMALL = {
    **dict.fromkeys(("hidden_size", "dim", "emb_dim"), 48),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 80),
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads"), 4),
    **dict.fromkeys(("embedding_size", "input_embedding_size", "intra_bottleneck_size", "entity_emb_size"), 24),
    "output_embedding_size": 40,
    "entity_vocab_size": 50,
    "vocab_size": 100,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
OWN = {
    "deberta": RELATIVE | {"max_relative_positions": 4},
    "deberta-v2": RELATIVE
    | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
    "modernbert": {"cls_token_id": 0, "sep_token_id": 0, "local_attention": 8},
    "big_bird": {"attention_type": "original_full"},
    "longformer": {"attention_window": 4},
    "squeezebert": {"embedding_size": 48},
    "tapas": {"type_vocab_sizes": [3, 8, 8, 2, 8, 8, 10], "num_aggregation_labels": 3},
    "xmod": {"default_language": "en_XX"},
    "esm": {"position_embedding_type": "rotary"},
}
# Their FLOPs are counted as if they attended between all tokens or whole windows; the reader warns of it.
APPROXIMATE = ("mra", "longformer")
# The classes do not run on a plain sequence of tokens, or read a part of it only.
NEEDS_MORE = {
    "SplinterForPreTraining",
    "EsmForProteinFolding",
    "LukeForEntityClassification",
    "LukeForEntityPairClassification",
    "LukeForEntitySpanClassification",
}
PREFILL = ("masked_lm", "base", "sequence_classification", "question_answering", "pretraining", "multiple_choice")
# DeBERTa's softmax is an autograd function that PyTorch's counter cannot follow without gradients.
NEEDS_GRADIENTS = ("deberta",)


def _read(model_type, hf_class, **fields):
    return read_network({"model_type": model_type, "architectures": [hf_class]} | fields)[0]


def _model(model_type, hf_class, **more):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    declared = {field.name for field in dataclasses.fields(config_class)}
    values = {name: value for name, value in SMALL.items() if name in declared} | OWN.get(model_type, {}) | more
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return getattr(transformers, hf_class)._from_config(config_class(**values), attn_implementation="eager").eval()


def _network(model):
    values = json.loads(json.dumps(model.config.to_dict(), default=str))
    return read_network(values | {"architectures": [type(model).__name__]})[0]


def _counted(model_type, call):
    import contextlib

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    without = contextlib.nullcontext() if model_type in NEEDS_GRADIENTS else torch.no_grad()
    with without, FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def _classes():
    for model_type in ENCODERS:
        for hf_class, task in family_data(model_type).classes.items():
            if task in PREFILL and hf_class not in NEEDS_MORE:
                yield model_type, hf_class, task


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ENCODERS)
def test_parameters_and_flops_are_those_of_the_model(model_type):
    """Every class that runs on plain tokens: parameters, and one pass over a sequence as FlopCounterMode counts it."""
    torch = pytest.importorskip("torch")
    ids = torch.full((1, TOKENS), 3)
    seen = 0
    for _, hf_class, task in (row for row in _classes() if row[0] == model_type):
        model = _model(model_type, hf_class)
        network = _network(model)
        assert count_params(network).total == sum(p.numel() for p in model.parameters()), hf_class
        seen += 1
        if model_type in APPROXIMATE:
            continue
        inputs = ids[:, None] if task == "multiple_choice" else ids
        flops = count_flops(network, Workload(batch_size=1, prompt_length=TOKENS)).prefill_flops
        assert flops == _counted(model_type, lambda m=model, i=inputs: m(i))[0], hf_class
    assert seen


@pytest.mark.parametrize(
    ("model_type", "hf_class"),
    [
        ("bert", "BertLMHeadModel"),
        ("roberta", "RobertaForCausalLM"),
        ("electra", "ElectraForCausalLM"),
        ("roformer", "RoFormerForCausalLM"),
        ("bert-generation", "BertGenerationDecoder"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_decoder_of_an_encoder_family_keeps_what_the_model_keeps(model_type, hf_class):
    """With is_decoder: the bytes of the real cache, and the FLOPs of one more token."""
    torch = pytest.importorskip("torch")
    model = _model(model_type, hf_class, is_decoder=True)
    network = _network(model)
    assert network.architecture == "decoder"
    with torch.no_grad():
        cache = model(torch.full((1, TOKENS), 3), use_cache=True).cache
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    work = Workload(batch_size=1, prompt_length=TOKENS, generated_length=0, kv_cache_dtype="fp32")
    assert count_kv_cache_bytes(network, work) == kept > 0
    step, _ = _counted(model_type, lambda: model(torch.full((1, 1), 3), cache=cache, use_cache=True))
    assert count_flops(network, work).decode_flops_per_token == step


def test_masked_language_model_is_an_encoder_without_a_cache():
    """is_decoder is false by default: nothing is kept, nothing generated."""
    network = _read("bert", "BertForMaskedLM")
    assert (network.architecture, network.logits_width, network.learned_positions) == ("encoder", 30522, True)
    assert count_kv_cache_bytes(network, Workload()) == 0


@pytest.mark.parametrize(
    ("model_type", "hf_class", "fields", "total"),
    [
        # https://huggingface.co/FacebookAI/roberta-base: 50265*768 + 514*768 + 768 + 2*768, 12 layers of 7,087,872,
        # and the head: 768*768 + 768 + 2*768 + 50265
        (
            "roberta",
            "RobertaForMaskedLM",
            {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
            (50265 + 514 + 1 + 2) * 768 + 12 * 7_087_872 + 768 * 768 + 3 * 768 + 50265,
        ),
        # ALBERT-base: tables of 128, one layer of 768 for all twelve
        (
            "albert",
            "AlbertModel",
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            (30000 + 512 + 2 + 2) * 128 + 128 * 768 + 768 + 7_087_872 + 768 * 768 + 768,
        ),
    ],
)
def test_published_sizes_by_hand(model_type, hf_class, fields, total):
    """Arithmetic from the papers' tables; a layer of BERT-base has 12*768^2 + 13*768 = 7,087,872 parameters."""
    assert 12 * 768**2 + 13 * 768 == 7_087_872
    assert count_params(_read(model_type, hf_class, **fields)).total == total


def test_shared_layers_are_stored_once_and_run_every_time():
    """ALBERT with one group against twelve: a twelfth of the layers' weights, the same work."""
    shared = _read("albert", "AlbertModel", num_hidden_groups=1)
    own = _read("albert", "AlbertModel", num_hidden_groups=12)
    first, all_of_them = (count_params(network).by_layer["encoder"] for network in (shared, own))
    assert sum(all_of_them) == 12 * sum(first) > 0
    assert count_flops(shared, Workload()) == count_flops(own, Workload())


def test_modernbert_alternates_windows():
    """Every third layer attends to everything; the others to 64 tokens on both sides and their own."""
    windows = [
        block.attention.window
        for layer in _read("modernbert", "ModernBertModel", num_hidden_layers=6).main.layers
        for block in layer.blocks
        if block.attention
    ]
    assert windows == [None, 129, 129, None, 129, 129]


def test_untied_head_of_bert_stores_the_matrix_and_a_second_bias():
    """What transformers keeps of a head that is not tied: V*D of the matrix and V of the second vector."""
    tied, untied = (
        count_params(_read("bert", "BertForMaskedLM", tie_word_embeddings=flag)).total for flag in (True, False)
    )
    assert untied - tied == 30522 * 768 + 30522


def test_cross_attention_stands_idle_without_an_encoder():
    """add_cross_attention adds weights; alone, the model runs none of them."""
    plain = _read("bert", "BertLMHeadModel", is_decoder=True)
    cross = _read("bert", "BertLMHeadModel", is_decoder=True, add_cross_attention=True)
    assert count_params(cross).total - count_params(plain).total == 12 * (4 * 768**2 + 4 * 768 + 2 * 768)
    assert count_flops(cross, Workload()) == count_flops(plain, Workload())
    with pytest.raises(ConfigError, match="is_decoder"):
        _read("bert", "BertLMHeadModel", add_cross_attention=True)


@pytest.mark.parametrize(
    ("model_type", "hf_class", "fields", "named"),
    [
        ("bert", "BertModel", {"hidden_size": 770}, "num_attention_heads"),
        ("bert", "BertModel", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("albert", "AlbertModel", {"num_hidden_groups": 13}, "num_hidden_groups"),
        ("deberta-v2", "DebertaV2Model", {"pos_att_type": 3}, "pos_att_type"),
        ("longformer", "LongformerModel", {"attention_window": 5}, "attention_window"),
        ("xlm", "XLMModel", {"asm": True}, "asm"),
        ("eurobert", "EuroBertForSequenceClassification", {"classifier_pooling": "sum"}, "classifier_pooling"),
    ],
)
def test_unsizeable_field_is_refused_by_name(model_type, hf_class, fields, named):
    """A value that no class can have, or whose weights are not known here."""
    with pytest.raises(ConfigError, match=named):
        _read(model_type, hf_class, **fields)


def test_unknown_task_is_refused():
    """A class that exists for a task of which nothing is known here."""
    with pytest.raises(UnsupportedModelError, match="esm"):
        _read("esm", "EsmForProteinFolding", vocab_size=33)


def test_every_class_lays_out_and_names_its_weights_apart():
    """No row of facts names a head that does not exist, and no two stored weights share a name."""
    for model_type, hf_class, _ in _classes():
        fields = {"vocab_size": 33} if model_type == "esm" else {}
        names = [name for name, _, _ in stored_weights(_read(model_type, hf_class, **fields))]
        assert sorted(names) == sorted(set(names)), hf_class


def test_approximate_families_say_so():
    """Longformer's windows and MRA's blocks are counted as stated in a warning."""
    for model_type, hf_class in (("longformer", "LongformerModel"), ("mra", "MraModel")):
        _, _, warnings = read_network({"model_type": model_type, "architectures": [hf_class]})
        assert any("attention" in text for text in warnings)
