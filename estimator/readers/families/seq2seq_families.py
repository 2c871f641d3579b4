"""Families of encoder-decoders as rows of facts. Source: the classes of transformers 5.24, as the tests compare."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.network import Network
from estimator.readers.families import seq2seq_blocks as blocks
from estimator.readers.families.seq2seq import Seq2Seq, Side, seq2seq_network
from estimator.readers.fields import Fields

__all__ = ["READERS", "SEQ2SEQ"]

_FULL_PRODUCTS = "attention is counted between all tokens; this family's approximation needs less on long inputs"
_WINDOWED = "attention within windows is counted for inputs of whole windows, without global tokens"
_ROUTING = ("expert_capacity", "router_dtype", "router_ignore_padding_tokens")
# Fields of published configs that no class reads.
_UNREAD = (
    "add_bias_logits",
    "add_final_layer_norm",
    "classif_dropout",
    "do_blenderbot_90_layernorm",
    "extra_layer_norm",
    "extra_pos_embeddings",
    "force_bos_token_to_be_generated",
    "layernorm_variant",
    "replacing_rate",
    "save_step",
    "static_position_embeddings",
    "student_decoder_layers",
    "student_encoder_layers",
)
_BART = Seq2Seq(extra_positions=2, embedding_norm=True, default_labels=3)
_PEGASUS = Seq2Seq(norm_first=True, final_norm=True)
_T5 = Seq2Seq(
    encoder=Side(layers="num_layers", heads="num_heads", inner="d_ff"),
    decoder=Side(layers="num_decoder_layers", heads="num_heads", inner="d_ff"),
    norm="rms_norm",
    norm_first=True,
    final_norm=True,
    positions="none",
    head_dim="d_kv",
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    gated="proj",
    relative="first",
    always_tied=True,
    span_outputs=None,
    ignored=(
        "relative_attention_max_distance",
        "dense_act_fn",
        "is_gated_act",
        "scale_decoder_outputs",
        "n_positions",
        "scalable_attention",
    ),
)

SEQ2SEQ: Mapping[str, Seq2Seq] = {
    "bart": _BART,
    "plbart": replace(_BART, default_labels=2),
    "mvp": replace(_BART, default_labels=2, decoder_tables=blocks.prompt_tables),
    "mbart": replace(_BART, norm_first=True, final_norm=True, default_labels=2),
    "pegasus": _PEGASUS,
    "blenderbot": _PEGASUS,
    "blenderbot-small": Seq2Seq(embedding_norm=True),
    "marian": Seq2Seq(target_vocabulary=blocks.marian_vocabulary),
    "m2m_100": replace(_PEGASUS, positions="none"),
    "led": replace(
        _BART,
        encoder=replace(_BART.encoder, positions="max_encoder_position_embeddings"),
        decoder=replace(_BART.decoder, positions="max_decoder_position_embeddings"),
        extra_positions=0,
        default_labels=2,
        encoder_attention=blocks.two_sided_attention,
        warning=_WINDOWED,
    ),
    "bigbird_pegasus": replace(
        _BART,
        extra_positions=0,
        default_labels=2,
        encoder_attention=blocks.biased_output_attention("encoder"),
        decoder_attention=blocks.biased_output_attention("decoder"),
        qkv_bias="use_bias",
        output_bias="use_bias",
        causal_tied=False,
        ignored=("attention_type", "block_size", "num_random_blocks"),
        warning=_FULL_PRODUCTS,
    ),
    "pegasus_x": replace(
        _PEGASUS,
        positions="none",
        qkv_bias=False,
        output_bias=False,
        tables=blocks.global_table,
        encoder_norms=3,
        encoder_attention=blocks.blockwise_attention,
        ignored=("stagger_local_blocks",),
        warning=_WINDOWED,
    ),
    "nllb-moe": replace(
        _PEGASUS,
        encoder=replace(_PEGASUS.encoder, sparse="encoder_sparse_step"),
        decoder=replace(_PEGASUS.decoder, sparse="decoder_sparse_step"),
        positions="none",
        is_moe=True,
        experts_per_token=2,
        ignored=(*_ROUTING, "moe_eval_capacity_token_fraction", "second_expert_policy"),
    ),
    "fsmt": Seq2Seq(
        extra_positions=2,
        has_shared=False,
        source_vocabulary=blocks.source_vocabulary,
        heads={"base": "lm", "seq2seq_lm": "lm"},
        ignored=("langs",),
    ),
    "prophetnet": Seq2Seq(
        encoder=Side(layers="num_encoder_layers", heads="num_encoder_attention_heads", inner="encoder_ffn_dim"),
        decoder=Side(layers="num_decoder_layers", heads="num_decoder_attention_heads", inner="decoder_ffn_dim"),
        embedding_norm=True,
        decoder_tables=blocks.ngram_table,
        decoder_attention=blocks.ngram_attention,
        has_cross_attention="add_cross_attention",
        ignored=("relative_max_distance",),
        warning="FLOPs are counted for one predicted token per position; this family predicts several",
    ),
    "switch_transformers": replace(
        _T5,
        encoder=replace(_T5.encoder, sparse="num_sparse_encoder_layers"),
        decoder=replace(_T5.decoder, sparse="num_sparse_decoder_layers"),
        is_moe=True,
        gated=False,
        always_tied=False,
        ignored=(*_T5.ignored, *_ROUTING, "add_cross_attention", "encoder_sparse_step", "decoder_sparse_step"),
    ),
    "longt5": replace(_T5, encoder_attention=blocks.transient_attention, warning=_WINDOWED),
    "whisper": replace(
        _PEGASUS,
        encoder=replace(_PEGASUS.encoder, positions="max_source_positions"),
        decoder=replace(_PEGASUS.decoder, positions="max_target_positions"),
        key_bias=False,
        front=blocks.mel_front,
        ignored=(
            "classifier_proj_size",
            "begin_suppress_tokens",
            "forced_decoder_ids",
            "alignment_heads",
            "is_multilingual",
            "lang_to_id",
            "task_to_id",
            "median_filter_width",
            "mask_feature_length",
            "mask_feature_min_masks",
            "mask_time_length",
            "mask_time_min_masks",
        ),
    ),
    "speech_to_text": replace(
        _PEGASUS,
        encoder=replace(_PEGASUS.encoder, positions="max_source_positions"),
        decoder=replace(_PEGASUS.decoder, positions="max_target_positions"),
        positions="none",
        front=blocks.subsampling_front,
    ),
    "moonshine": Seq2Seq(
        encoder=Side(
            layers="encoder_num_hidden_layers",
            heads="encoder_num_attention_heads",
            inner="intermediate_size",
            key_value_heads="encoder_num_key_value_heads",
        ),
        decoder=Side(
            layers="decoder_num_hidden_layers",
            heads="encoder_num_attention_heads",  # the class writes the encoder's numbers over the decoder's
            inner="intermediate_size",
            key_value_heads="encoder_num_key_value_heads",
        ),
        norm="layer_norm_without_bias",
        norm_first=True,
        final_norm=True,
        positions="none",
        qkv_bias="attention_bias",
        output_bias=False,
        gated="decoder",
        front=blocks.moonshine_front,
        ignored=("pad_head_dim_to_multiple_of", "decoder_num_attention_heads", "decoder_num_key_value_heads"),
    ),
    "t5": _T5,
    "mt5": _T5,
    "umt5": replace(_T5, relative="every"),
}

READERS: Mapping[str, Callable[[Fields], Network]] = {
    name: functools.partial(seq2seq_network, facts=replace(facts, ignored=(*facts.ignored, *_UNREAD)))
    for name, facts in SEQ2SEQ.items()
}
