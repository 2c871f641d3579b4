"""Families of decoders as rows of facts. Source: the classes of transformers 5.24, which the tests compare with.

To add a family, add a row: docs/howto/add-architecture.md. Families with experts stand in `expert_families.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.network import Network
from estimator.readers.families import decoder_oddities as odd
from estimator.readers.families import gemma_blocks as gemma
from estimator.readers.families.decoder_facts import (
    BIASED_ATTENTION,
    LLAMA,
    OLMO2,
    Decoder,
    Windows,
    all_but_every,
    all_layers,
    from_layer,
)
from estimator.readers.families.decoders import decoder_network
from estimator.readers.families.expert_families import EXPERT_DECODERS, HUNYUAN_IGNORED, HUNYUAN_REQUIRED
from estimator.readers.families.odd_attention import (
    differential_attention,
    modernbert_head,
    norm_behind_the_first_layer,
)
from estimator.readers.fields import Fields

__all__ = ["DECODERS", "READERS"]

_ALL_WINDOWED = Windows(layers=all_layers)
_QWEN_WINDOWS = Windows(switch="use_sliding_window", layers=from_layer("max_window_layers"))
_QWEN2 = Decoder(qkv_bias=True, windows=_QWEN_WINDOWS)
_QWEN3 = replace(BIASED_ATTENTION, has_qk_norm=True, windows=_QWEN_WINDOWS)
_BOTH_SIDES = "use_bidirectional_attention"
_GEMMA2 = replace(
    BIASED_ATTENTION,
    bidirectional=_BOTH_SIDES,
    norms=4,
    ignored=("sliding_window_size",),
    windows=Windows(layers=all_but_every(2)),
)
_GLM = Decoder(qkv_bias="attention_bias")
_COHERE = replace(BIASED_ATTENTION, norm="layer_norm_without_bias", norms=1, qk_norm="per_head")

_COHERE2_REQUIRED = {
    "order_of_interleaved_layers": ("local_attn_first", None),
    "position_embedding_type": ("rope_gptj", None),
    "use_embedding_sharing": (True, None),
    "use_gated_activation": (True, None),
    "use_parallel_block": (True, None),
}

# GPT-2 and those after it: layer norms with bias, a plain feed-forward, heads of hidden size / heads, all with keys.
_GPT = Decoder(
    norm="layer_norm",
    gated=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    head_dim=None,
    square=True,
    key_value_heads="num_attention_heads",
)
_GPT2 = replace(_GPT, positions="learned", intermediate_size="n_inner", required={"add_cross_attention": (False, None)})
_BIGCODE_IGNORED = (
    "num_key_value_heads",
    "inference_runner",
    "max_batch_size",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "validate_runner_input",
)
_GPTJ = replace(
    _GPT,
    norms=1,
    qkv_bias=False,
    output_bias=False,
    head_bias=True,
    intermediate_size="n_inner",
    ignored=("rotary_dim",),
)
# Whether the halves of a layer run side by side changes no size; nor does a word that says it is a decoder.
_NEOX_IGNORED = ("use_parallel_residual", "is_decoder")
_BLOOM_IGNORED = ("bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add", "unk_token_id")
_GPT_BLOOM = replace(_GPT, positions="none", embedding_norm=True, intermediate_size=lambda fields: None)

DECODERS: Mapping[str, Decoder] = {
    # llama and its renamings
    "llama": LLAMA,
    "mistral": Decoder(windows=_ALL_WINDOWED),
    "arcee": replace(LLAMA, gated=False),
    "bitnet": replace(BIASED_ATTENTION, square=True, attention_extra=odd.bitnet_norm, mlp_extra=odd.bitnet_mlp_norm),
    "cwm": Decoder(mlp_bias="mlp_bias", windows=Windows(layers=all_but_every(4, first=0))),
    "diffllama": replace(BIASED_ATTENTION, attention_block=differential_attention),
    "ernie4_5": Decoder(qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias"),
    "exaone": LLAMA,
    "gemma": replace(BIASED_ATTENTION, bidirectional=_BOTH_SIDES),
    "glm": _GLM,
    "granite": LLAMA,
    "granite_swa": replace(LLAMA, sinks=True, windows=Windows(layers=all_but_every(4, first=0))),
    "helium": Decoder(square=True, qkv_bias="attention_bias", mlp_bias="mlp_bias"),
    "hunyuan_v1_dense": replace(
        BIASED_ATTENTION,
        has_qk_norm=True,
        ignored=HUNYUAN_IGNORED,
        required=HUNYUAN_REQUIRED | {"num_experts": (1, None)},
    ),
    "hyperclovax": replace(LLAMA, norms=lambda fields: 4 if fields.flag("use_post_norm") else 2),
    "internlm3": LLAMA,
    "iquestcoder": LLAMA,
    "ministral": Decoder(windows=_ALL_WINDOWED),
    "ministral3": Decoder(windows=_ALL_WINDOWED),
    "nanochat": replace(BIASED_ATTENTION, norm="none", gated=False),
    "phi3": Decoder(windows=_ALL_WINDOWED, required={"full_attn_mod": (1, None), "interpolate_factor": (1, None)}),
    "seed_oss": Decoder(qkv_bias="attention_bias", output_bias="attention_out_bias", mlp_bias="mlp_bias"),
    "smollm3": replace(LLAMA, windows=Windows(switch="use_sliding_window", layers=odd.layers_without_rope)),
    # norms on queries and keys, more norms, windows
    "apertus": replace(
        BIASED_ATTENTION,
        gated=False,
        has_qk_norm=True,
        mlp_extra=odd.xielu_vectors,
        required={"qk_norm": (True, None)},
    ),
    "apertus1p5_text": replace(
        BIASED_ATTENTION,
        gated=False,
        has_qk_norm=True,
        mlp_extra=odd.xielu_vectors,
        required={"qk_norm": (True, None)},
        output_vocab_size="output_vocab_size",
    ),
    "cohere": replace(_COHERE, has_qk_norm="use_qk_norm"),
    "cohere2": replace(
        _COHERE,
        ignored=("layer_switch",),
        required=_COHERE2_REQUIRED,
        windows=Windows(layers=all_but_every(4, field="sliding_window_pattern")),
    ),
    "doge": replace(
        LLAMA,
        has_qk_norm=True,
        windows=_ALL_WINDOWED,
        attention_extra=odd.doge_attention,
        layer_blocks=odd.doge_blocks,
        ignored=("keep_window_size",),
    ),
    "exaone4": Decoder(has_qk_norm=True, windows=Windows(layers=all_but_every(4, field="sliding_window_pattern"))),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2, has_qk_norm=True, windows=Windows(layers=all_but_every(6, field="sliding_window_pattern"))
    ),
    "gemma3n_text": replace(
        _GEMMA2,
        bidirectional=False,
        windows=Windows(layers=all_but_every(5)),
        attention_block=gemma.sharing_attention,
        feed_forward_block=gemma.feed_forward_of_layer,
        before_blocks=gemma.blocks_before_gemma3n,
        layer_blocks=gemma.gemma3n_blocks,
        ignored=("activation_sparsity_pattern",),
    ),
    "gemma4_text": replace(
        _GEMMA2,
        windows=Windows(layers=all_but_every(6)),
        attention_block=gemma.gemma4_attention,
        feed_forward_block=gemma.gemma4_feed_forward,
        before_blocks=gemma.blocks_before_gemma4,
        layer_blocks=gemma.gemma4_blocks,
        bidirectional=False,
        required={"use_bidirectional_attention": (None, False, "vision")},
    ),
    "glm4": replace(_GLM, norms=4),
    "olmo": replace(BIASED_ATTENTION, norm="none"),
    "olmo2": OLMO2,
    "olmo3": replace(OLMO2, windows=Windows(layers=all_but_every(4))),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "vaultgemma": replace(_GEMMA2, norms=2, bidirectional=False),
    # latent attention
    "minicpm3": replace(LLAMA, latent=True, output_bias=False),
    "youtu": replace(LLAMA, latent=True, output_bias=False),
    # GPT-2 and its renamings
    "biogpt": replace(_GPT, positions="learned", extra_positions=2),
    "bloom": replace(_GPT_BLOOM, renamed={"n_embed": "hidden_size"}, ignored=_BLOOM_IGNORED),
    "codegen": _GPTJ,
    "ctrl": replace(_GPT, positions="none", head_bias=True, intermediate_size="dff"),
    "falcon": replace(
        _GPT,
        norms=odd.falcon_gets_two_norms,
        qkv_bias="bias",
        output_bias="bias",
        mlp_bias="bias",
        key_value_heads=odd.falcon_key_value_heads,
        intermediate_size="ffn_hidden_size",
        renamed={"n_embed": "hidden_size"},
        ignored=("alibi", "ff_factor", "multi_query", "num_ln_in_parallel_attn"),
    ),
    "gpt-sw3": _GPT2,
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, key_value_heads=odd.multi_query_heads, ignored=_BIGCODE_IGNORED),
    "gpt_neo": replace(
        _GPT,
        positions="learned",
        qkv_bias=False,
        windows=Windows(field="window_size", layers=odd.local_layers),
        ignored=("attention_types", "attention_layers"),
    ),
    "gpt_neox": replace(_GPT, qkv_bias="attention_bias", output_bias="attention_bias", ignored=_NEOX_IGNORED),
    "gpt_neox_japanese": replace(
        _GPT,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        intermediate_size=odd.multiple_of_hidden_size,
        layer_blocks=odd.bias_of_the_last_layer,
        ignored=("is_decoder",),
    ),
    "gptj": _GPTJ,
    "jais2": replace(LLAMA, norm="layer_norm", gated=False),
    "modernbert-decoder": Decoder(
        norm=odd.norm_with_optional_bias,
        norms=1,
        embedding_norm=True,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        head_bias="decoder_bias",
        classifier_bias="classifier_bias",
        before_head=modernbert_head,
        key_value_heads="num_attention_heads",
        head_dim=None,
        square=True,
        windows=Windows(
            field=odd.half_local_attention,
            layers=all_but_every(3, first=0, field="global_attn_every_n_layers"),
        ),
        layer_blocks=norm_behind_the_first_layer,
        ignored=("sliding_window", "local_attention"),
    ),
    "mpt": replace(
        _GPT,
        norm="layer_norm_without_bias",
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        positions="none",
        max_position_embeddings="max_seq_len",
        intermediate_size=lambda fields: None,
        ignored=("attn_config", "embedding_fraction", "init_device", "learned_pos_emb", "norm_type"),
        required={
            "attn_config.attn_type": ("multihead_attention", None),
            "attn_config.qk_ln": (False, None),
            "expansion_ratio": (4,),
            "no_bias": (True,),
        },
    ),
    "nemotron": replace(LLAMA, norm="layer_norm", gated=False),
    "openai-gpt": replace(
        _GPT,
        ignored=("predict_special_tokens",),
        required={"n_special": (0, None)},
        positions="learned",
        final_norm=False,
        intermediate_size=lambda fields: None,
    ),
    "opt": replace(
        _GPT,
        norm=lambda fields: "layer_norm" if fields.flag("layer_norm_elementwise_affine") else "none",
        final_norm=lambda f: f.flag("do_layer_norm_before") and not f.flag("_remove_final_layer_norm"),
        qkv_bias="enable_bias",
        output_bias="enable_bias",
        mlp_bias="enable_bias",
        positions="learned",
        extra_positions=2,
        embedding_size="word_embed_proj_dim",
        intermediate_size="ffn_dim",
    ),
    "persimmon": replace(_GPT, has_qk_norm="qk_layernorm"),
    "phi": replace(
        _GPT,
        norms=1,
        head_bias=True,
        has_qk_norm="qk_layernorm",
        head_dim="head_dim",
        square=False,
        key_value_heads="num_key_value_heads",
    ),
    "stablelm": Decoder(
        norm="layer_norm",
        norms=lambda fields: 1 if fields.flag("use_parallel_residual") else 2,
        qkv_bias="use_qkv_bias",
        qk_norm="per_head",
        has_qk_norm="qk_layernorm",
        qk_norm_kind="layer_norm_without_bias",
        head_dim=None,
        square=True,
    ),
    "starcoder2": Decoder(
        norm="layer_norm",
        gated=False,
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        required={"mlp_type": ("default", None), "norm_type": ("layer_norm", None)},
        windows=_ALL_WINDOWED,
    ),
    "xglm": replace(_GPT, positions="none", intermediate_size="ffn_dim", required={"add_cross_attention": (False,)}),
    **EXPERT_DECODERS,
}

READERS: Mapping[str, Callable[[Fields], Network]] = {
    name: functools.partial(decoder_network, facts=facts) for name, facts in DECODERS.items()
}
