"""Encoder-decoders as rows of facts: sizes, caches and FLOPs are those of small real models of transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import estimator
from estimator.errors import ConfigError, UnsupportedModelError
from estimator.flops import count_flops
from estimator.memory import count_kv_cache_bytes
from estimator.network import stored_weights
from estimator.params import count_params
from estimator.readers.families.seq2seq_families import SEQ2SEQ
from estimator.readers.family_data import family_data
from estimator.readers.networks import read_network
from estimator.workload import Workload

GOLDEN = Path(estimator.__file__).parent / "reference" / "configs"
TOKENS = 16
END = 2
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model"), 48),
    **dict.fromkeys(("d_ff", "encoder_ffn_dim", "intermediate_size"), 80),
    "decoder_ffn_dim": 72,
    **dict.fromkeys(("num_layers", "encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "decoder_layers", "decoder_num_hidden_layers"), 3),
    **dict.fromkeys(("num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_num_attention_heads", "decoder_num_attention_heads"), 4),
    "d_kv": 10,
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size"), 100),
    "num_experts": 4,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": END,
    "decoder_start_token_id": END,
}
OWN = {
    "whisper": {"max_source_positions": 20},
    "speech_to_text": {"max_source_positions": 40, "conv_channels": 32},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "led": {"attention_window": 4},
    "longt5": {"local_radius": 3},
    "pegasus_x": {"block_size": 4, "num_global_tokens": 2, "stagger_local_blocks": False},
}
# Ends of windows, several predicted tokens, and experts that drop what exceeds their capacity: not counted exactly.
APPROXIMATE = ("led", "prophetnet", "nllb-moe", "switch_transformers", "moonshine")
GENERATING = ("seq2seq_lm", "speech_seq2seq", "base")


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


def _classes(model_type):
    for hf_class, task in family_data(model_type).classes.items():
        if task in (*GENERATING, "text_encoder", "question_answering", "sequence_classification", "causal_lm") and (
            "Pretrained" not in hf_class
        ):
            yield hf_class, task


def _source(model):
    import torch

    ids = torch.full((1, TOKENS), 3)
    ids[:, -1] = END
    if model.config.model_type == "whisper":
        length = 2 * model.config.max_source_positions
        return {"input_features": torch.zeros(1, model.config.num_mel_bins, length)}
    if model.config.model_type == "speech_to_text":
        length = model.config.max_source_positions
        return {"input_features": torch.zeros(1, length, model.config.input_feat_per_channel)}
    return {"input_ids": ids}


def _counted(call):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", SEQ2SEQ)
def test_parameters_of_every_class_are_those_of_the_model(model_type):
    """Both stacks, one of them, and both with a classifier."""
    for hf_class, _ in _classes(model_type):
        model = _model(model_type, hf_class)
        assert count_params(_network(model)).total == sum(p.numel() for p in model.parameters()), hf_class


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", [name for name in SEQ2SEQ if name not in APPROXIMATE])
def test_flops_and_cache_are_those_of_the_model(model_type):
    """The encoder over the source and the decoder over its first token; then one more token; the bytes kept by then."""
    torch = pytest.importorskip("torch")
    first = torch.full((1, 1), END)
    work = Workload(batch_size=1, prompt_length=TOKENS, generated_length=0, kv_cache_dtype="fp32")
    for hf_class, task in _classes(model_type):
        if task not in GENERATING:
            continue
        model = _model(model_type, hf_class)
        network, source = _network(model), _source(model)
        assert network.architecture == "encoder-decoder"
        prefill, out = _counted(
            lambda m=model, s=source: m(**s, decoder_input_ids=first, use_cache=True, return_dict=True)
        )
        assert count_flops(network, work).prefill_flops == prefill, hf_class
        cache = out.cache
        layers = (*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers)
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        assert count_kv_cache_bytes(network, work) == kept > 0, hf_class
        states = (out.encoder_last_hidden_state,)
        outputs = pytest.importorskip("transformers").modeling_outputs.BaseModelOutput(*states)
        again = source if model_type == "fsmt" else {}
        step, _ = _counted(
            lambda m=model, a=again, o=outputs, c=cache: m(**a, encoder_outputs=o, decoder_input_ids=first, cache=c)
        )
        assert count_flops(network, work).decode_flops_per_token == step, hf_class


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "hf_class"),
    [
        ("bart", "BartForQuestionAnswering"),
        ("bart", "BartForSequenceClassification"),
        ("mbart", "MBartForSequenceClassification"),
        ("t5", "T5ForQuestionAnswering"),
        ("t5", "T5EncoderModel"),
        ("t5", "T5ForTokenClassification"),
    ],
)
def test_classes_that_read_one_input_are_encoders(model_type, hf_class):
    """Both stacks run over the whole input, or the encoder alone does: the FLOPs of one pass."""
    model = _model(model_type, hf_class)
    network = _network(model)
    assert network.architecture == "encoder"
    source = _source(model)
    reads_twice = hf_class == "T5ForQuestionAnswering"  # where BART's classes shift the input themselves
    target = {"decoder_input_ids": source["input_ids"]} if reads_twice else {}
    flops, _ = _counted(lambda: model(**source, **target))
    assert count_flops(network, Workload(batch_size=1, prompt_length=TOKENS)).prefill_flops == flops


@pytest.mark.filterwarnings("ignore")
def test_decoder_alone_runs_without_cross_attention():
    """BartForCausalLM has the weights of cross-attention, and without an encoder's output runs none of them."""
    torch = pytest.importorskip("torch")
    model = _model("bart", "BartForCausalLM")
    flops, _ = _counted(lambda: model(torch.full((1, TOKENS), 3), use_cache=False))
    network = _network(model)
    assert network.architecture == "decoder"
    assert count_flops(network, Workload(batch_size=1, prompt_length=TOKENS)).prefill_flops == flops


@pytest.mark.parametrize(("name", "total"), [("t5-small", 60_506_624), ("whisper-tiny", 37_760_640)])
def test_golden_configs_have_the_published_number_of_parameters(name, total):
    """https://huggingface.co/google-t5/t5-small and https://huggingface.co/openai/whisper-tiny."""
    network, _, _ = read_network(json.loads((GOLDEN / f"{name}.json").read_text()))
    assert count_params(network).total == total


def test_whisper_reads_thirty_seconds_whatever_the_prompt():
    """1500 rows of 20 ms: the encoder's work and the cross-attention's cache do not depend on a prompt."""
    network, _, _ = read_network(json.loads((GOLDEN / "whisper-tiny.json").read_text()))
    assert (network.stacks[-2].length, network.max_position_embeddings) == (1500, 448)
    short, long = (Workload(prompt_length=length, kv_cache_dtype="fp16") for length in (1, 400))
    assert count_flops(network, short).prefill_flops == count_flops(network, long).prefill_flops
    assert count_kv_cache_bytes(network, short, num_tokens=0) == 4 * 1500 * 2 * 384 * 2


def test_t5_ties_its_head_whatever_the_config_says():
    """T5 v1.1 publishes tie_word_embeddings false; the class of transformers ties, and the reader says so."""
    values = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "feed_forward_proj": "gated-gelu"}
    tied, _, quiet = read_network(values)
    same, _, warnings = read_network(values | {"tie_word_embeddings": False})
    assert count_params(tied).total == count_params(same).total
    assert not quiet
    assert any("tie_word_embeddings" in text for text in warnings)


def test_untied_bart_keeps_a_table_per_stack_and_one_beside():
    """shared, the encoder's, the decoder's and the head's: three matrices more than tied."""
    tied, untied = (
        count_params(_read("bart", "BartForConditionalGeneration", tie_word_embeddings=flag)).total
        for flag in (True, False)
    )
    assert untied - tied == 3 * 50265 * 1024


def test_classifier_has_three_classes_by_default_where_the_family_declares_it():
    """BART's configuration class declares three labels, MBART's the usual two."""
    for model_type, hf_class, labels in (
        ("bart", "BartForSequenceClassification", 3),
        ("mbart", "MBartForSequenceClassification", 2),
    ):
        assert _read(model_type, hf_class).main.after[-1].weights[0].shape == (labels, 1024)


def test_relative_biases_stand_once_per_stack_or_in_every_layer():
    """T5 has one table per stack, UMT5 one per layer."""
    for model_type, hf_class, count in (("t5", "T5Model", 2), ("umt5", "UMT5Model", 16)):
        names = [name for name, _, _ in stored_weights(_read(model_type, hf_class))]
        assert sum("relative_attention_bias" in name for name in names) == count


def test_weights_are_named_apart():
    """No two stored weights of any class share a name."""
    for model_type in SEQ2SEQ:
        for hf_class, _ in _classes(model_type):
            names = [name for name, _, _ in stored_weights(_read(model_type, hf_class))]
            assert sorted(names) == sorted(set(names)), hf_class


def test_switch_transformers_uses_one_expert_per_token():
    """Every second layer has experts; a token passes through one of eight."""
    network = _read("switch_transformers", "SwitchTransformersForConditionalGeneration", num_layers=6)
    params = count_params(network)
    sparse = sum(block.part == "experts" for stack in network.stacks for block in stack.blocks)
    assert params.total - params.active == sparse * 7 * 2 * 768 * 2048 > 0


@pytest.mark.parametrize(
    ("model_type", "fields", "named"),
    [
        ("t5", {"feed_forward_proj": "gated-gelu-new"}, "feed_forward_proj"),
        ("t5", {"num_layers": 0}, "num_layers"),
        ("bart", {"d_model": 1000}, "encoder_attention_heads"),
        ("led", {"attention_window": [512, 256]}, "attention_window"),
        ("longt5", {"encoder_attention_type": "global"}, "encoder_attention_type"),
    ],
)
def test_unsizeable_field_is_refused_by_name(model_type, fields, named):
    """A value that no class can have, or that is not known here."""
    with pytest.raises(ConfigError, match=named):
        _read(model_type, family_data(model_type).default_class, **fields)


@pytest.mark.filterwarnings("ignore")
def test_paired_stacks_are_those_of_the_model():
    """An encoder and a decoder of different widths, each with a config of its own, and the matrix between them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    small = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = transformers.BertConfig(vocab_size=100, **small)
    decoder = transformers.RobertaConfig(vocab_size=90, is_decoder=True, add_cross_attention=True, pad_token_id=1)
    for name, value in (small | {"hidden_size": 32}).items():
        setattr(decoder, name, value)
    config = transformers.EncoderDecoderConfig(encoder=encoder.to_dict(), decoder=decoder.to_dict())
    model = transformers.EncoderDecoderModel._from_config(config, attn_implementation="eager").eval()
    network = _network(model)
    assert count_params(network).total == sum(p.numel() for p in model.parameters())
    ids = torch.full((1, TOKENS), 3)
    flops, _ = _counted(lambda: model(input_ids=ids, decoder_input_ids=ids[:, :1]))
    assert count_flops(network, Workload(batch_size=1, prompt_length=TOKENS)).prefill_flops == flops


@pytest.mark.filterwarnings("ignore")
def test_gemma_stacks_are_those_of_the_model():
    """T5Gemma: grouped heads in both attentions, an encoder wider than the decoder, windows in every other layer."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    side = {
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 100,
        "sliding_window": 64,
    }
    config = transformers.T5GemmaConfig(
        encoder=side | {"hidden_size": 48}, decoder=side | {"hidden_size": 32}, vocab_size=100
    )
    model = transformers.T5GemmaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    network = _network(model)
    assert count_params(network).total == sum(p.numel() for p in model.parameters())
    ids = torch.full((1, TOKENS), 3)
    flops, out = _counted(lambda: model(input_ids=ids, decoder_input_ids=ids[:, :1], use_cache=True))
    work = Workload(batch_size=1, prompt_length=TOKENS, generated_length=0, kv_cache_dtype="fp32")
    assert count_flops(network, work).prefill_flops == flops
    layers = (*out.cache.self_attention_cache.layers, *out.cache.cross_attention_cache.layers)
    assert count_kv_cache_bytes(network, work) == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def test_decoder_of_a_pair_needs_cross_attention():
    """A nested decoder that could not read the encoder is refused by name."""
    with pytest.raises(ConfigError, match="decoder"):
        _read("encoder-decoder", "EncoderDecoderModel", encoder={"model_type": "bert"}, decoder={"model_type": "bert"})


def test_abstract_class_is_refused():
    """A base class has no weights of its own."""
    with pytest.raises(UnsupportedModelError, match="abstract"):
        _read("bart", "PretrainedBartModel")
