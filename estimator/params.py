"""How many parameters a model has, by part and by layer."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.config import TransformerConfig
from estimator.network import PARTS, Block, Layer, Network, Stack, stored_weights
from estimator.weights import network_of

__all__ = ["ALWAYS_SHOWN", "ParamCount", "count_params"]

# Every model has these in its breakdown, if only as 0.
ALWAYS_SHOWN = ("embedding", "attention", "feed_forward", "norm", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamCount:
    """Exact numbers of stored parameters; tied and shared weights count once, buffers never.

    `active` is what one token passes through, embeddings and head included: all of them but the experts that are not
    chosen. `active_non_embedding` leaves out the lookup tables, `embedding` is those tables (tokens, positions, token
    types), which a tied head shares. `by_layer` holds, for each stack, the parameters that each of its layers owns.
    """

    total: int
    active: int
    active_non_embedding: int
    embedding: int
    non_embedding: int
    by_part: dict[str, int]
    by_stack: dict[str, int]
    by_layer: dict[str, tuple[int, ...]]


def count_params(model: TransformerConfig | Network) -> ParamCount:
    """The exact parameter count: the sum over all stored weights."""
    network = network_of(model)
    by_part = dict.fromkeys(PARTS, 0)
    active = embedding = 0
    for _, part, weight in stored_weights(network):
        by_part[part] += weight.num_elements
        active += weight.num_active_elements
        if weight.role == "embedding":
            embedding += weight.num_elements
    total = sum(by_part.values())
    return ParamCount(
        total=total,
        active=active,
        active_non_embedding=active - embedding,
        embedding=embedding,
        non_embedding=total - embedding,
        by_part={part: count for part, count in by_part.items() if count or part in ALWAYS_SHOWN},
        by_stack={stack.name: _stack_elements(stack) for stack in network.stacks},
        by_layer={stack.name: tuple(_layer_elements(layer) for layer in stack.layers) for stack in network.stacks},
    )


def _stack_elements(stack: Stack) -> int:
    return sum(_block_elements(block) for _, block, owns_weights in stack.named_blocks() if owns_weights)


def _layer_elements(layer: Layer) -> int:
    return sum(_block_elements(block) for block in layer.blocks) if layer.owns_weights else 0


def _block_elements(block: Block) -> int:
    return sum(weight.num_elements for weight in block.weights)
