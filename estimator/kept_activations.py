"""What a training step keeps of its forward pass for the backward pass, block by block."""

from __future__ import annotations

from typing import Protocol

from estimator.network import Block, Network, Stack

__all__ = ["kept_bytes"]

# The loss keeps the logits in the activations' type (2 bytes), in fp32, its fp32 log-probabilities, and at its peak the
# gradient of the logits in fp32 takes their place: 14 bytes per logit, as measured by vramcalc (PyPI) on an RTX A6000.
_HALF_LOGIT_BYTES, _FP32_LOGIT_BYTES = 14, 12


class _Plan(Protocol):
    """What of a TrainingPlan decides what is kept."""

    @property
    def precision(self) -> str: ...
    @property
    def checkpointing(self) -> str: ...
    @property
    def fused_attention(self) -> bool: ...


def kept_bytes(network: Network, batch_size: int, length: int, plan: _Plan) -> tuple[int, int]:
    """Bytes of activations kept for backward, and of logits and loss at the peak.

    With full checkpointing one layer's activations are there again while its backward pass runs; the loss is gone by
    then, so only what exceeds it counts.
    """
    element_bytes = 4 if plan.precision == "fp32" else 2
    kept = 0
    again = 0
    for stack in network.stacks:
        if stack.optional:
            continue
        rows = batch_size * (stack.length or length)
        layers = [_layer_bytes(stack, index, rows, stack.length or length, plan) for index in range(len(stack.layers))]
        inputs = rows * stack.hidden_size * element_bytes
        if plan.checkpointing == "full":
            kept += inputs * len(layers)
            again = max([again, *layers])
        elif plan.checkpointing == "reversible":
            kept += 2 * inputs  # two streams, of which the inputs of a layer are computed from its outputs
            again = max([again, *layers])
        else:
            kept += sum(layers)
    rows = batch_size * (network.main.length or length)
    logit_bytes = _FP32_LOGIT_BYTES if plan.precision == "fp32" else _HALF_LOGIT_BYTES
    loss = rows * network.logits_width * logit_bytes
    return kept + max(0, again - loss), loss


def _layer_bytes(stack: Stack, index: int, rows: int, length: int, plan: _Plan) -> int:
    return sum(block_kept_bytes(block, stack.hidden_size, rows, length, plan) for block in stack.layers[index].blocks)


def block_kept_bytes(block: Block, hidden_size: int, rows: int, length: int, plan: _Plan) -> int:
    """Bytes that one block keeps for `rows` rows in sequences of `length`.

    Norm: its input, and its output, which the next matrix needs; in half precision an RMS norm works on an fp32 copy.
    Attention: rotated queries and keys, values, keys and values repeated for grouped heads, the result and its copy in
    the order that the output projection needs; unfused, also scores and probabilities, which selective checkpointing
    computes again. Feed-forward: the inner tensor before and after the activation, when gated also the other factor and
    the product. Experts: the same for each one used, and their input.
    Source: Korthikanti et al., arXiv:2205.05198, section 4, for the kinds; what PyTorch keeps beyond them was found by
    following transformers' modules, and is checked against measured peaks (`estimator validate`).
    """
    is_half = plan.precision != "fp32"
    element_bytes = 2 if is_half else 4
    if block.part == "norm":
        is_rms = len(block.weights) == 1
        fp32_copy = 4 if is_half and is_rms else 0
        return rows * hidden_size * (2 * element_bytes + fp32_copy)
    if block.part == "attention" and block.attention is not None:
        return rows * _attention_width(block) * element_bytes + _scores_bytes(block, rows, length, plan)
    if block.part in ("feed_forward", "experts"):
        return rows * _inner_width(block) * element_bytes
    return rows * block.live_width * element_bytes


def _attention_width(block: Block) -> int:
    attention = block.attention
    assert attention is not None
    query = attention.num_attention_heads * attention.key_head_dim
    result = attention.num_attention_heads * attention.value_head_dim
    own = sum(
        weight.shape[0] for weight in block.weights if weight.role == "linear" and weight.name[:2] in ("k_", "v_")
    )
    repeated = query + result if own and own < query + result else 0
    return query + own + repeated + 2 * result


def _scores_bytes(block: Block, rows: int, length: int, plan: _Plan) -> int:
    attention = block.attention
    assert attention is not None
    if plan.fused_attention or plan.checkpointing == "selective":
        return 0
    # half precision: scores, fp32 probabilities, and their half copy; fp32: scores and probabilities
    return rows * length * attention.num_attention_heads * 8


def _inner_width(block: Block) -> int:
    """Elements kept per row: 4F when gated, 2F otherwise, for every expert that a row uses."""
    width = 0
    for weight in block.weights:
        if weight.role == "linear" and weight.quantized:
            is_down = "down" in weight.name
            width += weight.active_copies * (weight.shape[1] if is_down else weight.shape[0])
            is_gate = "gate_proj" in weight.name
            width += weight.active_copies * weight.shape[0] if is_gate else 0
            if block.part == "experts" and "up" in weight.name:
                width += weight.active_copies * weight.shape[1]
    return width
