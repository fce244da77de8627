"""Does a wiring keep its contract?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome
from hf_connectome.errors import ConnectomeError
from hf_connectome.scope import IN_OUT, OUT_IN, ScopedParameter
from hf_connectome.testing.common import SCOPE, check_source, expect, twice

if TYPE_CHECKING:
    from hf_connectome.wirings import Wiring


def check_wiring(wiring: Wiring) -> None:
    """Check that a wiring keeps its contract (:class:`~hf_connectome.wirings.Wiring`).

    It has all parameters of the scope, as they are stored there, each with exactly the survivors of
    ``counts``, from one weight to all: round(density * n) each, or as many in all; by name it is
    always round(density * n). It depends on the seed and on neither the order of the scope nor
    torch's global generator; parameters of equal shape get other masks; a density that leaves a
    parameter without weights is refused. A wiring of certain shapes alone (``shapes``) is asked for
    these, where parameters of equal shape get other signs; other shapes and densities are refused.

    Raises:
        AssertionError: says what is wrong, and at which density.

    Example:
        >>> from hf_connectome.wirings import RandomWiring
        >>> check_wiring(RandomWiring())
    """
    check_source(wiring)
    only = wiring.shapes()
    if only is not None:
        _check_shapes(wiring, only)
        return
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
        _check_drawn(wiring, SCOPE, density, wanted)
    drawn = wiring.build(SCOPE, 0.25, 1)
    first, second = "block.0.weight", "block.1.weight"
    expect(
        not torch.equal(drawn.mask(first), drawn.mask(second)),
        f"{type(wiring).__name__} gave {first!r} and {second!r}, of equal shape, the same mask. "
        "Draw from hf_connectome.seeding.generator(seed, name).",
    )
    for impossible in (0.0, 1e-9, 1.5):
        _expect_refusal(wiring, SCOPE, impossible)


def _check_shapes(wiring: Wiring, only: Mapping[tuple[int, ...], int]) -> None:
    for shape, num_survivors in only.items():
        names = [f"{kind}.{n}" for kind in (OUT_IN, IN_OUT) for n in (0, 1)]
        scope = {name: ScopedParameter(name, shape, name[:-2]) for name in names}
        density = num_survivors / torch.Size(shape).numel()
        wanted = dict.fromkeys(names, num_survivors)
        for given in (density, dict.fromkeys(names, density)):
            _check_drawn(wiring, scope, given, wanted)
        drawn = wiring.build(scope, density, 1)
        label = f"{type(wiring).__name__} gave {names[0]!r}"
        expect(
            not torch.equal(drawn.sign(names[0]), drawn.sign(names[1])),
            f"{label} and {names[1]!r}, of equal shape, the same mask and signs. "
            "Draw from hf_connectome.seeding.generator(seed, name).",
        )
        if len(shape) == 2:
            expect(
                torch.equal(drawn.mask(names[0]), drawn.mask(names[2]).T),
                f"{label}, stored (out, in), a mask that is not the transpose of that of "
                f"{names[2]!r}, stored (in, out).",
            )
        _expect_refusal(wiring, scope, density / 2)
        longer = (shape[0] + 1, *shape[1:])
        if longer not in only:
            odd = {names[0]: ScopedParameter(names[0], longer, OUT_IN)}
            _expect_refusal(wiring, odd, density)


def _check_drawn(
    wiring: Wiring,
    scope: Mapping[str, ScopedParameter],
    density: float | Mapping[str, float],
    wanted: Mapping[str, int],
) -> None:
    label = f"{type(wiring).__name__}.build at density {density}"
    drawn, again = twice(lambda: wiring.build(scope, density, 1), label)
    expect(isinstance(drawn, Connectome), f"{label} returned a {type(drawn).__name__}.")
    expect(
        set(drawn.names) == set(scope),
        f"{label} wires {list(drawn.names)}; the scope has {sorted(scope)}.",
    )
    for name, entry in drawn.items():
        here = ScopedParameter(name, entry.shape, entry.orientation)
        expect(here == scope[name], f"{label}: it has {here}; the scope has {scope[name]}.")
        expect(
            entry.num_survivors == wanted[name],
            f"{label}: {name!r} has {entry.num_survivors} survivors, expected {wanted[name]}.",
        )
    expect(drawn == again, f"{label} gave another connectome for the same seed.")
    backwards = wiring.build(dict(reversed(list(scope.items()))), density, 1)
    expect(drawn == backwards, f"{label} depends on the order of the scope.")


def _expect_refusal(wiring: Wiring, scope: Mapping[str, ScopedParameter], density: float) -> None:
    try:
        drawn = wiring.build(scope, density, 1)
    except ConnectomeError:
        return
    shape = next(iter(scope.values())).shape
    raise AssertionError(
        f"{type(wiring).__name__}.build accepted density {density} of {shape} and gave {drawn!r}; "
        "expected a ScopeError, for a parameter would have no weight, more than there are, or "
        "others than the wiring has."
    )
