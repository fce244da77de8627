"""Connectomes as sets of links: union, intersection, difference, votes and lesions.

Places are exact; where members disagree about a sign, a rule decides and the number is reported.
What the result was made from is in its lineage. Nothing here ranks weights or knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_connectome.connectome import Connectome
from hf_connectome.errors import (
    ConfigError,
    HostMismatchError,
    ScopeError,
    UnknownNameError,
    did_you_mean,
    some,
)
from hf_connectome.signed_mask import SignedMask

if TYPE_CHECKING:
    from torch import Tensor

CONFLICTS = {
    "error": "refuse",
    "drop": "leave the weight out",
    "first": "take the sign of the first member that has the weight",
    "majority": "take the sign of most members that have the weight; a tie leaves it out",
}


@dataclass(frozen=True)
class Combined:
    """The result of a set operation, and what became of sign conflicts on the way.

    A conflict is a weight that the operation keeps and its members have under opposite signs.
    """

    connectome: Connectome
    conflicts: Mapping[str, int]
    """Parameter name -> conflicts; only parameters that have some."""
    dropped: Mapping[str, int]
    """Parameter name -> conflicts that the rule left out; only parameters that have some."""

    @property
    def num_conflicts(self) -> int:
        """Conflicts in all parameters."""
        return sum(self.conflicts.values())

    @property
    def num_dropped(self) -> int:
        """Weights left out in all parameters."""
        return sum(self.dropped.values())


@dataclass(frozen=True)
class Lines:
    """Rows and columns of one parameter as it is stored: the first dimension, and the rest."""

    rows: Sequence[int] = ()
    columns: Sequence[int] = ()


# ---- set operations ------------------------------------------------------------------------------


def union(*members: Connectome, conflicts: str = "error") -> Combined:
    """Keep the weights that any member keeps."""
    return _combine("union", members, lambda masks: masks.any(0), conflicts)


def intersection(*members: Connectome, conflicts: str = "error") -> Combined:
    """Keep the weights that all members keep."""
    return _combine("intersection", members, lambda masks: masks.all(0), conflicts)


def symmetric_difference(*members: Connectome, conflicts: str = "error") -> Combined:
    """Keep the weights that one of two members keeps; of more members, an odd number of them."""
    return _combine("symmetric-difference", members, lambda masks: masks.sum(0) % 2 == 1, conflicts)


def vote(*members: Connectome, least: int, conflicts: str = "error") -> Combined:
    """Keep the weights that at least so many members keep.

    Raises:
        ConfigError: ``least`` is not between 1 and the number of members.
    """
    if not 1 <= least <= len(members):
        raise ConfigError(f"least is {least} of {len(members)} members; expected 1 to all of them.")
    return _combine(
        "vote", members, lambda masks: masks.sum(0) >= least, conflicts, {"least": least}
    )


def difference(first: Connectome, *others: Connectome) -> Combined:
    """Keep the weights that only the first keeps, with its signs, scales and values."""

    def alone(masks: Tensor) -> Tensor:
        return masks[0] & ~masks[1:].any(0)

    return _combine("difference", (first, *others), alone, "error", num_carriers=1)


OPERATIONS: Mapping[str, Callable[..., Combined]] = {
    "union": union,
    "intersection": intersection,
    "difference": difference,
    "symmetric-difference": symmetric_difference,
    "vote": vote,
}


def _combine(
    operation: str,
    members: Sequence[Connectome],
    keeps: Callable[[Tensor], Tensor],
    conflicts: str,
    facts: Mapping[str, Any] | None = None,
    *,
    num_carriers: int | None = None,
) -> Combined:
    """Keep what ``keeps`` says of the stacked masks, ``(members, *shape)`` bool.

    Signs, scales and values are those of the carriers, the first members or all. A scale or a value
    that travels whole stays where all carriers have the same; of two, neither would be right.

    Raises:
        ConfigError: fewer than two members, or conflicts under the rule 'error'.
        UnknownNameError: no such rule.
        HostMismatchError: members of different bases or tokenizers.
    """
    if conflicts not in CONFLICTS:
        hint = did_you_mean(conflicts, CONFLICTS)
        raise UnknownNameError(f"unknown rule for conflicts {conflicts!r}. {hint}")
    if len(members) < 2:
        raise ConfigError(f"{operation} of {len(members)} connectomes; expected two or more.")
    for other in members[1:]:
        check_same_parameters(members[0], other)
        _check_same_tokenizer(members[0], other)
    carriers = members[:num_carriers]
    entries, found, dropped = {}, {}, {}
    for name in members[0]:
        mask = keeps(torch.stack([member.mask(name) for member in members]))
        parts = [carrier[name] for carrier in carriers]
        sign = None
        if all(part.sign_bits is not None for part in parts):
            signs = torch.stack([part.sign() for part in parts])  # (carriers, *shape)
            conflict = mask & (signs > 0).any(0) & (signs < 0).any(0)
            sign, left_out = _agree(signs, conflict, conflicts, name)
            mask &= ~left_out
            found[name], dropped[name] = int(conflict.sum()), int(left_out.sum())
        entries[name] = _packed(parts, mask, sign)
    counts = [{n: count for n, count in c.items() if count} for c in (found, dropped)]
    row = {"operation": operation, **(facts or {}), "of": [member.digest for member in members]}
    row |= {"conflicts": conflicts, "num_conflicts": sum(found.values())}
    made = Connectome(entries, values=_common_values(carriers), config=members[0].config)
    return Combined(with_row(made, row), *counts)


def _agree(signs: Tensor, conflict: Tensor, rule: str, name: str) -> tuple[Tensor, Tensor]:
    """Return the sign of every weight, and the conflicts that the rule leaves out."""
    if rule == "error" and conflict.any():
        raise ConfigError(
            f"{name!r}: {int(conflict.sum())} shared weights have opposite signs; expected equal "
            "signs. Leave the shared weights out, (a - b) | (b - a), or name a rule: conflicts="
            f"{some(rule for rule in CONFLICTS if rule != 'error')}."
        )
    total = signs.sum(0).sign()
    if rule == "majority":
        return total, conflict & (total == 0)
    first = signs[0]
    for sign in signs[1:]:
        first = torch.where(first != 0, first, sign)
    return first, conflict if rule == "drop" else torch.zeros_like(conflict)


def _packed(parts: Sequence[SignedMask], mask: Tensor, sign: Tensor | None) -> SignedMask:
    """Pack the entry; its scale is the parts' own where they have the same."""
    packed = SignedMask.pack(mask, sign, orientation=parts[0].orientation)
    scales = [part.scale for part in parts if part.scale is not None]
    if len(scales) < len(parts) or not all(np.array_equal(s, scales[0]) for s in scales):
        return packed
    return replace(packed, scale=scales[0])


def _common_values(members: Sequence[Connectome]) -> dict[str, Tensor]:
    carried = [member.values_carried for member in members]
    return {
        name: value
        for name, value in carried[0].items()
        if all(name in other and torch.equal(other[name], value) for other in carried[1:])
    }


def with_row(connectome: Connectome, row: Mapping[str, Any]) -> Connectome:
    """Record in config and lineage what the connectome was made from."""
    if connectome.config is None:
        return connectome
    row = {**row, "num_survivors": connectome.num_survivors, "density": connectome.density}
    lineage = [*connectome.config.lineage, row]
    config = replace(connectome.config, lineage=lineage, digest=None, origin=None)
    return connectome.replace(config=config)


def check_same_parameters(mine: Connectome, other: Connectome) -> None:
    """Refuse two connectomes whose weights are not those of one base.

    Raises:
        HostMismatchError: names the first parameter that differs.
    """
    odd = mine.keys() ^ other.keys()
    if odd:
        raise HostMismatchError(f"only one of the two connectomes has {some(sorted(odd))}.")
    for name, entry in mine.items():
        _check_same_entry(name, entry, other[name])


def _check_same_entry(name: str, entry: SignedMask, other: SignedMask) -> None:
    if entry.shape != other.shape:
        raise HostMismatchError(
            f"{name!r} is {entry.shape} in one connectome, {other.shape} in the other."
        )
    if entry.orientation != other.orientation:
        raise HostMismatchError(
            f"{name!r} is stored {entry.orientation} in one connectome, {other.orientation} in the "
            "other: one is the transpose of the other."
        )


def _check_same_tokenizer(mine: Connectome, other: Connectome) -> None:
    digests = [c.config.tokenizer_digest if c.config is not None else None for c in (mine, other)]
    if None not in digests and digests[0] != digests[1]:
        raise HostMismatchError(
            f"one connectome was evolved with the tokenizer {str(digests[0])[:12]}…, another with "
            f"{str(digests[1])[:12]}…: rows of their embeddings belong to other tokens. Combine "
            "connectomes of one tokenizer."
        )


# ---- lesions -------------------------------------------------------------------------------------


def lesion(
    connectome: Connectome, part: Connectome | Mapping[str, Tensor | Lines | SignedMask]
) -> Connectome:
    """Remove links; the rest keeps its signs, and the connectome its scales and values.

    Args:
        connectome: what is to lose links.
        part: which links: a connectome of some of its parameters, or by parameter name a bool
            tensor of the parameter's shape, or rows and columns.

    Raises:
        UnknownNameError: a parameter that the connectome has not.
        HostMismatchError: another shape or orientation than the connectome's.
        ScopeError: a row or column that does not exist.

    Example:
        >>> full = SignedMask.pack(torch.ones(2, 3, dtype=torch.bool))
        >>> lesion(Connectome({"w": full}), {"w": Lines(columns=[1])}).mask("w").tolist()
        [[True, False, True], [True, False, True]]
    """
    unknown = [name for name in part if name not in connectome]
    if unknown:
        raise UnknownNameError(
            f"the connectome has no {some(unknown)} to lesion. "
            f"{did_you_mean(unknown[0], connectome)}"
        )
    entries = dict(connectome)
    for name, what in part.items():
        entry = connectome[name]
        mask = entry.mask() & ~_removed(name, entry, what)
        entries[name] = _packed([entry], mask, None if entry.sign_bits is None else entry.sign())
    lesioned = connectome.replace(entries)
    num_removed = connectome.num_survivors - lesioned.num_survivors
    row: dict[str, Any] = {"operation": "lesion", "of": [connectome.digest]}
    row |= {"num_removed": num_removed}
    if isinstance(part, Connectome):
        row["part"] = part.digest
    return with_row(lesioned, row)


def _removed(name: str, entry: SignedMask, what: Tensor | Lines | SignedMask) -> Tensor:
    if isinstance(what, SignedMask):
        _check_same_entry(name, entry, what)
        return what.mask()
    if isinstance(what, Lines):
        removed = torch.zeros(entry.rows, entry.columns, dtype=torch.bool)
        removed[_lines(name, "row", what.rows, entry.rows)] = True
        removed[:, _lines(name, "column", what.columns, entry.columns)] = True
        return removed.reshape(entry.shape)
    if tuple(what.shape) != entry.shape or what.dtype != torch.bool:
        raise HostMismatchError(
            f"the links to remove of {name!r} are {what.dtype} {tuple(what.shape)}; expected "
            f"torch.bool {entry.shape}, True where a link goes."
        )
    return what.cpu()


def _lines(name: str, kind: str, lines: Sequence[int], count: int) -> list[int]:
    odd = [line for line in lines if not 0 <= line < count]
    if odd:
        raise ScopeError(f"{name!r} has {count} {kind}s, 0 to {count - 1}; there is no {odd[0]}.")
    return list(lines)
