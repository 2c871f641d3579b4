"""What a training step keeps of its forward pass for the backward pass, block by block.

Everything follows from what autograd keeps: a matrix that is trained keeps its input, a product of two tensors keeps
both, an activation function keeps its input or output, fused attention its queries, keys, values and result. Tensors
that several operations need are kept once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.phases import block_rows
from estimator.training.lora import is_target
from estimator.training.plan import TrainingPlan

__all__ = ["ACTIVATION_TENSORS", "Keeping", "Kept", "layer_kept", "loss_bytes", "outer_kept", "position_bias_bytes"]

# Tensors of the inner width that an activation function keeps beside its output; its input alone where it is one
# operation. Those that transformers writes as several keep more.
# Source: autograd's saved tensors of every function in transformers.activations.ACT2FN, transformers 5.24.
ACTIVATION_TENSORS = {
    "relu": 0,
    "sigmoid": 0,
    "tanh": 0,
    "linear": 0,
    "quick_gelu": 2,
    "gelu_10": 2,
    "gelu_python": 3,
    "gelu_new": 4,
    "gelu_accurate": 4,
    "gelu_python_tanh": 4,
    "gelu_fast": 7,
}
_FP32_BYTES, _MASK_BYTES = 4, 1
_PURE = ("fp32", "bf16", "mixed-fp16", "mixed-bf16")  # no autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Bytes kept: what tensor-parallel devices each hold in full, and what they divide."""

    whole_bytes: int = 0
    divided_bytes: int = 0

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            whole_bytes=self.whole_bytes + other.whole_bytes, divided_bytes=self.divided_bytes + other.divided_bytes
        )

    def times(self, count: int) -> Kept:
        """As much for each of `count` rows or micro-batches."""
        return Kept(whole_bytes=self.whole_bytes * count, divided_bytes=self.divided_bytes * count)

    def of_device(self, plan: TrainingPlan) -> int:
        """Bytes on one of the tensor-parallel devices."""
        tensor = plan.parallel.tensor
        whole = -(-self.whole_bytes // tensor) if plan.parallel.sequence_parallel else self.whole_bytes
        return whole - (-self.divided_bytes // tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How a plan keeps activations: `element_bytes` between the matrices, `stream_bytes` in the residual stream.

    Under autocast the stream is fp32 and every matrix that reads it keeps a half-precision copy of its own.
    """

    plan: TrainingPlan
    element_bytes: int
    stream_bytes: int
    activation_tensors: int
    softmax_bytes: int

    @classmethod
    def of(cls, network: Network, plan: TrainingPlan) -> Keeping:
        """The number types of the plan's precision, and what the network's activation function keeps.

        Unfused, decoders with rotary positions compute softmax in fp32, and autocast does for all; the older models of
        transformers compute it in the activations' type.
        """
        element_bytes = 4 if plan.precision == "fp32" else 2
        return cls(
            plan=plan,
            element_bytes=element_bytes,
            stream_bytes=4 if plan.precision.startswith("amp") else element_bytes,
            activation_tensors=ACTIVATION_TENSORS.get(network.hidden_act, 1),
            softmax_bytes=element_bytes if plan.precision in _PURE and not _is_recent(network) else _FP32_BYTES,
        )

    @property
    def is_selective(self) -> bool:
        """Norms, activation functions and scores are computed again."""
        return self.plan.checkpointing == "selective"

    def is_trained(self, block: Block, weight: Weight) -> bool:
        """Whether the gradient of this matrix, or of its adapter, needs the matrix's input."""
        return self.plan.lora is None or is_target(block, weight, self.plan.lora.targets)


def layer_kept(stack: Stack, layer: Layer, source_rows: int, keeping: Keeping, *, is_first: bool) -> Kept:
    """What one layer keeps of `batch_size` sequences. `source_rows` are the encoder's, per sequence."""
    branches = [block for block in layer.blocks if block.part != "norm"]
    own = [block for block in branches if block.positions is None]
    norms = len(layer.blocks) - len(branches)
    with_input = own[: min(len(own), norms)] if norms else own  # parallel branches read the output of one norm
    kept = Kept()
    for block in layer.blocks:
        reads_new = any(block is one for one in with_input) or (block.positions == "source" and is_first)
        kept += _block_kept(stack, block, source_rows, keeping, reads_new=reads_new)
    return kept


def outer_kept(stack: Stack, blocks: tuple[Block, ...], keeping: Keeping) -> Kept:
    """What blocks before or behind the layers keep: norms, heads, projectors, and a dropout mask of the embeddings."""
    kept = Kept()
    for block in blocks:
        kept += _block_kept(stack, block, 0, keeping, reads_new=True)
    if keeping.plan.dropout and any(block.part == "embedding" for block in blocks):
        rows = keeping.plan.batch_size * (stack.length or keeping.plan.sequence_length)
        kept += Kept(whole_bytes=rows * stack.hidden_size * _MASK_BYTES)
    return kept


def loss_bytes(network: Network, plan: TrainingPlan) -> int:
    """Logits and what the loss makes of them at the peak, when their gradient is computed, in bytes.

    The logits in the activations' type, which the caller still holds; and in fp32 their log-probabilities, the gradient
    of those, and the gradient of the logits: 14 bytes per logit in half precision and 16 in fp32. Models that are not
    decoders leave the loss in the activations' type, unless autocast changes it.
    Source: the live tensors of a step of transformers 5.24, followed one operation at a time.
    """
    rows = plan.batch_size * (network.main.length or plan.sequence_length)
    logit_bytes = 4 if plan.precision == "fp32" else 2
    is_upcast = network.architecture == "decoder" or plan.precision not in _PURE
    return rows * network.logits_width * (logit_bytes + 3 * (_FP32_BYTES if is_upcast else logit_bytes))


def _is_recent(network: Network) -> bool:
    return network.architecture == "decoder" and not network.learned_positions


def _block_kept(stack: Stack, block: Block, source_rows: int, keeping: Keeping, *, reads_new: bool) -> Kept:
    length = stack.length or keeping.plan.sequence_length
    rows = keeping.plan.batch_size * block_rows(block, length, source_rows)
    keys = source_rows if block.attention is not None and block.attention.is_cross else length
    if block.part == "norm":
        return Kept(whole_bytes=_norm_bytes(block.weights, stack.hidden_size, keeping.stream_bytes, keeping)).times(
            rows
        )
    if block.part == "embedding":
        return Kept()
    if block.part == "head":
        return _head(block, stack.hidden_size, keeping).times(rows)
    inputs = _input_bytes(block, stack.hidden_size, keeping, reads_new=reads_new)
    inputs += _adapter_bytes(block, keeping)
    if block.part == "attention" and (block.attention is not None or block.positions == "source"):
        return (Kept(whole_bytes=inputs) + _attention(block, keys, stack.hidden_size, keeping)).times(rows)
    if block.part in ("feed_forward", "experts"):
        return (Kept(whole_bytes=inputs) + _feed_forward(block, stack.hidden_size, keeping)).times(rows)
    return Kept(divided_bytes=block.live_width * keeping.element_bytes).times(rows)


def _norm_bytes(weights: tuple[Weight, ...], width: int, input_bytes: int, keeping: Keeping) -> int:
    """Per row. Layer norm keeps its input. RMS norm works on an fp32 copy, and keeps that and, for its gain, the
    normalised rows in the input's type; in fp32 the copy is the input itself.
    """
    is_rms = sum(weight.role == "norm" for weight in weights) == 1
    if not is_rms or keeping.is_selective:
        return width * input_bytes
    normalised = 0 if keeping.plan.lora is not None else input_bytes
    return width * (_FP32_BYTES + normalised)


def _input_bytes(block: Block, hidden_size: int, keeping: Keeping, *, reads_new: bool) -> int:
    """Per row: what the matrices of a block read. Output projections read what `_attention` and its like count."""
    readers = [w for w in _matrices(block) if not _is_last(w) and "experts." not in w.name.replace("shared_expert", "")]
    trained = [w for w in readers if keeping.is_trained(block, w)]
    if not trained or keeping.is_selective:
        return 0
    width = max(weight.shape[-1] for weight in trained) if block.positions == "source" else hidden_size
    if keeping.stream_bytes != keeping.element_bytes:
        return len([w for w in trained if w.shape[-1] == width]) * width * keeping.element_bytes
    return width * keeping.element_bytes if reads_new else 0


def _adapter_bytes(block: Block, keeping: Keeping) -> int:
    """Per row: what lies between the two factors of every adapter."""
    lora = keeping.plan.lora
    if lora is None:
        return 0
    targets = (weight.active_copies for weight in _matrices(block) if keeping.is_trained(block, weight))
    return lora.rank * keeping.element_bytes * sum(targets)


def _attention(block: Block, keys: int, hidden_size: int, keeping: Keeping) -> Kept:
    """Per row. Queries, keys, values, the result; when unfused keys and values repeated for every head, and scores."""
    size, dropout = keeping.element_bytes, keeping.plan.dropout
    projected = sum(w.shape[0] for w in _matrices(block) if w.name[:2] in ("k_", "v_"))
    attention = block.attention
    if attention is None:
        return Kept(divided_bytes=projected * size)  # the encoder's side of cross-attention
    heads = attention.num_attention_heads
    query, result = heads * attention.key_head_dim, heads * attention.value_head_dim
    is_latent = any(weight.name.startswith("kv_a") for weight in block.weights)
    expands = is_latent or (not keeping.plan.fused_attention and not attention.is_cross)
    divided = (query + (query + result if expands else projected) + result) * size
    if any(w.name.startswith("q_proj") and w.shape[0] == 2 * query for w in block.weights):
        divided += 2 * result * size  # a gate, and the product with it
    if keeping.plan.fused_attention:
        divided += heads * _FP32_BYTES  # the logarithm of each row's sum
        divided += position_bias_bytes(block, keys, keeping)
    elif not keeping.is_selective:
        divided += heads * keys * _score_bytes(keeping)
    whole = hidden_size * _MASK_BYTES if dropout else 0
    inner = sum(_inner_norm_bytes(block, weight, keeping) for weight in block.weights if weight.role == "norm")
    return Kept(whole_bytes=whole, divided_bytes=divided + inner)


def position_bias_bytes(block: Block, keys: int, keeping: Keeping) -> int:
    """Per row: the bias that a table of distances adds to the scores, made by one layer and handed on to the others."""
    if block.attention is None or not any("relative_attention_bias" in weight.name for weight in block.weights):
        return 0
    return block.attention.num_attention_heads * keys * keeping.element_bytes


def _score_bytes(keeping: Keeping) -> int:
    """Per score. Softmax keeps its result; the product with the values reads it in the activations' type, where that is
    another one, or after a dropout that keeps a mask.
    """
    is_copied = keeping.element_bytes != keeping.softmax_bytes or keeping.plan.dropout
    mask = _MASK_BYTES if keeping.plan.dropout else 0
    return keeping.softmax_bytes + (keeping.element_bytes if is_copied else 0) + mask


def _inner_norm_bytes(block: Block, weight: Weight, keeping: Keeping) -> int:
    """A norm within attention: over queries and keys, whose output is rotated, or over a latent that a matrix reads."""
    attention, width = block.attention, weight.shape[-1]
    assert attention is not None
    if weight.name.endswith("bias"):
        return 0
    is_head_norm = weight.name.startswith(("q_norm", "k_norm"))
    if is_head_norm and len(weight.shape) == 1 and width == attention.key_head_dim:
        matrix = next((w for w in _matrices(block) if w.name.startswith(weight.name[:2] + "proj")), None)
        width = matrix.shape[0] if matrix is not None else width
    own = tuple(w for w in block.weights if w.name.rsplit(".", 1)[0] == weight.name.rsplit(".", 1)[0])
    return _norm_bytes(own, width, keeping.element_bytes, keeping) + (
        0 if is_head_norm else width * keeping.element_bytes
    )


def _feed_forward(block: Block, hidden_size: int, keeping: Keeping) -> Kept:
    """Per row. What the activation function keeps, and what the last matrix reads; when gated also both factors.

    Experts do the same for each one that a row uses, on copies of the row, and keep their outputs for the router's
    weights; autocast leaves them in the stream's type, because it does not know grouped products.
    """
    whole = hidden_size * _MASK_BYTES if keeping.plan.dropout else 0
    divided = 0
    for is_expert in (False, True):
        group = [w for w in _matrices(block) if w.quantized and w.name.startswith("experts.") == is_expert]
        if not group:
            continue
        size = keeping.stream_bytes if is_expert else keeping.element_bytes
        divided += group[-1].active_copies * _inner_tensors(block, group, keeping) * size
        if is_expert:
            copies = 1 if keeping.is_selective else 2
            divided += copies * group[-1].active_copies * hidden_size * size
    return Kept(whole_bytes=whole, divided_bytes=divided)


def _inner_tensors(block: Block, group: list[Weight], keeping: Keeping) -> int:
    """Elements per row of one feed-forward or expert."""
    inner, is_gated = group[-1].shape[-1], any("gate" in weight.name for weight in group)
    if keeping.is_selective:
        return inner * (2 if is_gated else 1)
    is_read = keeping.is_trained(block, group[-1])
    if not is_gated and keeping.activation_tensors == 0:
        is_read = True  # the function itself keeps its output
    return inner * (keeping.activation_tensors + (2 if is_gated else 0) + is_read)


def _head(block: Block, hidden_size: int, keeping: Keeping) -> Kept:
    """Per row: what each matrix reads, and the activation and norm of a transform. A frozen head keeps no input."""
    if keeping.plan.lora is not None:
        return Kept()
    matrices = list(_matrices(block))
    transforms = sum(weight.shape[0] == hidden_size for weight in matrices)
    elements = (len(matrices) + transforms * keeping.activation_tensors) * hidden_size
    norms = tuple(weight for weight in block.weights if weight.role == "norm")
    norm_bytes = _norm_bytes(norms, hidden_size, keeping.stream_bytes, keeping) if norms else 0
    return Kept(whole_bytes=elements * keeping.element_bytes + norm_bytes)


def _matrices(block: Block) -> Iterator[Weight]:
    return (weight for weight in block.weights if weight.role == "linear")


def _is_last(weight: Weight) -> bool:
    return any(word in weight.name for word in ("o_proj", "out_proj", "down_proj"))
