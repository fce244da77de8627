"""A population of wirings that is varied and chosen from. Knows no model and no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.connectome import Connectome, SignedMask
from hf_connectome.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A wiring and what it was worth."""

    connectome: Connectome
    index: int
    """Which evaluation it was."""
    loss: float
    """Lower is better."""


class Population:
    """(mu + lambda) evolution: the best of parents and children are the next parents.

    Nothing that is good is ever lost, and every draw depends on the seed, the parameter's name and
    the number of the candidate alone, so a population that is told the same losses is the same.

    Source:
        Schwefel 1981, "Numerical Optimization of Computer Models"; the text was not read.
    """

    def __init__(
        self,
        first: Callable[[int], Connectome],
        *,
        num_parents: int,
        num_children: int,
        turnover: float,
        keep_signs: bool,
        seed: int,
    ) -> None:
        """Start without parents.

        Args:
            first: number -> a candidate of the first generation.
            num_parents: mu, how many have children.
            num_children: lambda, candidates in a generation; at least mu.
            turnover: fraction of each parameter's links that a child has elsewhere.
            keep_signs: whether a link that moves keeps its sign; else a fair one is drawn.
            seed: of all draws.
        """
        assert num_children >= num_parents
        self._first = first
        self._num_parents, self._num_children = num_parents, num_children
        self._turnover, self._keep_signs, self._seed = turnover, keep_signs, seed
        self._children: list[Candidate] = []
        self.parents: list[Candidate] = []
        """Best first; of equals, the earlier."""
        self.num_evaluated = 0

    @property
    def best(self) -> Candidate:
        """The best candidate so far."""
        return min([*self.parents, *self._children], key=_rank)

    def propose(self) -> Connectome:
        """Return the candidate to evaluate next; the same one until its loss is told."""
        if not self.parents:
            return self._first(self.num_evaluated)
        parent = self.parents[len(self._children) % len(self.parents)].connectome
        return mutated(
            parent,
            self._turnover,
            keep_signs=self._keep_signs,
            seed=self._seed,
            number=self.num_evaluated,
        )

    def tell(self, connectome: Connectome, loss: float) -> None:
        """Take what the proposed candidate was worth; choose parents when a generation is whole."""
        self._children.append(Candidate(connectome, self.num_evaluated, loss))
        self.num_evaluated += 1
        if len(self._children) == self._num_children:
            everyone = sorted([*self.parents, *self._children], key=_rank)
            self.parents, self._children = everyone[: self._num_parents], []


def mutated(
    connectome: Connectome, turnover: float, *, keep_signs: bool, seed: int, number: int
) -> Connectome:
    """Move a fraction of the links of every parameter to free places.

    Args:
        connectome: with signs.
        turnover: fraction of the survivors that move, rounded to at least one, and to no more than
            there are free places.
        keep_signs: whether a link takes its sign along; else a fair one is drawn.
        seed: of the draws.
        number: tells this mutation from others of the same seed.

    Returns:
        A connectome of the same counts, without scales.
    """
    entries = {}
    for name, entry in connectome.items():
        draw = generator(seed, name, "mutation", number)
        sign = entry.sign().flatten()
        links, free = (sign != 0).nonzero().squeeze(1), (sign == 0).nonzero().squeeze(1)
        count = min(max(1, round(turnover * len(links))), len(free))
        left, taken = _some_of(links, count, draw), _some_of(free, count, draw)
        fair = torch.randint(0, 2, (count,), generator=draw, dtype=torch.int8) * 2 - 1
        moved = sign[left] if keep_signs else fair
        sign[left] = 0
        sign[taken] = moved
        sign = sign.reshape(entry.shape)
        entries[name] = SignedMask.pack(sign != 0, sign, orientation=entry.orientation)
    return connectome.replace(entries, values={})


def _some_of(places: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return places[torch.randperm(len(places), generator=draw)[:count]]


def _rank(candidate: Candidate) -> tuple[float, int]:
    return candidate.loss, candidate.index
