"""How a network is divided over the stages of a pipeline: layers evenly, tables first, head last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from estimator.errors import InputError
from estimator.network import Block, Layer, Network, Stack, Weight
from estimator.training.kept_activations import Keeping, Kept, layer_kept, outer_kept, position_bias_bytes
from estimator.training.plan import TrainingPlan

__all__ = ["Stage", "divide_network"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one device of a pipeline runs: blocks with the weights that it stores, and its layers.

    `weights` holds each stored weight once with the block it stands in. `is_last`: it computes the loss.
    """

    index: int
    num_stages: int
    weights: tuple[tuple[Block, Weight], ...]
    layers: tuple[tuple[Stack, int], ...]
    outer: tuple[tuple[Stack, tuple[Block, ...]], ...]

    @property
    def is_last(self) -> bool:
        """Whether the head runs here."""
        return self.index == self.num_stages - 1

    def micro_batches(self, plan: TrainingPlan) -> int:
        """Micro-batches whose activations are kept at once, one forward and one backward in turn.

        Source: Narayanan et al., arXiv:2104.04473, section 2.2.1.
        """
        return min(plan.gradient_accumulation_steps, self.num_stages - self.index)

    def kept(self, network: Network, keeping: Keeping) -> tuple[Kept, Kept]:
        """What is kept of one micro-batch, and what the largest layer computes again in its backward pass."""
        kept, again = Kept(), Kept()
        for stack, blocks in self.outer:
            kept += outer_kept(stack, blocks, keeping)
        last_row: Stack | None = None
        for stack, index in self.layers:
            source = _source_rows(network, stack, keeping.plan)
            layer = layer_kept(stack, stack.layers[index], source, keeping, is_first=index == 0)
            if keeping.plan.checkpointing not in ("full", "reversible"):
                kept += layer
                continue
            again = max(again, layer, key=lambda one: one.of_device(keeping.plan))
            # full: the input of every layer; reversible: two streams behind the last one (arXiv:2001.04451)
            if keeping.plan.checkpointing == "full":
                kept += _layer_input(stack, keeping) + _position_bias(stack, stack.layers[index], keeping)
                if source and index == 0:
                    kept += _layer_input(network.stacks[-2], keeping)  # the encoder's output, which every layer reads
            elif stack is not last_row:
                kept += _layer_input(stack, keeping).times(2)
                last_row = stack
        return kept, again


def divide_network(network: Network, num_stages: int) -> tuple[Stage, ...]:
    """The stages of a pipeline, in order. Layers that do not divide evenly go to the first stages, one each.

    A tied head on another device than its table is stored there a second time. Stacks for images stand on the first.

    Raises:
        InputError: there are more stages than layers.
    """
    stacks = [stack for stack in network.stacks if not stack.optional]
    layers = [(stack, index) for stack in stacks for index in range(len(stack.layers))]
    if num_stages > max(1, len(layers)):
        raise InputError(f"a pipeline of {num_stages} stages needs as many layers; the model has {len(layers)}")
    stages, start = [], 0
    for index in range(num_stages):
        end = start + len(layers) // num_stages + (1 if index < len(layers) % num_stages else 0)
        stages.append(_stage(network, index, num_stages, tuple(layers[start:end])))
        start = end
    return tuple(stages)


def _stage(network: Network, index: int, num_stages: int, layers: tuple[tuple[Stack, int], ...]) -> Stage:
    is_last = index == num_stages - 1
    outer: list[tuple[Stack, tuple[Block, ...]]] = []
    for stack in network.stacks:
        if stack.optional:
            continue
        ends = [number for owner, number in layers if owner is stack]
        if 0 in ends or (not stack.layers and index == 0):
            outer.append((stack, stack.before))
        if len(stack.layers) - 1 in ends or (not stack.layers and is_last):
            outer.append((stack, stack.after))
    stored = [pair for _, blocks in outer for pair in _stored(blocks)]
    if index == 0:
        optional = (stack for stack in network.stacks if stack.optional)
        stored += [
            pair for stack in optional for _, block, owns in stack.named_blocks() if owns for pair in _stored((block,))
        ]
    stored += _layer_weights(layers)
    if is_last and index > 0:
        stored += _tied_heads(network)
    return Stage(index=index, num_stages=num_stages, weights=tuple(stored), layers=layers, outer=tuple(outer))


def _layer_weights(layers: tuple[tuple[Stack, int], ...]) -> Iterator[tuple[Block, Weight]]:
    """The weights of layers on one device; layers that share them share one copy on each device."""
    shared: list[Layer] = []
    for stack, index in layers:
        layer = stack.layers[index]
        if not layer.owns_weights and any(layer.blocks == known.blocks for known in shared):
            continue
        shared.append(layer)
        yield from _stored(layer.blocks)


def _stored(blocks: tuple[Block, ...]) -> Iterator[tuple[Block, Weight]]:
    return ((block, weight) for block in blocks for weight in block.weights if weight.stored)


def _tied_heads(network: Network) -> Iterator[tuple[Block, Weight]]:
    for block in network.main.after:
        for weight in block.weights:
            if not weight.stored:
                table = Weight(name=weight.name, shape=weight.shape, role="embedding", quantized=False)
                yield block, table


def _layer_input(stack: Stack, keeping: Keeping) -> Kept:
    rows = keeping.plan.batch_size * (stack.length or keeping.plan.sequence_length)
    return Kept(whole_bytes=rows * stack.hidden_size * keeping.stream_bytes)


def _position_bias(stack: Stack, layer: Layer, keeping: Keeping) -> Kept:
    length = stack.length or keeping.plan.sequence_length
    per_row = sum(position_bias_bytes(block, length, keeping) for block in layer.blocks)
    return Kept(divided_bytes=keeping.plan.batch_size * length * per_row)


def _source_rows(network: Network, stack: Stack, plan: TrainingPlan) -> int:
    if network.architecture != "encoder-decoder" or stack is not network.main:
        return 0
    return network.stacks[-2].length or plan.sequence_length
