"""Blocks that single families of encoders have in place of the usual ones, as functions of their fields."""

from __future__ import annotations

from dataclasses import replace

from estimator.blocks.common import attention, embedding, feed_forward, head, linear, norm, norm_weights
from estimator.errors import ConfigError
from estimator.network import Attention, Block, Recurrence, Weight
from estimator.readers.families.decoders import num_labels
from estimator.readers.families.encoder_heads import class_of
from estimator.readers.families.encoders import Encoder, Extra, encoder_attention, head_dim_of, idle
from estimator.readers.fields import Fields

__all__ = [
    "adapters",
    "aggregation_head",
    "attention_window",
    "biased_gated_output",
    "contact_head",
    "conv_attention",
    "conv_per_head",
    "convolution",
    "entity_attention",
    "entity_extra",
    "entity_tables",
    "fourfold",
    "fourier_mixing",
    "global_projections",
    "grouped_attention",
    "grouped_convolutions",
    "grouped_feed_forward",
    "language_tables",
    "layout_tables",
    "map_inputs",
    "narrowing_head",
    "question_head",
    "relative_bias",
    "rotary_table",
    "span_queries",
    "squad_head",
    "table_positions",
    "task_tables",
    "two_sided_attention",
    "within_window",
]

_PLAIN = Encoder()


def convolution(
    name: str, in_size: int, out_size: int, kernel: int, *, groups: int = 1, bias: bool = True
) -> tuple[Weight, ...]:
    """A convolution along the tokens, [out, in / groups, kernel]."""
    matrix = Weight(name=f"{name}.weight", shape=(out_size, in_size // groups, kernel), role="convolution")
    shift = Weight(name=f"{name}.bias", shape=(out_size,), role="bias")
    return (matrix, shift) if bias else (matrix,)


def task_tables(fields: Fields) -> tuple[Block, ...]:
    """ernie: a table of task types, when `use_task_id`."""
    rows = fields.size("task_type_vocab_size")
    return (embedding("embed_task_types", rows, fields.size("hidden_size")),) if fields.flag("use_task_id") else ()


def layout_tables(fields: Fields) -> tuple[Block, ...]:
    """layoutlm: tables of the left, upper, height and width of each token's box."""
    rows, hidden = fields.size("max_2d_position_embeddings"), fields.size("hidden_size")
    return tuple(embedding(f"embed_{side}_positions", rows, hidden) for side in ("x", "y", "h", "w"))


def table_positions(fields: Fields) -> tuple[Block, ...]:
    """tapas: seven tables of token types."""
    hidden = fields.size("hidden_size")
    sizes = fields.sizes("type_vocab_sizes")
    return tuple(embedding(f"embed_token_types.{index}", rows, hidden) for index, rows in enumerate(sizes) if rows)


def language_tables(fields: Fields) -> tuple[Block, ...]:
    """xlm, flaubert: a table of languages, when there is more than one."""
    languages = fields.size("n_langs")
    is_used = languages > 1 and fields.flag("use_lang_emb")
    return (embedding("embed_languages", languages, fields.size("hidden_size")),) if is_used else ()


def map_inputs(fields: Fields) -> tuple[Block, ...]:
    """roc_bert: tables of pronunciations and shapes, and a projection of what is concatenated."""
    hidden = fields.size("hidden_size")
    width, blocks = hidden, []
    for kind in ("pronunciation", "shape"):
        rows, own = fields.size(f"{kind}_vocab_size"), fields.size(f"{kind}_embed_dim")
        blocks.append(embedding(f"embed_{kind}", rows, own))
        width += own if fields.flag(f"enable_{kind}") else 0
    if fields.flag("concat_input"):
        weights = linear("map_inputs", width, hidden, bias=True)
        blocks.append(Block(name="", part="embedding", weights=weights, live_width=width + hidden))
    return tuple(blocks)


def entity_tables(fields: Fields) -> tuple[Block, ...]:
    """luke: tables of entities with their positions; no row of plain text passes through."""
    hidden, width = fields.size("hidden_size"), fields.size("entity_emb_size")
    types = fields.count("type_vocab_size")
    blocks = [embedding("entities.embed_entities", fields.size("entity_vocab_size"), width)]
    if width != hidden:
        blocks.append(Block(name="", part="embedding", weights=linear("entities.embed_project", width, hidden)))
    blocks.append(embedding("entities.embed_positions", fields.size("max_position_embeddings"), hidden))
    blocks += [embedding("entities.embed_token_types", types, hidden)] if types else []
    blocks.append(norm("entities.embed_norm", hidden, "layer_norm"))
    return tuple(idle(block) for block in blocks)


def entity_extra(fields: Fields) -> tuple[Block, ...]:
    """luke: the head over entities of masked language models."""
    if fields.task != "masked_lm":
        return ()
    hidden, width, entities = (fields.size(name) for name in ("hidden_size", "entity_emb_size", "entity_vocab_size"))
    weights = linear("transform", hidden, width, bias=True, quantized=False) + norm_weights("norm", width, "layer_norm")
    tied = fields.flag("tie_word_embeddings")
    blocks = (
        Block(name="entities.head", part="head", weights=weights),
        head("entities.lm_head", width, entities, bias=True, tied=tied),
    )
    return tuple(idle(block) for block in blocks)


def entity_attention(fields: Fields) -> tuple[Block, ...]:
    """luke: three further matrices of queries between words and entities; words alone use none of them."""
    blocks = (encoder_attention(fields, _PLAIN),)
    if not fields.flag("use_entity_aware_attention"):
        return blocks
    hidden = fields.size("hidden_size")
    names = ("w2e_query", "e2w_query", "e2e_query")
    weights = tuple(weight for name in names for weight in linear(name, hidden, hidden, bias=True))
    return (*blocks, Block(name="self_attn", part="attention", weights=weights, positions=0))


def two_sided_attention(fields: Fields) -> tuple[Block, ...]:
    """longformer: attention within a window, and matrices for tokens that are marked global."""
    window = attention_window(fields, fields.layers())
    hidden = fields.size("hidden_size")
    block = within_window(encoder_attention(fields, _PLAIN), hidden, window)
    return block, global_projections(hidden)


def attention_window(fields: Fields, num_layers: int) -> int:
    """longformer, led: the window of every layer, from a number or a list.

    Raises:
        ConfigError: the layers' windows differ; or a window is odd.
    """
    if isinstance(fields.raw("attention_window"), list):
        windows = set(fields.sizes("attention_window", num_layers))
    else:
        windows = {fields.size("attention_window")}
    window = min(windows)
    if len(windows) != 1 or window % 2 or not window:
        raise ConfigError("attention_window must be one even number for all layers", field="attention_window")
    return window


def within_window(block: Block, width: int, window: int) -> Block:
    """Attention by chunks: each half window h of tokens meets keys in products of [2h, 2h], and 3h values.

    That is 2*4h + 2*3h FLOPs per token and element of `width`. Ignores: the ends of the sequence, which need less.
    Source: Longformer, arXiv:2004.05150, and the class's chunked products.
    """
    half = window // 2
    assert block.attention is not None
    live = block.live_width + block.attention.num_attention_heads * (window + 1)
    products = Recurrence(state_elements=0, token_flops=14 * half * width)
    return replace(block, attention=None, recurrence=products, live_width=live)


def global_projections(hidden: int) -> Block:
    """longformer, led: queries, keys and values of tokens that are marked global; plain input has none."""
    names = ("query_global", "key_global", "value_global")
    weights = tuple(weight for name in names for weight in linear(name, hidden, hidden, bias=True))
    return Block(name="self_attn", part="attention", weights=weights, positions=0)


def conv_per_head(kernel_field: str) -> Extra:
    """nystromformer, yoso: attention with a convolution of the values, one kernel per head, unless it is null."""

    def make(fields: Fields) -> tuple[Block, ...]:
        kernel, heads = fields.optional_size(kernel_field), fields.size("num_attention_heads")
        block = encoder_attention(fields, _PLAIN)
        if kernel is None:
            return (block,)
        own = Weight(name="conv.weight", shape=(heads, 1, kernel, 1), role="other")
        flops = 2 * heads * kernel * head_dim_of(fields)
        return (
            block,
            Block(
                name="self_attn",
                part="attention",
                weights=(own,),
                recurrence=Recurrence(state_elements=0, token_flops=flops),
            ),
        )

    return make


def conv_attention(fields: Fields) -> tuple[Block, ...]:
    """convbert: half of the width attends, half is a convolution whose kernel each token makes for itself.

    Source: ConvBERT, arXiv:2008.02496, section 3.
    """
    hidden, kernel = fields.size("hidden_size"), fields.size("conv_kernel_size")
    heads = max(1, fields.size("num_attention_heads") // fields.size("head_ratio"))
    width = heads * (hidden // heads // 2)
    block = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        qkv_bias=True,
        has_output=False,
        is_cached=False,
    )
    weights = convolution("key_conv.depthwise", hidden, hidden, kernel, groups=hidden, bias=False)
    weights += convolution("key_conv.pointwise", hidden, width, 1, bias=False)
    weights += (Weight(name="key_conv.bias", shape=(width, 1), role="bias"),)
    weights += linear("conv_kernel", width, heads * kernel, bias=True) + linear("conv_out", hidden, width, bias=True)
    weights += linear("o_proj", hidden, hidden, bias=True)
    dynamic = Recurrence(state_elements=0, token_flops=2 * width * kernel)
    return block, Block(name="self_attn", part="attention", weights=weights, recurrence=dynamic, live_width=4 * hidden)


def grouped_feed_forward(fields: Fields) -> tuple[Block, ...]:
    """convbert: matrices in `num_groups` groups."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    groups = fields.size("num_groups")
    if groups == 1:
        return (feed_forward(hidden_size=hidden, intermediate_size=inner, gated=False, bias=True),)
    weights: tuple[Weight, ...] = ()
    for name, rows, columns in (("up_proj", hidden, inner), ("down_proj", inner, hidden)):
        shape = (columns // groups, rows // groups)
        weights += (Weight(name=f"{name}.weight", shape=shape, copies=groups, active_copies=groups),)
        weights += (Weight(name=f"{name}.bias", shape=(columns,), role="bias"),)
    return (Block(name="mlp", part="feed_forward", weights=weights, live_width=2 * hidden + inner),)


def grouped_attention(fields: Fields) -> tuple[Block, ...]:
    """squeezebert: projections that are convolutions in groups."""
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    names = (
        ("q_proj", "q_groups"),
        ("k_proj", "k_groups"),
        ("v_proj", "v_groups"),
        ("o_proj", "post_attention_groups"),
    )
    weights = tuple(
        weight for name, groups in names for weight in convolution(name, hidden, hidden, 1, groups=fields.size(groups))
    )
    width = head_dim_of(fields)
    scores = Attention(num_attention_heads=heads, key_head_dim=width, value_head_dim=width, cached_elements=0)
    return (Block(name="self_attn", part="attention", weights=weights, attention=scores, live_width=5 * hidden),)


def grouped_convolutions(fields: Fields) -> tuple[Block, ...]:
    """squeezebert: a feed-forward of convolutions in groups."""
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    weights = convolution("up_proj", hidden, inner, 1, groups=fields.size("intermediate_groups"))
    weights += convolution("down_proj", inner, hidden, 1, groups=fields.size("output_groups"))
    return (Block(name="mlp", part="feed_forward", weights=weights, live_width=2 * hidden + inner),)


def fourier_mixing(fields: Fields) -> tuple[Block, ...]:
    """fnet: a Fourier transform in place of attention; it has no weights."""
    return (Block(name="fourier", part="attention", live_width=3 * fields.size("hidden_size")),)


def fourfold(fields: Fields) -> tuple[Block, ...]:
    """xlm, flaubert: a feed-forward of four times the hidden size."""
    hidden = fields.size("hidden_size")
    return (feed_forward(hidden_size=hidden, intermediate_size=4 * hidden, gated=False, bias=True),)


def biased_gated_output(fields: Fields) -> tuple[Block, ...]:
    """gte: a gated feed-forward of which only the last matrix has a bias."""
    hidden = fields.size("hidden_size")
    block = feed_forward(hidden_size=hidden, intermediate_size=fields.size("intermediate_size"), gated=True)
    own = Weight(name="down_proj.bias", shape=(hidden,), role="bias")
    return (replace(block, weights=(*block.weights, own)),)


def adapters(fields: Fields) -> tuple[Block, ...]:
    """xmod: a feed-forward and, per language, an adapter of which a token uses one."""
    hidden, languages = fields.size("hidden_size"), fields.raw("languages")
    if not isinstance(languages, list) or not languages:
        raise ConfigError("languages must be a list with at least one language", field="languages")
    width = hidden // fields.size("adapter_reduction_factor")
    count = len(languages)
    block = feed_forward(hidden_size=hidden, intermediate_size=fields.size("intermediate_size"), gated=False, bias=True)
    weights = linear("adapters.up_proj", hidden, width, bias=True, copies=count)
    weights += linear("adapters.down_proj", width, hidden, bias=True, copies=count)
    if fields.flag("adapter_layer_norm"):
        weights += norm_weights("adapter_norm", hidden, "layer_norm")
    fields.ignore("default_language", "adapter_reuse_layer_norm", "ln_before_adapter")
    return block, Block(name="mlp", part="feed_forward", weights=weights, live_width=2 * hidden + width)


def relative_bias(fields: Fields) -> tuple[Block, ...]:
    """mpnet: a table of biases by distance and head, which all layers share."""
    rows, heads = fields.size("relative_attention_num_buckets"), fields.size("num_attention_heads")
    return (embedding("relative_attention_bias", rows, heads),)


def rotary_table(fields: Fields) -> tuple[Block, ...]:
    """roformer: sines and cosines stored as a weight."""
    return (embedding("embed_positions", fields.size("max_position_embeddings"), head_dim_of(fields)),)


def aggregation_head(fields: Fields) -> tuple[Block, ...]:
    """tapas: a projection to the aggregations, for answers from tables."""
    count = fields.count("num_aggregation_labels")
    if not count or fields.task != "table_question_answering":
        return ()
    return (head("aggregation", fields.size("hidden_size"), count, bias=True, positions=1),)


def contact_head(fields: Fields) -> tuple[Block, ...]:
    """esm: a regression over all attention maps, which runs only when contacts are asked for."""
    width = fields.layers() * fields.size("num_attention_heads")
    return (idle(Block(name="", part="head", weights=linear("contact_head", width, 1, bias=True))),)


def question_head(fields: Fields) -> tuple[Block, ...]:
    """big_bird: one more feed-forward with its norm before the spans of question answering."""
    if fields.task != "question_answering":
        return ()
    hidden, inner = fields.size("hidden_size"), fields.size("intermediate_size")
    weights = linear("qa_up", hidden, inner, bias=True) + linear("qa_down", inner, hidden, bias=True)
    weights += norm_weights("qa_norm", hidden, "layer_norm")
    return (Block(name="", part="head", weights=weights, live_width=2 * hidden + inner),)


def span_queries(fields: Fields) -> tuple[Block, ...]:
    """splinter: queries and keys for starts and ends, each made by a square matrix with a norm."""
    if fields.task == "base":
        return ()
    hidden = fields.size("hidden_size")
    blocks: list[Block] = []
    for end in ("start", "end"):
        for kind, positions in (("query", 1), ("key", None)):
            weights = linear(f"{kind}_{end}", hidden, hidden, bias=True, quantized=False)
            weights += norm_weights(f"{kind}_{end}_norm", hidden, "layer_norm")
            blocks.append(Block(name="", part="head", weights=weights, positions=positions, live_width=2 * hidden))
        weights = linear(f"{end}_classifier", hidden, hidden, quantized=False)
        blocks.append(Block(name="", part="head", weights=weights, positions=1))
        products = Recurrence(state_elements=0, token_flops=2 * hidden)
        blocks.append(Block(name=end, part="head", recurrence=products))
    return tuple(blocks)


def narrowing_head(fields: Fields) -> tuple[Block, ...]:
    """ultrabert: two matrices without biases before the projection to the vocabulary."""
    hidden, width = fields.size("hidden_size"), fields.size("prediction_head_size")
    if fields.task != "masked_lm":
        return ()
    weights = linear("head.linear1", hidden, width) + linear("head.linear2", width, hidden)
    return (Block(name="", part="head", weights=weights, live_width=hidden + width),)


def squad_head(fields: Fields) -> tuple[Block, ...]:
    """xlm, flaubert, xlnet: heads for start, end and answerability; the end is scored for `start_n_top` starts."""
    if fields.task != "question_answering":
        return ()
    hidden = fields.size("hidden_size")
    if class_of(fields).endswith("Simple"):
        return (head("qa_outputs", hidden, num_labels(fields), bias=True),)
    fields.ignore("end_n_top")
    starts = fields.size("start_n_top")
    ends = linear("end_logits.dense_0", 2 * hidden, hidden, bias=True)
    ends += norm_weights("end_logits.norm", hidden, "layer_norm")
    ends += linear("end_logits.dense_1", hidden, 1, bias=True)
    more = Recurrence(state_elements=0, token_flops=2 * hidden + (starts - 1) * 2 * (2 * hidden * hidden + hidden))
    answer = linear("answer_class.dense_0", 2 * hidden, hidden, bias=True) + linear("answer_class.dense_1", hidden, 1)
    return (
        Block(name="", part="head", weights=ends, recurrence=more, live_width=3 * hidden * starts),
        Block(name="", part="head", weights=answer, positions=1),
        head("start_logits", hidden, 1, bias=True),
    )
