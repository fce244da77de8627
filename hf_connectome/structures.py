"""Which weights live and die together: N of M inputs, blocks, rows, columns. Exact counts.

A structure only says what is to be ranked; selection.py ranks. Inputs and outputs are those of the
matrices that a parameter holds (``ScopedParameter.matrices``), however it is stored.

In a run with generations a structure rounds each generation's count up to the next one that it can
have, so no generation loses more than the schedule says, and every generation has the structure.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import ConfigError, ScopeError
from hf_connectome.selection import keep, keep_rows

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.scope import ScopedParameter

FORMS = "'2:4' (2 of every 4 inputs), 'block:4x4', 'rows:64' or 'columns:64'"


class Structure(ABC):
    """A rule for the places that survivors may take in a parameter."""

    @abstractmethod
    def step(self, parameter: ScopedParameter) -> int:
        """Return by how many weights the count of a parameter changes.

        Raises:
            ScopeError: the parameter cannot be divided so.
        """

    @abstractmethod
    def keep(
        self, score: Tensor, mask: Tensor, num_kept: int, parameter: ScopedParameter
    ) -> Tensor:
        """Keep exactly ``num_kept`` survivors of highest score that obey the rule.

        Args:
            score: shape of the parameter, finite on survivors; higher is kept.
            mask: bool, same shape; obeys the rule itself.
            num_kept: a multiple of :meth:`step`.
            parameter: what it is called and how it is stored.

        Raises:
            ScopeError: the mask or the count does not obey the rule.
        """

    @abstractmethod
    def check_last(self, num_kept: int, parameter: ScopedParameter) -> None:
        """Refuse a count that is not what the structure's name promises.

        Raises:
            ConfigError: names both and the way out.
        """

    def count(self, num_survivors: int, parameter: ScopedParameter) -> int:
        """Return the smallest count of at least ``num_survivors`` that the rule allows."""
        step = self.step(parameter)
        return -(-num_survivors // step) * step


def make_structure(text: str) -> Structure:
    """Return the structure of a name.

    Raises:
        ConfigError: no such form, or sizes that make no sense.

    Example:
        >>> make_structure("2:4"), make_structure("rows:64")
        (OfInputs(kept=2, group=4), Blocks(rows=64, columns=None))
    """
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return OfInputs(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return Blocks(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(rows|columns):(\d+)", text):
        size = int(found[2])
        return Blocks(size, None) if found[1] == "rows" else Blocks(None, size)
    raise ConfigError(f"structure is {text!r}; expected {FORMS}.")


@dataclass(frozen=True)
class OfInputs(Structure):
    """N of every M consecutive inputs of each output: ``2:4``, ``1:4`` and so on.

    Every generation keeps as many of M as the schedule asks for, rounded up; the last one keeps N.

    Source:
        Mishra et al. 2021, Accelerating Sparse Deep Neural Networks (2:4); Zhou et al. 2021,
        Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch.

    Example:
        >>> from hf_connectome.scope import ScopedParameter
        >>> parameter = ScopedParameter("w", (1, 8), "out_in")
        >>> score, mask = torch.tensor([[3.0, 1, 4, 1, 5, 9, 2, 6]]), torch.ones(1, 8).bool()
        >>> OfInputs(2, 4).keep(score, mask, 4, parameter).int().tolist()
        [[1, 0, 1, 0, 0, 1, 0, 1]]
    """

    kept: int
    group: int

    def __post_init__(self) -> None:
        if not 0 < self.kept < self.group:
            raise ConfigError(
                f"structure is '{self}'; expected N:M with N of 1 to M - 1, such as 2:4."
            )

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    def step(self, parameter: ScopedParameter) -> int:
        """Return the number of groups: each gains or loses one."""
        inputs = parameter.matrix_shape[2]
        _check_divides(inputs, self.group, "inputs", parameter, self)
        return parameter.num_weights // self.group

    def keep(
        self, score: Tensor, mask: Tensor, num_kept: int, parameter: ScopedParameter
    ) -> Tensor:
        """Keep the best of every group."""
        step = self.step(parameter)
        _check_multiple(num_kept, step, parameter, self)
        stacks = [parameter.matrices(t) for t in (score, mask)]
        groups = [stack.reshape(-1, self.group) for stack in stacks]
        kept = keep_rows(groups[0], groups[1], num_kept // step, name=parameter.name)
        return parameter.from_matrices(kept.reshape(stacks[1].shape))

    def check_last(self, num_kept: int, parameter: ScopedParameter) -> None:
        """Refuse another density than N / M."""
        if num_kept != self.kept * self.step(parameter):
            raise ConfigError(
                f"structure {self} keeps {self.kept * self.step(parameter)} of the "
                f"{parameter.num_weights} weights of {parameter.name!r}, the run ends at "
                f"{num_kept}. Use final_density={self.kept / self.group:g}, or another structure."
            )


@dataclass(frozen=True)
class Blocks(Structure):
    """Blocks of ``rows`` outputs x ``columns`` inputs live or die whole; None: all of them.

    ``rows:64`` are the rows of heads of 64 in a query, key or value matrix (GPT-2's fused one too),
    ``columns:64`` those of the matrix after attention. A block's score is the sum of its weights'.

    Source:
        Narang et al. 2017, Block-Sparse Recurrent Neural Networks (there by the largest member);
        the sum is ours. Heads: Michel et al. 2019, Are Sixteen Heads Really Better than One?

    Example:
        >>> from hf_connectome.scope import ScopedParameter
        >>> parameter = ScopedParameter("w", (4, 2), "out_in")
        >>> score = torch.tensor([[1.0, 1], [1, 1], [3, 0], [0, 2]])
        >>> Blocks(2, None).keep(score, torch.ones(4, 2).bool(), 4, parameter).int().tolist()
        [[0, 0], [0, 0], [1, 1], [1, 1]]
    """

    rows: int | None
    columns: int | None

    def __post_init__(self) -> None:
        if 0 in (self.rows, self.columns):
            raise ConfigError(f"structure is '{self}'; expected sizes of at least 1.")

    def __str__(self) -> str:
        if self.columns is None:
            return f"rows:{self.rows}"
        return (
            f"columns:{self.columns}" if self.rows is None else f"block:{self.rows}x{self.columns}"
        )

    def step(self, parameter: ScopedParameter) -> int:
        """Return the weights of a block."""
        _, rows, columns = self._sizes(parameter)
        return rows * columns

    def keep(
        self, score: Tensor, mask: Tensor, num_kept: int, parameter: ScopedParameter
    ) -> Tensor:
        """Keep the blocks of highest sum."""
        step = self.step(parameter)
        _check_multiple(num_kept, step, parameter, self)
        alive = self._blocks(parameter.matrices(mask), parameter)
        whole = alive.all(dim=(2, 4))
        if not torch.equal(whole, alive.any(dim=(2, 4))):
            raise ScopeError(
                f"{parameter.name!r} has blocks that are neither whole nor empty, so no structure "
                f"{self}. Start from a dense model, or from a connectome of that structure."
            )
        values = self._blocks(parameter.matrices(score), parameter).double()
        sums = torch.where(alive, values, 0.0).sum(dim=(2, 4))
        n_drop = int(whole.sum()) - num_kept // step
        kept = keep(sums, whole, n_drop, name=parameter.name)[:, :, None, :, None]
        return parameter.from_matrices(kept.expand(alive.shape).reshape(parameter.matrix_shape))

    def check_last(self, num_kept: int, parameter: ScopedParameter) -> None:
        """Accept every count: blocks promise none."""

    def _sizes(self, parameter: ScopedParameter) -> tuple[int, int, int]:
        number, outputs, inputs = parameter.matrix_shape
        rows, columns = self.rows or outputs, self.columns or inputs
        _check_divides(outputs, rows, "outputs", parameter, self)
        _check_divides(inputs, columns, "inputs", parameter, self)
        return number, rows, columns

    def _blocks(self, stack: Tensor, parameter: ScopedParameter) -> Tensor:
        """View ``(matrices, out, in)`` as ``(matrices, out / r, r, in / c, c)``."""
        number, rows, columns = self._sizes(parameter)
        _, outputs, inputs = parameter.matrix_shape
        return stack.reshape(number, outputs // rows, rows, inputs // columns, columns)


def _check_divides(
    size: int, part: int, what: str, parameter: ScopedParameter, structure: Structure
) -> None:
    if size % part:
        raise ScopeError(
            f"{parameter.name!r} has {size} {what}, which {part} does not divide, so it cannot "
            f"have the structure {structure}. Use sizes that do, or leave it out of scope."
        )


def _check_multiple(
    num_kept: int, step: int, parameter: ScopedParameter, structure: Structure
) -> None:
    if num_kept % step or not 0 <= num_kept <= parameter.num_weights:
        raise ScopeError(
            f"{parameter.name!r} cannot keep {num_kept} weights in the structure {structure}: "
            f"expected a multiple of {step}, at most {parameter.num_weights}. Use its count()."
        )
