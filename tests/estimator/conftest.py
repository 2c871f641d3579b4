"""Configs that many test files of this folder draw on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from estimator.blocks import common as blocks
from estimator.config import TransformerConfig
from estimator.network import Block, Chunks, Layer, Network, Recurrence, Stack, Weight
from estimator.weights import weight_shapes


def _random_config(rng: random.Random) -> TransformerConfig:
    layers, group = rng.randint(1, 6), rng.choice([1, 2, 4])
    architecture = rng.choice(["decoder", "decoder", "encoder"])
    heads = {"decoder": ["causal_lm", "none"], "encoder": ["masked_lm", "pooler", "none"]}[architecture]

    def per_layer(draw):
        return tuple(draw(index) for index in range(layers)) if rng.random() < 0.4 else None

    return TransformerConfig(
        architecture=architecture,
        head=rng.choice(heads),
        vocab_size=rng.randint(10, 600),
        hidden_size=rng.randint(8, 80),
        num_hidden_layers=layers,
        num_attention_heads=group * rng.randint(1, 3),
        num_key_value_heads=group,
        head_dim=rng.choice([4, 8, 10]),
        intermediate_size=rng.randint(4, 200),
        max_position_embeddings=rng.randint(3, 99),
        gated_mlp=rng.random() < 0.5,
        norm_type=rng.choice(["layer_norm", "rms_norm"]),
        norm_placement=rng.choice(["pre", "post"]),
        position_embedding=rng.choice(["rotary", "learned", "none"]),
        attention_bias=rng.random() < 0.5,
        attention_output_bias=rng.random() < 0.5,
        mlp_bias=rng.random() < 0.5,
        qk_norm=rng.random() < 0.5,
        tie_word_embeddings=rng.random() < 0.5,
        embedding_norm=rng.random() < 0.5,
        type_vocab_size=rng.choice([0, 2]),
        sliding_window=rng.choice([None, 3, 50]),
        num_attention_heads_per_layer=per_layer(lambda index: group * rng.randint(1, 3)),
        intermediate_size_per_layer=per_layer(lambda index: rng.randint(4, 99)),
        sliding_window_per_layer=per_layer(lambda index: rng.choice([None, 2, 7])),
        weight_source_per_layer=per_layer(lambda index: rng.randint(0, index)),
    )


@pytest.fixture(scope="session")
def random_configs() -> list[TransformerConfig]:
    """120 valid configs that together use every option."""
    rng = random.Random(7)
    return [_random_config(rng) for _ in range(120)]


@pytest.fixture
def small() -> TransformerConfig:
    """A small Llama-style decoder with grouped heads and an untied head."""
    return TransformerConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def noisy_weights():
    """A function: weights of a config in which no bias is zero and no gain is one, so that each of them matters."""

    def make(config, seed=0):
        generator = np.random.default_rng(seed)
        return {
            name: (generator.standard_normal(shape) * 0.1 + (len(shape) == 1 and name.endswith("weight"))).astype("f4")
            for name, shape in weight_shapes(config).items()
        }

    return make


D, V, F = 24, 100, 40


def _norm(name):
    return blocks.norm(name, D, "rms_norm")


def _attention(**changes):
    sizes = {"hidden_size": D, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    return blocks.attention(**(sizes | changes))


def _feed_forward(width=D):
    return blocks.feed_forward(hidden_size=width, intermediate_size=F, gated=True)


def _decoder(*layers, **changes):
    after = (_norm("norm"), blocks.head("lm_head", D, V, tied=True))
    stack = Stack(
        name="decoder",
        hidden_size=D,
        before=(blocks.embedding("embed_tokens", V, D),),
        layers=tuple(Layer(blocks=layer) for layer in layers),
        after=after,
        is_causal=True,
    )
    return Network(**({"architecture": "decoder", "stacks": (stack,), "model_type": "hand", "vocab_size": V} | changes))


def _experts():
    return blocks.experts(
        hidden_size=D,
        intermediate_size=8,
        num_experts=6,
        num_experts_per_tok=2,
        shared_intermediate_size=16,
        shared_gate=True,
    )


def _latent():
    return blocks.latent_attention(
        hidden_size=D,
        num_attention_heads=4,
        q_lora_rank=10,
        kv_lora_rank=7,
        qk_nope_head_dim=5,
        qk_rope_head_dim=2,
        v_head_dim=3,
    )


def _recurrent():
    weights = (
        *blocks.linear("in_proj", D, 2 * D),
        Weight(name="conv1d.weight", shape=(D, 1, 4), role="convolution"),
        Weight(name="A_log", shape=(D,), role="other"),
        *blocks.linear("out_proj", D, D),
    )
    state = Recurrence(state_elements=D * 5 + D * 3, token_flops=4 * D * 5)
    return Block(name="mixer", part="state_space", weights=weights, recurrence=state, live_width=4 * D)


def _chunked(rest):
    chunks = Chunks(num_tokens=8, token_flops=31, pair_flops=7, boundary_flops=5, rest=rest)
    state = Recurrence(state_elements=70, fp32_elements=50, token_flops=13, prompt_flops=11, chunks=chunks)
    return Block(name="mixer", part="state_space", weights=blocks.linear("in_proj", D, D), recurrence=state)


def _encoder_decoder(source_length=None):
    encoder = Stack(
        name="encoder",
        hidden_size=D,
        before=(blocks.embedding("embed_tokens", V, D),),
        layers=(Layer(blocks=(_attention(is_cached=False), _feed_forward())),) * 2,
        length=source_length,
        prefix="encoder.",
    )
    cross = blocks.cross_attention(hidden_size=D, source_size=D, num_attention_heads=4, head_dim=6)
    decoder = Stack(
        name="decoder",
        hidden_size=D,
        layers=(Layer(blocks=(_attention(), *cross, _feed_forward())),) * 3,
        after=(blocks.head("lm_head", D, V),),
        is_causal=True,
        prefix="decoder.",
    )
    return Network(
        architecture="encoder-decoder",
        stacks=(encoder, decoder),
        model_type="hand",
        vocab_size=V,
        max_position_embeddings=30,
    )


def _shared_encoder():
    layer = (_norm("attention_norm"), _attention(is_cached=False, qkv_bias=True), _feed_forward())
    pooler = Block(name="", part="head", weights=blocks.linear("pooler", D, D, bias=True, quantized=False), positions=1)
    stack = Stack(
        name="encoder",
        hidden_size=D,
        before=(
            blocks.embedding("embed_tokens", V, 8),
            Block(name="", part="projector", weights=blocks.linear("map", 8, D)),
        ),
        layers=tuple(Layer(blocks=layer, owns_weights=index == 0) for index in range(4)),
        after=(pooler,),
    )
    return Network(architecture="encoder", stacks=(stack,), model_type="hand", vocab_size=V)


def _with_images():
    patches = Weight(name="weight", shape=(16, 3, 4, 4), role="convolution")
    vision = Stack(
        name="vision",
        hidden_size=16,
        before=(Block(name="patch_embedding", part="embedding", weights=(patches,), live_width=16),),
        layers=(Layer(blocks=(_attention(hidden_size=16, is_cached=False), _feed_forward(16))),) * 2,
        after=(Block(name="", part="projector", weights=blocks.linear("projector", 16, D), positions=9),),
        length=36,
        optional=True,
        prefix="vision.",
    )
    text = _decoder((_attention(), _feed_forward())).stacks
    return Network(architecture="decoder", stacks=(vision, *text), model_type="hand", vocab_size=V)


@pytest.fixture(scope="session")
def networks() -> dict[str, Network]:
    """Networks made by hand, one for each thing that a `TransformerConfig` cannot describe; all of width 24."""
    return {
        "experts": _decoder(*[(_norm("attention_norm"), _attention(), _experts())] * 3),
        "latent": _decoder((_latent(), _feed_forward()), (_latent(), _experts())),
        "recurrent": _decoder((_recurrent(),), (_attention(window=5), _feed_forward()), (_recurrent(),)),
        "stateful": _decoder((_recurrent(),), (_recurrent(),)),
        "chunked": _decoder((_chunked("padded"),), (_chunked("short"),), (_chunked("steps"),)),
        "shared_cache": _decoder((_attention(), _feed_forward()), (_attention(has_key_value=False), _feed_forward())),
        "encoder_decoder": _encoder_decoder(),
        "fixed_source": _encoder_decoder(source_length=50),
        "shared_layers": _shared_encoder(),
        "images": _with_images(),
    }
