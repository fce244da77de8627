"""Continual use: each task takes links of its own, and links of earlier tasks keep their values.

As in PackNet: train the free links, keep the largest of them, train those once more, freeze them.
A task's connectome, put on the model again, gives what the model gave right after that task, bit
for bit. Which task a text is of must be known; nothing here guesses it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_connectome.callbacks import MaskCallback
from hf_connectome.config import ConnectomeConfig
from hf_connectome.connectome import Connectome
from hf_connectome.enforcement import MaskEnforcer, local_part
from hf_connectome.errors import ScopeError, UnsupportedError, some
from hf_connectome.evolution import small_values
from hf_connectome.hosts import check_host, describe, full_tensor, like, wire
from hf_connectome.operations import union, with_row
from hf_connectome.scope import resolve
from hf_connectome.selection import keep
from hf_connectome.signed_mask import SignedMask

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from hf_connectome.enforcement import Bound

    Train = Callable[[nn.Module, TrainerCallback], object]
    """Trains the model in place, with the callback in its Trainer."""


class LinkHolder(MaskEnforcer):
    """Lets the links of a connectome move; all other weights of its parameters stay as they are.

    Held weights are put back by value after every optimizer step, whatever it made of them; their
    gradients are 0, so that neither clipping nor the optimizer's state sees them.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> before = layer.weight.detach().clone()
        >>> free = SignedMask.pack(torch.eye(2, dtype=torch.bool), orientation="out_in")
        >>> optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        >>> holder = LinkHolder(layer, Connectome({"weight": free})).attach(optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> _ = optimizer.step()
        >>> (layer.weight == before).tolist()
        [[False, True], [True, False]]
    """

    def __init__(self, model: nn.Module, connectome: Connectome) -> None:
        """Bind the parameters by name and note what their weights are now.

        Args:
            model: as in :class:`~hf_connectome.enforcement.MaskEnforcer`.
            connectome: the links that may move.
        """
        self._values: dict[str, Tensor] = {}
        self._held: dict[str, tuple[Tensor, Tensor]] = {}
        super().__init__(model, connectome)

    def update(self, connectome: Connectome) -> None:
        """Let the links of another connectome move, and hold the others at what they are now."""
        self._values.clear()
        super().update(connectome)

    @torch.no_grad()
    def num_leaks(self) -> int:
        """Count held weights that are not exactly what they were; 0 by construction."""
        self._rebind_if_replaced()
        leaks = 0
        for bound in self._bound:
            held, value = self._held[bound.name]
            leaks += int(((local_part(bound.parameter) != value) & held).sum())
        return leaks

    def _bind(self) -> None:
        super()._bind()
        for bound in self._bound:
            name, parameter = bound.name, bound.parameter
            if name not in self._values:
                self._values[name] = full_tensor(parameter).cpu().clone()
            held = like(~self.connectome.mask(name), parameter, torch.bool)
            self._held[name] = local_part(held), local_part(like(self._values[name], parameter))

    def _put_back(self, bound: Iterable[Bound], optimizer: Optimizer | None = None) -> None:
        del optimizer
        for one in bound:
            held, value = self._held[one.name]
            parameter = local_part(one.parameter)
            # By choice, not by sum: what an optimizer has made infinite is put back too.
            parameter.copy_(torch.where(held, value, parameter))


class HoldCallback(MaskCallback):
    """Trains the links of a connectome with any Trainer; the other weights keep their values."""

    def guard(self, model: Any) -> LinkHolder:
        """Return what keeps the weights in place."""
        return LinkHolder(model, self.connectome)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Write nothing: what may move says nothing of which links exist."""


@dataclass(frozen=True)
class Task:
    """What a task left: its links, and how many there are."""

    name: str
    connectome: Connectome
    """Links of this and earlier tasks, with the parameters out of scope as they were then."""
    own: Connectome
    """The links that were born with this task."""

    @property
    def num_births(self) -> int:
        """Links that were born with this task."""
        return self.own.num_survivors

    @property
    def num_free(self) -> int:
        """Weights in scope that no task uses yet."""
        return self.connectome.num_weights - self.connectome.num_survivors


class TaskSequence:
    """Teaches a model one task after the other; no link of an earlier task dies or moves.

    Parameters out of scope (norms, biases) go on learning, and travel whole with each task.

    Source: Mallya & Lazebnik 2018, "PackNet", arXiv:1711.05769; its text was not read for this.
    Theirs prunes a fraction of the free links; ours gives each task an exact density, and keeps
    norms and biases by task, where theirs freezes them after the first.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scope: str | list[str] = "all-matrices",
        used: Connectome | None = None,
    ) -> None:
        """Begin with a model all of whose links are free, or go on.

        Args:
            model: trained in place.
            scope: parameters whose links are shared out, as in :func:`hf_connectome.scope.resolve`;
                ignored with ``used``.
            used: the connectome of the last task of an earlier sequence on this model.

        Raises:
            UnsupportedError: batch norms, whose running statistics no connectome carries.
            HostMismatchError: ``used`` is of another model.
        """
        norms = [n for n, m in model.named_modules() if isinstance(m, _NormBase)]
        if norms:
            raise UnsupportedError(
                f"{some(norms)} keeps running statistics, which change with every task and which "
                "no connectome carries. Use a model with layer norms."
            )
        self.model = model
        self.tasks: list[Task] = []
        self._used = _nothing(model, scope) if used is None else used
        check_host(self._used, model)

    @property
    def free(self) -> Connectome:
        """The links that no task uses; without signs."""
        return Connectome(
            {
                name: SignedMask.pack(~entry.mask(), orientation=entry.orientation)
                for name, entry in self._used.items()
            }
        )

    def learn(
        self, name: str, train: Train, *, density: float, retrain: Train | None = None
    ) -> Task:
        """Learn a task on the free links, and keep the largest of them for it.

        Args:
            name: of the task.
            train: called with the model and the callback for its Trainer; every free link moves.
            density: links that the task may keep, over weights, of every parameter.
            retrain: called likewise once the other free links are 0; only kept links move.

        Returns:
            The task; the model is what its connectome says.

        Raises:
            ScopeError: a parameter has fewer free links than that, before any training.
        """
        born = {n: self._num_born(n, density) for n in self._used}
        train(self.model, HoldCallback(self.free))
        kept = self._keep_largest(born)
        if retrain is not None:
            retrain(self.model, HoldCallback(kept))
        own = self._signed(kept)
        whole = self._signed(union(self._used, kept).connectome).replace(
            values=small_values(self.model, kept), config=self._used.config
        )
        row = {"operation": "task", "task": name, "num_births": own.num_survivors}
        task = Task(name, with_row(whole, row), own)
        self._used = task.connectome
        self.tasks.append(task)
        return task

    def model_of(self, connectome: Connectome) -> nn.Module:
        """Return a copy of the model as it was right after the task of the connectome."""
        twin = copy.deepcopy(self.model)
        wire(twin, connectome, reset="keep")
        return twin

    def _num_born(self, name: str, density: float) -> int:
        entry = self._used[name]
        num_free = entry.num_weights - entry.num_survivors
        num_born = round(density * entry.num_weights) if 0.0 < density <= 1.0 else 0
        if not 0 < num_born <= num_free:
            raise ScopeError(
                f"{name!r}: density {density} asks for {num_born} links; expected 1 to {num_free}, "
                f"which are free of {entry.num_weights}. Use another density, or a larger model."
            )
        return num_born

    @torch.no_grad()
    def _keep_largest(self, born: dict[str, int]) -> Connectome:
        """Keep so many free links of every parameter and set the others to 0."""
        entries = {}
        for name, parameter in check_host(self._used, self.model).items():
            weight, free = full_tensor(parameter).cpu(), ~self._used.mask(name)
            mask = keep(weight.abs(), free, int(free.sum()) - born[name], name=name)
            entries[name] = SignedMask.pack(mask, orientation=self._used[name].orientation)
            parameter.masked_fill_(like(free & ~mask, parameter, torch.bool), 0.0)
        return Connectome(entries)

    def _signed(self, links: Connectome) -> Connectome:
        """Return the links with the signs that their weights have now."""
        entries = {}
        for name, parameter in check_host(links, self.model).items():
            weight, entry = full_tensor(parameter).cpu(), links[name]
            entries[name] = SignedMask.pack(entry.mask(), weight, orientation=entry.orientation)
        return Connectome(entries)


def _nothing(model: nn.Module, scope: str | list[str]) -> Connectome:
    """Return a connectome of the model in which no link exists."""
    scoped = resolve(model, scope)
    entries = {
        name: SignedMask.pack(torch.zeros(p.shape, dtype=torch.bool), orientation=p.orientation)
        for name, p in scoped.items()
    }
    config = ConnectomeConfig(target_modules=scope, reset="keep")
    return Connectome(entries, config=describe(model, config, scoped))
