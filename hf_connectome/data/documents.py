"""A name -> documents, and what of a document decides on which side of the split it is."""

from __future__ import annotations

import bz2
import difflib
import glob
import gzip
import hashlib
import lzma
import os
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.errors import ConfigError, DataError, did_you_mean, some

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

SEPARATOR = "<|endoftext|>"
STDLIB = "python-stdlib"
_SALT = b"hf_connectome held-out split 1\0"  # another salt is another split: never change it
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".bin": "bin"}
_KINDS |= dict.fromkeys((".txt", ".text", ".py"), "text")


@dataclass(frozen=True)
class Documents:
    """Documents in training order. Texts are fetched one by one: a Hub dataset stays on disk."""

    name: str
    texts: Sequence[str]
    rows: npt.NDArray[Any]  # index (into texts), draw and place (document_key), size in bytes

    def __iter__(self) -> Iterator[str]:
        return (self.texts[int(index)] for index in self.rows["index"])

    def where(self, chosen: npt.NDArray[np.bool_], name: str) -> Documents:
        """Keep the documents that ``chosen`` marks, under another name."""
        return Documents(name, self.texts, self.rows[chosen])

    def digest(self) -> str:
        """Return the SHA-256 of the documents' contents, in order."""
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


def index_documents(name: str, texts: Iterable[str]) -> Documents:
    """Put documents in training order; a DataError where there are none."""
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
    return Documents(name, stored, rows[np.argsort(rows["place"], kind="stable")])


def hold_out(draws: npt.NDArray[np.float64], fraction: float, name: str) -> npt.NDArray[np.bool_]:
    """Hold out the draws below ``fraction``; in a tiny corpus, at least one document on a side."""
    if len(np.unique(draws)) < 2:
        raise DataError(
            f"{name!r} is {len(draws)} document(s) of one and the same text, and held-out text is "
            f"held out by document. Name an eval_dataset, or put {SEPARATOR} between documents."
        )
    fraction = max(fraction, np.nextafter(draws.min(), 1.0))
    held: npt.NDArray[np.bool_] = (draws < fraction) & (draws < draws.max())
    return held


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
    if not kinds:
        raise DataError(
            f"{name!r} holds no file of text, {', '.join(sorted(set(_KINDS.values()) - {'text'}))}"
            f" ({', '.join(sorted(_KINDS))}). Name the folder or file that does."
        )
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
            cause = error.__cause__ or error.__context__  # datasets says only that it failed
            reason = f"{error} ({cause})" if cause is not None else str(error)
            raise DataError(f"{name!r} could not be read as {path}: {reason}") from error
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
