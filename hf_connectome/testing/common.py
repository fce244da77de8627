"""What all checks share: a scope, weights, and how they complain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.scope import CONV, EMBEDDING, OUT_IN, RAW, ScopedParameter
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor

    Case = tuple[str, Tensor, Tensor]


SCOPE = {
    name: ScopedParameter(name, shape, orientation)
    for name, shape, orientation in (
        ("block.0.weight", (16, 12), OUT_IN),
        ("block.1.weight", (16, 12), OUT_IN),
        ("conv.weight", (4, 3, 2, 2), CONV),
        ("embed.weight", (20, 6), EMBEDDING),
        ("experts", (3, 8, 4), RAW),
    )
}


def example_weights() -> Iterator[Case]:
    """Give weights in words, as a tensor, and their mask: types, shapes and densities."""
    draw = generator(0, "weights for check_criterion")
    for shape in ((8, 6), (3, 4, 5), (12,)):
        weight = torch.randn(shape, generator=draw)
        mask = torch.rand(shape, generator=draw) < 0.5
        everything = torch.ones(shape, dtype=torch.bool)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield f"a dense {dtype} weight of shape {shape}", weight.to(dtype), everything
            yield f"a sparse {dtype} weight of shape {shape}", (weight * mask).to(dtype), mask
    weight, one = torch.randn(5, 4, generator=draw), torch.zeros(5, 4, dtype=torch.bool)
    yield "no survivor", weight * one, one.clone()
    one[2, 3] = True
    yield "one survivor", weight * one, one
    yield "survivors that are all 0", torch.zeros(5, 4), torch.ones(5, 4, dtype=torch.bool)


def check_source(plug_in: object) -> None:
    """Expect the source of a plug-in, in words."""
    for field in ("paper", "citation"):
        text = getattr(plug_in, field, None)
        expect(
            isinstance(text, str) and text != "",
            f"{type(plug_in).__name__}.{field} is {text!r}; expected its source, in words.",
        )


def twice(make: Callable[[], Any], label: str) -> tuple[Any, Any]:
    """Make something under two states of torch's global generator, which must not move."""
    made = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            made.append(make())
            expect(
                torch.equal(torch.get_rng_state(), before),
                f"{label} drew from torch's global generator, which the training uses.",
            )
    return made[0], made[1]


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError, also under ``python -O``, unless the condition holds."""
    if not condition:
        raise AssertionError(message)
