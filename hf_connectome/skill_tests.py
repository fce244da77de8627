"""Three tests of a skill: what its lesion does to its own text, to other text, and what it shares.

Each beside its controls: lesions of as many links of every tensor, drawn by lot or of largest
magnitude, and the overlap that chance gives. Finding skills is skill_finding.py's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.connectome import Connectome
from hf_connectome.controls import random_twin
from hf_connectome.errors import ConfigError, UnknownNameError, some
from hf_connectome.evaluation.paired import (
    Estimate,
    PairedDifference,
    mean_estimate,
    paired_difference,
)
from hf_connectome.hosts import check_host, full_tensor, like
from hf_connectome.overlap import Shared, as_json
from hf_connectome.selection import keep
from hf_connectome.signed_mask import SignedMask

if TYPE_CHECKING:
    from torch import nn

    Batch = Mapping[str, Any]

OWN, LOT, LARGEST = "skill", "by lot", "largest"
"""Links that a lesion takes: the skill's; as many of every tensor, by lot or of largest |w|."""


@dataclass(frozen=True)
class Effect:
    """What one lesion does to the loss on one text."""

    skill: str
    lesion: str
    """One of 'skill', 'by lot', 'largest'."""
    text: str
    rise: PairedDifference
    """Loss with the lesion less loss without, paired by batch, in nats per token."""
    beyond_lot: PairedDifference
    """Loss with the lesion less the mean loss with lesions by lot, paired by batch."""


@dataclass(frozen=True)
class Pair:
    """What two skills share."""

    first: str
    second: str
    jaccard: float
    shared: Shared


@dataclass(frozen=True)
class SkillReport:
    """The three tests of several skills of one model."""

    loss: Mapping[str, float]
    """Text -> mean loss of the whole model, in nats per token."""
    num_removed: Mapping[str, int]
    """Skill -> links that its lesion takes."""
    effects: Sequence[Effect]
    pairs: Sequence[Pair]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON types."""
        pairs = [{**asdict(pair), "shared": as_json(pair.shared)} for pair in self.pairs]
        return {**asdict(self), "pairs": pairs}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SkillReport:
        """Make the report that :meth:`as_json` came from."""
        effects = [
            Effect(
                **{
                    **row,
                    "rise": PairedDifference(**row["rise"]),
                    "beyond_lot": PairedDifference(**row["beyond_lot"]),
                }
            )
            for row in document["effects"]
        ]
        pairs = [Pair(**{**row, "shared": _shared(row["shared"])}) for row in document["pairs"]]
        return cls(document["loss"], document["num_removed"], effects, pairs)


def _shared(row: Mapping[str, Any]) -> Shared:
    return Shared(**{name: value for name, value in row.items() if name != "z"})


# ---- the tests -----------------------------------------------------------------------------------


def run_skill_tests(
    model: nn.Module,
    skills: Mapping[str, Connectome],
    texts: Mapping[str, Sequence[Batch]],
    *,
    num_lots: int = 4,
    seed: int = 0,
) -> SkillReport:
    """Lesion every skill and its controls, and measure the loss on every text.

    Args:
        model: the one that the skills were found in; bit-equal afterwards.
        skills: name -> connectome of some of its weights.
        texts: name -> held-out batches, at least one; every skill has a text of its name. Losses
            are paired by batch: batches of independent documents make the intervals mean what
            they say. Above 16 batches the sign-flip test samples, which takes seconds.
        num_lots: how many lesions by lot are averaged.
        seed: of the lots.

    Raises:
        ConfigError: no skill, no lot or no batch.
        UnknownNameError: a skill without a text.
        HostMismatchError: a skill is of another model.
    """
    _check(skills, texts, num_lots)
    whole = {name: losses(model, batches) for name, batches in texts.items()}
    effects = []
    for place, (name, skill) in enumerate(skills.items()):
        first = seed + place * num_lots
        lots = [random_twin(skill, first + number) for number in range(num_lots)]
        by_lot = [_lesioned_losses(model, lot, texts) for lot in lots]
        found = {
            OWN: _lesioned_losses(model, skill, texts),
            LOT: {text: _mean_by_batch([lot[text] for lot in by_lot]) for text in texts},
            LARGEST: _lesioned_losses(model, largest_links(model, skill), texts),
        }
        for kind, text in itertools.product(found, texts):
            rise = paired_difference(found[kind][text], whole[text])
            beyond = paired_difference(found[kind][text], found[LOT][text])
            effects.append(Effect(name, kind, text, rise, beyond))
    return SkillReport(
        loss={name: math.fsum(values) / len(values) for name, values in whole.items()},
        num_removed={name: skill.num_survivors for name, skill in skills.items()},
        effects=effects,
        pairs=[_pair(*names, skills) for names in itertools.combinations(skills, 2)],
    )


@torch.no_grad()
def losses(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """Return the loss of every batch, dropout off."""
    was_training = model.training
    model.eval()
    found = [float(model(**batch).loss) for batch in batches]
    model.train(was_training)
    return found


@contextmanager
def lesioned(model: nn.Module, part: Connectome) -> Iterator[None]:
    """Set the weights of ``part`` to 0 while the block runs; afterwards all are bit-equal.

    Raises:
        HostMismatchError: the part is of another model; nothing was changed.
    """
    parameters = check_host(part, model)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.masked_fill_(like(part.mask(name), parameter, torch.bool), 0.0)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def largest_links(model: nn.Module, links: Connectome) -> Connectome:
    """Return the weights of largest magnitude, of every tensor as many as ``links`` has.

    Raises:
        HostMismatchError: the links are of another model.
    """
    entries = {}
    for name, parameter in check_host(links, model).items():
        weight, entry = full_tensor(parameter).cpu(), links[name]
        everything = torch.ones(entry.shape, dtype=torch.bool)
        n_drop = entry.num_weights - entry.num_survivors
        mask = keep(weight.abs(), everything, n_drop, name=name)
        entries[name] = SignedMask.pack(mask, weight, orientation=entry.orientation)
    return Connectome(entries)


def _check(
    skills: Mapping[str, Connectome], texts: Mapping[str, Sequence[Batch]], num_lots: int
) -> None:
    if not skills or num_lots < 1:
        raise ConfigError(
            f"there are {len(skills)} skills and {num_lots} lots; expected at least 1 of each."
        )
    if missing := [name for name in skills if name not in texts]:
        raise UnknownNameError(
            f"there is no text for the skill {some(missing)}; the texts are {some(texts)}. Name "
            "each skill as the text that it is for."
        )
    if empty := [name for name, batches in texts.items() if not batches]:
        raise ConfigError(f"the text {some(empty)} has no batch; expected one or more.")


def _lesioned_losses(
    model: nn.Module, part: Connectome, texts: Mapping[str, Sequence[Batch]]
) -> dict[str, list[float]]:
    with lesioned(model, part):
        return {name: losses(model, batches) for name, batches in texts.items()}


def _mean_by_batch(runs: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(values) / len(values) for values in zip(*runs, strict=True)]


def _pair(first: str, second: str, skills: Mapping[str, Connectome]) -> Pair:
    overlap = skills[first].overlap(skills[second])
    return Pair(first, second, overlap.jaccard, overlap.shared)


# ---- the table -----------------------------------------------------------------------------------


def rises(
    reports: Sequence[SkillReport], *, beyond_lot: bool = False
) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Return (skill, lesion) -> text -> rise of the loss with its 95 % interval.

    Of one report the interval is over batches; of several, over their means: one a seed.

    Args:
        reports: of the same skills and texts.
        beyond_lot: what goes beyond the lesions by lot, in place of the rise itself.
    """
    found: dict[tuple[str, str], dict[str, Estimate]] = {}
    for same in zip(*(report.effects for report in reports), strict=True):
        seen = [effect.beyond_lot if beyond_lot else effect.rise for effect in same]
        one = seen[0]
        estimate = mean_estimate([difference.mean for difference in seen])
        if len(seen) == 1:
            estimate = Estimate(one.mean, one.low, one.high, one.num_pairs)
        found.setdefault((same[0].skill, same[0].lesion), {})[same[0].text] = estimate
    return found


def markdown_tables(reports: Sequence[SkillReport]) -> str:
    """Return the effects and the overlaps as two tables in Markdown.

    Args:
        reports: of the same skills and texts, one a seed.
    """
    first = reports[0]
    texts = list(first.loss)
    rows = [["lesion of", "links", *(f"on {text}" for text in texts)], ["---"] * (2 + len(texts))]
    for (skill, kind), by_text in rises(reports).items():
        of = f"**{skill}**" if kind == OWN else f"as many as {skill}, {kind}"
        rows.append([of, f"{first.num_removed[skill]:,}", *map(_cell, by_text.values())])
    pairs = [["skills", "shared", "by chance", "z", "Jaccard"], ["---"] * 5]
    for same in zip(*(report.pairs for report in reports), strict=True):
        names = f"{same[0].first}, {same[0].second}"
        shared, chance = (
            math.fsum(getattr(pair.shared, field) for pair in same) / len(same)
            for field in ("num_shared", "expected")
        )
        z = [pair.shared.z for pair in same if pair.shared.z is not None]
        least, most = (f"{choose(z):+.0f}" if z else "-" for choose in (min, max))
        jaccard = math.fsum(pair.jaccard for pair in same) / len(same)
        spread = least if least == most else f"{least} to {most}"
        pairs.append([names, f"{shared:,.0f}", f"{chance:,.0f}", spread, f"{jaccard:.3f}"])
    tables = [rows, pairs] if len(pairs) > 2 else [rows]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in table) for table in tables)


def _cell(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
