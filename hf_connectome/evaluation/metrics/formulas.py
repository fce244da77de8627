"""The numbers behind the metrics: numpy arrays in, floats out.

What evaluate needs to collect rows, also over processes, is modules.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_connectome.errors import DataError
from hf_connectome.evaluation.ridge import ALPHAS, cross_validated, folds

Array = NDArray[np.float64]


def bits_per_byte(nats: Sequence[float], num_bytes: Sequence[float]) -> float:
    """Return the code length of texts in bits a byte.

    Args:
        nats: summed negative log-likelihood of each text, 0 or more.
        num_bytes: length of each text in UTF-8, 0 or more.

    Raises:
        DataError: empty, of unequal lengths, not finite, negative, or without a byte.

    Example:
        >>> round(bits_per_byte([1.0, 2.0], [4, 2]), 4)
        0.7213
    """
    losses, sizes = vector("nats", nats), vector("num_bytes", num_bytes)
    _same_length(nats=losses, num_bytes=sizes)
    for name, values in (("nats", losses), ("num_bytes", sizes)):
        if values.min() < 0:
            raise DataError(
                f"{name} has {values.min():g} in row {int(values.argmin())}; expected 0 or more. "
                "Give negative log-likelihoods, summed over the tokens of a text."
            )
    total = float(sizes.sum())
    if total == 0:
        raise DataError("num_bytes adds up to 0; expected texts of at least one byte.")
    return float(losses.sum()) / math.log(2) / total


def pearson(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float:
    """Return the correlation of two columns.

    Raises:
        DataError: unequal lengths, fewer than 3 rows, not finite, or a column that is constant.

    Example:
        >>> round(pearson([1, 2, 3, 4], [1, 3, 2, 4]), 6)
        0.8
    """
    first, second = vector("the first column", x), vector("the second column", y)
    _same_length(**{"the first column": first, "the second column": second})
    if len(first) < 3:
        raise DataError(f"{len(first)} rows cannot be correlated; expected 3 or more.")
    first, second = _centred("the first column", first), _centred("the second column", second)
    return float(first @ second / math.sqrt(float(first @ first) * float(second @ second)))


def partial_pearson(x: Sequence[float], y: Sequence[float], controls: Any) -> float:
    """Correlate what linear regressions on ``controls`` leave of two columns.

    Args:
        x: one number a row.
        y: one number a row.
        controls: ``(rows, controls)``, such as length and log frequency of each word.

    Raises:
        DataError: as in :func:`pearson`, ragged, too few rows, or nothing is left of a column.
    """
    known = matrix("controls", controls)
    first, second = vector("the first column", x), vector("the second column", y)
    _same_length(**{"the first column": first, "the second column": second, "controls": known})
    if len(first) < known.shape[1] + 3:
        raise DataError(
            f"{len(first)} rows cannot be correlated beside {known.shape[1]} controls; expected "
            f"{known.shape[1] + 3} or more."
        )
    design = np.column_stack([np.ones(len(known)), known])
    left = []
    for name, column in (("the first column", first), ("the second column", second)):
        rest = column - design @ np.linalg.lstsq(design, column, rcond=None)[0]
        if np.linalg.norm(rest) <= 1e-10 * max(1.0, float(np.linalg.norm(column))):
            raise DataError(
                f"nothing is left of {name} beside the controls: it is a sum of them. Leave out "
                "the control that it is made of."
            )
        left.append(rest)
    return pearson(left[0], left[1])


def ridge_predictivity(
    states: Any,
    responses: Any,
    *,
    num_folds: int = 5,
    seed: int = 0,
    alphas: Sequence[float] = ALPHAS,
) -> list[float]:
    """Predict responses from states by ridge regression; correlate on rows that were held out.

    Args:
        states: ``(rows, features)``, such as a model's last-token states of sentences.
        responses: ``(rows, targets)`` of the same rows.
        num_folds: parts of the cross-validation.
        seed: of their draw.
        alphas: penalties to choose from, as in
            :func:`hf_connectome.evaluation.ridge.ridge_predictions`.

    Returns:
        A correlation for each target, the mean over folds.

    Raises:
        DataError: empty, ragged, not finite, unequal or too few rows, or a target that is constant.
        ConfigError: fewer than 2 folds, or penalties that are not above 0 or do not increase.

    Source: the paper's NeuralAlignment code fits RidgeCV for each target, 5-fold, shuffled with
    seed 0, scored by Pearson's r.
    """
    features, targets = matrix("states", states), matrix("responses", responses)
    _same_length(states=features, responses=targets)
    constant = np.flatnonzero(np.ptp(targets, axis=0) == 0)
    if len(constant):
        raise DataError(
            f"target {constant[0]} of the responses is {targets[0, constant[0]]:g} in all "
            f"{len(targets)} rows, so nothing correlates with it. Leave it out."
        )
    parts = folds(len(features), num_folds, seed)
    by_fold, _ = cross_validated(features, targets, parts, alphas)
    return [float(score) for score in by_fold.mean(axis=0)]


def vector(name: str, values: Any) -> Array:
    """Return a column as float64.

    Raises:
        DataError: empty, not numbers, or not finite; names the first such row.
    """
    return _checked(name, values, 1)


def matrix(name: str, values: Any) -> Array:
    """Return rows of equal length as a float64 ``(rows, columns)``.

    Raises:
        DataError: empty, ragged, not numbers, or not finite; names the first such row.
    """
    rows = list(values)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise DataError(
            f"{name} has rows of {lengths[0]} and of {lengths[-1]} numbers; expected one length."
        )
    if rows and lengths == [0]:
        raise DataError(f"{name} has rows without a number; expected one or more in each.")
    return _checked(name, rows, 2)


def _checked(name: str, values: Any, ndim: int) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} has something that is not a number: {error}.") from error
    if len(array) == 0:
        raise DataError(f"{name} is empty; expected one row or more.")
    if array.ndim != ndim:
        raise DataError(f"{name} has {array.ndim} dimensions; expected {ndim}.")
    finite = np.isfinite(array).reshape(len(array), -1)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        odd = array.reshape(len(array), -1)[row][~finite[row]][0]
        raise DataError(
            f"{name} has {odd} in row {row} ({int((~finite).sum())} in all); expected finite "
            "numbers. Leave those rows out of all columns."
        )
    return array


def _same_length(**columns: Array) -> None:
    (first, one), *others = columns.items()
    for name, other in others:
        if len(one) != len(other):
            raise DataError(
                f"{first} has {len(one)} rows, {name} {len(other)}; expected one of each a row."
            )


def _centred(name: str, column: Array) -> Array:
    if np.ptp(column) == 0:
        raise DataError(
            f"{name} is {column[0]:g} in all {len(column)} rows, so nothing correlates with it."
        )
    centred: Array = column - column.mean()
    return centred
