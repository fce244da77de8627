"""Corpora for causal language modelling: text from anywhere -> blocks of tokens of one length.

A document's content alone decides whether it is held out and where it comes in training order
(``document_key``): copies stay together, the order of files does not matter, and a document that
is added moves no other. Not here: shuffling, batching (the Trainer's), padding (never needed).
"""

from __future__ import annotations

import bz2
import difflib
import glob
import gzip
import hashlib
import itertools
import json
import lzma
import os
import sys
import sysconfig
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from hf_connectome.errors import ConfigError, DataError, did_you_mean, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerFast

    Tokens = npt.NDArray[np.integer[Any]]

SEPARATOR = "<|endoftext|>"
_MIN_VOCAB = 256 + 1
STDLIB = "python-stdlib"
_SALT = b"hf_connectome held-out split 1\0"  # another salt is another split: never change it
_SHARD_HEADER = {"magic": 20240520, "version": 1}  # llm.c's, for GPT-2 tokens
_SHARD_OFFSET = 1024
_CACHE_VERSION = 1
_BATCH_CHARACTERS = 1 << 20
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".bin": "bin"}
_KINDS |= dict.fromkeys((".txt", ".text", ".py"), "text")


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
        texts = (text for text in _texts(arguments) if text and document_key(text)[0] < fraction)
        bound, name = arguments.max_eval_tokens, f"the held-out part of {arguments.dataset!r}"
        evaluation = map_blocks(
            pack(texts, tokenizer, arguments.block_size, max_tokens=bound, name=name)
        )
    else:
        held_out = _index(arguments.eval_dataset, _texts(arguments, evaluation=True))
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
        for text in _texts(arguments):
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


# Which documents there are, and on which side of the split.


@dataclass(frozen=True)
class _Documents:
    """Documents in training order. Texts are fetched one by one: a Hub dataset stays on disk."""

    name: str
    texts: Sequence[str]
    rows: npt.NDArray[Any]  # index (into texts), draw and place (document_key), size in bytes

    def __iter__(self) -> Iterator[str]:
        return (self.texts[int(index)] for index in self.rows["index"])

    def where(self, chosen: npt.NDArray[np.bool_], name: str) -> _Documents:
        return _Documents(name, self.texts, self.rows[chosen])

    def digest(self) -> str:
        keys = self.rows["draw"].tobytes() + self.rows["place"].tobytes()
        return hashlib.sha256(keys).hexdigest()


def document_key(text: str) -> tuple[float, float]:
    """Return two independent numbers in [0, 1) that only the document's content decides.

    A document is held out when the first, its draw, is below ``eval_fraction``. The second is its
    place in training order: it is in part a:b when a <= place < b. So parts of different runs never
    share a document, whatever their ``eval_fraction``, and counts follow the fractions by chance.
    """
    digest = hashlib.sha256(_SALT + text.encode()).digest()
    draw, place = (int.from_bytes(digest[i : i + 8], "big") >> 11 for i in (0, 8))
    return draw / 2**53, place / 2**53


def parse_part(part: str) -> tuple[float, float]:
    """Return the two fractions of a part such as ``'0:0.8'``.

    Raises:
        ConfigError: It is not 'a:b' with 0 <= a < b <= 1.
    """
    try:
        start, end = (float(fraction) for fraction in part.split(":"))
    except ValueError:
        start, end = 1.0, 0.0
    if not 0.0 <= start < end <= 1.0:
        raise ConfigError(
            f"part is {part!r}; expected 'a:b' with 0 <= a < b <= 1, such as '0:0.8' and '0.8:1'."
        )
    return start, end


def _index(name: str, texts: Iterable[str]) -> _Documents:
    stored: Any = texts if hasattr(texts, "__getitem__") else list(texts)
    keyed = (
        (index, *document_key(text), len(text.encode()))
        for index, text in enumerate(stored)
        if text  # a row without text is no document
    )
    columns = [("index", "i8"), ("draw", "f8"), ("place", "f8"), ("size", "i8")]
    rows = np.fromiter(keyed, dtype=columns)
    if not len(rows):
        raise DataError(f"{name!r} holds no text. Name a corpus with at least two documents.")
    return _Documents(name, stored, rows[np.argsort(rows["place"], kind="stable")])


def _split(arguments: DataArguments) -> tuple[_Documents, _Documents]:
    """Return the training documents of the part, and the held-out documents."""
    name = arguments.dataset
    documents = _index(name, _texts(arguments))
    if arguments.eval_dataset is None:
        held = _hold_out(documents.rows["draw"], arguments.eval_fraction, name)
        held_out = documents.where(held, f"held-out part of {name!r}")
    else:
        held_out = _index(arguments.eval_dataset, _texts(arguments, evaluation=True))
        held = np.isin(documents.rows["place"], held_out.rows["place"])
    start, end = parse_part(arguments.part)
    place = documents.rows["place"]
    training = documents.where(~held & (start <= place) & (place < end), name)
    if not len(training.rows):
        raise DataError(
            f"part {arguments.part!r} of {name!r} has none of its {int((~held).sum())} training "
            f"documents ({int(held.sum())} are held out). Use a wider part or more documents."
        )
    return training, held_out


def _texts(arguments: DataArguments, *, evaluation: bool = False) -> Iterable[str]:
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


def _hold_out(draws: npt.NDArray[np.float64], fraction: float, name: str) -> npt.NDArray[np.bool_]:
    """Hold out the draws below ``fraction``; in a tiny corpus, at least one document on a side."""
    if len(np.unique(draws)) < 2:
        raise DataError(
            f"{name!r} is {len(draws)} document(s) of one and the same text, and held-out text is "
            f"held out by document. Name an eval_dataset, or put {SEPARATOR} between documents."
        )
    fraction = max(fraction, np.nextafter(draws.min(), 1.0))
    held: npt.NDArray[np.bool_] = (draws < fraction) & (draws < draws.max())
    return held


def _stored(
    documents: _Documents,
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


# A name -> the documents.


def find_corpus(name: str) -> tuple[str, list[Path]]:
    """Return the kind of a corpus ('stdlib', 'hub' or that of its files) and its files, sorted.

    Raises:
        DataError: It names a file that does not exist, or files of several kinds.
    """
    if name == STDLIB:
        return "stdlib", sorted(_stdlib_sources())
    path = Path(name).expanduser()
    if path.is_file():
        return _kind(path) or "text", [path.absolute()]
    if path.is_dir():
        found = [file.absolute() for file in path.rglob("*") if file.is_file() and _kind(file)]
    elif glob.has_magic(name):
        root = Path(path.anchor)
        found = [file.absolute() for file in root.glob(str(path.relative_to(root)))]
        found = [file for file in found if file.is_file()]
    elif _kind(path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"{name!r} does not exist. {_neighbours(path)}")
    else:
        return "hub", []
    kinds = sorted({_kind(file) or "text" for file in found})
    if len(kinds) != 1:
        raise DataError(
            f"{name!r} holds files of {len(kinds)} kinds ({some(kinds)}); expected one kind of "
            f"{', '.join(sorted(_KINDS))}. Choose the files by a glob such as 'folder/**/*.txt'."
        )
    return kinds[0], sorted(found)


def _stdlib_sources() -> Iterator[Path]:
    for folder, subfolders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        subfolders[:] = set(subfolders) - _NOT_STDLIB  # os.walk enters what is left here
        # _sysconfigdata is no source: each build of Python writes its own.
        names = [name for name in names if not name.startswith("_sysconfigdata")]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _kind(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _OPENERS]
    return _KINDS.get(suffixes[-1]) if suffixes else None


def _neighbours(path: Path, *names: str) -> str:
    """Say what there is where ``path`` was looked for, and among ``names``."""
    folder = path.parent
    known = [*names, *(sorted(file.name for file in folder.iterdir()) if folder.is_dir() else [])]
    near = difflib.get_close_matches(path.name, known) or known[:3]
    return did_you_mean(path.name, near) if near else f"There is nothing in {str(folder)!r}."


def read_files(files: Iterable[Path], *, skip_unreadable: bool) -> Iterator[str]:
    """Yield the documents of text files: one a file, or those between separators.

    Raises:
        DataError: A file is damaged or not UTF-8, unless ``skip_unreadable``.
    """
    for path in files:
        try:
            with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
                text = file.read()
        except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
            if skip_unreadable:
                continue
            raise DataError(
                f"{str(path)!r} cannot be read as UTF-8 text: {error}. Convert or leave it out."
            ) from error
        pieces = text.split(SEPARATOR)
        yield from (piece.strip("\n") for piece in pieces) if len(pieces) > 1 else pieces


def load_column(name: str, column: str, path: str, options: dict[str, Any]) -> Iterable[str]:
    """Return the text column of a Hub dataset or of local json, parquet or csv.

    Args:
        name: What an error calls the dataset.
        column: Name of the column.
        path: A Hub id, or 'json', 'parquet' or 'csv'.
        options: What ``datasets.load_dataset`` takes besides.

    Raises:
        DataError: It cannot be loaded, is empty, or has no such column of text.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(path, **options)
        first = next(iter(loaded), None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if "data_files" in options:
            raise DataError(f"{name!r} could not be read as {path}: {error}") from error
        raise DataError(
            f"{name!r} is no file or folder here, and as a Hub dataset it could not be loaded "
            f"({error}). Without a network, name a local file or what the Hub cache holds. "
            f"{_neighbours(Path(name), STDLIB)}"
        ) from error
    if first is None:
        raise DataError(f"{name!r} has no rows. Name another split or corpus.")
    if not isinstance(first.get(column, 0), (str, type(None))):
        raise DataError(
            f"{name!r} has no column {column!r} of text; its columns are {', '.join(first)}. "
            "Set text_column to one that holds text."
        )
    return (row[column] for row in loaded) if options["streaming"] else loaded[column]


# Documents -> tokens -> blocks.


def train_bpe(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, the same one for the same documents; it can write any text.

    Its tokens are ``<|endoftext|>``, the 256 bytes and the merges. A corpus with too few pairs to
    merge gives fewer than ``vocab_size``: ``len()`` of the result is the truth.

    Raises:
        ConfigError: ``vocab_size`` is below 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < _MIN_VOCAB:
        raise ConfigError(
            f"vocab_size is {vocab_size}; expected at least {_MIN_VOCAB} (the bytes and "
            f"{SEPARATOR}), such as 2048."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return _with_special_tokens(backend)


def _with_special_tokens(backend: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), SEPARATOR)
    make: Any = PreTrainedTokenizerFast  # whose __init__ has no types
    return cast("PreTrainedTokenizerFast", make(tokenizer_object=backend, **special))


def bpe_size(tokenizer: str) -> int | None:
    """Return SIZE of 'bpe:SIZE', None for the name of a tokenizer that exists."""
    name, _, size = tokenizer.partition(":")
    if name != "bpe":
        return None
    if not size.isdecimal() or int(size) < _MIN_VOCAB:
        raise ConfigError(
            f"tokenizer is {tokenizer!r}; expected 'bpe:SIZE' with a SIZE of at least {_MIN_VOCAB} "
            f"(the bytes and {SEPARATOR}), such as 'bpe:2048'."
        )
    return int(size)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer by id or path; a DataError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"tokenizer {name!r} could not be loaded: {error} Name a folder with tokenizer.json, a "
            "Hub id, or 'bpe:2048' to train one."
        ) from error
    return cast("PreTrainedTokenizerFast", tokenizer)


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the SHA-256 of what turns text into ids: added tokens, normaliser, splitter, model.

    Truncation and padding are states of use; the post-processor adds special tokens, which blocks
    do without; the decoder works the other way round. Libraries alter all four on their own.
    """
    state = json.loads(_backend(tokenizer).to_str(), object_hook=_without_what_is_off)
    names = {"added_tokens", "normalizer", "pre_tokenizer", "model"} & set(state)
    parts = {name: state[name] for name in names}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _without_what_is_off(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out None and False: later tokenizers libraries write new options, which are off."""
    return {key: value for key, value in state.items() if value is not None and value is not False}


def _backend(tokenizer: PreTrainedTokenizerFast) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{type(tokenizer).__name__} is not made by the tokenizers library. Use a fast "
            "tokenizer, one that AutoTokenizer loads from a tokenizer.json."
        )
    return backend


def count_bytes(blocks: Dataset, tokenizer: PreTrainedTokenizerFast) -> int:
    """Count the UTF-8 bytes of the text that consecutive ``blocks`` cover; special tokens count 0.

    Exact for byte-level tokenizers, even where the last block ends within a character. With others
    the documents are decoded: what their normaliser took from the text is not counted.
    """
    decoder = json.loads(_backend(tokenizer).to_str())["decoder"] or {}
    if decoder.get("type") != "ByteLevel":
        tokens = np.concatenate(list(_arrays(blocks)))
        ends = np.flatnonzero(tokens == tokenizer.eos_token_id) + 1
        documents = [document.tolist() for document in np.split(tokens, ends)]
        texts = tokenizer.batch_decode(
            documents, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return sum(len(text.encode()) for text in texts)
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, index in vocabulary.items():
        lengths[index] = len(token)  # one character stands for one byte
    for index, added in tokenizer.added_tokens_decoder.items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    return sum(int(lengths[tokens].sum()) for tokens in _arrays(blocks))


def pack(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    block_size: int,
    *,
    max_tokens: int | None = None,
    name: str = "the corpus",
) -> Iterator[Tokens]:
    """Yield the blocks of all documents, each followed by end of text, as ``(n, block_size)``.

    Nothing is dropped but the last incomplete block of all, and what ``max_tokens`` excludes.
    ``name`` is what an error calls the documents.

    Raises:
        DataError: There are fewer tokens than one block, or the tokenizer has no end of text.
    """
    return cut_blocks(_tokenise(documents, tokenizer), block_size, max_tokens=max_tokens, name=name)


def _tokenise(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Tokens]:
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            "the tokenizer has no eos_token, which separates documents. Set tokenizer.eos_token."
        )
    dtype = np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.int32
    backend = _backend(tokenizer)
    for texts in _batches(documents):
        backend.no_truncation()  # each use of the tokenizer sets both anew
        backend.no_padding()
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        tokens = itertools.chain.from_iterable((*document.ids, end) for document in encoded)
        yield np.fromiter(tokens, dtype=dtype)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Batch by characters, not documents: a batch of books would not fit in memory."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document) + 1
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def cut_blocks(
    arrays: Iterable[Tokens], block_size: int, *, max_tokens: int | None, name: str
) -> Iterator[Tokens]:
    """Cut the concatenation of ``arrays`` into ``(n, block_size)``; only what spans two is copied.

    Args:
        arrays: Token ids, any lengths.
        block_size: Tokens in a block.
        max_tokens: Upper bound on the tokens yielded.
        name: What an error calls the tokens.

    Raises:
        DataError: There are fewer tokens than one block.
    """
    left = sys.maxsize if max_tokens is None else max_tokens // block_size
    num_tokens = 0
    carry: Tokens = np.empty(0, dtype=np.uint16)
    for array in arrays:
        num_tokens += array.size
        head = array[: -carry.size % block_size]
        carry, array = np.concatenate([carry, head]), array[head.size :]
        if 0 < carry.size < block_size:
            continue
        whole = array.size - array.size % block_size
        for tokens in (carry, array[:whole]):
            blocks = tokens.reshape(-1, block_size)[:left]
            left -= len(blocks)
            if len(blocks):
                yield blocks
        if not left:
            return
        carry = array[whole:]
    if carry.size == num_tokens:
        raise DataError(
            f"{name} has {num_tokens} tokens, less than one block of {block_size}. Use more text "
            "(held-out text: a larger eval_fraction or an eval_dataset) or a smaller block_size."
        )


def _table(blocks: Tokens) -> Any:
    """Return blocks as an Arrow table, without a copy."""
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(blocks.reshape(-1)), blocks.shape[1])
    return pa.table({"input_ids": column})


def map_blocks(blocks: Iterable[Tokens], fingerprint: str | None = None) -> Dataset:
    """Return a dataset over the arrays themselves, in memory or mapped from a file.

    Without ``fingerprint`` datasets makes one from a copy of all tokens. A DataLoader worker that
    is spawned rather than forked gets a copy too.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    table = pa.concat_tables([_table(several) for several in blocks])
    return Dataset(InMemoryTable(table), fingerprint=fingerprint)


def _arrays(blocks: Dataset) -> Iterator[Tokens]:
    for table in blocks.with_format("arrow").iter(batch_size=4096):
        for chunk in table.column("input_ids").chunks:
            yield chunk.flatten().to_numpy()


def map_shard(path: Path, tokenizer: PreTrainedTokenizerFast | None) -> Tokens:
    """Map the tokens of one llm.c shard from disk.

    Raises:
        DataError: Its header, its length or (with a ``tokenizer``) a token id is not as it must be.
    """
    header = np.fromfile(path, dtype="<i4", count=_SHARD_OFFSET // 4)
    size = path.stat().st_size
    if size < _SHARD_OFFSET:
        raise DataError(
            f"{str(path)!r} has {size} bytes, the header alone {_SHARD_OFFSET}. Write it again."
        )
    for word, (field_name, expected) in enumerate(_SHARD_HEADER.items()):
        if header[word] != expected:
            raise DataError(
                f"{str(path)!r} has {field_name} {header[word]}, expected {expected}. "
                "Write it as llm.c's GPT-2 tokens (uint16)."
            )
    count, stored = int(header[2]), (size - _SHARD_OFFSET) / 2
    if count != stored or not count:
        raise DataError(
            f"{str(path)!r} announces {count} tokens and holds {stored:g}. Write it again."
        )
    tokens: Tokens = np.memmap(path, dtype="<u2", mode="r", offset=_SHARD_OFFSET)
    if tokenizer is not None and (largest := int(tokens.max())) >= len(tokenizer):
        raise DataError(
            f"{str(path)!r} holds token {largest}, the tokenizer has {len(tokenizer)}. Name the "
            "tokenizer that wrote it."
        )
    return tokens


def cache_blocks(blocks: Iterator[Tokens], key: str, cache_dir: str | None) -> Dataset:
    """Return the blocks from the cache; only if it has none under ``key``, make and store them."""
    import pyarrow as pa
    from datasets import Dataset

    def write(path: Path) -> None:
        tables = (_table(several) for several in blocks)
        first = next(tables)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)

    return Dataset.from_file(str(_cached("blocks", key, cache_dir, write)))


def cache_bpe(
    documents: Iterable[str], vocab_size: int, key: str, cache_dir: str | None
) -> PreTrainedTokenizerFast:
    """Return ``train_bpe`` of the documents from the cache; only if it has none, train it."""
    from tokenizers import Tokenizer

    def write(path: Path) -> None:
        train_bpe(documents, vocab_size).backend_tokenizer.save(str(path))

    return _with_special_tokens(Tokenizer.from_file(str(_cached("bpe", key, cache_dir, write))))


def _cached(kind: str, key: str, cache_dir: str | None, write: Callable[[Path], None]) -> Path:
    """Return the file of ``key``, whose name holds its checksum; write it if none is whole."""
    from datasets import config

    folder = Path(cache_dir or config.HF_DATASETS_CACHE).expanduser() / "hf_connectome"
    stem = f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}"
    for path in folder.glob(f"{stem}-*"):
        if path.name == f"{stem}-{_checksum(path)}":
            return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        partial = Path(scratch, kind)
        write(partial)
        return partial.replace(folder / f"{stem}-{_checksum(partial)}")


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"
