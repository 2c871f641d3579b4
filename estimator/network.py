"""What a model consists of: stacks of layers of blocks of weights.

Every reader fills this record, and every count reads nothing else. `TransformerConfig` describes what can be built and
searched; a `Network` describes what can be sized, which is any model whose weights and caches are known.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "ARCHITECTURES",
    "PARTS",
    "ROLES",
    "Attention",
    "Block",
    "Chunks",
    "Layer",
    "Network",
    "Recurrence",
    "Stack",
    "Weight",
    "stored_weights",
]

ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
# linear: a matrix [out, in] that rows are multiplied with. embedding: a table of which rows are looked up.
# convolution: [out, in / groups, *kernel]. other: small tensors that no matrix product reads (gates, sinks, decays).
ROLES = ("linear", "embedding", "norm", "bias", "convolution", "other")
PARTS = ("embedding", "attention", "feed_forward", "experts", "state_space", "norm", "head", "projector", "other")
# Where a block's positions come from when they are not the stack's own tokens: the tokens of the encoder, read by
# cross-attention.
SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One tensor, or `copies` equal ones of which a token uses `active_copies` (experts).

    `stored` is False for a matrix whose values are another weight's, such as a tied head: it is multiplied with, but
    neither counted nor loaded a second time. `quantized` is False for matrices that int8 and int4 leave in the
    activation type (routers, poolers, tied heads).
    """

    name: str
    shape: tuple[int, ...]
    role: str = "linear"
    stored: bool = True
    quantized: bool = True
    copies: int = 1
    active_copies: int = 1

    @property
    def num_elements(self) -> int:
        """Stored elements of all copies."""
        return self.copies * math.prod(self.shape) if self.stored else 0

    @property
    def num_active_elements(self) -> int:
        """Stored elements that one token uses."""
        return self.active_copies * math.prod(self.shape) if self.stored else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Softmax attention beside its weights: the products with keys and values, and what is kept of a token.

    `cached_elements` is what one token leaves in the cache of one layer: K*(H + value H) as a rule, the latent and the
    rotary key of latent attention, 0 where nothing is kept (encoders) or another layer's cache is used.
    `window`: the layer attends to, and keeps, so many of the last tokens. `is_cross`: keys are the encoder's tokens.
    """

    num_attention_heads: int
    key_head_dim: int
    value_head_dim: int
    cached_elements: int
    window: int | None = None
    is_cross: bool = False

    def kept_tokens(self, num_tokens: int) -> int:
        """How many of the last `num_tokens` tokens the layer attends to, and keeps in its cache."""
        return num_tokens if self.window is None else min(num_tokens, self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """How a recurrence reads a prompt: `num_tokens` at a time, as products within a chunk and with the state before it.

    `token_flops` is per token, `pair_flops` per pair of tokens in a chunk (all c*c of them), `boundary_flops` per pair
    of chunk boundaries, of which a prompt of n chunks has (n + 1)^2. `rest` is how the tokens run that fill no chunk:
    "padded" to a whole chunk, as a "short" one, or one by one in "steps".
    """

    num_tokens: int
    token_flops: int
    pair_flops: int = 0
    boundary_flops: int = 0
    rest: str = "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A state of fixed size per sequence, and the FLOPs of products with it (beyond those with weights).

    `token_flops` is what one more token takes. A prompt takes as much per token, or what its `chunks` take, and
    `prompt_flops` once: outputs of a padded convolution that are thrown away. `fp32_elements` of the `state_elements`
    stay fp32 whatever the type of the activations.
    """

    state_elements: int
    token_flops: int
    fp32_elements: int = 0
    prompt_flops: int = 0
    chunks: Chunks | None = None

    def prefill_flops(self, num_tokens: int) -> int:
        """FLOPs of products with the state for a prompt of one sequence."""
        return sum(math.prod(factors) for factors in self.prefill_terms(num_tokens))

    def prefill_terms(self, num_tokens: int) -> Iterator[tuple[int, ...]]:
        """The factors of each product that `prefill_flops` adds up."""
        yield (self.prompt_flops,)
        if self.chunks is None:
            yield num_tokens, self.token_flops
            return
        size, rest = self.chunks.num_tokens, num_tokens % self.chunks.num_tokens
        whole = num_tokens // size + (1 if rest and self.chunks.rest == "padded" else 0)
        yield whole, size, self.chunks.token_flops
        yield whole, size, size, self.chunks.pair_flops
        yield whole + 1, whole + 1, self.chunks.boundary_flops
        if self.chunks.rest == "short":
            yield rest, self.chunks.token_flops
            yield rest, rest, self.chunks.pair_flops
        if self.chunks.rest == "steps":
            yield rest, self.token_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A named group of weights that run together.

    `positions` is how many rows of a sequence pass through: None for every token of the stack, a number where it is
    fixed (a pooler's 1, an image's patches), "source" for the encoder's tokens (keys and values of cross-attention).
    `live_width` is the number of elements per row that are alive at the block's widest moment, without scores.
    """

    name: str
    part: str
    weights: tuple[Weight, ...] = ()
    attention: Attention | None = None
    recurrence: Recurrence | None = None
    positions: int | str | None = None
    live_width: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Blocks in the order they run. `owns_weights` is False when they are those of an earlier layer."""

    blocks: tuple[Block, ...]
    owns_weights: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers that hand on rows of `hidden_size`, with what stands before and behind them.

    `name` is decoder, encoder, vision, audio or another word for what it reads. `length` is the number of rows per
    sequence (or image) where it is fixed, None for the tokens of the workload. A stack that is `optional` runs only
    for inputs beside the text, such as images. `prefix` stands before the names of its weights.
    """

    name: str
    hidden_size: int
    layers: tuple[Layer, ...]
    before: tuple[Block, ...] = ()
    after: tuple[Block, ...] = ()
    is_causal: bool = False
    length: int | None = None
    optional: bool = False
    prefix: str = ""

    def named_blocks(self) -> Iterator[tuple[str, Block, bool]]:
        """Every block with the prefix of its weights' names, and whether it owns its weights, in running order."""
        for block in self.before:
            yield self.prefix + _dotted(block.name), block, True
        for index, layer in enumerate(self.layers):
            for block in layer.blocks:
                yield f"{self.prefix}layers.{index}." + _dotted(block.name), block, layer.owns_weights
        for block in self.after:
            yield self.prefix + _dotted(block.name), block, True

    @property
    def blocks(self) -> Iterator[Block]:
        """Every block in running order."""
        return (block for _, block, _ in self.named_blocks())


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A whole model.

    `architecture` decides how a request runs. decoder: the last stack reads the prompt and goes on token by token.
    encoder: one pass over the input. encoder-decoder: the stack before the last reads the prompt, the last one starts
    from a single token. `max_position_embeddings` is the longest sequence as far as known; with `learned_positions`
    there is no row beyond it. With `has_only_weights` nothing but weights is known: no cache, no FLOPs, no time.
    `hidden_act` names the activation function as config.json does, empty where it is not known; it decides how much of
    a feed-forward training keeps.
    """

    architecture: str
    stacks: tuple[Stack, ...]
    model_type: str
    vocab_size: int = 0
    max_position_embeddings: int | None = None
    learned_positions: bool = False
    has_only_weights: bool = False
    hidden_act: str = ""

    @property
    def is_causal(self) -> bool:
        """True when it generates token by token."""
        return self.architecture != "encoder"

    @property
    def main(self) -> Stack:
        """The stack whose output is the model's."""
        return self.stacks[-1]

    @property
    def logits_width(self) -> int:
        """Outputs of the head per row of the main stack; 0 without a head over every row."""
        widths = [w.shape[0] for b in self.main.after if b.part == "head" and b.positions is None for w in _linear(b)]
        return widths[-1] if widths else 0

    def architecture_hash(self) -> str:
        """First 16 hexadecimal digits of the sha256 of all that this record holds."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def stored_weights(network: Network) -> Iterator[tuple[str, str, Weight]]:
    """Name, part and weight of everything stored, once each; the copies of a weight share one entry."""
    for stack in network.stacks:
        for prefix, block, owns_weights in stack.named_blocks():
            if not owns_weights:
                continue
            for weight in block.weights:
                if weight.stored:
                    yield prefix + weight.name, "norm" if weight.role == "norm" else block.part, weight


def _linear(block: Block) -> Iterator[Weight]:
    return (weight for weight in block.weights if weight.role == "linear")


def _dotted(name: str) -> str:
    return f"{name}." if name else ""
