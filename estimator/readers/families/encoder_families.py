"""Families of encoders as rows of facts. Source: the classes of transformers 5.24, which the tests compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.network import Network
from estimator.readers.families import encoder_blocks as blocks
from estimator.readers.families import encoder_layers as layers
from estimator.readers.families.encoder_heads import BERT_HEADS, ROBERTA_HEADS
from estimator.readers.families.encoders import Encoder, encoder_network
from estimator.readers.fields import Fields

__all__ = ["ENCODERS", "READERS"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FULL_PRODUCTS = "attention is counted between all tokens; this family's approximation needs less on long inputs"
_WINDOWED = "attention within windows is counted for inputs of whole windows, without global tokens"
_BERT = Encoder()
_ROBERTA = Encoder(heads=ROBERTA_HEADS)
_NO_POOLER = BERT_HEADS | {"base": ""}
_DENSE = _NO_POOLER | {"sequence_classification": "dense label", "multiple_choice": "dense choice"}
_POOLED = {task: words if "pooler" in words else f"pooler {words}" for task, words in BERT_HEADS.items()}
_ROWS = _DENSE | {"question_answering": "ends"}
# How the published checkpoints were trained; no class reads it.
_XLM_TRAINING = _words(
    """
    amp attention_dropout_layer bptt clip_grad_norm clm_steps context_size encoder_only fp16 gelu_activation
    group_by_size id2lang lang2id lambda_clm lambda_mlm langs lg_sampling_factor lgs mask_index max_batch_size max_len
    max_vocab min_count mlm_steps n_dec_layers n_enc_layers reload_checkpoint reload_emb reload_model sample_alpha
    same_enc_dec share_inout_emb sinusoidal_embeddings split_data stopping_criterion tokens_per_batch unk_index
    use_memory word_blank word_dropout word_keep word_mask word_pred word_rand word_shuffle
    """
)
_XLM = Encoder(
    segments=0,
    tables=blocks.language_tables,
    behind=blocks.squad_head,
    make_feed_forward=blocks.fourfold,
    lm_transform=False,
    lm_untied_bias=False,
    ignored=("causal", *_XLM_TRAINING),
    heads=_NO_POOLER
    | {"question_answering": "", "sequence_classification": "summary", "multiple_choice": "summary labels_choice"},
)
_DEBERTA = Encoder(
    positions="position_biased_input",
    embedding_size="embedding_size",
    lm_width="embedding_size",
    projection_bias=False,
    norm_projected=True,
    tables=layers.position_tables,
    make_attention=layers.disentangled_attention,
    dense_width="pooler_hidden_size",
    ignored=("pooler_hidden_act", "padding_idx"),
    heads=_DENSE,
)
_ROTARY = Encoder(
    norm="rms_norm",
    norm_first=True,
    final_norm=True,
    embedding_norm=False,
    positions="none",
    segments=0,
    gated=True,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    key_value_heads="num_key_value_heads",
    lm_transform=False,
    lm_untied_bias=False,
)

ENCODERS: Mapping[str, Encoder] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA,
    "distilbert": Encoder(
        segments=0,
        intermediate_size="hidden_dim",
        heads=_DENSE,
        lm_untied_bias=False,
        ignored=("sinusoidal_pos_embds", "tie_weights_"),
    ),
    "electra": Encoder(
        embedding_size="embedding_size",
        lm_width="embedding_size",
        lm_untied_bias=False,
        heads=_NO_POOLER
        | {
            "pretraining": "rows token",
            "sequence_classification": "dense label",
            "multiple_choice": "summary choice",
        },
    ),
    "ernie": Encoder(tables=blocks.task_tables),
    "megatron-bert": Encoder(norm_first=True, final_norm=True, embedding_norm=False),
    "xlm-roberta-xl": Encoder(norm_first=True, final_norm=True, embedding_norm=False, heads=ROBERTA_HEADS),
    "roberta-prelayernorm": Encoder(norm_first=True, final_norm=True, heads=ROBERTA_HEADS),
    "ibert": replace(_ROBERTA, ignored=("quant_mode", "force_dequant")),
    "layoutlm": Encoder(tables=blocks.layout_tables, heads=_POOLED | {"document_question_answering": "pooler spans"}),
    "gte": Encoder(
        positions="none",
        gated=True,
        make_feed_forward=blocks.biased_gated_output,
        heads=_NO_POOLER,
        lm_untied_bias=False,
    ),
    "nomic_bert": Encoder(
        positions="none",
        gated=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        heads=_NO_POOLER,
    ),
    "jina_embeddings_v3": replace(_ROBERTA, positions="none"),
    "mpnet": Encoder(segments=0, tables=blocks.relative_bias, heads=ROBERTA_HEADS),
    "rembert": Encoder(
        embedding_size="input_embedding_size",
        projection="always",
        lm_width="output_embedding_size",
        lm_tied=False,
        lm_untied_bias=False,
    ),
    "roc_bert": Encoder(tables=blocks.map_inputs, heads=BERT_HEADS | {"pretraining": "pooler lm"}),
    "tapas": Encoder(
        segments=0,
        tables=blocks.table_positions,
        behind=blocks.aggregation_head,
        can_decode=False,
        ignored=(
            "max_num_rows",
            "max_num_columns",
            "average_approximation_function",
            "average_logits_per_cell",
            "disable_per_token_loss",
            "reset_position_index_per_cell",
            "aggregation_labels",
        ),
        heads=BERT_HEADS | {"table_question_answering": "pooler cells"},
    ),
    "yoso": Encoder(
        extra_positions=2,
        make_attention=blocks.conv_per_head("conv_window"),
        can_decode=False,
        ignored=("num_hash", "hash_code_len", "use_expectation", "use_fast_hash", "lsh_backward"),
        warning=_FULL_PRODUCTS,
        heads=_ROWS,
    ),
    "mra": Encoder(
        extra_positions=2,
        can_decode=False,
        ignored=("approx_mode", "block_per_row", "initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks"),
        warning=_FULL_PRODUCTS,
        heads=_ROWS,
    ),
    "nystromformer": Encoder(
        extra_positions=2,
        make_attention=blocks.conv_per_head("conv_kernel_size"),
        can_decode=False,
        ignored=("num_landmarks", "inv_coeff_init_option", "segment_means_seq_len"),
        warning=_FULL_PRODUCTS,
        heads=_ROWS,
    ),
    "roformer": Encoder(
        embedding_size="embedding_size",
        lm_width="embedding_size",
        positions="none",
        tables=blocks.rotary_table,
        heads=_NO_POOLER
        | {"sequence_classification": "dense label", "multiple_choice": "summary choice", "question_answering": "ends"},
    ),
    "convbert": Encoder(
        embedding_size="embedding_size",
        lm_width="embedding_size",
        lm_untied_bias=False,
        make_attention=blocks.conv_attention,
        make_feed_forward=blocks.grouped_feed_forward,
        heads=_NO_POOLER | {"sequence_classification": "dense label", "multiple_choice": "summary choice"},
    ),
    "squeezebert": Encoder(
        embedding_size="embedding_size",
        projection="never",
        norm_projected=True,
        make_attention=blocks.grouped_attention,
        make_feed_forward=blocks.grouped_convolutions,
        heads=BERT_HEADS
        | {task: f"pooler {BERT_HEADS[task]}" for task in ("masked_lm", "token_classification", "question_answering")},
    ),
    "xmod": replace(_ROBERTA, make_feed_forward=blocks.adapters, norm_first="pre_norm", final_norm="pre_norm"),
    "luke": Encoder(
        tables=blocks.entity_tables,
        ignored=("bert_model_name", "cls_entity_prediction"),
        make_attention=blocks.entity_attention,
        behind=blocks.entity_extra,
        lm_tied=False,
        heads=BERT_HEADS
        | {
            "masked_lm": "pooler lm",
            "entity_classification": "pooler label",
            "entity_pair_classification": "pooler pairs",
            "entity_span_classification": "pooler triples",
        },
    ),
    "fnet": Encoder(
        projection="always",
        make_attention=blocks.fourier_mixing,
        ignored=("use_tpu_fourier_optimizations", "tpu_short_seq_length"),
        heads=_POOLED,
    ),
    "longformer": replace(
        _ROBERTA,
        make_attention=blocks.two_sided_attention,
        warning=_WINDOWED,
        ignored=("attention_mode", "ignore_attention_mask", "onnx_export"),
    ),
    "big_bird": Encoder(
        behind=blocks.question_head,
        ignored=("attention_type", "block_size", "num_random_blocks"),
        warning=_FULL_PRODUCTS,
        qkv_bias="use_bias",
        heads=BERT_HEADS
        | {
            "masked_lm": "pooler lm",
            "causal_lm": "pooler lm",
            "token_classification": "pooler labels",
            "sequence_classification": "pooler dense label",
            "question_answering": "ends",
        },
    ),
    "esm": Encoder(
        embedding_norm="emb_layer_norm_before",
        norm_first=True,
        final_norm=True,
        segments=0,
        behind=blocks.contact_head,
        positions="position_embedding_type",
        lm_untied_bias=False,
        heads=ROBERTA_HEADS,
    ),
    "albert": Encoder(
        embedding_size="embedding_size",
        projection="always",
        lm_width="embedding_size",
        make_layers=layers.grouped_layers,
        ignored=("net_structure_type", "gap_size", "down_scale_factor", "layers_to_keep", "num_memory_blocks"),
    ),
    "deberta": _DEBERTA,
    "deberta-v2": replace(_DEBERTA, make_attention=layers.disentangled_attention_v2),
    "modernbert": Encoder(
        norm="norm_bias",
        norm_first=True,
        final_norm=True,
        positions="none",
        segments=0,
        gated=True,
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        make_layers=layers.windowed_layers,
        lm_norm="norm_bias",
        lm_transform_bias="classifier_bias",
        lm_bias="decoder_bias",
        lm_untied_bias=False,
        dense_bias="classifier_bias",
        dense_norm="norm_bias",
        ignored=(
            "sparse_prediction",
            "sparse_pred_ignore_index",
            "global_rope_theta",
            "local_rope_theta",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
        ),
        heads=_NO_POOLER
        | {
            "sequence_classification": "dense label",
            "multiple_choice": "dense choice",
            "token_classification": "rows labels",
            "question_answering": "rows spans",
        },
    ),
    "eurobert": replace(
        _ROTARY,
        lm_bias="mlp_bias",
        heads=_NO_POOLER | {"sequence_classification": "late"},
    ),
    "esmc": replace(
        _ROTARY,
        norm="layer_norm",
        final_norm_kind="layer_norm_without_bias",
        qk_norm="full",
        lm_transform=True,
        lm_tied=False,
        heads=_DENSE,
    ),
    "ultrabert": replace(
        _ROTARY,
        make_layers=layers.windowed_layers,
        behind=blocks.narrowing_head,
        lm_bias=False,
        heads=_NO_POOLER | {"sequence_classification": "label", "question_answering": "ends"},
    ),
    "mobilebert": Encoder(
        embedding_size="embedding_size",
        projection="never",
        norm_projected=True,
        positions="none",
        segments=0,
        tables=layers.bottleneck_tables,
        make_layers=layers.bottleneck_layers,
        behind=layers.bottleneck_head,
        pooler="classifier_activation",
        ignored=("true_hidden_size", "normalization_type"),
        heads=BERT_HEADS | {"masked_lm": "", "pretraining": "pooler pair"},
    ),
    "splinter": Encoder(behind=blocks.span_queries, heads={"base": "", "question_answering": "", "pretraining": ""}),
    "bert-generation": Encoder(segments=0, lm_transform=False, heads={"base": "", "causal_lm": "lm"}),
    "xlm": _XLM,
    "flaubert": _XLM,
}

READERS: Mapping[str, Callable[[Fields], Network]] = {
    name: functools.partial(encoder_network, facts=facts) for name, facts in ENCODERS.items()
}
