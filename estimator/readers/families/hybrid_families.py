"""Hybrid and recurrent families, from model type to reader. Source: the classes of transformers 5.24."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from estimator.network import Network
from estimator.readers.families.delta_nets import (
    bailing_hybrid,
    kimi_linear,
    lara_mini,
    olmo_hybrid,
    qwen3_5_text,
    qwen3_next,
)
from estimator.readers.families.inkling import inkling_text
from estimator.readers.families.mamba_models import (
    bamba,
    falcon_h1,
    granite_hybrid,
    jamba,
    mamba2_model,
    mamba_model,
    nemotron_h,
)
from estimator.readers.families.qwen3_5 import qwen3_5, qwen3_5_vision
from estimator.readers.families.recurrent_models import (
    lfm2,
    lfm2_moe,
    lfm3,
    minimax,
    recurrent_gemma,
    rwkv_model,
    xlstm,
    zamba,
    zamba2,
)
from estimator.readers.families.zaya import zaya
from estimator.readers.fields import Fields

__all__ = ["READERS"]

READERS: Mapping[str, Callable[[Fields], Network]] = {
    "bailing_hybrid": bailing_hybrid,
    "bamba": bamba,
    "falcon_h1": falcon_h1,
    "falcon_mamba": mamba_model,
    "granitemoehybrid": granite_hybrid,
    "inkling_text": inkling_text,
    "jamba": jamba,
    "kimi_linear": kimi_linear,
    "lara_mini": lara_mini,
    "lfm2": lfm2,
    "lfm2_moe": lfm2_moe,
    "lfm3": lfm3,
    "mamba": mamba_model,
    "mamba2": mamba2_model,
    "minimax": minimax,
    "nemotron_h": nemotron_h,
    "olmo_hybrid": olmo_hybrid,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5,
    "qwen3_5_moe_text": qwen3_5_text,
    "qwen3_5_moe_vision": qwen3_5_vision,
    "qwen3_5_text": qwen3_5_text,
    "qwen3_5_vision": qwen3_5_vision,
    "qwen3_next": qwen3_next,
    "recurrent_gemma": recurrent_gemma,
    "rwkv": rwkv_model,
    "xlstm": xlstm,
    "zamba": zamba,
    "zamba2": zamba2,
    "zaya": zaya,
}
