"""What models of layers of different kinds share: the stack around the layers, and the kinds of layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from estimator.blocks.common import attention, embedding, head, norm
from estimator.config import MAX_LAYERS, show
from estimator.errors import ConfigError
from estimator.network import Block, Layer, Network, Stack
from estimator.readers.families.decoders import Decoder, task_head
from estimator.readers.fields import Fields

__all__ = [
    "FULL",
    "LINEAR",
    "SLIDING",
    "attention_of",
    "free_kinds",
    "hybrid_network",
    "hybrid_stack",
    "layer_kinds",
    "layers_of",
    "norms",
]

Kind = TypeVar("Kind", bound=Hashable)
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
_LEGACY = {"mamba": LINEAR, "attention": FULL}


def hybrid_network(
    fields: Fields,
    layers: Sequence[Layer],
    *,
    norm_kind: str = "rms_norm",
    tied: bool | None = None,
    facts: Decoder | None = None,
) -> Network:
    """A model that is one decoder stack of these layers, with the head that its class asks for.

    `tied` says whether a language head shares the token table where `tie_word_embeddings` does not; `facts` what else
    is special about the head.
    """
    after = task_head(fields, facts or Decoder())
    if tied is not None and fields.task == "causal_lm":
        after = (head("lm_head", fields.size("hidden_size"), fields.size("vocab_size"), tied=tied),)
    return Network(
        architecture="decoder",
        stacks=(hybrid_stack(fields, layers, norm_kind=norm_kind, after=after),),
        model_type=fields.data.model_type,
        vocab_size=fields.size("vocab_size"),
        max_position_embeddings=fields.optional_size("max_position_embeddings"),
    )


def hybrid_stack(
    fields: Fields,
    layers: Sequence[Layer],
    *,
    norm_kind: str = "rms_norm",
    after: tuple[Block, ...] = (),
    prefix: str = "",
) -> Stack:
    """Token embedding, layers and last norm, then `after`."""
    hidden = fields.size("hidden_size")
    last = () if norm_kind == "none" else (norm("norm", hidden, norm_kind),)
    return Stack(
        name="decoder",
        hidden_size=hidden,
        before=(embedding("embed_tokens", fields.size("vocab_size"), hidden),),
        layers=tuple(layers),
        after=last + after,
        is_causal=True,
        prefix=prefix,
    )


def layers_of(kinds: Sequence[Kind], make: Callable[[Kind], Sequence[Block]]) -> tuple[Layer, ...]:
    """A layer per entry; layers of one kind are one record."""
    made = {kind: Layer(blocks=tuple(make(kind))) for kind in dict.fromkeys(kinds)}
    return tuple(made[kind] for kind in kinds)


def layer_kinds(
    fields: Fields, name: str, allowed: tuple[str, ...], default: Callable[[int], str], num_layers: int | None = None
) -> tuple[str, ...]:
    """The kind of each layer: the list in that field, also in the words of older configs, or `default(index)`."""
    length = fields.layers() if num_layers is None else num_layers
    given = fields.words(name, length, (*allowed, *_LEGACY))
    if given is None:
        return tuple(default(index) for index in range(length))
    return tuple(_LEGACY.get(kind, kind) for kind in given)


def free_kinds(fields: Fields, name: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """The kinds in that field, as many as it lists, where the number of layers follows from the list; None for null."""
    value = fields.raw(name)
    if value is None:
        return None
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_LAYERS:
        raise ConfigError(f"{name} must be a list of 1 to {MAX_LAYERS} entries, not {show(value)}", field=name)
    return layer_kinds(fields, name, allowed, str, len(value))


def attention_of(
    fields: Fields,
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    qk_norm: str = "none",
    window: int | None = None,
) -> Block:
    """Grouped attention by the usual names of fields; `head_dim` may be given where the family does not declare it."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=fields.optional_size("num_key_value_heads") or heads,
        head_dim=fields.optional_size("head_dim") or hidden // heads,
        qkv_bias=bias,
        output_bias=bias if output_bias is None else output_bias,
        qk_norm=qk_norm,
        window=window,
    )


def norms(fields: Fields, *names: str) -> list[Block]:
    """Norms over the hidden size."""
    return [norm(name, fields.size("hidden_size"), "rms_norm") for name in names]
