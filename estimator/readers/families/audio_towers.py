"""Audio towers of language models: layers of attention over a spectrogram, most of them kin of Whisper's encoder.

A row of `Tower` says what a family fixes. A stack has as many rows as a clip of the longest length gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimator.blocks.common import attention, embedding, feed_forward, linear, norm
from estimator.blocks.vision import convolution
from estimator.errors import ConfigError
from estimator.network import Block, Chunks, Layer, Network, Recurrence, Stack
from estimator.readers.fields import Fields

__all__ = ["TOWERS", "Tower", "tower_network", "tower_stack"]

_CLIP_FRAMES = 3000  # of 10 ms: the clip that is assumed where a family reads clips of any length
_FOLD = 2  # by how much a convolution of stride 2 shortens


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The facts of a family. length: the field with the rows of a clip behind the convolutions.

    positions: whether a table gives them; key_bias: whether keys have one; gated: as in feed_forward, where only the
    last matrix has a bias. pooled: rows that are averaged to one behind the layers. spectral: convolutions over both
    axes of the spectrogram, in chunks.
    """

    length: str = "max_source_positions"
    norm: str = "layer_norm"
    positions: bool = True
    key_bias: bool = False
    gated: bool = False
    head_dim: str | None = None
    key_value_heads: str | None = None
    pooled: int = 1
    spectral: bool = False
    ignored: tuple[str, ...] = ()

    def rows(self, fields: Fields) -> int:
        """Rows of one clip that run through the layers."""
        if self.spectral:
            return _num_chunks(fields) * _chunk_rows(fields)
        return fields.size(self.length)

    def outputs(self, fields: Fields) -> int:
        """Rows of one clip behind the tower."""
        return max(1, self.rows(fields) // self.pooled)


def tower_network(fields: Fields, facts: Tower) -> Network:
    """A tower on its own."""
    return Network(architecture="encoder", stacks=(tower_stack(fields, facts),), model_type=fields.data.model_type)


def tower_stack(
    fields: Fields, facts: Tower, *, after: tuple[Block, ...] = (), optional: bool = False, prefix: str = ""
) -> Stack:
    """Convolutions, positions, layers and last norm, then `after`."""
    fields.ignore("vocab_size", "tie_word_embeddings", *facts.ignored)
    hidden = fields.size("hidden_size")
    before = _spectral_front(fields) if facts.spectral else _front(fields, facts)
    return Stack(
        name="audio",
        hidden_size=hidden,
        before=before,
        layers=(_layer(fields, facts),) * fields.layers(),
        after=(replace(norm("norm", hidden, facts.norm), positions=facts.outputs(fields)), *after),
        length=facts.rows(fields),
        optional=optional,
        prefix=prefix,
    )


def _front(fields: Fields, facts: Tower) -> tuple[Block, ...]:
    """Two convolutions over the spectrogram, the second of which halves its length, and positions."""
    hidden, length = fields.size("hidden_size"), fields.size(facts.length)
    first = convolution("conv1", fields.size("num_mel_bins"), hidden, (3,))
    second = convolution("conv2", hidden, hidden, (3,))
    table = (embedding("embed_positions", length, hidden),) if facts.positions else ()
    return (
        Block(name="", part="embedding", weights=first, positions=_FOLD * length, live_width=2 * hidden),
        Block(name="", part="embedding", weights=second, live_width=3 * hidden),
        *table,
    )


def _spectral_front(fields: Fields) -> tuple[Block, ...]:
    """Three convolutions that halve both axes of each chunk, and a matrix over what a row holds."""
    hidden, width, bins = (fields.size(name) for name in ("hidden_size", "downsample_hidden_size", "num_mel_bins"))
    frames, chunks = _FOLD * fields.size("n_window"), _num_chunks(fields)
    blocks: list[Block] = []
    for index in range(3):
        weights = convolution(f"conv2d{index + 1}", width if index else 1, width, (3, 3))
        bins, frames = _halved(bins), _halved(frames)
        blocks.append(Block(name="", part="embedding", weights=weights, positions=chunks * bins * frames))
    last = linear("conv_out", width * bins, hidden)
    return (*blocks, Block(name="", part="embedding", weights=last, live_width=width * bins + hidden))


def _halved(size: int) -> int:
    return (size - 1) // _FOLD + 1


def _chunk_rows(fields: Fields) -> int:
    return _halved(_halved(_halved(_FOLD * fields.size("n_window"))))


def _num_chunks(fields: Fields) -> int:
    """Chunks of a clip of 30 s, the last of them filled up."""
    return -(-_CLIP_FRAMES // (_FOLD * fields.size("n_window")))


def _layer(fields: Fields, facts: Tower) -> Layer:
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if facts.head_dim is None and hidden % heads:
        raise ConfigError(f"num_attention_heads must divide hidden_size {hidden}, not {heads}", field="hidden_size")
    kept = fields.optional_size(facts.key_value_heads) if facts.key_value_heads else None
    mixing = attention(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kept or heads,
        head_dim=fields.size(facts.head_dim) if facts.head_dim else hidden // heads,
        qkv_bias=True,
        key_bias=facts.key_bias,
        output_bias=True,
        is_cached=False,
    )
    if facts.spectral:
        mixing = _within_chunks(fields, mixing)
    inner = fields.size("intermediate_size")
    feeding = feed_forward(hidden_size=hidden, intermediate_size=inner, gated=facts.gated, bias=True)
    if facts.gated:
        kept_weights = tuple(w for w in feeding.weights if w.name not in ("gate_proj.bias", "up_proj.bias"))
        feeding = replace(feeding, weights=kept_weights)
    norms = tuple(norm(f"norms.{index}", hidden, facts.norm) for index in range(2))
    return Layer(blocks=(norms[0], mixing, norms[1], feeding))


def _within_chunks(fields: Fields, block: Block) -> Block:
    """Attention within stretches of `n_window_infer` frames."""
    stretch = fields.size("n_window_infer") // (_FOLD * fields.size("n_window"))
    rows = max(1, stretch) * _chunk_rows(fields)
    hidden = fields.size("hidden_size")
    chunks = Chunks(num_tokens=rows, token_flops=0, pair_flops=2 * 2 * hidden, rest="short")
    products = Recurrence(state_elements=0, token_flops=0, chunks=chunks)
    live_width = block.live_width + fields.size("num_attention_heads") * rows
    return replace(block, attention=None, recurrence=products, live_width=live_width)


_WHISPER = Tower()

TOWERS: Mapping[str, Tower] = {
    "audioflamingo3_encoder": replace(_WHISPER, pooled=2),
    "glmasr_encoder": replace(
        _WHISPER, length="max_position_embeddings", positions=False, key_value_heads="num_key_value_heads"
    ),
    "moss_transcribe_diarize_audio": _WHISPER,
    "qwen2_audio_encoder": replace(_WHISPER, pooled=2),
    "qwen3_asr_encoder": Tower(spectral=True, key_bias=True, ignored=("max_position_embeddings", "output_dim")),
    "voxtral_encoder": _WHISPER,
    "voxtral_realtime_encoder": Tower(
        length="max_position_embeddings",
        norm="rms_norm",
        positions=False,
        gated=True,
        head_dim="head_dim",
        ignored=("sliding_window",),
    ),
}
