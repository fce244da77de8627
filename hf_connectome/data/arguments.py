"""DataArguments: which text to learn from, and how it becomes blocks of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_connectome.data.blocks import bpe_size
from hf_connectome.data.documents import STDLIB, parse_part
from hf_connectome.errors import ConfigError


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataArguments:
    """Which text to learn from, and how it becomes blocks of tokens."""

    dataset: str = _field(
        STDLIB,
        "Corpus: 'python-stdlib', a Hub id, or a file, directory or glob of text (a document a "
        "file, or several with <|endoftext|> between), json, jsonl, parquet, csv or llm.c .bin.",
    )
    dataset_config: str | None = _field(
        None, "Configuration of a Hub dataset; of eval_dataset too where it is the same one."
    )
    dataset_split: str = _field("train", "Split, in the words of datasets.load_dataset.")
    eval_dataset: str | None = _field(
        None, "Held-out corpus; without it, eval_fraction of the dataset's documents."
    )
    eval_split: str | None = _field(None, "Split of eval_dataset; without it, dataset_split.")
    text_column: str = _field("text", "Column that holds the text.")
    tokenizer: str = _field(
        "bpe:2048",
        "'bpe:SIZE' trains a byte-level BPE of SIZE tokens on the training documents; "
        "anything else is an id or a path for AutoTokenizer.",
    )
    block_size: int = _field(128, "Tokens in a block, at least 2.")
    eval_fraction: float = _field(0.05, "Fraction of the documents held out, in (0, 1).")
    part: str = _field(
        "0:1",
        "Part of the training documents, as fractions of a fixed pseudo-random order: '0:0.8' and "
        "'0.8:1' share no document.",
    )
    max_train_tokens: int | None = _field(None, "Upper bound on training tokens.")
    max_eval_tokens: int | None = _field(None, "Upper bound on held-out tokens.")
    streaming: bool = _field(False, "Read and tokenise while training, in the corpus' own order.")
    cache_dir: str | None = _field(None, "Where to cache; without it, where datasets caches.")

    def __post_init__(self) -> None:
        """Refuse settings out of range before anything is read."""
        parse_part(self.part)
        bpe_size(self.tokenizer)
        if self.block_size < 2:
            raise ConfigError(f"block_size is {self.block_size}; expected at least 2, such as 128.")
        if not 0.0 < self.eval_fraction < 1.0:
            raise ConfigError(
                f"eval_fraction is {self.eval_fraction}; expected a number between 0 and 1, both "
                "excluded, such as 0.05."
            )
        for name in ("max_train_tokens", "max_eval_tokens"):
            bound = getattr(self, name)
            if bound is not None and bound < self.block_size:
                raise ConfigError(
                    f"{name} is {bound}, less than one block of {self.block_size} tokens. "
                    "Raise it or lower block_size."
                )
        if self.streaming and self.eval_dataset is None and self.max_eval_tokens is None:
            raise ConfigError(
                "streaming never sees the end of the held-out documents. Set max_eval_tokens or "
                "name an eval_dataset."
            )
