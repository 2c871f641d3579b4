"""Families of encoders as rows of facts. Source: the classes of transformers 5.24, which the tests compare with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from estimator.network import Network
from estimator.readers.encoders import BERT_HEADS, ROBERTA_HEADS, Encoder, encoder_network
from estimator.readers.fields import Fields

__all__ = ["ENCODERS", "READERS"]

_BERT = Encoder()
_ROBERTA = Encoder(heads=ROBERTA_HEADS)
_NO_POOLER = BERT_HEADS | {"base": ""}
_DENSE = _NO_POOLER | {"sequence_classification": "dense label", "multiple_choice": "dense choice"}

ENCODERS: Mapping[str, Encoder] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA,
    "distilbert": Encoder(token_types=0, intermediate_size="hidden_dim", heads=_DENSE, lm_untied_bias=False),
    "electra": Encoder(
        embedding_size="embedding_size",
        lm_width="embedding_size",
        lm_untied_bias=False,
        heads=_NO_POOLER
        | {
            "pretraining": "rows token",
            "sequence_classification": "dense label",
            "multiple_choice": "dense choice",
        },
    ),
}

READERS: Mapping[str, Callable[[Fields], Network]] = {
    name: functools.partial(encoder_network, facts=facts) for name, facts in ENCODERS.items()
}
