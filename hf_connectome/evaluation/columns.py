"""Columns of a table, and their cells checked one by one; an error names column and row."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_connectome.errors import DataError, did_you_mean, some

Array = npt.NDArray[np.float64]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_columns(source: Any, needed: Sequence[str]) -> dict[str, list[Any]]:
    """Give every column of a .csv or .tsv file, a mapping, a data frame or a dataset.

    Raises:
        DataError: A column of ``needed`` is missing, columns differ in length, or there is no row.
    """
    columns = _read(Path(source)) if isinstance(source, (str, Path)) else _taken(source)
    for name in needed:
        if name not in columns:
            raise DataError(f"the table has no column {name!r}. {did_you_mean(name, columns)}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        short, long = (f(lengths, key=lengths.__getitem__) for f in (min, max))
        raise DataError(
            f"column {short!r} has {lengths[short]} rows, {long!r} has {lengths[long]}; expected "
            "as many in every column. Fill the cells that are missing."
        )
    if not any(lengths.values()):
        raise DataError(f"the table has no row below its header ({some(columns)}).")
    return columns


def _taken(source: Any) -> dict[str, list[Any]]:
    try:
        # A Dataset iterates over rows, everything else over its column names.
        names = getattr(source, "column_names", None) or list(source)
    except TypeError as error:
        raise DataError(
            f"the table is {type(source).__name__}; expected the path of a .csv or .tsv file, a "
            "mapping of column to values, a data frame or a dataset."
        ) from error
    return {str(name): list(source[name]) for name in names}


def _read(path: Path) -> dict[str, list[Any]]:
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise DataError(
            f"{path.name} ends in {path.suffix!r}; expected .csv or .tsv. Load anything else with "
            "pandas or datasets, and pass the data frame or dataset."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *rows = filter(None, csv.reader(file, delimiter=delimiter, strict=True))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no line at all, or not UTF-8
        raise DataError(
            f"{path} could not be read as a table: {error}. Expected UTF-8 text with a header."
        ) from error
    twice = [name for name, times in Counter(head).items() if times > 1]
    if twice:
        raise DataError(f"{path.name} has two columns {twice[0]!r}; expected one. Rename one.")
    for count, row in numbered(rows):
        if len(row) != len(head):
            raise DataError(
                f"row {count} of {path.name} has {len(row)} cells, the header {len(head)}. Quote "
                "cells that hold the delimiter."
            )
    return {name: [row[i] for row in rows] for i, name in enumerate(head)}


def numbered(values: Sequence[Any]) -> enumerate[Any]:
    """Number rows from 1: the header is none."""
    return enumerate(values, start=1)


def text_cell(value: Any, column: str, row: int) -> str:
    """Refuse a cell that holds no text; strip the spaces around it."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"row {row}: {column!r} is {value!r}; expected text. Remove the row.")
    return value.strip()


def number_cell(value: Any, column: str, row: int) -> float:
    """Refuse a cell that is no finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"row {row}: {column!r} is {value!r}; expected a finite number. Remove the row or fill "
            "the cell."
        )
    return found


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether every cell is a finite number."""
    try:
        return all(math.isfinite(float(value)) for value in values)
    except (TypeError, ValueError):
        return False


def whole_cell(value: Any, column: str, row: int) -> int:
    """Refuse a cell that is no whole number."""
    found = number_cell(value, column, row)
    if found != int(found):
        raise DataError(f"row {row}: {column!r} is {value!r}; expected a whole number.")
    return int(found)


def time_cell(value: Any, column: str, row: int, *, allow_missing: bool) -> float:
    """Refuse a time that is not above 0; an empty cell is NaN if that is allowed."""
    missing = value is None or str(value).strip().lower() in ("", "na", "nan", "none", "<na>")
    if missing and allow_missing:
        return math.nan
    if missing:
        raise DataError(
            f"row {row}: {column!r} is {value!r}; expected milliseconds. Pass allow_missing=True "
            "to keep the word in its text and leave it out of the measures."
        )
    found = number_cell(value, column, row)
    if found <= 0:
        raise DataError(
            f"row {row}: {column!r} is {found:g} ms; expected more than 0. Empty the cell and "
            "pass allow_missing=True if nobody read the word."
        )
    return found


def positive_column(values: Sequence[Any], column: str, known: npt.NDArray[np.bool_]) -> Array:
    """Refuse a column with a number of 0 or below; rows that are not ``known`` become NaN."""
    numbers = np.array(
        [
            number_cell(value, column, row) if known[row - 1] else float("nan")
            for row, value in numbered(values)
        ]
    )
    if (numbers <= 0).any():
        row = int(np.argmax(numbers <= 0))
        raise DataError(
            f"row {row + 1}: {column!r} is {numbers[row]:g}; expected more than 0. Remove the row, "
            "or leave num_readers and deviation out: there is no noise ceiling then."
        )
    return numbers
