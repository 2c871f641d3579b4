"""Activations kept for the backward pass, against what autograd saves of the models of transformers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from estimator.readers.networks import read_network
from estimator.training.kept_activations import ACTIVATION_TENSORS, Keeping, loss_bytes
from estimator.training.memory import LoraPlan, ParallelPlan, TrainingPlan
from estimator.training.stages import divide_network

BATCH, LENGTH, VOCAB = 2, 96, 256
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 160, "bos_token_id": 0, "eos_token_id": 1}
CLASSIC = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
UNDROPPED = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, GROUPED),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, GROUPED),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, GROUPED | {"head_dim": 16}),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, CLASSIC | UNDROPPED),
    "gptj": (transformers.GPTJForCausalLM, transformers.GPTJConfig, CLASSIC | UNDROPPED | {"rotary_dim": 8}),
    "opt": (
        transformers.OPTForCausalLM,
        transformers.OPTConfig,
        SIZES | {"ffn_dim": 256, "dropout": 0.0, "word_embed_proj_dim": 64, "bos_token_id": 2, "pad_token_id": 1},
    ),
    "bert": (
        transformers.BertForMaskedLM,
        transformers.BertConfig,
        SIZES | {"intermediate_size": 256, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "mixtral": (
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig,
        GROUPED | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config,
        {"vocab_size": VOCAB, "d_model": 64, "d_ff": 256, "num_layers": 3, "num_heads": 4, "d_kv": 16}
        | {"dropout_rate": 0.0, "decoder_start_token_id": 0},
    ),
    "bart": (
        transformers.BartForConditionalGeneration,
        transformers.BartConfig,
        {"vocab_size": VOCAB, "d_model": 64, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "dropout": 0.0}
        | {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "forced_eos_token_id": None},
    ),
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "amp-bf16": torch.float32}
# Everything but the number types that a family writes in a way of its own, see docs/formulas.md.
CASES = [
    *((name, "sdpa", precision) for name in ("llama", "qwen2", "qwen3", "mixtral", "qwen3_moe") for precision in TYPES),
    *((name, "eager", precision) for name in ("llama", "mixtral") for precision in TYPES),
    *((name, "sdpa", precision) for name in ("gptj", "opt", "bert", "bart") for precision in TYPES),
    *((name, "sdpa", precision) for name in ("gpt2",) for precision in ("fp32", "bf16")),
    *((name, "eager", precision) for name in ("gpt2", "bert", "bart") for precision in ("fp32", "bf16")),
    *((name, "eager", precision) for name in ("t5",) for precision in ("fp32", "amp-bf16")),
]


def _model(name, attention="sdpa", precision="fp32", **changes):
    cls, config_cls, values = MODELS[name]
    config = config_cls(**values | {"use_cache": False} | changes)
    config._attn_implementation = attention
    torch.manual_seed(0)
    return cls(config).to(TYPES[precision]).train()


def _network(name):
    cls, config_cls, values = MODELS[name]
    return read_network(config_cls(**values).to_dict() | {"architectures": [cls.__name__]})[0]


def _is_cast_weight(tensor, shapes):
    """Autocast's copy of a weight: of a trained one by what made it, of a frozen one by its shape."""
    node = tensor.grad_fn
    while node is not None and type(node).__name__ in ("TBackward0", "TransposeBackward0"):
        node = node.next_functions[0][0]
    if type(node).__name__ == "ToCopyBackward0":
        return any(type(before).__name__ == "AccumulateGrad" for before, _ in node.next_functions)
    return node is None and tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes


def _saved_bytes(model, precision):
    """Bytes of all storages that autograd saves in a forward pass, without weights and without the loss."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    frozen = {tuple(sorted(w.shape)) for w in model.parameters() if not w.requires_grad}
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not _is_cast_weight(tensor, frozen):
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % VOCAB
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("amp"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        output = model(input_ids=ids, labels=ids)
    assert output.loss.isfinite()
    return sum(storages.values())


def _kept_bytes(name, **plan):
    """Ours, with the log-probabilities, which are all that the loss saves."""
    network = _network(name)
    plan = TrainingPlan(batch_size=BATCH, sequence_length=LENGTH, **plan)
    kept, _ = divide_network(network, 1)[0].kept(network, Keeping.of(network, plan))
    rows = BATCH * LENGTH
    logit_bytes = 4 if plan.precision == "fp32" else 2
    log_probability_bytes = (loss_bytes(network, plan) // (rows * VOCAB) - logit_bytes) // 3
    return kept.of_device(plan) + rows * VOCAB * log_probability_bytes


@pytest.mark.parametrize(("name", "attention", "precision"), CASES)
def test_kept_activations_are_what_autograd_saves(name, attention, precision):
    """Every storage that the backward pass needs is counted once, within 5 %."""
    ours = _kept_bytes(name, precision=precision, fused_attention=attention == "sdpa")
    assert ours == pytest.approx(_saved_bytes(_model(name, attention, precision), precision), rel=0.05)


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gpt2", "bert"])
def test_full_checkpointing_keeps_what_checkpointed_models_save(name, precision):
    """With transformers' own gradient checkpointing one input a layer is left, within 5 %."""
    model = _model(name, precision=precision)
    model.activation_checkpointing_enable()
    ours = _kept_bytes(name, precision=precision, checkpointing="full")
    assert ours == pytest.approx(_saved_bytes(model, precision), rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}),
        ("bert", {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}),
    ],
)
def test_dropout_keeps_its_masks(name, changes, precision, monkeypatch):
    """With the kernel that GPUs run, whose mask takes one byte, within 2 %."""

    def dropout(tensor, p=0.5, training=True, inplace=False):
        return torch.native_dropout(tensor, p, training)[0] if p else tensor

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    saved = _saved_bytes(_model(name, "eager", precision, **changes), precision)
    ours = _kept_bytes(name, precision=precision, fused_attention=False, dropout=True)
    assert ours == pytest.approx(saved, rel=0.02)


class _Adapted(torch.nn.Module):
    """A frozen linear layer with an adapter, as LoRA defines it."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.a = torch.nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.b = torch.nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, rows):
        return self.base(rows) + self.b(self.a(rows)) * 2.0


def _adapt(model, names, rank):
    for weight in model.parameters():
        weight.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and name in names:
                setattr(module, name, _Adapted(child, rank))
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return model


QUERY_VALUE = ("q_proj", "v_proj")
ATTENTION = (*QUERY_VALUE, "k_proj", "o_proj")
TARGETS = {
    "query-value": QUERY_VALUE,
    "attention": ATTENTION,
    "all-linear": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
}


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("targets", TARGETS)
def test_adapters_keep_only_the_inputs_of_their_matrices(targets, precision):
    """Frozen matrices and gains keep no input; the adapters keep theirs and what lies between their factors."""
    model = _adapt(_model("llama", precision=precision), TARGETS[targets], 8)
    ours = _kept_bytes("llama", precision=precision, lora=LoraPlan(rank=8, targets=targets))
    assert ours == pytest.approx(_saved_bytes(model, precision), rel=0.05)


@pytest.mark.parametrize("name", [*ACTIVATION_TENSORS, "gelu", "silu", "gelu_pytorch_tanh"])
def test_activation_functions_keep_what_autograd_saves(name):
    """The table holds the tensors that each function of transformers saves beside its output."""
    from transformers.activations import ACT2FN

    first, second = torch.nn.Linear(4, 64, bias=False), torch.nn.Linear(64, 4, bias=False)
    storages, alive = set(), []

    def pack(tensor):
        if tensor.numel() == 32 * 64:
            storages.add(tensor.untyped_storage().data_ptr())
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        second(ACT2FN[name](first(torch.ones(32, 4))))
    assert len(storages) == ACTIVATION_TENSORS.get(name, 1) + 1


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral", "t5"])
def test_selective_checkpointing_lies_between_none_and_full(name):
    """It keeps less than everything and more than the layers' inputs, fused or not."""
    for fused in (True, False):
        none, selective, full = (
            _kept_bytes(name, checkpointing=kind, fused_attention=fused) for kind in ("none", "selective", "full")
        )
        assert full < selective < none


def test_kept_activations_do_not_depend_on_scores_when_recomputed():
    """Twice the length doubles what selective checkpointing keeps, because scores are computed again."""
    network = _network("llama")

    def kept(length):
        plan = TrainingPlan(sequence_length=length, checkpointing="selective", fused_attention=False)
        return divide_network(network, 1)[0].kept(network, Keeping.of(network, plan))[0].of_device(plan)

    assert kept(256) == 2 * kept(128)


@pytest.mark.parametrize("name", MODELS)
def test_tensor_parallel_divides_all_with_sequence_parallel(name):
    """Without it the residual stream stays whole on every device; with it everything is divided."""
    whole = _kept_bytes(name)
    plan = TrainingPlan(batch_size=BATCH, sequence_length=LENGTH)
    halves = dataclasses.replace(plan, parallel=ParallelPlan(tensor=2))
    divided = dataclasses.replace(plan, parallel=ParallelPlan(tensor=2, sequence_parallel=True))
    network = _network(name)
    kept, _ = divide_network(network, 1)[0].kept(network, Keeping.of(network, plan))
    assert kept.of_device(divided) == -(-kept.of_device(plan) // 2)
    assert kept.of_device(divided) < kept.of_device(halves) < kept.of_device(plan) <= whole
