"""Does a wiring keep its contract?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome
from hf_connectome.errors import ConnectomeError
from hf_connectome.scope import ScopedParameter
from hf_connectome.testing.common import SCOPE, check_source, expect, twice

if TYPE_CHECKING:
    from hf_connectome.wirings import Wiring


def check_wiring(wiring: Wiring) -> None:
    """Check that a wiring keeps its contract (:class:`~hf_connectome.wirings.Wiring`).

    It has all parameters of the scope, as they are stored there, each with exactly the survivors of
    ``counts``, from one weight to all: round(density * n) each, or as many in all; by name it is
    always round(density * n). It depends on the seed and on neither the order of the scope nor
    torch's global generator; parameters of equal shape get other masks; a density that leaves a
    parameter without weights is refused.

    Raises:
        AssertionError: says what is wrong, and at which density.

    Example:
        >>> from hf_connectome.wirings import RandomWiring
        >>> check_wiring(RandomWiring())
    """
    check_source(wiring)
    sizes = {name: p.num_weights for name, p in SCOPE.items()}
    densities: list[float | Mapping[str, float]] = [0.25, 0.5, 1.0]
    densities += [{name: 1 / size for name, size in sizes.items()}]
    for density in densities:
        if isinstance(density, float):
            wanted = wiring.counts(SCOPE, density)
            total, found = density * sum(sizes.values()), sum(wanted.values())
            expect(
                abs(found - total) <= len(sizes) / 2,
                f"{type(wiring).__name__}.counts gives {found} survivors at density {density}; "
                f"expected {total:g} but for rounding.",
            )
        else:
            wanted = {name: round(density[name] * size) for name, size in sizes.items()}
        _check_drawn(wiring, density, wanted)
    drawn = wiring.build(SCOPE, 0.25, 1)
    first, second = "block.0.weight", "block.1.weight"
    expect(
        not torch.equal(drawn.mask(first), drawn.mask(second)),
        f"{type(wiring).__name__} gave {first!r} and {second!r}, of equal shape, the same mask. "
        "Draw from hf_connectome.seeding.generator(seed, name).",
    )
    for impossible in (0.0, 1e-9, 1.5):
        _expect_refusal(wiring, impossible)


def _check_drawn(
    wiring: Wiring, density: float | Mapping[str, float], wanted: Mapping[str, int]
) -> None:
    label = f"{type(wiring).__name__}.build at density {density}"
    drawn, again = twice(lambda: wiring.build(SCOPE, density, 1), label)
    expect(isinstance(drawn, Connectome), f"{label} returned a {type(drawn).__name__}.")
    expect(
        set(drawn.names) == set(SCOPE),
        f"{label} wires {list(drawn.names)}; the scope has {sorted(SCOPE)}.",
    )
    for name, entry in drawn.items():
        here = ScopedParameter(name, entry.shape, entry.orientation)
        expect(here == SCOPE[name], f"{label}: it has {here}; the scope has {SCOPE[name]}.")
        expect(
            entry.num_survivors == wanted[name],
            f"{label}: {name!r} has {entry.num_survivors} survivors, expected {wanted[name]}.",
        )
    expect(drawn == again, f"{label} gave another connectome for the same seed.")
    backwards = wiring.build(dict(reversed(SCOPE.items())), density, 1)
    expect(drawn == backwards, f"{label} depends on the order of the scope.")


def _expect_refusal(wiring: Wiring, density: float) -> None:
    try:
        drawn = wiring.build(SCOPE, density, 1)
    except ConnectomeError:
        return
    raise AssertionError(
        f"{type(wiring).__name__}.build accepted density {density} and gave {drawn!r}; expected a "
        "ScopeError, for a parameter would have no weight or more than there are."
    )
