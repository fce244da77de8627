"""Graphs of neurons from files: edge lists and matrices as csv, both as npz; rows presynaptic."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.errors import DataError, some
from hf_connectome.graphs.base import INTER, MOTOR, SENSORY, NeuronGraph

if TYPE_CHECKING:
    from os import PathLike

    Edge = tuple[str, str, float]

_PRE, _POST = ("source", "pre", "from", "src"), ("target", "post", "to", "dst")
_ROLES = {SENSORY: SENSORY, "input": SENSORY, INTER: INTER, MOTOR: MOTOR, "output": MOTOR}
_WEIGHTS = ("weight", "weights", "all_all", "synapses")


def read_graph(
    path: str | PathLike[str],
    neurons: str | PathLike[str] | None = None,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
) -> NeuronGraph:
    """Read a graph, whose rows are presynaptic.

    Args:
        path: a ``.csv`` whose header names a source and a target is a list of edges, with
            ``weight`` if it has that column; any other is a matrix with names in its first row and
            column. A ``.npz`` has ``names`` or ``ids``, and ``src`` and ``dst`` as indices into
            them, or ``adjacency``; ``weight`` and ``role`` if known.
        neurons: ``.csv`` with ``name`` and ``role``: 'sensory' (or 'input'), 'inter', 'motor' (or
            'output'). It gives the order of the neurons, and every edge must be between two of
            them.
        inputs: names of the sensory neurons, instead of ``neurons``; names that the graph does not
            have are passed over.
        outputs: names of the motor neurons, likewise.

    Raises:
        DataError: a file cannot be read, or nothing says which neurons are inputs and outputs.
        ConfigError: what was read is no graph (:class:`NeuronGraph`).
    """
    path = Path(path)
    names, edges, roles = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    if neurons is not None:
        roles = _read_roles(Path(neurons))
        names = list(roles)
    if inputs is not None and outputs is not None:
        wanted = dict.fromkeys(inputs, SENSORY) | dict.fromkeys(outputs, MOTOR)
        roles = {name: wanted.get(name, INTER) for name in names}
    if not roles:
        raise DataError(
            f"{path} does not say which neurons are inputs and outputs. Give a table of neurons "
            "with the columns name and role (sensory, inter, motor)."
        )
    return NeuronGraph.from_edges(
        names,
        edges,
        inputs=[name for name in names if roles.get(name) == SENSORY],
        outputs=[name for name in names if roles.get(name) == MOTOR],
    )


def read_edges(path: Path) -> list[Edge]:
    """Read a list of edges from a ``.csv`` with a source, a target and perhaps a weight.

    Raises:
        DataError: it cannot be read, or a weight is no number.
    """
    header, *rows = _rows(path)
    columns = [name.lower() for name in header]
    pre, post = _column(columns, _PRE), _column(columns, _POST)
    if pre is None or post is None:
        raise DataError(f"{path} has the columns {some(header)}; expected source and target.")
    weight = _column(columns, _WEIGHTS)
    return [
        (row[pre], row[post], 1.0 if weight is None else _number(row[weight], path)) for row in rows
    ]


def _read_csv(path: Path) -> tuple[list[str], list[Edge], dict[str, str]]:
    header, *rows = _rows(path)
    columns = [name.lower() for name in header]
    if _column(columns, _PRE) is not None and _column(columns, _POST) is not None:
        edges = read_edges(path)
        return list(dict.fromkeys(name for edge in edges for name in edge[:2])), edges, {}
    names = header[1:]
    if [row[0] for row in rows] != names:
        raise DataError(
            f"{path} is no list of edges (no columns source and target) and no square matrix: its "
            f"{len(rows)} rows and {len(names)} columns do not have the same names in one order."
        )
    edges = [
        (row[0], name, weight)
        for row in rows
        for name, text in zip(names, row[1:], strict=True)
        if (weight := _number(text, path))
    ]
    return names, edges, {}


def _read_npz(path: Path) -> tuple[list[str], list[Edge], dict[str, str]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            content: dict[str, Any] = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}.") from error
    names = [str(n) for n in _array(content, ("names", "ids"), path)]
    if "adjacency" in content:
        matrix = np.asarray(content["adjacency"], dtype=np.float64)
        if matrix.shape != (len(names), len(names)):
            raise DataError(
                f"{path}: the adjacency is {matrix.shape}, with {len(names)} names; expected a "
                "square of that size, rows presynaptic."
            )
        pre, post = np.nonzero(matrix)
        weights = matrix[pre, post]
    else:
        pre, post = (_array(content, kinds, path).astype(np.int64) for kinds in (_PRE, _POST))
        named = next((name for name in _WEIGHTS if name in content), None)
        weights = np.ones(len(pre)) if named is None else content[named]
        if not len(pre) == len(post) == len(weights):
            raise DataError(
                f"{path}: {len(pre)} sources, {len(post)} targets and {len(weights)} weights; "
                "expected as many of each."
            )
        if len(pre) and not 0 <= min(pre.min(), post.min()) <= max(pre.max(), post.max()) < len(
            names
        ):
            raise DataError(f"{path}: an edge has a number that none of the {len(names)} has.")
    edges = [
        (names[i], names[j], float(w))
        for i, j, w in zip(pre.tolist(), post.tolist(), weights.tolist(), strict=True)
    ]
    roles = dict(zip(names, map(str, content.get("role", ())), strict=False))
    return names, edges, _checked_roles(roles, path)


def _read_roles(path: Path) -> dict[str, str]:
    header, *rows = _rows(path)
    columns = [name.lower() for name in header]
    name, role = _column(columns, ("name",)), _column(columns, ("role", "type"))
    if name is None or role is None:
        raise DataError(f"{path} has the columns {some(header)}; expected name and role.")
    return _checked_roles({row[name]: row[role] for row in rows}, path)


def _checked_roles(roles: Mapping[str, str], path: Path) -> dict[str, str]:
    odd = [role for role in dict.fromkeys(roles.values()) if role not in _ROLES]
    if odd:
        raise DataError(f"{path} has the role {some(odd)}; expected {', '.join(_ROLES)}.")
    return {name: _ROLES[role] for name, role in roles.items()}


def _rows(path: Path) -> list[list[str]]:
    """Read a table whose rows all have as many fields as its header, without the spaces around."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [[field.strip() for field in row] for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv: {error}.") from error
    odd = [number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])]
    if len(rows) < 2 or odd:
        what = f"row {odd[0]} has {len(rows[odd[0] - 1])} fields" if odd else "it has no rows"
        raise DataError(f"{path}: {what}; expected a header and as many fields in every row.")
    return rows


def _column(columns: list[str], names: Iterable[str]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)


def _number(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{path} has {text!r} where a weight should be a number.") from error


def _array(content: Mapping[str, Any], names: Iterable[str], path: Path) -> Any:
    found = next((content[name] for name in names if name in content), None)
    if found is None:
        raise DataError(f"{path} has {some(sorted(content))}, but none of {some(names)}.")
    return found
