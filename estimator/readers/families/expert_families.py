"""Families of decoders with experts as rows of facts. Source: the classes of transformers 5.24, as for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from estimator.readers.families import decoder_oddities as odd
from estimator.readers.families import odd_attention as special
from estimator.readers.families.decoder_facts import (
    BIASED_ATTENTION,
    LLAMA,
    OLMO2,
    Decoder,
    Experts,
    Windows,
    all_but_every,
    all_layers,
    from_layer,
)
from estimator.readers.fields import Fields

__all__ = ["EXPERT_DECODERS", "HUNYUAN_IGNORED", "HUNYUAN_REQUIRED"]

# Experts as wide as the dense layers would be, in every layer.
_MIXTRAL = Experts(num_experts="num_local_experts", intermediate_size="intermediate_size", layers=all_layers)
_OLMOE = replace(_MIXTRAL, num_experts="num_experts")
_QWEN2 = Experts(
    num_experts="num_experts",
    layers=odd.sparse_steps,
    shared_intermediate_size="shared_expert_intermediate_size",
    shared_gate=True,
)
_DEEPSEEK = Experts(
    num_experts="n_routed_experts", layers=from_layer("first_k_dense_replace"), num_shared="n_shared_experts"
)
# Fields of published configs of DeepSeek's kind: layers that predict further tokens are in no class.
_NEXT_TOKENS = ("num_nextn_predict_layers",)
_ONE = {"moe_layer_freq": (1, None)}
_DEEPSEEK_V3 = Decoder(latent=True, qkv_bias="attention_bias", ignored=_NEXT_TOKENS, required=_ONE, experts=_DEEPSEEK)
_GLM4 = Decoder(qkv_bias="attention_bias", has_qk_norm="use_qk_norm", ignored=_NEXT_TOKENS, experts=_DEEPSEEK)
_GRANITE_SWA = Windows(layers=all_but_every(4, first=0))


def _no_layers(fields: Fields, num_layers: int) -> Sequence[bool]:
    """Only `layer_types` says which layers have a window."""
    return [False] * num_layers


_MINIMAX_IGNORED = (
    "attn_type_list",
    "layernorm_full_attention_beta",
    "layernorm_linear_attention_beta",
    "layernorm_mlp_beta",
    "mlp_intermediate_size",
    "mtp_transformer_layers",
    "num_mtp_modules",
    "use_mtp",
    "use_routing_bias",
)
# Tencent publishes one bag of fields for models of many kinds; the classes read few of them.
HUNYUAN_REQUIRED = {"use_cla": (False, None), "use_mla": (False, None), "use_qk_norm": (True, None)}
HUNYUAN_IGNORED = (
    "attention_head_dim",
    "cla_share_factor",
    "class_num",
    "dense_list",
    "group_limited_greedy",
    "im_end_id",
    "im_newline_id",
    "im_start_id",
    "kv_lora_rank",
    "mask_init_id",
    "moe_drop_tokens",
    "moe_intermediate_size",
    "moe_layer_num_skipped",
    "moe_random_routing_dropped_token",
    "moe_topk",
    "norm_type",
    "num_media_embeds",
    "num_shared_expert",
    "org_vocab_size",
    "pad_id",
    "pool_type",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "text_end_id",
    "text_start_id",
    "use_mixed_mlp_moe",
    "use_rotary_pos_emb",
    "v_head_dim",
    "video_end_id",
    "video_start_id",
    "xdrope_section",
)

EXPERT_DECODERS: Mapping[str, Decoder] = {
    "afmoe": replace(
        BIASED_ATTENTION,
        norms=4,
        has_qk_norm=True,
        attention_extra=odd.gate_projection,
        windows=Windows(layers=all_but_every(4, field="global_attn_every_n_layers")),
        experts=Experts(
            num_experts="num_experts",
            layers=from_layer("num_dense_layers"),
            num_shared="num_shared_experts",
            router_vector=True,
        ),
    ),
    "aria_text": replace(
        LLAMA,
        experts=Experts(
            num_experts="moe_num_experts",
            num_experts_per_tok="moe_topk",
            intermediate_size="intermediate_size",
            layers=all_layers,
            num_shared="moe_num_shared_experts",
            shared_bias="mlp_bias",
        ),
    ),
    "axk1": replace(_DEEPSEEK_V3, experts=replace(_DEEPSEEK, layers=odd.axk_layers, others=odd.axk_norm), required={}),
    "beam": replace(
        BIASED_ATTENTION,
        norms=4,
        has_qk_norm=True,
        attention_extra=odd.beam_gate,
        windows=Windows(layers=all_but_every(6, also=(-1,))),
        experts=Experts(num_experts="num_experts", layers=from_layer(3)),
    ),
    "cohere2_moe": replace(
        BIASED_ATTENTION,
        norm="layer_norm_without_bias",
        norms=1,
        windows=Windows(layers=odd.cohere_layers),
        intermediate_size=lambda f: f.optional_size("prefix_dense_intermediate_size") or f.size("intermediate_size"),
        experts=replace(_OLMOE, layers=from_layer("first_k_dense_replace"), num_shared="num_shared_experts"),
        ignored=(
            "prefix_dense_sliding_window_pattern",
            "prefix_dense_intermediate_size",
            "expert_selection_fn",
            "shared_expert_combination_strategy",
        ),
    ),
    "dbrx": Decoder(
        norm="layer_norm_without_bias",
        head_dim=None,
        square=True,
        max_position_embeddings="max_seq_len",
        key_value_heads="attn_config.kv_n_heads",
        experts=Experts(
            num_experts="ffn_config.moe_num_experts",
            num_experts_per_tok="ffn_config.moe_top_k",
            intermediate_size="ffn_config.ffn_hidden_size",
            layers=all_layers,
        ),
        ignored=("ffn_config", "attn_config", "num_key_value_heads"),
    ),
    "deepseek_v2": replace(_DEEPSEEK_V3, mlp_bias="mlp_bias", experts=replace(_DEEPSEEK, shared_bias="mlp_bias")),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": replace(_DEEPSEEK_V3, layer_blocks=special.indexer, ignored=(*_NEXT_TOKENS, "mlp_bias")),
    "dots1": replace(
        BIASED_ATTENTION,
        has_qk_norm=True,
        windows=Windows(layers=from_layer("max_window_layers")),
        ignored=_NEXT_TOKENS,
        required=_ONE,
        experts=_DEEPSEEK,
    ),
    "ernie4_5_moe": Decoder(
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        experts=Experts(
            num_experts="moe_num_experts",
            num_experts_per_tok="moe_k",
            layers=odd.ernie_layers,
            num_shared="moe_num_shared_experts",
            shared_bias="use_bias",
            router_vector=True,
        ),
        head_bias="use_bias",
        ignored=(
            "moe_layer_start_index",
            "moe_layer_end_index",
            "moe_layer_interval",
            "moe_capacity",
            "moe_gate",
            "moe_use_aux_free",
            "moe_multimodal_dispatch_use_allgather",
            "num_nextn_predict_layers",
        ),
    ),
    "exaone_moe": Decoder(
        has_qk_norm=True,
        windows=Windows(layers=all_but_every(4, field="sliding_window_pattern")),
        experts=Experts(
            num_experts="num_experts", layers=from_layer("first_k_dense_replace"), num_shared="num_shared_experts"
        ),
        ignored=_NEXT_TOKENS,
    ),
    "flex_olmo": replace(OLMO2, experts=_OLMOE),
    "flint": replace(
        BIASED_ATTENTION,
        sinks=True,
        has_qk_norm=True,
        windows=Windows(layers=all_but_every(4, first=1, also=(0, -1))),
        experts=replace(_QWEN2, layers=odd.flint_layers, shared_gate=False),
    ),
    "glm_moe_dsa": replace(
        _DEEPSEEK_V3,
        layer_blocks=special.shared_indexer,
        ignored=(*_NEXT_TOKENS, "mlp_bias", "index_topk", "index_n_heads", "index_head_dim"),
    ),
    "glm4_moe": _GLM4,
    "glm4_moe_lite": replace(_DEEPSEEK_V3, experts=replace(_DEEPSEEK, layers=from_layer(1))),
    "gpt_oss": Decoder(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        sinks=True,
        windows=Windows(layers=all_but_every(2)),
        experts=replace(_MIXTRAL, bias=True, router_bias=True),
        ignored=("experts_per_token",),
    ),
    "granitemoe": replace(BIASED_ATTENTION, experts=_MIXTRAL),
    "granitemoe_swa": replace(
        BIASED_ATTENTION,
        sinks=True,
        windows=_GRANITE_SWA,
        experts=replace(_MIXTRAL, shared_intermediate_size="shared_intermediate_size"),
    ),
    "granitemoeshared": replace(
        BIASED_ATTENTION, experts=replace(_MIXTRAL, shared_intermediate_size="shared_intermediate_size")
    ),
    "hunyuan_v1_moe": replace(
        BIASED_ATTENTION,
        has_qk_norm=True,
        ignored=HUNYUAN_IGNORED,
        required=HUNYUAN_REQUIRED,
        experts=replace(_OLMOE, num_experts_per_tok=odd.hunyuan_active_experts, num_shared=1),
    ),
    "hy_v3": replace(
        LLAMA,
        has_qk_norm=True,
        experts=Experts(
            num_experts="num_experts", layers=from_layer(1), num_shared="num_shared_experts", shared_bias="mlp_bias"
        ),
    ),
    "jetmoe": Decoder(
        attention_block=odd.jetmoe_attention,
        ignored=("num_attention_heads",),
        experts=replace(_MIXTRAL, others=odd.jetmoe_bias),
    ),
    "kolibri1": Decoder(
        norms=4,
        has_qk_norm=True,
        windows=Windows(layers=all_but_every(5)),
        experts=Experts(
            num_experts="num_experts",
            layers=all_layers,
            shared_intermediate_size="shared_expert_intermediate_size",
        ),
    ),
    "laguna": Decoder(
        attention_block=special.laguna_attention,
        windows=Windows(layers=_no_layers),
        experts=Experts(
            num_experts="num_experts",
            layers=from_layer(1),
            shared_intermediate_size="shared_expert_intermediate_size",
            router_vector=True,
        ),
        required={"moe_apply_router_weight_on_input": (False,)},
    ),
    "llama4_text": replace(
        BIASED_ATTENTION,
        windows=Windows(field="attention_chunk_size", layers=odd.layers_with_rope),
        intermediate_size="intermediate_size_mlp",
        experts=replace(_MIXTRAL, layers=odd.interleaved_layers, num_shared=1),
        ignored=("moe_layers", "interleave_moe_layer_step", "use_qk_norm", "for_llm_compressor"),
    ),
    "longcat_flash": Decoder(
        num_hidden_layers="num_layers",
        norms=4,
        latent=True,
        qkv_bias="attention_bias",
        intermediate_size="ffn_hidden_size",
        layer_blocks=special.longcat_blocks,
    ),
    "mellum": replace(
        BIASED_ATTENTION,
        has_qk_norm=True,
        windows=Windows(layers=_no_layers),
        experts=Experts(num_experts="num_experts", layers=all_layers),
        ignored=(*_NEXT_TOKENS, "mtp_layer_types", "mtp_mlp_layer_types"),
    ),
    "mimo_v2_flash": Decoder(
        attention_block=special.mimo_attention,
        windows=Windows(layers=all_but_every(6, also=(0,))),
        experts=Experts(num_experts="n_routed_experts", layers=from_layer(1)),
    ),
    "minimax_m2": Decoder(
        has_qk_norm=True,
        qk_norm="full",
        experts=_MIXTRAL,
        ignored=_MINIMAX_IGNORED,
        required={
            "use_qk_norm": (True, None),
            "qk_norm_type": ("per_layer", None),
            "shared_intermediate_size": (0, None),
        },
    ),
    "minimax_m3_vl_text": Decoder(
        has_qk_norm=True,
        layer_blocks=special.minimax_indexer,
        intermediate_size="dense_intermediate_size",
        experts=replace(_MIXTRAL, shared_intermediate_size="shared_intermediate_size"),
    ),
    "mistral4": _DEEPSEEK_V3,
    "mixtral": Decoder(windows=Windows(layers=all_layers), experts=_MIXTRAL),
    "olmoe": replace(OLMO2, square=True, experts=_OLMOE),
    "phimoe": replace(
        BIASED_ATTENTION,
        norm="layer_norm",
        head_bias="lm_head_bias",
        windows=Windows(layers=all_layers),
        experts=_MIXTRAL,
    ),
    "qwen2_moe": Decoder(
        qkv_bias="qkv_bias",
        windows=Windows(switch="use_sliding_window", layers=odd.alternating_below_max_window_layers),
        experts=_QWEN2,
    ),
    "qwen3_moe": replace(
        BIASED_ATTENTION,
        has_qk_norm=True,
        windows=Windows(switch="use_sliding_window", layers=all_layers),
        experts=Experts(num_experts="num_experts", layers=odd.sparse_steps),
    ),
    "sarvam_mla": _DEEPSEEK_V3,
    "sarvam_moe": _GLM4,
    "solar_open": Decoder(
        qkv_bias="attention_bias", ignored=_NEXT_TOKENS, experts=replace(_DEEPSEEK, layers=all_layers)
    ),
}
