"""Decoders that run layers more than once (HRM, Dory), and CPM-Ant, which sets learned rows before every text.

Source: transformers 5.24, models/hrm_text, dory, cpmant, cohere_compass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, head, linear, norm
from estimator.blocks.vision import tokens
from estimator.config import MAX_LAYERS
from estimator.errors import ConfigError
from estimator.network import Block, Chunks, Layer, Network, Recurrence, Stack, Weight
from estimator.readers.families.decoder_facts import Decoder, Windows
from estimator.readers.families.decoder_families import DECODERS
from estimator.readers.families.decoders import decoder_network, task_head
from estimator.readers.fields import Fields

__all__ = ["READERS"]

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PLAIN = Decoder()


def _decoder(
    fields: Fields, layers: tuple[Layer, ...], *, before: tuple[Block, ...] = (), after: tuple[Block, ...] = ()
) -> Network:
    if len(layers) > MAX_LAYERS:
        raise ConfigError(f"{len(layers)} layers run in all, of which {MAX_LAYERS} are the most", field=None)
    hidden, vocabulary = fields.size("hidden_size"), fields.size("vocab_size")
    stack = Stack(
        name="decoder",
        hidden_size=hidden,
        before=(embedding("embed_tokens", vocabulary, hidden), *before),
        layers=layers,
        after=(*after, *task_head(fields, _PLAIN)),
        is_causal=True,
    )
    longest = fields.optional_size("max_position_embeddings") if fields.raw("max_position_embeddings") else None
    return Network(
        architecture="decoder",
        stacks=(stack,),
        model_type=fields.data.model_type,
        vocab_size=vocabulary,
        max_position_embeddings=longest,
    )


def _hrm(fields: Fields) -> Network:
    """Two stacks of layers, of which the low one runs `L_cycles` times for each of the `H_cycles` of the high one.

    Every run of a layer keeps keys and values of its own. Source: arXiv:2506.21734.
    """
    count = fields.optional_size("num_layers_per_stack") or fields.layers()
    fields.ignore("L_bp_cycles", "num_hidden_layers")
    slow, fast = fields.size("H_cycles"), fields.size("L_cycles")
    if count * slow * (fast + 1) > MAX_LAYERS:
        raise ConfigError(f"H_cycles {slow} and L_cycles {fast} run too many layers", field="H_cycles")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    width, bias = heads * fields.size("head_dim"), fields.flag("attention_bias")
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=fields.size("head_dim"),
        qkv_bias=bias,
        output_bias=bias,
        extra=linear("gate_proj", hidden, width, bias=bias),
    )
    inner = fields.size("intermediate_size")
    feeding = feed_forward(hidden_size=hidden, intermediate_size=inner, gated=True, bias=fields.flag("mlp_bias"))
    owned = Layer(blocks=(mixing, feeding))
    again = replace(owned, owns_weights=False)
    first = (owned,) * count + (again,) * count * (fast - 1) + (owned,) * count
    layers = first + (again,) * count * (fast + 1) * (slow - 1)
    return _decoder(fields, layers, before=(tokens("z_L_init", 1, hidden),))


def _dory_kinds(fields: Fields) -> tuple[tuple[str, ...], dict[str, int]]:
    """Which layers have a window, and how many read the input, loop and write the output.

    Published configs list each attention and each feed-forward, and so have twice as many of all.
    """
    names = ("num_hidden_layers", "n_input_layers", "n_recurrent_layers", "n_output_layers")
    given = fields.raw("layer_types")
    factor = 2 if isinstance(given, list) and "mlp" in given else 1
    sizes = {name: fields.count(name) // factor for name in names}
    total = fields.layers() // factor
    if fields.raw("n_recurrent_layers") is None:
        sizes["n_recurrent_layers"] = max(0, total - sizes["n_input_layers"] - sizes["n_output_layers"])
    if sum(sizes[name] for name in names[1:]) != total:
        raise ConfigError(f"{' + '.join(names[1:])} must be num_hidden_layers", field="num_hidden_layers")
    kinds = fields.words("layer_types", factor * total, (_FULL, _SLIDING, "mlp"))
    if kinds is None:
        kinds = tuple(_FULL if (index + 1) % 4 == 0 else _SLIDING for index in range(total))
    return kinds[::factor], sizes


def _dory(fields: Fields) -> Network:
    """The layers between the first and the last run `n_recurrent_loops` times."""
    kinds, sizes = _dory_kinds(fields)
    loops = fields.size("n_recurrent_loops")
    keeps_all = fields.choice("recurrent_kv_cache_mode", ("per_loop", "last_loop")) == "per_loop"
    start, count = sizes["n_input_layers"], sizes["n_recurrent_layers"]
    if len(kinds) + count * (loops - 1) > MAX_LAYERS:
        raise ConfigError(f"n_recurrent_loops {loops} runs too many layers", field="n_recurrent_loops")
    layers = [_dory_layer(fields, kind) for kind in kinds]
    looped: list[Layer] = []
    for loop in range(loops):
        for layer in layers[start : start + count]:
            keeps = keeps_all or loop == loops - 1
            looped.append(replace(layer if keeps else _without_cache(layer), owns_weights=loop == 0))
    scale = Weight(name="lm_head.logit_scale", shape=(fields.size("vocab_size"),), role="other")
    after = (Block(name="", part="head", weights=(scale,)),) if fields.task == "causal_lm" else ()
    return _decoder(fields, (*layers[:start], *looped, *layers[start + count :]), after=after)


def _dory_layer(fields: Fields, kind: str) -> Layer:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    width, inner, bias = (
        heads * fields.size("head_dim"),
        fields.size("intermediate_size"),
        fields.flag("attention_bias"),
    )
    scales = tuple(
        Weight(name=name, shape=(size,), role="other")
        for name, size in (("sqk", width), ("s_gate", width), ("lambda_1", hidden), ("lambda_2", hidden))
    )
    window = fields.size("sliding_window")
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=fields.size("num_key_value_heads"),
        head_dim=fields.size("head_dim"),
        qkv_bias=bias,
        output_bias=bias,
        window=window if kind == _SLIDING else None,
        extra=(*linear("gate_proj", hidden, width), *scales),
    )
    feeding = feed_forward(hidden_size=hidden, intermediate_size=inner, gated=True, bias=fields.flag("mlp_bias"))
    vectors = tuple(Weight(name=f"suv_{name}", shape=(inner,), role="other") for name in ("gate", "up"))
    return Layer(blocks=(mixing, replace(feeding, weights=feeding.weights + vectors)))


def _without_cache(layer: Layer) -> Layer:
    """A run that reads what the last loop kept, and keeps nothing itself."""
    blocks = tuple(
        block if block.attention is None else replace(block, attention=replace(block.attention, cached_elements=0))
        for block in layer.blocks
    )
    return replace(layer, blocks=blocks)


def _cpmant(fields: Fields) -> Network:
    """Attention with biases by distance and segment; `prompt_length` learned rows stand before the text.

    Those rows run through every layer with the prompt, and their keys and values are kept like a state.
    """
    fields.ignore("position_bias_max_distance", "tie_word_embeddings")
    hidden, heads, rows = (fields.size(name) for name in ("hidden_size", "num_attention_heads", "prompt_length"))
    head_dim, types = fields.size("dim_head"), fields.size("segment_types")
    mixing = attention(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=heads, head_dim=head_dim, name="self_att"
    )
    feeding = feed_forward(hidden_size=hidden, intermediate_size=fields.size("dim_ff"), gated=True, name="ffn")
    norms = tuple(norm(f"norms.{index}", hidden, "rms_norm") for index in range(2))
    pairs = 2 * 2 * heads * head_dim * rows
    reads = Recurrence(
        state_elements=2 * heads * head_dim * rows,
        token_flops=pairs,
        prompt_flops=pairs * rows,
        chunks=Chunks(num_tokens=1, token_flops=2 * pairs),
    )
    again = tuple(replace(weight, stored=False) for weight in mixing.weights + feeding.weights)
    prompt = (
        Block(name="prompt", part="attention", weights=again, positions=rows),
        Block(name="prompt", part="attention", recurrence=reads),
    )
    layers = (Layer(blocks=(norms[0], mixing, norms[1], feeding, *prompt)),) * fields.layers()
    table = Weight(
        name="relative_attention_bias",
        shape=(types**2 + fields.size("position_bias_num_buckets"), heads),
        role="embedding",
        quantized=False,
    )
    before = (
        embedding("prompt_embedding", fields.size("prompt_types") * rows, hidden),
        embedding("segment_embedding", types, hidden),
        Block(name="position_bias", part="embedding", weights=(table,)),
    )
    network = _decoder(fields, layers, before=before, after=(norm("output_layernorm", hidden, "rms_norm"),))
    if fields.task != "causal_lm":
        return network
    untied = head("lm_head", hidden, fields.size("vocab_size"))
    main = replace(network.main, after=(*network.main.after[:-1], untied))
    return replace(network, stacks=(main,))


_COMPASS = replace(DECODERS["cohere2"], windows=Windows(layers=lambda _f, n: [False] * n), head_dim=None, required={})

READERS: Mapping[str, Callable[[Fields], Network]] = {
    "cohere_compass_text": functools.partial(decoder_network, facts=replace(_COMPASS, ignored=("pooling", "head_dim"))),
    "cpmant": _cpmant,
    "dory": _dory,
    "hrm_text": _hrm,
}
