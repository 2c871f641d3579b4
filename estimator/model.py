"""The PyTorch module of a config: what is trained, and what the ONNX file must agree with.

Its state dict has exactly the names and shapes of `weight_shapes`, so tied and shared weights stand in it once.

Shape suffixes: B batch, L sequence, D hidden, N query heads, K key-value heads, H head, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from estimator.config import Layer, TransformerConfig
from estimator.rotary import inverse_frequencies

__all__ = ["TransformerModel"]

INITIAL_STD = (
    0.02  # Source: GPT-2's released code; residual projections are divided by sqrt(2 * layers) as in its paper
)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


class TransformerModel(nn.Module):
    """A decoder or encoder stack with fresh weights: matrices N(0, 0.02), norm gains 1, biases 0.

    Raises:
        BuildError: the config's rope_scaling is of a type that cannot be built.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        if config.embedding_norm:
            self.embed_norm = _norm(config, config.hidden_size)
        if config.position_embedding == "rotary":
            # no buffer: libraries that load weights from a checkpoint leave those that are not in it empty
            self.frequencies_H = torch.from_numpy(inverse_frequencies(config))
        owners = [layer for layer in config.layers if layer.owns_weights]
        self.layers = nn.ModuleDict({str(layer.index): _Block(config, layer) for layer in owners})
        if config.norm_placement == "pre":
            self.norm = _norm(config, config.hidden_size)
        self._add_head()
        self.apply(_initialise)
        self._scale_residual_projections()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, L, V]; without a language head the hidden states [B, L, D], and with a pooler a pair with [B, D].

        input_ids, attention_mask (1 is a token, 0 is padding; encoders only), token_type_ids: int64 [B, L].
        """
        x_BLD = self._embed(input_ids, token_type_ids)
        turn = self._turn(input_ids) if self.config.position_embedding == "rotary" else None
        masks = {window: self._mask(window, input_ids, attention_mask) for window in self._windows()}
        for layer in self.config.layers:
            block = self.layers[str(layer.weight_source)]
            x_BLD = block(x_BLD, turn, masks[layer.sliding_window])
        return self._head(self.norm(x_BLD) if self.config.norm_placement == "pre" else x_BLD)

    def _embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        x_BLD: Tensor = self.embed_tokens(input_ids)
        if self.config.position_embedding == "learned":
            x_BLD = x_BLD + self.embed_positions.weight[: input_ids.shape[1]]
        if self.config.type_vocab_size:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x_BLD = x_BLD + self.embed_token_types(types)
        return self.embed_norm(x_BLD) if self.config.embedding_norm else x_BLD

    def _turn(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angles, both [L, H/2]."""
        positions_L = torch.arange(input_ids.shape[1], device=input_ids.device, dtype=torch.float32)
        angles_LH = positions_L[:, None] * self.frequencies_H.to(input_ids.device)
        return angles_LH.cos(), angles_LH.sin()

    def _windows(self) -> set[int | None]:
        return {layer.sliding_window for layer in self.config.layers}

    def _mask(self, window: int | None, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Which keys each query sees, boolean, fit for [B, N, L, L]; None when causality alone decides."""
        causal, padded = self.config.is_causal, attention_mask is not None and not self.config.is_causal
        mask = None
        if window is not None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            distance = positions[:, None] - positions
            mask = (distance >= 0) & (distance < window) if causal else distance.abs() < window
        if padded:
            assert attention_mask is not None
            real = attention_mask.bool()[:, None, None, :]
            mask = real if mask is None else real & mask
        return mask

    def _add_head(self) -> None:
        config = self.config
        if config.head == "pooler":
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        if config.head == "masked_lm":
            transform = nn.Linear(config.hidden_size, config.hidden_size)
            self.head = nn.ModuleDict({"transform": transform, "norm": _norm(config, config.hidden_size)})
        if config.head == "masked_lm" or (config.head == "causal_lm" and not config.tie_word_embeddings):
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head == "masked_lm")
            if config.tie_word_embeddings:
                del self.lm_head.weight

    def _head(self, x_BLD: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        config = self.config
        if config.head == "none":
            return x_BLD
        if config.head == "pooler":
            return x_BLD, torch.tanh(self.pooler(x_BLD[:, 0]))
        if config.head == "masked_lm":
            x_BLD = self.head["norm"](_ACTIVATIONS[config.hidden_act](self.head["transform"](x_BLD)))
        weight = self.embed_tokens.weight if config.tie_word_embeddings else self.lm_head.weight
        return functional.linear(x_BLD, weight, self.lm_head.bias if config.head == "masked_lm" else None)

    def _scale_residual_projections(self) -> None:
        factor = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data.mul_(factor)


class _Block(nn.Module):
    """Attention and feed-forward, each with its norm and residual addition."""

    def __init__(self, config: TransformerConfig, layer: Layer) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_placement == "pre"
        self.attention_norm = _norm(config, config.hidden_size)
        self.self_attn = _Attention(config, layer)
        self.mlp_norm = _norm(config, config.hidden_size)
        self.mlp = _Mlp(config, layer)

    def forward(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        if self.is_pre_norm:
            x_BLD = x_BLD + self.self_attn(self.attention_norm(x_BLD), turn, mask)
            return cast(Tensor, x_BLD + self.mlp(self.mlp_norm(x_BLD)))
        x_BLD = self.attention_norm(x_BLD + self.self_attn(x_BLD, turn, mask))
        return cast(Tensor, self.mlp_norm(x_BLD + self.mlp(x_BLD)))


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: Layer) -> None:
        super().__init__()
        self.is_causal, self.head_dim = config.is_causal, layer.head_dim
        self.is_grouped = layer.num_key_value_heads != layer.num_attention_heads
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, layer.query_size, bias=bias)
        self.k_proj = nn.Linear(hidden, layer.key_value_size, bias=bias)
        self.v_proj = nn.Linear(hidden, layer.key_value_size, bias=bias)
        self.o_proj = nn.Linear(layer.query_size, hidden, bias=config.attention_output_bias)
        self.q_norm = nn.RMSNorm(layer.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(layer.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BLD: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        q_BNLH = self.q_norm(self._heads(self.q_proj(x_BLD)))
        k_BKLH = self.k_norm(self._heads(self.k_proj(x_BLD)))
        v_BKLH = self._heads(self.v_proj(x_BLD))
        if turn is not None:
            q_BNLH, k_BKLH = _rotate(q_BNLH, *turn), _rotate(k_BKLH, *turn)
        is_causal = self.is_causal and mask is None
        y_BNLH = functional.scaled_dot_product_attention(
            q_BNLH, k_BKLH, v_BKLH, attn_mask=mask, is_causal=is_causal, enable_gqa=self.is_grouped
        )
        return cast(Tensor, self.o_proj(y_BNLH.transpose(1, 2).flatten(2)))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.view(*x_BLD.shape[:2], -1, self.head_dim).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, config: TransformerConfig, layer: Layer) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, layer.intermediate_size, config.mlp_bias
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.gate_proj = nn.Linear(hidden, inner, bias=bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        up_BLF = self.up_proj(x_BLD)
        if self.gate_proj is None:
            inner_BLF = self.activation(up_BLF)
        else:
            inner_BLF = self.activation(self.gate_proj(x_BLD)) * up_BLF
        return cast(Tensor, self.down_proj(inner_BLF))


def _rotate(x_BNLH: Tensor, cos_LH: Tensor, sin_LH: Tensor) -> Tensor:
    """Turns the pair (x[i], x[i + H/2]) by its angle, as Hugging Face lays out rotary weights."""
    first, second = x_BNLH.chunk(2, dim=-1)
    return torch.cat((first * cos_LH - second * sin_LH, second * cos_LH + first * sin_LH), dim=-1)


def _norm(config: TransformerConfig, size: int) -> nn.Module:
    kind = nn.LayerNorm if config.norm_type == "layer_norm" else nn.RMSNorm
    return kind(size, eps=config.norm_eps)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding) and "weight" in module._parameters:
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
