"""The weights that a generation or an inner loop starts from: a sign and a magnitude a survivor.

One class a policy, under the name that a config stores. Dead weights are exactly 0 in all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from hf_connectome.errors import ConfigError
from hf_connectome.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import SignedMask


@dataclass(frozen=True)
class ResetContext:
    """What a policy may know beside mask and sign. Tensors have the parameter's full shape."""

    name: str
    """Name of the parameter."""
    magnitude: float
    """The constant of ``sign_constant``, in units of the weights."""
    weight: Tensor
    """The host's weights as they are now."""
    fresh: Callable[[], Tensor]
    """Gives the weights of a freshly initialised host."""
    early: Callable[[], Tensor] | None = None
    """Gives the weights stored early in training, where there are any."""


class Reset(ABC):
    """Gives every survivor its first value."""

    paper: ClassVar[str]
    """Where the policy comes from, in words."""
    citation: ClassVar[str]
    """Key of the work: an arXiv id, a DOI or 'none'."""
    needs_sign: ClassVar[bool] = True
    """Whether a mask-only connectome is refused."""
    needs_weights: ClassVar[bool] = True
    """Whether the values depend on weights that the host has, or a fresh one."""

    @abstractmethod
    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return float32 values of the parameter's shape; those of dead weights are ignored."""

    def check(self, entry: SignedMask, context: ResetContext) -> None:
        """Refuse an entry that lacks what the policy needs, before any weight is touched.

        Raises:
            ConfigError: names the parameter, what it lacks and the way out.
        """
        if self.needs_sign and entry.sign_bits is None:
            raise ConfigError(
                f"{context.name!r} has a mask but no signs, which this reset needs. Use "
                "reset='keep'."
            )

    def apply(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return the parameter to start from.

        Returns:
            float32, shape of the parameter: the policy's values on survivors, exactly 0 elsewhere.
        """
        self.check(entry, context)
        return torch.where(entry.mask(), self.values(entry, context), 0.0)


resets: Registry[Reset] = Registry("reset")


class _FreshStd(Reset):
    """A policy whose magnitude comes from the standard deviation of the fresh initialisation."""

    def check(self, entry: SignedMask, context: ResetContext) -> None:
        """Refuse a parameter that is initialised to a constant."""
        super().check(entry, context)
        fresh = context.fresh()
        if fresh.min() == fresh.max():  # rounding may give their standard deviation a trace
            raise ConfigError(
                f"{context.name!r} is initialised to a constant, so its initial standard deviation "
                "is 0 and gives no magnitude. Use reset='sign_constant' or 'tensor_scale', or "
                "leave it out of scope."
            )

    @staticmethod
    def std(context: ResetContext) -> Tensor:
        """Return the standard deviation of the fresh parameter, a scalar."""
        std: Tensor = context.fresh().float().std(correction=0)
        return std


@resets.register("sign_constant")
class SignConstant(Reset):
    """``sign x magnitude``, the same constant everywhere.

    Source:
        Kotar & Tuckute 2025, section 2: survivors are set to their sign times 0.02.
    """

    paper = "Kotar & Tuckute 2025, Model Connectomes"
    citation = "arXiv:2504.21047"
    needs_weights = False

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return sign x magnitude."""
        return entry.sign().float() * context.magnitude


@resets.register("init_std")
class InitStd(_FreshStd):
    """``sign x s``, s the standard deviation of the parameter's own fresh initialisation.

    Source:
        Zhou et al. 2019, Deconstructing Lottery Tickets: signed constants of each layer's initial
        standard deviation.
    """

    paper = "Zhou et al. 2019, Deconstructing Lottery Tickets"
    citation = "arXiv:1905.01067"

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return sign x initial standard deviation."""
        return entry.sign().float() * self.std(context)


@resets.register("variance_preserving")
class VariancePreserving(_FreshStd):
    """``sign x s / sqrt(density)``: the parameter keeps the second moment of its fresh self.

    Source:
        Ours: with a share d of survivors at +-c the mean square is d c^2, so c = s / sqrt(d).
    """

    paper = "hf_connectome"
    citation = "none"

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return sign x initial standard deviation / sqrt(density)."""
        constant: Tensor = self.std(context) / entry.density**0.5
        return entry.sign().float() * constant


@resets.register("tensor_scale")
class TensorScale(Reset):
    """``sign x scale``, the scale that the connectome carries for the tensor or each row.

    Source:
        Ours: the scale is the mean |w| of the survivors at the end of the parent's training.
    """

    paper = "hf_connectome"
    citation = "none"
    needs_weights = False

    def check(self, entry: SignedMask, context: ResetContext) -> None:
        """Refuse an entry without a scale."""
        super().check(entry, context)
        if entry.scale is None:
            raise ConfigError(
                f"{context.name!r} carries no scale, which reset='tensor_scale' needs. Use another "
                "reset, such as 'variance_preserving', or evolve with --carry_scales true."
            )

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return sign x carried scale."""
        del context
        scale = entry.magnitude()
        assert scale is not None
        return entry.sign().float() * scale


@resets.register("fresh_magnitude")
class FreshMagnitude(Reset):
    """``sign x |fresh|``: the inherited sign on the host's own initial magnitudes.

    Source:
        Oh et al. 2025, Find a Winning Sign: magnitudes of the new initialisation, inherited signs.
    """

    paper = "Oh et al. 2025, Find a Winning Sign"
    citation = "arXiv:2504.05357"

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return sign x |fresh weight|."""
        return entry.sign().float() * context.fresh().float().abs()


@resets.register("rewind")
class Rewind(Reset):
    """The values that the survivors had early in training.

    Source:
        Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis.
    """

    paper = "Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis"
    citation = "arXiv:1912.05671"
    needs_sign = False

    def check(self, entry: SignedMask, context: ResetContext) -> None:
        """Refuse where no early weights are stored."""
        super().check(entry, context)
        if context.early is None:
            raise ConfigError(
                f"{context.name!r} has no stored early weights, which reset='rewind' needs; a "
                "connectome does not carry weights. Use 'sign_constant' for a fresh host."
            )

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return the stored early weights."""
        del entry
        assert context.early is not None
        return context.early().float()


@resets.register("keep")
class Keep(Reset):
    """The host's own weights, dead ones zeroed.

    Source:
        Mallya et al. 2018, Piggyback: a mask on the weights of a given network.
    """

    paper = "Mallya et al. 2018, Piggyback"
    citation = "arXiv:1801.06519"
    needs_sign = False

    def values(self, entry: SignedMask, context: ResetContext) -> Tensor:
        """Return the host's weights."""
        del entry
        return context.weight.float()
