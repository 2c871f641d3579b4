"""Families of decoders as rows of facts. Source: the classes of transformers 5.24, which the tests compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from estimator.readers.decoders import Decoder, Experts

__all__ = ["DECODERS"]

_LLAMA = Decoder()
_QWEN2 = Decoder(qkv_bias=True, windows="qwen")
_QWEN3 = Decoder(qkv_bias="attention_bias", output_bias="attention_bias", has_qk_norm=True, windows="qwen")
_BIASED = Decoder(norm="layer_norm", gated=False, qkv_bias=True, output_bias=True, mlp_bias=True)
_DEEPSEEK = Decoder(
    latent=True,
    ignored=("moe_layer_freq", "num_nextn_predict_layers"),
    qkv_bias="attention_bias",
    experts=Experts(num_experts="n_routed_experts", layers="after_dense", shared="count"),
)

DECODERS: Mapping[str, Decoder] = {
    "llama": Decoder(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Decoder(windows="all"),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gpt2": replace(_BIASED, positions="learned", intermediate_size="n_inner", key_value_heads="num_attention_heads"),
    "mixtral": Decoder(
        windows="all", experts=Experts(num_experts="num_local_experts", intermediate_size="intermediate_size")
    ),
    "qwen3_moe": replace(_QWEN3, windows="qwen", experts=Experts(num_experts="num_experts", layers="sparse_step")),
    "qwen2_moe": replace(
        _QWEN2,
        qkv_bias="qkv_bias",
        experts=Experts(
            num_experts="num_experts",
            layers="sparse_step",
            shared="size",
            shared_field="shared_expert_intermediate_size",
            shared_gate=True,
        ),
    ),
    "deepseek_v3": _DEEPSEEK,
    "phi": replace(_BIASED, norms=1, head_bias=True, has_qk_norm="qk_layernorm"),
    "gpt_oss": Decoder(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        sinks=True,
        windows="types",
        full_attention_every=2,
        experts=Experts(
            num_experts="num_local_experts", intermediate_size="intermediate_size", bias=True, router_bias=True
        ),
    ),
}
