"""Documents -> tokens -> blocks of one length, in memory, mapped from disk or cached there."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_connectome.data.documents import SEPARATOR
from hf_connectome.errors import ConfigError, DataError
from hf_connectome.storage import refused_writes_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    Tokens = npt.NDArray[np.integer[Any]]

_MIN_VOCAB = 256 + 1
_SHARD_HEADER = {"magic": 20240520, "version": 1}  # llm.c's, for GPT-2 tokens
_SHARD_OFFSET = 1024
_BATCH_CHARACTERS = 1 << 20


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
        tokens = np.concatenate(list(arrays(blocks)))
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
    return sum(int(lengths[tokens].sum()) for tokens in arrays(blocks))


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


def arrays(blocks: Dataset) -> Iterator[Tokens]:
    """Yield the tokens of consecutive blocks, many blocks at a time."""
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
        tokenizer = train_bpe(documents, vocab_size)
        path.write_text(tokenizer.backend_tokenizer.to_str(pretty=True), encoding="utf-8")

    return _with_special_tokens(Tokenizer.from_file(str(_cached("bpe", key, cache_dir, write))))


def _cached(kind: str, key: str, cache_dir: str | None, write: Callable[[Path], None]) -> Path:
    """Return the file of ``key``, whose name holds its checksum; write it if none is whole."""
    from datasets import config

    folder = Path(cache_dir or config.HF_DATASETS_CACHE).expanduser() / "hf_connectome"
    stem = f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}"
    for path in folder.glob(f"{stem}-*"):
        if path.name == f"{stem}-{_checksum(path)}":
            return path
    with refused_writes_named(folder):
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
