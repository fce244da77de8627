"""How many survivors each parameter gets when the whole has a given density. Exact counts.

A budget knows shapes and names only; which of a parameter's weights stay is not its business
(selection.py), nor when (schedule.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_connectome.errors import ConfigError, ScopeError, UnknownNameError, did_you_mean, some
from hf_connectome.scope import CONV

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_connectome.scope import ScopedParameter

    Scope = Mapping[str, ScopedParameter]


def uniform(scope: Scope, density: float, min_survivors: int = 1) -> dict[str, int]:
    """Give every parameter the same density: exactly round(density * n).

    Raises:
        ScopeError: a parameter would have fewer than ``min_survivors``.
    """
    counts = {name: round(density * p.num_weights) for name, p in scope.items()}
    for name, count in counts.items():
        check_floor(scope[name], count, min_survivors, f"at density {density}")
    return counts


def erk(scope: Scope, density: float, min_survivors: int = 1) -> dict[str, int]:
    """Give small and narrow parameters more: density proportional to (in + out) / (in * out).

    The sizes of a kernel are added to those of the channels; a stack of matrices counts as so many.
    A parameter that would have more than all its weights is dense, and the rest is solved again.
    The survivors together are exactly round(density * all weights), and no parameter has fewer at
    a higher density.

    Source:
        Erdos-Renyi: Mocanu et al. 2018, SET. With kernels: Evci et al. 2020, RigL (ERK).

    Raises:
        ScopeError: the floors together are more than the density gives.
    """
    names = sorted(scope)  # ties go to the first name, whatever the order of the scope
    sizes = [scope[name].num_weights for name in names]
    floors = [min(min_survivors, size) for size in sizes]
    total = round(density * sum(sizes))
    if total < sum(floors):
        raise ScopeError(
            f"density {density} of {sum(sizes)} weights is {total} survivors, but a floor of "
            f"{min_survivors} in each of {len(sizes)} parameters is {sum(floors)}. Use a density "
            f"of at least {sum(floors) / sum(sizes):.3g}, or lower min_survivors."
        )
    counts = apportion([_lines(scope[name]) for name in names], total, sizes, floors)
    return dict(zip(names, counts.tolist(), strict=True))


BUDGETS: dict[str, Callable[[Scope, float, int], dict[str, int]]] = {"uniform": uniform, "erk": erk}


def matched(scope: Scope, density_pattern: Mapping[str, float]) -> dict[str, float]:
    """Return the densities that patterns give, by parameter name.

    A key is a parameter's whole name or, as in PEFT's patterns, a regular expression that matches
    the end of its name or of its module's name from a dot on. Whole names go first, then the first
    pattern that matches.

    Raises:
        ScopeError: a key matches no parameter, or is no regular expression.
        ConfigError: a density outside (0, 1].

    Example:
        >>> from hf_connectome.scope import ScopedParameter
        >>> scope = {n: ScopedParameter(n, (4, 4), "out_in") for n in ("0.q.weight", "1.q.weight")}
        >>> matched(scope, {"q": 0.5, "1.q.weight": 0.25})
        {'0.q.weight': 0.5, '1.q.weight': 0.25}
    """
    for key, density in density_pattern.items():
        check_density(density, f"density_pattern: {key}")
    found: dict[str, float] = {}
    used = set()
    for name in scope:
        keys = [key for key in density_pattern if _names(key, name)]
        used |= set(keys)
        if keys:
            found[name] = density_pattern[name if name in density_pattern else keys[0]]
    unmatched = [key for key in density_pattern if key not in used]
    if unmatched:
        near = did_you_mean(unmatched[0], scope).partition("Available")[0]
        raise ScopeError(
            f"density_pattern names {some(unmatched)}; expected names of parameters in scope, such "
            f"as {some(scope, 2)}. {near}".rstrip()
        )
    return found


def check_budget(name: str) -> None:
    """Refuse a budget that there is not."""
    if name not in BUDGETS:
        raise UnknownNameError(f"unknown budget {name!r}. {did_you_mean(name, BUDGETS)}")


def check_density(density: object, what: str) -> None:
    """Refuse what is no number in (0, 1]."""
    number = isinstance(density, (int, float)) and not isinstance(density, bool)
    if not number or not 0.0 < density <= 1.0:  # type: ignore[operator]
        raise ConfigError(f"{what} is {density!r}; expected a number in (0, 1].")


def check_floor(parameter: ScopedParameter, count: int, min_survivors: int, when: str) -> None:
    """Refuse a count below the floor, or below all that a small parameter has.

    Raises:
        ScopeError: names the parameter, the counts and the way out.
    """
    floor = min(min_survivors, parameter.num_weights)
    if count < floor:
        few = "no survivor" if count == 0 else f"{count} survivors, fewer than {floor},"
        raise ScopeError(
            f"{parameter.name!r} has {parameter.num_weights} weights and would have {few} {when}. "
            "Prune less, lower min_survivors, or leave it out of scope."
        )


def apportion(
    weights: Sequence[float], total: int, caps: Sequence[int], floors: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Divide ``total`` in proportion to ``weights``, no share above its cap or below its floor.

    Each share is round(x * weight) within its bounds, x the smallest number that is enough; the
    surplus of equal claims goes to the first. So no share is smaller where the total is larger.

    Args:
        weights: positive.
        total: between the sum of the floors and that of the caps.
        caps: most of each.
        floors: least of each; 0 if not given.

    Source:
        Webster's method of rounding shares, with bounds.

    Example:
        >>> apportion([1, 2, 7], 10, [5, 5, 5]).tolist()
        [2, 3, 5]
    """
    claim, most = np.asarray(weights, dtype=np.float64), np.asarray(caps, dtype=np.int64)
    least = np.zeros_like(most) if floors is None else np.asarray(floors, dtype=np.int64)
    assert least.sum() <= total <= most.sum()
    assert (claim > 0).all()

    def shares(x: float) -> NDArray[np.int64]:
        rounded = np.minimum(np.floor(x * claim + 0.5), most)
        bounded: NDArray[np.int64] = np.maximum(rounded, least).astype(np.int64)
        return bounded

    low, high = 0.0, float((most.max(initial=0) + 1) / claim.min())
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if shares(middle).sum() <= total else (low, middle)
    result = shares(low)
    room = shares(high) - result
    before = np.cumsum(room) - room
    result += np.clip(total - int(result.sum()) - before, 0, room)
    return result


def _lines(parameter: ScopedParameter) -> int:
    """Return inputs + outputs of a parameter, kernel sizes added: n times its ERK density."""
    if parameter.orientation == CONV:
        return sum(parameter.shape)
    number, outputs, inputs = parameter.matrix_shape
    return number * (outputs + inputs)


def _names(key: str, name: str) -> bool:
    if key == name:
        return True
    try:
        ends = re.compile(rf"(?:.*\.)?(?:{key})")
    except re.error as error:
        raise ScopeError(
            f"density_pattern: {key!r} is not a regular expression: {error}. Write a dot as '\\.'."
        ) from error
    return any(ends.fullmatch(whole) for whole in (name, name.rpartition(".")[0]))
