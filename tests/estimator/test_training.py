"""Memory of training: states against torch.optim, adapters, shares of devices, federated rounds, the command line."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from estimator.errors import InputError
from estimator.network import Block, Network, Stack, Weight, stored_weights
from estimator.params import count_params
from estimator.readers.networks import read_network
from estimator.readers.source import read_source
from estimator.training.lora import nf4_bytes
from estimator.training.memory import (
    CHECKPOINTING,
    OPTIMIZERS,
    PRECISIONS,
    ContinualPlan,
    FederatedPlan,
    LoraPlan,
    ParallelPlan,
    TrainingPlan,
    estimate_federated_memory,
    estimate_training_memory,
    optimizer_bytes,
)
from estimator.training.stages import divide_network

VOCAB, LENGTH = 4096, 256
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "use_cache": False,
}


@pytest.fixture(scope="module")
def llama():
    """The network of LLAMA."""
    config = transformers.LlamaConfig(**LLAMA)
    return read_network(config.to_dict() | {"architectures": ["LlamaForCausalLM"]})[0]


@pytest.fixture(scope="module")
def large():
    """A bundled model of eight thousand million parameters."""
    return read_source("llama-3.1-8b").network


def _model(dtype=torch.float32):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(dtype).train()


def _optimizers(model, name):
    hidden = [w for n, w in model.named_parameters() if "layers." in n and w.dim() == 2]
    others = [w for n, w in model.named_parameters() if not ("layers." in n and w.dim() == 2)]
    if name == "muon":
        return [torch.optim.Muon(hidden), torch.optim.AdamW(others)]
    return [
        {
            "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
            "momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
            "rmsprop": torch.optim.RMSprop,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "adafactor": torch.optim.Adafactor,
        }[name](model.parameters())
    ]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "adam", "adamw", "adafactor", "muon"])
def test_optimizer_bytes_are_those_of_torch(name, dtype, llama):
    """Every state tensor of a step counts, but for the scalar step counters."""
    model = _model({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    optimizers = _optimizers(model, name)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    for optimizer in optimizers:
        optimizer.step()
    states = [t for o in optimizers for s in o.state.values() for k, t in s.items() if k != "step"]
    held = sum(t.untyped_storage().nbytes() for t in states if isinstance(t, torch.Tensor))
    weights = [(part, weight) for _, part, weight in stored_weights(llama)]
    assert optimizer_bytes(weights, name, {"fp32": 4, "bf16": 2}[dtype]) == held


def test_adam_8bit_keeps_small_tensors_in_fp32():
    """4,095 elements take two fp32 states; 4,097 take two bytes each and two maxima for each of 17 blocks."""
    small, large = ("norm", Weight(name="a", shape=(4095,), role="norm")), ("head", Weight(name="b", shape=(17, 241)))
    assert optimizer_bytes([small], "adam-8bit", 4) == 2 * 4 * 4095
    assert optimizer_bytes([large], "adam-8bit", 4) == 2 * (4097 + 4 * 17)
    assert optimizer_bytes([large], "lamb", 4) == optimizer_bytes([large], "adam", 4) == 2 * 4 * 4097


def test_optimizer_bytes_count_every_expert():
    """The copies of a weight have states each."""
    expert = Weight(name="experts.up_proj.weight", shape=(64, 32), copies=8, active_copies=2)
    for name in OPTIMIZERS:
        one = optimizer_bytes([("experts", dataclasses.replace(expert, copies=1))], name, 4)
        assert optimizer_bytes([("experts", expert)], name, 4) == 8 * one


class _LiveBytes(TorchDispatchMode):
    """Bytes of all storages alive, and their highest sum."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def watch(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive[key] = size
            self.now += size
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        del self.alive[key]
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.watch(leaf)
        self.peak = max(self.peak, self.now)
        return result


def _run_steps(precision, *, teacher=None):
    """The highest sum of live bytes in the second step, with gradients zeroed in place."""
    model = _model(torch.bfloat16 if precision == "bf16" else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    ids, live = torch.arange(LENGTH).reshape(1, LENGTH), _LiveBytes()
    with live:
        for tensor in [*model.parameters(), *(teacher.parameters() if teacher else ())]:
            live.watch(tensor)
        for _ in range(2):
            live.peak = 0
            targets = None
            if teacher is not None:
                with torch.no_grad():
                    targets = teacher(input_ids=ids).logits
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "amp-bf16"):
                output = model(input_ids=ids, labels=ids)
                loss = output.loss
            if targets is not None:
                softened = torch.nn.functional.softmax(targets.float() / 2, -1)
                own = torch.nn.functional.log_softmax(output.logits.float() / 2, -1)
                loss = loss + torch.nn.functional.kl_div(own, softened, reduction="batchmean")
                del softened, own, targets
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            del output, loss
    return live.peak


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp-bf16"])
def test_training_memory_is_the_peak_of_a_step(precision, llama):
    """All live tensors of a real step with AdamW, followed one operation at a time, within 3 %."""
    plan = TrainingPlan(sequence_length=LENGTH, precision=precision)
    assert estimate_training_memory(llama, plan).total_bytes == pytest.approx(_run_steps(precision), rel=0.03)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "fp32"), ("bf16", "bf16")])
def test_distillation_memory_is_the_peak_of_a_step(precision, dtype, llama):
    """A teacher of the same size, its logits and the softened loss add up to the peak, within 5 %."""
    plan = TrainingPlan(sequence_length=LENGTH, precision=precision, teacher_dtype=dtype)
    teacher = _model(torch.bfloat16 if dtype == "bf16" else torch.float32).requires_grad_(False)
    measured = _run_steps(precision, teacher=teacher)
    assert estimate_training_memory(llama, plan, llama).total_bytes == pytest.approx(measured, rel=0.05)


def test_mixed_precision_takes_sixteen_bytes_a_parameter(large):
    """2 for weights, 2 for gradients, 8 for Adam's states and 4 for master weights, as the ZeRO paper counts."""
    memory = estimate_training_memory(large, TrainingPlan())
    params = count_params(large).total
    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes + memory.copies_bytes
    assert states == 16 * params
    assert memory.total_bytes == sum(memory.by_kind.values())


@pytest.mark.parametrize(("stage", "per_param"), [(0, 16), (1, 4 + 12 / 64), (2, 2 + 14 / 64), (3, 16 / 64)])
def test_zero_stages_shard_what_their_paper_says(stage, per_param, large):
    """Figure 1 of arXiv:1910.02054 over 64 devices: 16, 4 + 12/64, 2 + 14/64 and 16/64 bytes per parameter."""
    parallel = ParallelPlan(data=64, zero_stage=stage)
    memory = estimate_training_memory(large, TrainingPlan(parallel=parallel))
    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes + memory.copies_bytes
    assert states == pytest.approx(per_param * count_params(large).total, rel=1e-9)


def test_bf16_gradients_accumulate_in_fp32_beside_master_weights(large):
    """Megatron and DeepSpeed do so; PyTorch's own gradients keep their type, however many micro-batches."""
    for precision, factor in (("mixed-bf16", 2), ("mixed-fp16", 1), ("bf16", 1), ("amp-bf16", 1), ("fp32", 1)):
        one = estimate_training_memory(large, TrainingPlan(precision=precision))
        many = estimate_training_memory(large, TrainingPlan(precision=precision, gradient_accumulation_steps=8))
        assert many.gradients_bytes == factor * one.gradients_bytes
        assert many.activations_bytes == one.activations_bytes
    assert TrainingPlan(batch_size=2, gradient_accumulation_steps=8).sequences_per_update == 16


def test_pipeline_stages_hold_every_weight_once(large):
    """Layers are spread evenly, the table stands first and the head last."""
    stages = divide_network(large, 3)
    assert [len(stage.layers) for stage in stages] == [11, 11, 10]
    assert sum(w.num_elements for stage in stages for _, w in stage.weights) == count_params(large).total
    assert [any(w.role == "embedding" for _, w in stage.weights) for stage in stages] == [True, False, False]
    assert [any(b.part == "head" for b, _ in stage.weights) for stage in stages] == [False, False, True]


def test_pipeline_repeats_a_tied_head_and_shared_layers():
    """A tied head is stored beside the last layers; albert's one layer is stored on every device."""
    tied, shared = read_source("llama-3.2-1b").network, {"model_type": "albert", "architectures": ["AlbertModel"]}
    split = sum(w.num_elements for stage in divide_network(tied, 2) for _, w in stage.weights)
    assert split == count_params(tied).total + tied.vocab_size * tied.main.hidden_size
    albert = read_network(shared | {"num_hidden_layers": 4})[0]
    layer = sum(w.num_elements for block in albert.main.layers[0].blocks for w in block.weights)
    split = sum(w.num_elements for stage in divide_network(albert, 4) for _, w in stage.weights)
    assert split == count_params(albert).total + 3 * layer


def test_pipeline_keeps_as_many_micro_batches_as_are_in_flight(large):
    """The first of p stages keeps p, the last one; and no more than there are."""
    plan = TrainingPlan(gradient_accumulation_steps=8)
    assert [stage.micro_batches(plan) for stage in divide_network(large, 4)] == [4, 3, 2, 1]
    assert [stage.micro_batches(TrainingPlan()) for stage in divide_network(large, 4)] == [1, 1, 1, 1]


def test_worst_device_of_a_pipeline_is_reported(llama):
    """With a wide vocabulary and few tokens kept it is the one with head and loss."""
    plan = TrainingPlan(sequence_length=LENGTH, parallel=ParallelPlan(pipeline=2))
    memory = estimate_training_memory(llama, plan)
    assert memory.stage == 1
    assert memory.loss_bytes == estimate_training_memory(llama, TrainingPlan(sequence_length=LENGTH)).loss_bytes
    assert memory.trained_params == count_params(llama).total > memory.device_params


def test_tensor_parallel_divides_matrices_and_not_norms(large):
    """Over 8 devices the matrices are an eighth, the gains of the norms whole."""
    memory = estimate_training_memory(large, TrainingPlan(parallel=ParallelPlan(tensor=8)))
    norms = sum(w.num_elements for _, _, w in stored_weights(large) if w.role == "norm")
    assert memory.weights_bytes == 2 * ((count_params(large).total - norms) // 8 + norms)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        # 32 layers of D 4096, key-value width 1024, F 14336, rank 16
        ("query-value", 32 * 16 * ((4096 + 4096) + (4096 + 1024))),
        ("attention", 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))),
        ("all-linear", 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))),
    ],
)
def test_lora_trains_rank_times_both_sides_of_its_targets(targets, expected, large):
    """Adapters are counted by hand; their gradients, states and master weights follow."""
    memory = estimate_training_memory(large, TrainingPlan(lora=LoraPlan(rank=16, targets=targets)))
    assert memory.trained_params == expected
    assert memory.weights_bytes == 2 * (count_params(large).total + expected)
    assert memory.gradients_bytes + memory.optimizer_bytes + memory.copies_bytes == 14 * expected


def test_nf4_takes_half_a_byte_and_an_eighth_of_a_bit():
    """The paper's 0.127 bits per parameter of constants: 8/64 + 32/(64 * 256)."""
    matrix = Weight(name="q_proj.weight", shape=(4096, 4096))
    elements = 4096 * 4096
    assert nf4_bytes(matrix) == elements // 2 + elements // 64 + 4 * (elements // 64 // 256) + 4
    assert 8 * nf4_bytes(matrix) / elements - 4 == pytest.approx(0.127, abs=5e-4)
    assert nf4_bytes(Weight(name="odd", shape=(1, 65))) == 33 + 2 + 4 + 4


def test_qlora_keeps_other_tensors_than_matrices_in_their_type(large):
    """Tables and norms stay bf16; the matrices of the layers and the head are four bits."""
    plan = TrainingPlan(precision="bf16", lora=LoraPlan(base_dtype="nf4"))
    memory = estimate_training_memory(large, plan)
    matrices = [w for _, _, w in stored_weights(large) if w.role == "linear" and w.quantized]
    rest = count_params(large).total - sum(w.num_elements for w in matrices)
    expected = sum(nf4_bytes(w) for w in matrices) + 2 * rest + 2 * memory.trained_params
    assert memory.weights_bytes == expected


def test_continual_learning_keeps_copies_and_columns(large):
    """Fisher diagonal and anchor are two more models; tokens are int64; a column adds a model and its laterals."""
    params = count_params(large).total
    plan = TrainingPlan(sequence_length=512, continual=ContinualPlan(ewc=True, replay_samples=1000, columns=1))
    extras = estimate_training_memory(large, plan).extras_bytes
    assert extras["ewc_fisher_bytes"] == extras["ewc_anchor_bytes"] == 2 * params
    assert extras["replay_buffer_bytes"] == 1000 * 512 * 8
    assert extras["columns_bytes"] == 2 * (params + 32 * 4096 * 4096)


def test_sparse_masks_take_a_byte_for_every_matrix_element(large):
    """All matrices, the head among them, but neither tables nor norms."""
    extras = estimate_training_memory(large, TrainingPlan(sparse_masks=True)).extras_bytes
    matrices = sum(w.num_elements for _, _, w in stored_weights(large) if w.role == "linear")
    assert extras == {"masks_bytes": matrices}


def test_federated_round_sends_adapters_or_everything(large):
    """Ten clients get and send the same; the server keeps the model, all updates and its optimizer's states."""
    params = count_params(large).total
    plan = TrainingPlan(federated=FederatedPlan(clients_per_round=10, server_optimizer="fedadam"))
    whole = estimate_federated_memory(large, plan)
    assert (whole.down_bytes_per_client, whole.round_bytes) == (2 * params, 2 * 10 * 2 * params)
    assert whole.server_bytes == 2 * params + 10 * 2 * params + 2 * 4 * params
    lora = dataclasses.replace(plan, lora=LoraPlan(rank=16, targets="query-value"))
    adapters = estimate_federated_memory(large, lora)
    trained = estimate_training_memory(large, lora).trained_params
    assert (adapters.up_bytes_per_client, adapters.round_bytes) == (2 * trained, 2 * 10 * 2 * trained)
    full = dataclasses.replace(lora, federated=FederatedPlan(clients_per_round=10, exchange="full"))
    assert estimate_federated_memory(large, full).round_bytes == whole.round_bytes


CHANGES = [
    {"optimizer": "sgd"},
    {"precision": "fp32"},
    {"checkpointing": "full"},
    {"checkpointing": "selective"},
    {"checkpointing": "reversible"},
    {"fused_attention": False},
    {"dropout": True},
    {"gradient_accumulation_steps": 2},
    {"sparse_masks": True},
    {"lora": LoraPlan()},
    {"parallel": ParallelPlan(data=2, zero_stage=1)},
    {"parallel": ParallelPlan(tensor=2)},
    {"parallel": ParallelPlan(tensor=2, sequence_parallel=True)},
    {"parallel": ParallelPlan(pipeline=2)},
    {"continual": ContinualPlan(ewc=True)},
    {"batch_size": 2},
    {"sequence_length": 2048},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_option_changes_the_total(change, large):
    """An accepted option that changed nothing would be a lie."""
    plain = estimate_training_memory(large, TrainingPlan()).total_bytes
    assert estimate_training_memory(large, TrainingPlan(**change)).total_bytes != plain


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "t5-small", "llama-3.2-1b", "mistral-7b"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_combinations_are_positive_and_ordered(name, precision):
    """Full checkpointing keeps less than none for every model, precision and optimizer; nothing is negative."""
    network = read_source(name).network
    for optimizer in OPTIMIZERS:
        plan = TrainingPlan(optimizer=optimizer, precision=precision)
        kept = {}
        for checkpointing in CHECKPOINTING:
            memory = estimate_training_memory(network, dataclasses.replace(plan, checkpointing=checkpointing))
            assert all(size >= 0 for size in memory.by_kind.values())
            kept[checkpointing] = memory.activations_bytes
        assert kept["reversible"] < kept["full"] < kept["selective"] < kept["none"]


@pytest.mark.parametrize(
    ("record", "values", "said"),
    [
        (TrainingPlan, {"batch_size": 0}, "batch_size must be an integer from 1"),
        (TrainingPlan, {"optimizer": "adamax"}, "optimizer must be one of sgd"),
        (TrainingPlan, {"teacher_dtype": "nf4"}, "teacher_dtype must be one of"),
        (LoraPlan, {"rank": True}, "rank must be an integer"),
        (LoraPlan, {"targets": "mlp"}, "targets must be one of query-value"),
        (ParallelPlan, {"zero_stage": 4, "data": 2}, "zero_stage must be one of 0"),
        (ParallelPlan, {"zero_stage": 1}, "data must be 2 or more"),
        (ParallelPlan, {"sequence_parallel": True}, "tensor must be 2 or more"),
        (ContinualPlan, {"columns": -1}, "columns must be an integer from 0"),
        (FederatedPlan, {"exchange": "some"}, "exchange must be one of trained, full"),
    ],
)
def test_impossible_plans_are_refused_by_field(record, values, said):
    """The message names the field and what would be right."""
    with pytest.raises(InputError, match=said):
        record(**values)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (TrainingPlan(parallel=ParallelPlan(pipeline=33)), "33 stages needs as many layers; the model has 32"),
        (TrainingPlan(parallel=ParallelPlan(tensor=64)), "at most the 32 attention heads, not 64"),
        (TrainingPlan(teacher_dtype="bf16"), "needs both a teacher"),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused(plan, said, large):
    """The message says what the model has."""
    with pytest.raises(InputError, match=said):
        estimate_training_memory(large, plan)


def test_weights_without_layers_are_refused(llama):
    """A file of weights does not say what its layers keep; zero would be a guess."""
    weights = tuple(weight for _, _, weight in stored_weights(llama))
    stack = Stack(name="model", hidden_size=1, layers=(), before=(Block(name="", part="other", weights=weights),))
    network = Network(architecture="encoder", stacks=(stack,), model_type="safetensors", has_only_weights=True)
    with pytest.raises(InputError, match="cannot be sized for safetensors"):
        estimate_training_memory(network, TrainingPlan())


def test_adapters_need_a_target_in_the_model():
    """A state-space model has no attention to adapt."""
    mamba = read_network({"model_type": "mamba", "architectures": ["MambaForCausalLM"], "num_hidden_layers": 2})[0]
    with pytest.raises(InputError, match="no matrix that attention targets"):
        estimate_training_memory(mamba, TrainingPlan(lora=LoraPlan(targets="attention")))
    assert estimate_training_memory(mamba, TrainingPlan(lora=LoraPlan())).trained_params > 0
