"""The nodes of a config's ONNX graph: embeddings, blocks, heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.config import Layer, TransformerConfig
from estimator.onnx_graph import GraphWriter
from estimator.ort_session import past_names, present_names
from estimator.rotary import inverse_frequencies

__all__ = ["BUILD_DTYPES", "write_graph"]

BUILD_DTYPES = ("fp32", "int8")
Weights = Mapping[str, NDArray[np.float32]]
_TOKENS = ("batch_size", "sequence_length")


def write_graph(config: TransformerConfig, weights: Weights, *, weight_dtype: str) -> GraphWriter:
    """The complete graph of `config`."""
    blocks = _Blocks(config, weights, weight_dtype)
    blocks.write()
    return blocks.writer


class _Blocks:
    def __init__(self, config: TransformerConfig, weights: Weights, weight_dtype: str) -> None:
        self.config = config
        self.weights = weights
        self.weight_dtype = weight_dtype
        self.writer = GraphWriter()
        self._masks: dict[int | None, str] = {}
        self._names: dict[str, str] = {}

    def write(self) -> None:
        self._declare_inputs()
        self._declare_outputs()
        hidden = self._embed()
        for layer in self.config.layers:
            hidden = self._layer(layer, hidden)
        if self.config.norm_placement == "pre":
            hidden = self._norm("norm", hidden)
        self._head(hidden)

    # Inputs and embeddings

    def _declare_inputs(self) -> None:
        config, writer = self.config, self.writer
        writer.input("input_ids", "int64", _TOKENS)
        if config.type_vocab_size:
            writer.input("token_type_ids", "int64", _TOKENS)
        if not config.is_causal:
            writer.input("attention_mask", "int64", _TOKENS)
            self.positions = self._encoder_positions()
            return
        self.positions = writer.input("position_ids", "int64", _TOKENS)
        for layer in config.layers:
            shape = ("batch_size", layer.num_key_value_heads, "past_sequence_length", layer.head_dim)
            for name in past_names(layer.index):
                writer.input(name, "float", shape)

    def _declare_outputs(self) -> None:
        config, writer = self.config, self.writer
        if config.head in ("causal_lm", "masked_lm"):
            writer.output("logits", "float", (*_TOKENS, config.vocab_size))
        else:
            writer.output("last_hidden_state", "float", (*_TOKENS, config.hidden_size))
        if config.head == "pooler":
            writer.output("pooler_output", "float", ("batch_size", config.hidden_size))
        for layer in config.layers if config.is_causal else ():
            shape = ("batch_size", layer.num_key_value_heads, "total_sequence_length", layer.head_dim)
            for name in present_names(layer.index):
                writer.output(name, "float", shape)

    def _encoder_positions(self) -> str:
        writer = self.writer
        length = writer.node("Shape", "input_ids", start=1, end=2)
        scalar = writer.node("Squeeze", length)
        return writer.node(
            "Unsqueeze", writer.node("Range", writer.scalar(0), scalar, writer.scalar(1)), writer.ints(0)
        )

    def _embed(self) -> str:
        config, writer = self.config, self.writer
        hidden = writer.node("Gather", self._weight("embed_tokens.weight"), "input_ids")
        if config.position_embedding == "learned":
            table = self._weight("embed_positions.weight")
            hidden = writer.node("Add", hidden, writer.node("Gather", table, self.positions))
        if config.type_vocab_size:
            table = self._weight("embed_token_types.weight")
            hidden = writer.node("Add", hidden, writer.node("Gather", table, "token_type_ids"))
        if config.position_embedding == "rotary":
            self._angles()
        return self._norm("embed_norm", hidden) if config.embedding_norm else hidden

    def _angles(self) -> None:
        """Cosines and sines of position times inverse frequency, [batch_size, sequence_length, H/2]."""
        writer = self.writer
        frequencies = writer.initializer("inverse_frequencies", inverse_frequencies(self.config))
        positions = writer.node("Unsqueeze", writer.node("Cast", self.positions, to=1), writer.ints(-1))
        angles = writer.node("Mul", positions, frequencies)
        if not self.config.is_causal:  # one row of positions for the whole batch
            shape = writer.node("Concat", writer.node("Shape", "input_ids"), writer.ints(1), axis=0)
            angles = writer.node("Expand", angles, shape)
        self.cosines, self.sines = writer.node("Cos", angles), writer.node("Sin", angles)

    # Blocks

    def _layer(self, layer: Layer, hidden: str) -> str:
        owner, pre = f"layers.{layer.weight_source}", self.config.norm_placement == "pre"
        for norm, block in ((f"{owner}.attention_norm", self._attention), (f"{owner}.mlp_norm", self._mlp)):
            update = block(layer, owner, self._norm(norm, hidden) if pre else hidden)
            hidden = self.writer.node("Add", hidden, update)
            hidden = hidden if pre else self._norm(norm, hidden)
        return hidden

    def _attention(self, layer: Layer, owner: str, x: str) -> str:
        config, writer, prefix = self.config, self.writer, f"{owner}.self_attn"
        query, key, value = (self._linear(f"{prefix}.{name}_proj", x) for name in "qkv")
        if config.qk_norm:
            query = self._head_norm(f"{prefix}.q_norm", query, layer.num_attention_heads)
            key = self._head_norm(f"{prefix}.k_norm", key, layer.num_key_value_heads)
        if config.position_embedding == "rotary":
            query = self._rotate(query, layer.num_attention_heads)
            key = self._rotate(key, layer.num_key_value_heads)
        heads: dict[str, Any] = {"q_num_heads": layer.num_attention_heads, "kv_num_heads": layer.num_key_value_heads}
        mask = self._mask(layer.sliding_window)
        if not config.is_causal:
            output = writer.node("Attention", query, key, value, mask, **heads)
        else:
            past = past_names(layer.index)
            outputs = (f"attention_{layer.index}", *present_names(layer.index))
            causal = int(layer.sliding_window is None)
            output = writer.node(
                "Attention", query, key, value, mask, *past, outputs=outputs, is_causal=causal, **heads
            )
        return self._linear(f"{prefix}.o_proj", output)

    def _rotate(self, x: str, num_heads: int) -> str:
        return self.writer.node("RotaryEmbedding", x, self.cosines, self.sines, num_heads=num_heads)

    def _head_norm(self, name: str, x: str, num_heads: int) -> str:
        """RMSNorm of each head by itself."""
        writer, head_dim = self.writer, self.config.resolved_head_dim
        heads = writer.node("Reshape", x, writer.ints(0, 0, num_heads, head_dim))
        normed = writer.node(
            "RMSNormalization", heads, self._weight(f"{name}.weight"), axis=-1, epsilon=self.config.norm_eps
        )
        return writer.node("Reshape", normed, writer.ints(0, 0, num_heads * head_dim))

    def _mlp(self, layer: Layer, owner: str, x: str) -> str:
        prefix = f"{owner}.mlp"
        up = self._linear(f"{prefix}.up_proj", x)
        if self.config.gated_mlp:
            inner = self.writer.node("Mul", self._activate(self._linear(f"{prefix}.gate_proj", x)), up)
        else:
            inner = self._activate(up)
        return self._linear(f"{prefix}.down_proj", inner)

    def _activate(self, x: str) -> str:
        writer, name = self.writer, self.config.hidden_act
        if name == "silu":
            return writer.node("Mul", x, writer.node("Sigmoid", x))
        if name == "relu":
            return writer.node("Relu", x)
        return writer.node("Gelu", x, approximate="none" if name == "gelu" else "tanh")

    # Masks

    def _mask(self, window: int | None) -> str:
        """Which keys each query sees, boolean; made once for each distinct window. "" is no mask beside causality."""
        if window not in self._masks:
            self._masks[window] = self._causal_mask(window) if self.config.is_causal else self._encoder_mask(window)
        return self._masks[window]

    def _causal_mask(self, window: int | None) -> str:
        """[sequence_length, total_sequence_length]: query i sees key j when i - window < j <= i."""
        if window is None:
            return ""
        distance = self._distance()
        writer = self.writer
        past = writer.node("GreaterOrEqual", distance, writer.scalar(0))
        return writer.node("And", past, writer.node("Less", distance, writer.scalar(window)))

    def _encoder_mask(self, window: int | None) -> str:
        """[batch_size, 1, sequence_length, sequence_length]: no padding, and nothing `window` or more tokens away."""
        writer = self.writer
        real = writer.node("Unsqueeze", writer.node("Cast", "attention_mask", to=9), writer.ints(1, 2))
        if window is None:
            length = writer.node("Shape", "input_ids", start=1, end=2)
            square = writer.node("Concat", writer.ints(1, 1), length, writer.ints(1), axis=0)
            return writer.node("Expand", real, square)
        near = writer.node("Less", writer.node("Abs", self._distance()), writer.scalar(window))
        return writer.node("And", real, near)

    def _distance(self) -> str:
        """Position of the query minus position of the key, int64 [sequence_length, total_sequence_length]."""
        writer = self.writer
        if "distance" in self._names:
            return self._names["distance"]
        length = writer.node("Squeeze", writer.node("Shape", "input_ids", start=1, end=2))
        start = writer.scalar(0)
        if self.config.is_causal:
            start = writer.node("Squeeze", writer.node("Shape", past_names(0)[0], start=2, end=3))
        total = writer.node("Add", start, length)
        keys = writer.node("Range", writer.scalar(0), total, writer.scalar(1))
        queries = writer.node("Range", start, total, writer.scalar(1))
        self._names["distance"] = writer.node("Sub", writer.node("Unsqueeze", queries, writer.ints(1)), keys)
        return self._names["distance"]

    # Heads

    def _head(self, hidden: str) -> None:
        config, writer = self.config, self.writer
        if config.head in ("pooler", "none"):
            writer.node("Identity", hidden, outputs=("last_hidden_state",))
        if config.head == "pooler":
            first = writer.node("Gather", hidden, writer.scalar(0), axis=1)
            writer.node("Tanh", self._gemm("pooler", first), outputs=("pooler_output",))
        if config.head == "masked_lm":
            hidden = self._norm("head.norm", self._activate(self._linear("head.transform", hidden)))
        if config.head in ("causal_lm", "masked_lm"):
            self._logits(hidden)

    def _logits(self, hidden: str) -> None:
        config, writer = self.config, self.writer
        if not config.tie_word_embeddings:
            logits = self._linear("lm_head", hidden)
            writer.node("Identity", logits, outputs=("logits",))
            return
        rows = writer.node("Reshape", hidden, writer.ints(-1, config.hidden_size))
        bias = (self._weight("lm_head.bias"),) if config.head == "masked_lm" else ()
        logits = writer.node("Gemm", rows, self._weight("embed_tokens.weight"), *bias, transB=1)
        shape = writer.node("Concat", writer.node("Shape", "input_ids"), writer.ints(config.vocab_size), axis=0)
        writer.node("Reshape", logits, shape, outputs=("logits",))

    # Weights

    def _weight(self, name: str) -> str:
        return self.writer.initializer(name, self.weights[name])

    def _linear(self, name: str, x: str) -> str:
        weight = self.weights[f"{name}.weight"]
        output = self.writer.node("MatMul", x, self.writer.initializer(f"{name}.weight", weight.T))
        if f"{name}.bias" in self.weights:
            output = self.writer.node("Add", output, self._weight(f"{name}.bias"))
        return output

    def _gemm(self, name: str, x: str) -> str:
        return self.writer.node("Gemm", x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), transB=1)

    def _norm(self, name: str, x: str) -> str:
        writer, epsilon = self.writer, self.config.norm_eps
        scale = self._weight(f"{name}.weight")
        if self.config.norm_type == "rms_norm":
            return writer.node("RMSNormalization", x, scale, axis=-1, epsilon=epsilon)
        return writer.node("LayerNormalization", x, scale, self._weight(f"{name}.bias"), axis=-1, epsilon=epsilon)
