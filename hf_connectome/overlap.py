"""How alike two connectomes are, beside what chance gives: per tensor exactly, and in all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.operations import check_same_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from hf_connectome.connectome import Connectome
    from hf_connectome.signed_mask import SignedMask


@dataclass(frozen=True)
class Shared:
    """How many survivors two masks share, beside what chance gives at the same densities."""

    num_shared: int
    expected: float
    variance: float
    p_value: float
    """P(chance shares at least so many), in [0, 1]."""

    @property
    def z(self) -> float | None:
        """Standard deviations above chance; None where chance has no choice."""
        return (self.num_shared - self.expected) / self.variance**0.5 if self.variance else None


@dataclass(frozen=True)
class Overlap:
    """How alike two connectomes are, each figure beside what chance would give.

    Chance keeps each tensor's own densities and share of negative signs and draws the rest
    independently.
    """

    jaccard: float
    chance_jaccard: float
    sign_agreement: float | None
    chance_sign_agreement: float | None
    num_shared: int
    shared: Shared
    """Of all tensors together; the p-value of several takes their sum to be normal."""
    tensors: Mapping[str, Shared]
    """Parameter name -> the same, with the exact hypergeometric p-value."""


def overlap(mine: Connectome, other: Connectome) -> Overlap:
    """Measure how alike two wirings are, against chance.

    Source: the number of survivors that two masks of fixed sizes share by chance is hypergeometric,
    with mean K n / N and variance K n (N - K)(N - n) / (N^2 (N - 1)).
    """
    check_same_parameters(mine, other)
    tensors, agree, chance_agree = {}, 0, 0.0
    for name, entry in mine.items():
        theirs = other[name]
        both = entry.mask() & theirs.mask()
        tensors[name] = shared = _shared(entry, theirs, int(both.sum()))
        if entry.sign_bits is not None and theirs.sign_bits is not None:
            agree += int((entry.sign()[both] == theirs.sign()[both]).sum())
            p, q = entry.negative_fraction, theirs.negative_fraction
            chance_agree += shared.num_shared * (p * q + (1 - p) * (1 - q))
    whole = _in_all(list(tensors.values()))
    signs = mine.has_signs and other.has_signs and whole.num_shared > 0
    total = mine.num_survivors + other.num_survivors
    return Overlap(
        jaccard=whole.num_shared / (total - whole.num_shared) if total else 1.0,
        chance_jaccard=whole.expected / (total - whole.expected) if total else 1.0,
        sign_agreement=agree / whole.num_shared if signs else None,
        chance_sign_agreement=chance_agree / whole.num_shared if signs else None,
        num_shared=whole.num_shared,
        shared=whole,
        tensors=tensors,
    )


def _shared(mine: SignedMask, theirs: SignedMask, num_shared: int) -> Shared:
    """Compare with a draw of ``n`` of ``N`` weights, of which ``K`` are the other's."""
    N, K, n = mine.num_weights, mine.num_survivors, theirs.num_survivors  # noqa: N806 (the usual names)
    variance = K * n * (N - K) * (N - n) / (N * N * (N - 1)) if N > 1 else 0.0
    return Shared(num_shared, K * n / N, variance, hypergeometric_tail(N, K, n, num_shared))


def _in_all(tensors: Sequence[Shared]) -> Shared:
    if len(tensors) == 1:
        return tensors[0]
    num_shared = sum(shared.num_shared for shared in tensors)
    expected = math.fsum(shared.expected for shared in tensors)
    variance = math.fsum(shared.variance for shared in tensors)
    p_value = 1.0
    if variance:
        # Half a link less: the sum takes whole numbers only.
        p_value = math.erfc((num_shared - 0.5 - expected) / math.sqrt(2 * variance)) / 2
    return Shared(num_shared, expected, variance, p_value)


def hypergeometric_tail(num_weights: int, num_marked: int, num_drawn: int, at_least: int) -> float:
    """Return P(X >= at_least) for X the marked ones among ``num_drawn`` drawn without replacement.

    The terms are summed in float64 from their logarithms; below 1e-308 the result is 0.

    Example:
        >>> round(hypergeometric_tail(10, 4, 3, 2), 6)  # (C(4,2) C(6,1) + C(4,3)) / C(10,3)
        0.333333
    """
    least = max(0, num_drawn + num_marked - num_weights, at_least)
    most = min(num_drawn, num_marked)
    if least > most:
        return 0.0
    if at_least <= max(0, num_drawn + num_marked - num_weights):
        return 1.0
    x = torch.arange(least, most + 1, dtype=torch.float64)
    rest = num_weights - num_marked
    logs = _log_choose(num_marked, x) + _log_choose(rest, num_drawn - x)
    whole = _log_choose(num_weights, torch.tensor(float(num_drawn), dtype=torch.float64))
    return min(1.0, float(torch.logsumexp(logs - whole, 0).exp()))


def _log_choose(n: int, k: Tensor) -> Tensor:
    one = torch.tensor(n + 1.0, dtype=torch.float64)
    return torch.lgamma(one) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def as_json(shared: Shared) -> dict[str, Any]:
    """Return the fields of a comparison with chance as plain JSON types."""
    return {**asdict(shared), "z": shared.z}
