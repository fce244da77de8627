"""Cross-validated ridge regression of many columns at once, by one decomposition a fold.

In numpy and float64. The penalty is chosen per column inside the part that a fold is fitted on, so
what is predicted never takes part in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_connectome.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from hf_connectome.evaluation.columns import Array

    Indices = npt.NDArray[np.int64]

ALPHAS = tuple(10.0 ** (k / 3) for k in range(-9, 25))
# Of a row's own response in its own fit: above this, leaving it out divides rounding by rounding.
_MOST_LEVERAGE = 1 - 1e-10


def folds(
    num: int, num_folds: int, seed: int, groups: Sequence[str] | None = None
) -> list[Indices]:
    """Deal rows to folds: those that each fold is tested on.

    Without groups, the folds of scikit-learn's ``KFold(shuffle=True, random_state=seed)``. With
    groups, whole groups go to the fold with the fewest rows, the largest group first; equal sizes
    in an order drawn from the seed.

    Args:
        num: Rows.
        num_folds: 2 or more.
        seed: Of the shuffle, 0 or more.
        groups: Per row, what must stay together.

    Raises:
        ConfigError: Fewer than two folds, or a negative seed.
        DataError: Fewer rows (or groups) than folds, or a fold with one row.
    """
    if num_folds < 2 or seed < 0:
        raise ConfigError(
            f"num_folds is {num_folds} and seed {seed}; expected at least 2 folds and a seed of 0 "
            "or more."
        )
    names = [str(row) for row in range(num)] if groups is None else list(dict.fromkeys(groups))
    kind = "rows" if groups is None else "groups"
    if len(names) < num_folds:
        raise DataError(
            f"{len(names)} {kind} are fewer than {num_folds} folds; expected at least one a fold. "
            f"Lower num_folds, or add {kind}."
        )
    source = np.random.RandomState(seed)
    if groups is None:
        order = np.arange(num)
        source.shuffle(order)
        parts = [np.sort(part) for part in np.array_split(order, num_folds)]
    else:
        parts = _grouped(groups, names, num_folds, source)
    least = min(map(len, parts))
    if least < 2:
        raise DataError(
            f"a fold would be tested on {least} row of {num}; a correlation needs at least 2. "
            f"Lower num_folds, which is {num_folds}."
        )
    return parts


def ridge_predictions(
    features: Array, responses: Array, tested: Array, alphas: Sequence[float] = ALPHAS
) -> tuple[Array, Array]:
    """Fit every column of responses by ridge regression, and predict it from other rows.

    Columns are centred, the intercept is not penalised. Each column has the alpha of the least mean
    squared error when every row is predicted from all the others, which has a closed form; ties go
    to the lower alpha.

    Args:
        features: ``(rows, features)``, finite.
        responses: ``(rows, columns)``, finite.
        tested: ``(other rows, features)``.
        alphas: Penalties, above 0, increasing.

    Returns:
        ``(other rows, columns)`` predictions and ``(columns,)`` chosen alphas.

    Raises:
        ConfigError: Alphas that are not above 0 or do not increase.

    Source: Hoerl & Kennard 1970, "Ridge regression"; Golub, Heath & Wahba 1979, "Generalized
    cross-validation as a method for choosing a good ridge parameter": the error of a row left out.
    Equal to scikit-learn's ``RidgeCV(alphas, alpha_per_target=True)``.
    """
    if not alphas or min(alphas) <= 0 or any(a >= b for a, b in pairwise(alphas)):
        raise ConfigError(f"alphas are {list(alphas)}; expected numbers above 0 that increase.")
    x_mean, y_mean = features.mean(0), responses.mean(0)
    u, s, vt = np.linalg.svd(features - x_mean, full_matrices=False)
    kept = s > s.max(initial=0.0) * max(features.shape) * np.finfo(np.float64).eps
    u, s, vt = u[:, kept], s[kept], vt[kept]
    centred = responses - y_mean
    onto = u.T @ centred  # (rank, columns)
    least = np.full(responses.shape[1], math.inf)
    chosen = np.full(responses.shape[1], alphas[-1])
    for alpha in alphas:
        shrunk = s**2 / (s**2 + alpha)
        leverage = 1 / len(features) + u**2 @ shrunk
        if leverage.max() > _MOST_LEVERAGE:
            continue
        left = (centred - u @ (shrunk[:, None] * onto)) / (1 - leverage)[:, None]
        error = np.mean(left**2, axis=0)
        better = error < least
        least[better], chosen[better] = error[better], alpha
    weights = onto * (s[:, None] / (s[:, None] ** 2 + chosen))
    return (tested - x_mean) @ vt.T @ weights + y_mean, chosen


def cross_validated(
    features: Array, responses: Array, parts: Sequence[Any], alphas: Sequence[float] = ALPHAS
) -> tuple[Array, Array]:
    """Predict every fold from the others.

    Args:
        features: ``(rows, features)``, finite.
        responses: ``(rows, columns)``, finite.
        parts: Per fold, the rows that it is tested on.
        alphas: Penalties to choose from.

    Returns:
        ``(folds, columns)`` Pearson correlations of prediction and response, and the alphas.
    """
    results, chosen = [], []
    for part in parts:
        fitted = np.ones(len(features), dtype=bool)
        fitted[part] = False
        predicted, alpha = ridge_predictions(
            features[fitted], responses[fitted], features[part], alphas
        )
        results.append(correlations(predicted, responses[part]))
        chosen.append(alpha)
    return np.array(results), np.array(chosen)


def correlations(left: Array, right: Array) -> Array:
    """Correlate columns with columns; 0 where one does not vary: it tells nothing.

    Example:
        >>> correlations(np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[3.0, 1.0], [4.0, 2.0]]))
        array([1., 0.])
    """
    a, b = left - left.mean(0), right - right.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    # Rounding of a constant column is no variation.
    varies = (np.ptp(left, axis=0) > 1e-12 * np.abs(left).max(0)) & (np.ptp(right, axis=0) > 0)
    together = (a * b).sum(0)
    r: Array = np.divide(together, size, out=np.zeros(len(size)), where=varies & (size > 0))
    return r


def _grouped(
    groups: Sequence[str], names: list[str], num_folds: int, source: np.random.RandomState
) -> list[Indices]:
    members = {name: [row for row, g in enumerate(groups) if g == name] for name in names}
    order = [names[i] for i in source.permutation(len(names))]
    dealt: list[list[int]] = [[] for _ in range(num_folds)]
    for name in sorted(order, key=lambda n: -len(members[n])):
        min(dealt, key=len).extend(members[name])
    return [np.array(sorted(part), dtype=np.int64) for part in dealt]
