"""load_corpus: arguments -> blocks to train on and blocks held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.data.blocks import (
    arrays,
    bpe_size,
    cache_blocks,
    cache_bpe,
    count_bytes,
    cut_blocks,
    load_tokenizer,
    map_blocks,
    map_shard,
    pack,
    tokenizer_digest,
)
from hf_connectome.data.documents import (
    Documents,
    document_key,
    find_corpus,
    hold_out,
    index_documents,
    load_column,
    parse_part,
    read_files,
)
from hf_connectome.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerFast

    from hf_connectome.data.arguments import DataArguments

_CACHE_VERSION = 1


@dataclass(frozen=True)
class Corpus:
    """Blocks to train on and blocks held out; a count that is not known is None.

    Bits per byte = loss / ln 2 * num_eval_tokens / num_eval_bytes, where ``num_eval_bytes`` is the
    UTF-8 length of the text that the held-out blocks cover (``count_bytes``), while
    ``num_train_bytes`` is that of the training documents, before ``max_train_tokens``.
    """

    train: Dataset | IterableDataset
    evaluation: Dataset
    tokenizer: PreTrainedTokenizerFast | None
    num_train_tokens: int | None
    num_eval_tokens: int
    num_train_bytes: int | None = None
    num_eval_bytes: int | None = None
    num_train_documents: int | None = None
    num_eval_documents: int | None = None

    def describe(self) -> str:
        """Say in two lines how many documents, bytes and tokens each side has."""
        lines = []
        for side in ("train", "eval"):
            units = ("documents", "bytes", "tokens")
            counts = {unit: getattr(self, f"num_{side}_{unit}") for unit in units}
            known = [f"{count:,} {unit}" for unit, count in counts.items() if count is not None]
            lines.append(f"{side}: {', '.join(known) or 'streamed'}")
        return "\n".join(lines)

    def identity(self) -> str:
        """Return what tells one corpus from another, wherever it lies: sizes, held-out digest."""
        digest = hashlib.sha256()
        for tokens in arrays(self.evaluation):
            digest.update(tokens.astype("<i8").tobytes())
        return f"{'; '.join(self.describe().splitlines())}; sha256 {digest.hexdigest()[:16]}"


def load_corpus(
    arguments: DataArguments, tokenizer: PreTrainedTokenizerFast | None = None
) -> Corpus:
    """Read a corpus, hold some of it out and cut both sides into blocks.

    Blocks come in a pseudo-random order of their documents, so ``max_train_tokens`` takes an
    unbiased sample, and a smaller bound takes a prefix of a larger one. Streaming has the same
    documents on each side, in the corpus' own order; its held-out blocks are the first that
    ``max_eval_tokens`` allows. ``.bin`` shards are held out by file, from the last one on, and
    'bpe:...' means no tokenizer for them. Text that is also in ``eval_dataset`` is not trained on.

    Args:
        arguments: What to read and how to cut it.
        tokenizer: Used instead of ``arguments.tokenizer``. On a host with a connectome this must be
            the connectome's own.

    Raises:
        DataError: The corpus is missing, damaged, empty or too small.
        ConfigError: Two settings exclude each other.
    """
    if tokenizer is None and bpe_size(arguments.tokenizer) is None:
        tokenizer = load_tokenizer(arguments.tokenizer)
    kind, shards = find_corpus(arguments.dataset)
    if kind == "bin":
        return _load_shards(shards, arguments, tokenizer)
    if arguments.streaming:
        return _load_stream(arguments, tokenizer)
    training, held_out = _split(arguments)
    if tokenizer is None:
        size = bpe_size(arguments.tokenizer) or 0
        key = repr((_CACHE_VERSION, size, training.digest()))
        tokenizer = cache_bpe(training, size, key, arguments.cache_dir)
    return _corpus(
        _stored(training, tokenizer, arguments, arguments.max_train_tokens),
        _stored(held_out, tokenizer, arguments, arguments.max_eval_tokens),
        tokenizer,
        arguments.block_size,
        num_train_bytes=int(training.rows["size"].sum()),
        num_train_documents=len(training.rows),
        num_eval_documents=len(held_out.rows),
    )


def _corpus(
    train: Dataset | IterableDataset,
    evaluation: Dataset,
    tokenizer: PreTrainedTokenizerFast | None,
    block_size: int,
    **counts: int,
) -> Corpus:
    num_rows = getattr(train, "num_rows", None)
    return Corpus(
        train=train,
        evaluation=evaluation,
        tokenizer=tokenizer,
        num_train_tokens=None if num_rows is None else num_rows * block_size,
        num_eval_tokens=evaluation.num_rows * block_size,
        num_eval_bytes=None if tokenizer is None else count_bytes(evaluation, tokenizer),
        **counts,
    )


def collate(features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack blocks into a batch for a causal model: the Trainer's ``data_collator``.

    The first token of a block is never predicted, so its label is -100. transformers 5 divides the
    loss by the number of labels, which for some architectures (GPT-2) counts that first one too and
    would understate every loss by 1 part in T.
    """
    blocks = np.stack([np.asarray(feature["input_ids"]) for feature in features])  # (B, T)
    tokens = torch.from_numpy(blocks.astype(np.int64))
    labels = tokens.clone()
    labels[:, 0] = -100
    return {"input_ids": tokens, "labels": labels}


def _load_stream(arguments: DataArguments, tokenizer: PreTrainedTokenizerFast | None) -> Corpus:
    from datasets import IterableDataset

    if tokenizer is None:
        raise ConfigError(
            f"tokenizer {arguments.tokenizer!r} is trained on all training documents, which "
            "streaming does not have. Name one that exists, such as 'gpt2'."
        )
    if arguments.eval_dataset is None:
        fraction, left_out = arguments.eval_fraction, frozenset[float]()
        texts = (
            text for text in read_texts(arguments) if text and document_key(text)[0] < fraction
        )
        bound, name = arguments.max_eval_tokens, f"the held-out part of {arguments.dataset!r}"
        evaluation = map_blocks(
            pack(texts, tokenizer, arguments.block_size, max_tokens=bound, name=name)
        )
    else:
        held_out = index_documents(arguments.eval_dataset, read_texts(arguments, evaluation=True))
        fraction, left_out = 0.0, frozenset(held_out.rows["place"].tolist())
        evaluation = _stored(held_out, tokenizer, arguments, arguments.max_eval_tokens)
    stream = {"arguments": arguments, "tokenizer": tokenizer}
    stream |= {"fraction": fraction, "left_out": left_out}
    train = IterableDataset.from_generator(_stream, features=evaluation.features, gen_kwargs=stream)
    return _corpus(train, evaluation, tokenizer, arguments.block_size)


def _stream(
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerFast,
    fraction: float,
    left_out: frozenset[float],
) -> Iterator[dict[str, list[int]]]:
    """Yield the training blocks in the corpus' own order; at module level, so that it pickles."""
    start, end = parse_part(arguments.part)

    def training() -> Iterator[str]:
        for text in read_texts(arguments):
            draw, place = document_key(text) if text else (0.0, -1.0)
            if draw >= fraction and start <= place < end and place not in left_out:
                yield text

    bound, name = arguments.max_train_tokens, repr(arguments.dataset)
    for blocks in pack(training(), tokenizer, arguments.block_size, max_tokens=bound, name=name):
        for block in blocks.tolist():
            yield {"input_ids": block}


def _load_shards(
    files: list[Path], arguments: DataArguments, tokenizer: PreTrainedTokenizerFast | None
) -> Corpus:
    """Cut llm.c shards into blocks that stay where they are on disk."""
    if arguments.streaming or parse_part(arguments.part) != (0.0, 1.0):
        raise ConfigError(
            f"{arguments.dataset!r} is tokens (.bin), which are mapped from disk and know no "
            "documents; streaming and part are for text. Leave both out; a glob chooses files."
        )
    if arguments.eval_dataset is None:
        num_held_out = max(1, round(arguments.eval_fraction * len(files)))
        cut = max(1, len(files) - num_held_out)
        files, held_out = files[:cut], files[cut:]
    else:
        kind, held_out = find_corpus(arguments.eval_dataset)
        if kind != "bin":
            raise _two_kinds(arguments)
        files = [file for file in files if file not in held_out]
    if not files or not held_out:
        raise ConfigError(
            f"{arguments.dataset!r} and eval_dataset {arguments.eval_dataset!r} do not make two "
            "sets of .bin files, and shards are held out by file. Name an eval_dataset that is "
            "another file, or a dataset of several."
        )
    sides = []
    for side, bound in ((files, arguments.max_train_tokens), (held_out, arguments.max_eval_tokens)):
        shards = [map_shard(file, tokenizer) for file in side]
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in side]
        made_of = repr((stats, arguments.block_size, bound))
        blocks = cut_blocks(shards, arguments.block_size, max_tokens=bound, name=str(side[0]))
        sides.append(map_blocks(blocks, hashlib.sha256(made_of.encode()).hexdigest()[:16]))
    return _corpus(sides[0], sides[1], tokenizer, arguments.block_size)


def _split(arguments: DataArguments) -> tuple[Documents, Documents]:
    """Return the training documents of the part, and the held-out documents."""
    name = arguments.dataset
    documents = index_documents(name, read_texts(arguments))
    if arguments.eval_dataset is None:
        held = hold_out(documents.rows["draw"], arguments.eval_fraction, name)
        held_out = documents.where(held, f"held-out part of {name!r}")
    else:
        held_out = index_documents(arguments.eval_dataset, read_texts(arguments, evaluation=True))
        held = np.isin(documents.rows["place"], held_out.rows["place"])
    if held.all():
        raise DataError(
            f"all {len(held)} documents of {name!r} are held out: eval_dataset "
            f"{arguments.eval_dataset!r} has the same texts. Name other text, or leave "
            "eval_dataset out to hold out eval_fraction of the documents."
        )
    start, end = parse_part(arguments.part)
    place = documents.rows["place"]
    training = documents.where(~held & (start <= place) & (place < end), name)
    if not len(training.rows):
        raise DataError(
            f"part {arguments.part!r} of {name!r} has none of its {int((~held).sum())} training "
            f"documents ({int(held.sum())} are held out). Use a wider part or more documents."
        )
    return training, held_out


def read_texts(arguments: DataArguments, *, evaluation: bool = False) -> Iterable[str]:
    """Return the documents of the dataset, or of eval_dataset, in the corpus' own order."""
    name, split = arguments.dataset, arguments.dataset_split
    if evaluation:
        name, split = arguments.eval_dataset or name, arguments.eval_split or split
    kind, files = find_corpus(name)
    if kind == "bin":
        raise _two_kinds(arguments)
    if kind in ("text", "stdlib"):
        return read_files(files, skip_unreadable=kind == "stdlib")
    options: dict[str, Any] = {"split": split, "cache_dir": arguments.cache_dir}
    options["streaming"] = arguments.streaming and not evaluation
    if kind != "hub":
        options["data_files"] = [str(file) for file in files]
    elif name == arguments.dataset:
        options["name"] = arguments.dataset_config
    return load_column(name, arguments.text_column, name if kind == "hub" else kind, options)


def _two_kinds(arguments: DataArguments) -> ConfigError:
    return ConfigError(
        f"dataset {arguments.dataset!r} and eval_dataset {arguments.eval_dataset!r} are text and "
        "tokens (.bin). Name two of one kind."
    )


def _stored(
    documents: Documents,
    tokenizer: PreTrainedTokenizerFast,
    arguments: DataArguments,
    max_tokens: int | None,
) -> Dataset:
    """Return the documents' blocks, from the cache where it has them."""
    made_of = (documents.digest(), tokenizer_digest(tokenizer), tokenizer.eos_token_id)
    blocks = pack(
        documents, tokenizer, arguments.block_size, max_tokens=max_tokens, name=documents.name
    )
    key = repr((_CACHE_VERSION, *made_of, arguments.block_size, max_tokens))
    return cache_blocks(blocks, key, arguments.cache_dir)
