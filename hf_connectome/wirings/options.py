"""A wiring with its options from one line of text: ``brf:r=0.3,degree=uniform``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_connectome.budgets import matched
from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean
from hf_connectome.wirings.base import Wiring, wirings

if TYPE_CHECKING:
    from hf_connectome.scope import ScopedParameter


def make_wiring(text: str) -> Wiring:
    """Return the wiring of ``name`` or ``name:option=value,...``.

    Options are the fields of the wiring's dataclass whose defaults are numbers or text.

    Raises:
        UnknownNameError: no such wiring or option.
        ConfigError: a value of another kind than the option's, or out of its range.

    Example:
        >>> make_wiring("brf:r=0.5")
        BrfWiring(r=0.5, degree='fixed')
    """
    name, colon, options = text.partition(":")
    kind = wirings.get(name)
    defaults = _defaults(kind)
    chosen: dict[str, Any] = {}
    for part in options.split(",") if colon else ():
        key, equals, value = part.strip().partition("=")
        if not equals or not value:
            raise ConfigError(f"wiring {text!r} has {part!r}; expected option=value, as brf:r=0.3.")
        if key not in defaults:
            raise UnknownNameError(
                f"the wiring {name!r} has no option {key!r}. {did_you_mean(key, defaults)}"
            )
        chosen[key] = _converted(text, key, value, type(defaults[key]))
    return kind(**chosen)


def patterned(
    wiring: Wiring,
    scope: Mapping[str, ScopedParameter],
    density: float,
    density_pattern: Mapping[str, float],
) -> float | dict[str, float]:
    """Return the densities to build a wiring with: a pattern's own, the rest as the wiring has it.

    Raises:
        ScopeError: a pattern matches nothing (budgets.matched).
    """
    own = matched(scope, density_pattern)
    if not own:
        return density
    rest = {name: p for name, p in scope.items() if name not in own}
    counts = wiring.counts(rest, density) if rest else {}
    return own | {name: count / scope[name].num_weights for name, count in counts.items()}


def _defaults(kind: type[Wiring]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(kind):
        return {}
    fields = dataclasses.fields(kind)
    return {f.name: f.default for f in fields if isinstance(f.default, (int, float, str))}


def _converted(text: str, key: str, value: str, kind: type[Any]) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"wiring {text!r}: {key} is {value!r}; expected {expected}.") from error
