"""Does a rewiring keep its contract?"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.rewiring import RewiringContext
from hf_connectome.rewiring.updates import Update, as_matrices, move_links
from hf_connectome.seeding import generator
from hf_connectome.testing.common import SCOPE, check_source, example_weights, expect, twice
from hf_connectome.wirings import RandomWiring

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.rewiring import Rewiring
    from hf_connectome.scope import ScopedParameter


def check_rewiring(rewiring: Rewiring) -> None:
    """Check that a rewiring keeps its contract (:class:`~hf_connectome.rewiring.Rewiring`).

    Scores are not NaN where they count, and are the same whenever seed, name and step are; weight,
    mask and gradient stay as they are, and torch's global generator too. An update leaves every
    linear, convolution and expert matrix with exactly the count that ``density_at`` asks for.

    Raises:
        AssertionError: says what is wrong, and with which matrix.

    Example:
        >>> from hf_connectome.rewiring import get_rewiring
        >>> check_rewiring(get_rewiring("set"))
    """
    check_source(rewiring)
    kind = type(rewiring).__name__
    for case, weight, mask in example_weights():
        if weight.ndim == 2 and mask.any():
            given = [weight.float(), mask, torch.randn(weight.shape, generator=generator(0, case))]
            before = [tensor.clone() for tensor in given]
            context = RewiringContext("layer.weight", 7, 2, 0.5, given[2])
            for verb, arguments, counts in (("keep", given[:2], mask), ("grow", [mask], ~mask)):
                method, label = getattr(rewiring, verb), f"{kind}.{verb} with {case}"
                first, second = twice(functools.partial(method, *arguments, context), label)
                expect(not first[counts].isnan().any(), f"{label} has NaN where it counts.")
                same = torch.equal(first[counts], second[counts])
                expect(same, f"{label} gave other scores for the same seed, name and step.")
            same = all(map(torch.equal, before, given))
            expect(same, f"{kind} with {case} changed weight, mask or gradient in place.")
    for progress, density in itertools.product((0.0, 0.5, 1.0), (0.5, 1.0)):
        drawn = RandomWiring().build(SCOPE, density, 0)
        masks = {name: drawn.mask(name) for name in drawn}
        weights = {n: m * torch.randn(m.shape, generator=generator(0, n)) for n, m in masks.items()}
        update = Update(rewiring, SCOPE, (), seed=1, step=10, progress=progress)
        moved = move_links(update, masks, masks, weights.__getitem__, weights.__getitem__)
        parts = [(n, a, b) for n in moved for a, b in _matrices(masks[n], moved[n], SCOPE[n])]
        if rewiring.thins_globally:
            old, new = (torch.cat([m[n].flatten() for n in m]) for m in (masks, moved))
            parts = [("all", old, new)]
        for name, old, new in parts:
            wanted = round(
                rewiring.density_at(progress, int(old.sum()) / old.numel()) * old.numel()
            )
            label = f"{kind}: {name!r} at density {density} and progress {progress}"
            expect(int(new.sum()) == wanted, f"{label} has {int(new.sum())} links, not {wanted}.")


def _matrices(old: Tensor, new: Tensor, parameter: ScopedParameter) -> Iterator[Any]:
    return zip(*(as_matrices(mask, parameter.orientation) for mask in (old, new)), strict=True)
