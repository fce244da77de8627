"""Does a control keep its contract?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hf_connectome.connectome import Connectome
from hf_connectome.controls.counting import whole_bits
from hf_connectome.errors import ConfigError
from hf_connectome.scope import ScopedParameter
from hf_connectome.testing.common import SCOPE, check_source, expect, twice
from hf_connectome.wirings import RandomWiring

if TYPE_CHECKING:
    from hf_connectome.controls import Control


def check_control(control: Control) -> None:
    """Check that a control keeps its contract (:class:`~hf_connectome.controls.Control`).

    Its twin has parameters of the original only, as they are stored there; it depends on the seed
    if and only if ``uses_seed``; its bits are between 0 and those of the whole; what ``needs_sign``
    says is what happens without signs.

    Raises:
        AssertionError: says what is wrong.

    Example:
        >>> from hf_connectome.controls import controls
        >>> check_control(controls.get("random")())
    """
    check_source(control)
    kind = type(control).__name__
    for field in ("rung", "keeps", "destroys"):
        text = getattr(control, field, None)
        expect(isinstance(text, str) and text != "", f"{kind}.{field} is {text!r}.")
    original = RandomWiring().build(SCOPE, 0.25, 0)
    twin, again = twice(lambda: control.twin(original, 1), f"{kind}.twin")
    expect(isinstance(twin, Connectome), f"{kind}.twin returned a {type(twin).__name__}.")
    expect(twin == again, f"{kind}.twin gave another connectome for the same seed.")
    differs = control.twin(original, 2) != twin
    expect(
        differs == control.uses_seed,
        f"{kind}.twin gives {'other' if differs else 'equal'} twins for other seeds; uses_seed is "
        f"{control.uses_seed}.",
    )
    for name, entry in twin.items():
        here = ScopedParameter(name, entry.shape, entry.orientation)
        expect(
            here == SCOPE.get(name),
            f"{kind}.twin has {here}; the original has {SCOPE.get(name)}.",
        )
    bits, most = control.bits(original), whole_bits(original)
    expect(0 <= bits <= most, f"{kind}.bits gave {bits}; expected 0 to {most}.")
    _expect_signs(control, original)


def _expect_signs(control: Control, original: Connectome) -> None:
    bare = original.replace({n: replace(e, sign_bits=None) for n, e in original.items()})
    refused = False
    try:
        control.twin(bare, 1)
    except ConfigError:
        refused = True
    expect(
        refused == control.needs_sign,
        f"{type(control).__name__}.twin {'refuses' if refused else 'takes'} a mask-only "
        f"connectome; needs_sign is {control.needs_sign}.",
    )
