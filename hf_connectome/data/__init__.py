"""Corpora for causal language modelling: text from anywhere -> blocks of tokens of one length.

A document's content alone decides whether it is held out and where it comes in training order
(``document_key``): copies stay together, the order of files does not matter, and a document that
is added moves no other. Not here: shuffling, batching (the Trainer's), padding (never needed).
"""

from hf_connectome.data.arguments import DataArguments
from hf_connectome.data.blocks import (
    count_bytes,
    load_tokenizer,
    pack,
    tokenizer_digest,
    train_bpe,
)
from hf_connectome.data.corpus import Corpus, collate, load_corpus
from hf_connectome.data.documents import document_key, parse_part

__all__ = [
    "Corpus",
    "DataArguments",
    "collate",
    "count_bytes",
    "document_key",
    "load_corpus",
    "load_tokenizer",
    "pack",
    "parse_part",
    "tokenizer_digest",
    "train_bpe",
]
