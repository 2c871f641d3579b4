"""The nodes of a config's ONNX graph: embeddings, blocks, heads.

Standard operators only (but for matrices in blocks), one node per projection. Fusing the three attention projections
or gate and up into one, and ONNX Runtime's own GroupQueryAttention and SkipSimplifiedLayerNormalization, were measured
and are no faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from estimator.config import Layer, TransformerConfig
from estimator.onnx_graph import GraphWriter
from estimator.ort_session import past_names, present_names
from estimator.quantization import write_block_matmul, write_half, write_quantized_matmul
from estimator.rotary import inverse_frequencies
from estimator.weight_formats import BLOCK_FORMATS

__all__ = ["write_graph"]

Weights = Mapping[str, NDArray[np.float32]]
_TOKENS = ("batch_size", "sequence_length")
_FLOAT, _BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL


def write_graph(config: TransformerConfig, weights: Weights, dtypes: Mapping[str, str]) -> GraphWriter:
    """The complete graph of `config`, with `weights` and their types by the names of `weight_shapes`.

    Raises:
        BuildError: the config's rope_scaling is of a type that cannot be built, or a weight is too large for its type.
    """
    return _Transformer(config, weights, dtypes).write()


class _Transformer:
    def __init__(self, config: TransformerConfig, weights: Weights, dtypes: Mapping[str, str]) -> None:
        self.config = config
        self.weights = weights
        self.dtypes = dtypes
        self.writer = GraphWriter()
        self.node = self.writer.node
        self.positions = ""  # int64, broadcast to [batch_size, sequence_length]

    def write(self) -> GraphWriter:
        self._declare_inputs()
        self._declare_outputs()
        hidden = self._embed()
        for layer in self.config.layers:
            hidden = self._layer(layer, hidden)
        self._head(self._norm("norm", hidden) if self.config.norm_placement == "pre" else hidden)
        return self.writer

    # Inputs, outputs, embeddings

    def _declare_inputs(self) -> None:
        config, writer = self.config, self.writer
        writer.input("input_ids", "int64", _TOKENS)
        if config.type_vocab_size:
            writer.input("token_type_ids", "int64", _TOKENS)
        if not config.is_causal:
            writer.input("attention_mask", "int64", _TOKENS)
            self.positions = self.node("Unsqueeze", self._range("positions", "", self._length()), writer.ints(0))
            return
        self.positions = writer.input("position_ids", "int64", _TOKENS)
        for layer in config.layers:
            for name in past_names(layer.index):
                writer.input(name, "float", _cache_shape(layer, "past_sequence_length"))

    def _declare_outputs(self) -> None:
        config, writer = self.config, self.writer
        if config.head in ("causal_lm", "masked_lm"):
            writer.output("logits", "float", (*_TOKENS, config.vocab_size))
        else:
            writer.output("last_hidden_state", "float", (*_TOKENS, config.hidden_size))
        if config.head == "pooler":
            writer.output("pooler_output", "float", ("batch_size", config.hidden_size))
        for layer in config.layers if config.is_causal else ():
            for name in present_names(layer.index):
                writer.output(name, "float", _cache_shape(layer, "total_sequence_length"))

    def _embed(self) -> str:
        config = self.config
        hidden = self.node("Gather", self._weight("embed_tokens.weight"), "input_ids")
        if config.position_embedding == "learned":
            rows = self.node("Gather", self._weight("embed_positions.weight"), self.positions)
            hidden = self.node("Add", hidden, rows)
        if config.type_vocab_size:
            rows = self.node("Gather", self._weight("embed_token_types.weight"), "token_type_ids")
            hidden = self.node("Add", hidden, rows)
        return self._norm("embed_norm", hidden) if config.embedding_norm else hidden

    # Blocks

    def _layer(self, layer: Layer, hidden: str) -> str:
        owner, is_pre_norm = f"layers.{layer.weight_source}", self.config.norm_placement == "pre"
        for norm, block in ((f"{owner}.attention_norm", self._attention), (f"{owner}.mlp_norm", self._mlp)):
            update = block(layer, owner, self._norm(norm, hidden) if is_pre_norm else hidden)
            hidden = self.node("Add", hidden, update)
            hidden = hidden if is_pre_norm else self._norm(norm, hidden)
        return hidden

    def _attention(self, layer: Layer, owner: str, x: str) -> str:
        config, prefix = self.config, f"{owner}.self_attn"
        num_heads = {"q": layer.num_attention_heads, "k": layer.num_key_value_heads, "v": layer.num_key_value_heads}
        heads = {which: self._linear(f"{prefix}.{which}_proj", x) for which in num_heads}
        for which in ("q", "k"):
            if config.qk_norm:
                heads[which] = self._head_norm(f"{prefix}.{which}_norm", heads[which], num_heads[which])
            if config.position_embedding == "rotary":
                turn = self._turn()
                heads[which] = self.node("RotaryEmbedding", heads[which], *turn, num_heads=num_heads[which])
        mask, name = self._mask(layer.sliding_window), f"attention_{layer.index}"
        past, present = (past_names(layer.index), present_names(layer.index)) if config.is_causal else ((), ())
        attributes: dict[str, Any] = {"q_num_heads": num_heads["q"], "kv_num_heads": num_heads["k"]}
        attributes["is_causal"] = int(config.is_causal and not mask)
        self.node("Attention", *heads.values(), mask, *past, outputs=(name, *present), **attributes)
        return self._linear(f"{prefix}.o_proj", name)

    def _head_norm(self, name: str, x: str, num_heads: int) -> str:
        """RMSNorm of each head by itself."""
        head_dim = self.config.resolved_head_dim
        heads = self.node("Reshape", x, self.writer.ints(0, 0, num_heads, head_dim))
        scale, epsilon = self._weight(f"{name}.weight"), self.config.norm_eps
        normed = self.node("RMSNormalization", heads, scale, axis=-1, epsilon=epsilon)
        return self.node("Reshape", normed, self.writer.ints(0, 0, num_heads * head_dim))

    def _mlp(self, layer: Layer, owner: str, x: str) -> str:
        prefix = f"{owner}.mlp"
        up = self._linear(f"{prefix}.up_proj", x)
        if not self.config.gated_mlp:
            return self._linear(f"{prefix}.down_proj", self._activate(up))
        gate = self._activate(self._linear(f"{prefix}.gate_proj", x))
        return self._linear(f"{prefix}.down_proj", self.node("Mul", gate, up))

    def _activate(self, x: str) -> str:
        name = self.config.hidden_act
        if name == "silu":
            return self.node("Mul", x, self.node("Sigmoid", x))
        if name == "relu":
            return self.node("Relu", x)
        return self.node("Gelu", x, approximate="none" if name == "gelu" else "tanh")

    # Positions and masks: each written once, where it is first needed

    def _turn(self) -> tuple[str, str]:
        """Cosines and sines of position times inverse frequency, fp32 [batch_size, sequence_length, H/2].

        They are computed, not stored: a table for every position would outgrow a small model's weights.
        """
        writer, node = self.writer, self.node
        if not writer.has_value("cosines"):
            frequencies = writer.initializer("inverse_frequencies", inverse_frequencies(self.config))
            positions = node("Unsqueeze", node("Cast", self.positions, to=_FLOAT), writer.ints(-1))
            angles = node("Mul", positions, frequencies)
            if not self.config.is_causal:  # one row of positions for the whole batch
                angles = node("Expand", angles, node("Concat", node("Shape", "input_ids"), writer.ints(1), axis=0))
            node("Cos", angles, outputs=("cosines",))
            node("Sin", angles, outputs=("sines",))
        return "cosines", "sines"

    def _mask(self, window: int | None) -> str:
        """Which keys each query sees, boolean; the empty name where causality alone decides."""
        if self.config.is_causal and window is None:
            return ""
        name = f"mask_{window}"
        if not self.writer.has_value(name):
            (self._causal_mask if self.config.is_causal else self._encoder_mask)(window, name)
        return name

    def _causal_mask(self, window: int | None, name: str) -> None:
        """[sequence_length, total_sequence_length]: query i sees key j when i - window < j <= i."""
        assert window is not None
        writer, node, distance = self.writer, self.node, self._distance()
        is_past = node("GreaterOrEqual", distance, writer.scalar(0))
        node("And", is_past, node("Less", distance, writer.scalar(window)), outputs=(name,))

    def _encoder_mask(self, window: int | None, name: str) -> None:
        """[batch_size, 1, sequence_length, sequence_length]: no padding, and nothing `window` or more tokens away."""
        writer, node = self.writer, self.node
        is_token = node("Unsqueeze", node("Cast", "attention_mask", to=_BOOL), writer.ints(1, 2))
        if window is None:
            length = node("Shape", "input_ids", start=1, end=2)
            node("Expand", is_token, node("Concat", writer.ints(1, 1), length, writer.ints(1), axis=0), outputs=(name,))
        else:
            is_near = node("Less", node("Abs", self._distance()), writer.scalar(window))
            node("And", is_token, is_near, outputs=(name,))

    def _distance(self) -> str:
        """Position of the query minus position of the key, int64 [sequence_length, total_sequence_length]."""
        writer, node, length = self.writer, self.node, self._length()
        if writer.has_value("distance"):
            return "distance"
        past, total = "", length
        if self.config.is_causal:
            past = node("Squeeze", node("Shape", past_names(0)[0], start=2, end=3))
            total = node("Add", past, length)
        queries = node("Unsqueeze", self._range("query_positions", past, total), writer.ints(1))
        return node("Sub", queries, self._range("key_positions", "", total), outputs=("distance",))

    def _length(self) -> str:
        """The sequence length, an int64 scalar."""
        if not self.writer.has_value("length"):
            self.node("Squeeze", self.node("Shape", "input_ids", start=1, end=2), outputs=("length",))
        return "length"

    def _range(self, name: str, first: str, end: str) -> str:
        """Consecutive positions from `first` (an empty name: 0) up to `end`, int64."""
        return self.node("Range", first or self.writer.scalar(0), end, self.writer.scalar(1), outputs=(name,))

    # Heads

    def _head(self, hidden: str) -> None:
        config = self.config
        if config.head in ("pooler", "none"):
            self.node("Identity", hidden, outputs=("last_hidden_state",))
        if config.head == "pooler":
            first = self.node("Gather", hidden, self.writer.scalar(0), axis=1)
            self.node("Tanh", self._linear("pooler", first), outputs=("pooler_output",))
        if config.head == "masked_lm":
            hidden = self._norm("head.norm", self._activate(self._linear("head.transform", hidden)))
        if config.head in ("causal_lm", "masked_lm"):
            self._logits(hidden)

    def _logits(self, hidden: str) -> None:
        """A tied head reads the embedding's own [V, D] matrix through Gemm, so that the file holds it once."""
        config, writer = self.config, self.writer
        if not config.tie_word_embeddings:
            self.node("Identity", self._linear("lm_head", hidden), outputs=("logits",))
            return
        rows = self.node("Reshape", hidden, writer.ints(-1, config.hidden_size))
        bias = [self._weight("lm_head.bias")] if config.head == "masked_lm" else []
        logits = self.node("Gemm", rows, self._weight("embed_tokens.weight"), *bias, transB=1)
        shape = self.node("Concat", self.node("Shape", "input_ids"), writer.ints(config.vocab_size), axis=0)
        self.node("Reshape", logits, shape, outputs=("logits",))

    # Weights

    def _weight(self, name: str) -> str:
        return self._float(name, self.weights[name])

    def _float(self, name: str, values: NDArray[np.float32]) -> str:
        if self.dtypes[name] == "fp32":
            return self.writer.initializer(name, values)
        return write_half(self.writer, name, values, self.dtypes[name])

    def _linear(self, name: str, x: str) -> str:
        """x @ weight.T + bias."""
        output, bias_name = self._product(f"{name}.weight", x), f"{name}.bias"
        return self.node("Add", output, self._weight(bias_name)) if bias_name in self.weights else output

    def _product(self, name: str, x: str) -> str:
        """x @ weight.T; a matrix of floats is stored as [in, out], the layout that MatMul takes."""
        weight, dtype = self.weights[name], self.dtypes[name]
        if dtype == "int8":
            return write_quantized_matmul(self.writer, x, name, weight)
        if dtype in BLOCK_FORMATS:
            return write_block_matmul(self.writer, x, name, weight, BLOCK_FORMATS[dtype])
        return self.node("MatMul", x, self._float(name, weight.T))

    def _norm(self, name: str, x: str) -> str:
        scale, epsilon = self._weight(f"{name}.weight"), self.config.norm_eps
        if self.config.norm_type == "rms_norm":
            return self.node("RMSNormalization", x, scale, axis=-1, epsilon=epsilon)
        return self.node("LayerNormalization", x, scale, self._weight(f"{name}.bias"), axis=-1, epsilon=epsilon)


def _cache_shape(layer: Layer, length: str) -> tuple[int | str, ...]:
    return "batch_size", layer.num_key_value_heads, length, layer.head_dim
