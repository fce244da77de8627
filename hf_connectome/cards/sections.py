"""The sections of both cards, in Markdown; what is not known is stated or left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hf_connectome.cards.facts import (
    HUB,
    architecture_of,
    density_table,
    fact_table,
    has_embeddings,
    lineage_table,
    run_table,
    versions_line,
)
from hf_connectome.cards.markup import one_line, percent, quoted, table
from hf_connectome.cards.results import ARM, Results
from hf_connectome.criteria import criteria
from hf_connectome.evaluation.arms import BASELINE, by_arm, markdown_table, summarise

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome
    from hf_connectome.evaluation.arms import ArmResult
    from hf_connectome.provenance import Provenance

PLACEHOLDER = "this_repository"
"""What the snippets load where no repository is known."""
PAPER = "Kotar & Tuckute 2025, [Model Connectomes](https://arxiv.org/abs/2504.21047)"
BIBTEX = """\
@article{kotar2025model,
  title   = {Model Connectomes: A Generational Approach to Data-Efficient Language Models},
  author  = {Kotar, Klemen and Tuckute, Greta},
  journal = {arXiv preprint arXiv:2504.21047},
  year    = {2025},
  url     = {https://arxiv.org/abs/2504.21047}
}
@software{hf_connectome,
  title   = {hf_connectome: evolve, share and inherit model connectomes},
  author  = {{The hf_connectome authors}},
  version = {%s}
}"""
_ARMS = {
    ARM: "inherits this connectome",
    "random": "has the same density in every matrix, random places and signs",
    BASELINE: "inherits nothing",
}
_FEW_SEEDS = 4
_FOUND_BY = {
    "generational": f"training and pruning, after {PAPER}",
    "iht": "iterative hard thresholding: the largest weights lived, after every step",
    "search": "evolutionary search: wirings were varied and chosen by a short training",
}


def _whose(connectome: Connectome) -> str:
    name = architecture_of(connectome)
    return f"a {quoted(name)}" if name else "a model whose architecture is not recorded"


def opening(connectome: Connectome) -> str:
    """Say in two sentences what it is and how it came about."""
    signs = ", and their sign" if connectome.has_signs else " (no signs)"
    how = "How it came about is not recorded."
    made = [row for row in connectome.lineage if "operation" in row]
    if rows := [row for row in connectome.lineage if row not in made]:
        times = f"{len(rows)} generations" if len(rows) > 1 else "one generation"
        loop = str(rows[-1].get("outer_loop", "generational"))
        found_by = _FOUND_BY.get(loop, f"another outer loop ({quoted(loop)})")
        how = f"It was found by {times} of {found_by}."
    if made:
        how = f"Its lineage ends with the operation {quoted(made[-1]['operation'])}."
    return (
        f"The wiring of {_whose(connectome)}, without its weights: which "
        f"{connectome.num_survivors:,} of {connectome.num_weights:,} weights exist "
        f"({percent(connectome.density)}){signs}. {how}"
    )


def checkpoint_opening(connectome: Connectome, repo: str | None, revision: str | None) -> str:
    """Say what the checkpoint is and whose wiring it has."""
    whose = _whose(connectome)
    own = "in the folder `connectome`"
    if repo is not None:
        at = f" at {quoted(revision)}" if revision else ""
        own = f"of [{repo}]({HUB}/{repo}){at}, a copy of which lies {own}"
    return (
        f"{whose[0].upper()}{whose[1:]}, trained; of {connectome.num_weights:,} weights in scope "
        f"{connectome.num_survivors:,} exist ({percent(connectome.density)}), the others are 0. "
        f"Its wiring is the connectome {quoted(connectome.digest[:12])} {own}."
    )


def loading(connectome: Connectome, repo_id: str | None, revision: str | None) -> Iterator[str]:
    """Show how to load it; the snippets run as they stand where a repository is named."""
    name = repo_id or PLACEHOLDER
    load = "model = ConnectomeModel.from_pretrained"
    lines = ["from hf_connectome import ConnectomeModel", ""]
    if architecture_of(connectome):
        lines += ["# a fresh model, wired, ready to train", f'{load}("{name}", seed=0)']
        if revision:
            lines += [f'{load}("{name}", revision="{revision}", seed=0)']
    lines += ["# on a model that you have, as an adapter", f'{load}(host, "{name}")']
    yield "## How to load it"
    yield _python(*lines)
    yield "By PEFT itself; the import registers the method:"
    yield _python(
        "from hf_connectome import ConnectomeConfig",
        "from peft import PeftModel",
        "",
        f'model = PeftModel.from_pretrained(host, "{name}")',
    )


def checkpoint_loading(connectome: Connectome, name: str) -> Iterator[str]:
    """Show how to load the checkpoint, and how to go on training it."""
    kind = architecture_of(connectome) or "AutoModel"
    yield "It is an ordinary checkpoint of transformers and needs no other package:"
    yield _python(
        f"from transformers import {kind}", "", f'model = {kind}.from_pretrained("{name}")'
    )
    yield "To go on training with the dead weights at 0:"
    yield _python(
        "from hf_connectome import Connectome, MaskCallback",
        "",
        f'connectome = Connectome.from_pretrained("{name}", subfolder="connectome")',
        "callbacks = [MaskCallback(connectome)]  # for transformers' Trainer",
    )


def facts(
    connectome: Connectome, file_bytes: Mapping[str, int] | None, tokenizer_repo: str | None = None
) -> Iterator[str]:
    """List what the connectome is; sizes too unless ``file_bytes`` is None."""
    yield "## Facts"
    yield fact_table(connectome, file_bytes=file_bytes, tokenizer_repo=tokenizer_repo)


def generation_links(repo_id: str | None, tags: Iterable[str]) -> dict[int, str]:
    """Return generation -> URL for the tags that are generations."""
    found = [(tag, re.fullmatch(r"generation-(\d{1,9})", tag, re.ASCII)) for tag in tags]
    return {
        int(match[1]): f"{HUB}/{repo_id}/tree/{tag}"
        for tag, match in found
        if match is not None and repo_id is not None
    }


def lineage(connectome: Connectome, links: Mapping[int, str], parent: str | None) -> Iterator[str]:
    """List the generations, and the connectome that the evolution went on from."""
    if not connectome.lineage and not parent:
        return
    yield "## Lineage"
    if parent:
        yield f"The evolution went on from [{parent}]({HUB}/{parent})."
    if connectome.lineage:
        yield lineage_table(connectome, links)
    if links:
        yield f'A generation with a link is a revision: `revision="generation-{max(links)}"`.'


def density(connectome: Connectome, figure: str | None) -> Iterator[str]:
    """Show the figure, if there is one, and the table."""
    yield "## Density"
    if figure:
        yield f"![density by layer and module]({figure})"
    yield density_table(connectome)


def measured(results: Results | None) -> Iterator[str]:
    """Show what inherit.py measured, with its controls, or that nothing was."""
    yield "## Results"
    if results is None or not results.runs:
        yield "Not measured."
        return
    arms = by_arm(results.runs)
    known = [f" *{arm}* {_ARMS[arm]}." for arm in arms if arm in _ARMS]
    seeds = sorted({len(runs) for runs in arms.values()})
    steps = sorted({run.steps[-1] for run in results.runs})
    rate = f" at learning rate {results.learning_rate:g}" if results.learning_rate else ""
    yield (
        f"Fresh models that learned from the same data in the same order, {_or(steps)} steps{rate};"
        f" loss in nats a token on held-out text, means of {_or(seeds)} seeds, paired by seed."
        f"{''.join(known)}"
    )
    yield markdown_table(summarise(results.runs))
    if results.corpus:
        yield f"Text: {quoted(results.corpus, 300)}."


def _or(numbers: Iterable[int]) -> str:
    return " or ".join(f"{n:,}" for n in numbers)


def limits(connectome: Connectome, results: Results | None) -> Iterator[str]:
    """Say what it is not for, and which controls are missing."""
    yield "## What it is not for, and what was not measured"
    lines = ["It is no trained model: what a fresh model says before training means nothing."]
    if has_embeddings(connectome):
        lines.append("Rows of its embeddings belong to the ids of one tokenizer; no other fits.")
    if not connectome.has_signs:
        lines.append("It lacks signs, so no fresh model can start from sign times magnitude.")
    lines.append("Zeros do not make a dense matrix product faster.")
    lines += _not_measured(by_arm(results.runs) if results is not None else {})
    if connectome.lineage:
        lines.append("Not measured: how an evolution with another seed would differ.")
    lines.append("Not examined: what of its training text, with its faults, the wiring keeps.")
    yield "\n".join(f"- {line}" for line in lines)


def _not_measured(arms: Mapping[str, Sequence[ArmResult]]) -> Iterator[str]:
    if not arms:
        yield "Not measured: whether a child learns faster from it than from a random or no wiring."
        return
    for arm in ("random", BASELINE):
        if arm not in arms:
            yield f"Not measured: the control *{arm}*, which {_ARMS[arm]}."
    fewest = min(map(len, arms.values()))
    if fewest < _FEW_SEEDS:
        yield f"Of an arm only {fewest} children were trained; {_FEW_SEEDS} or more make a claim."


def training(provenance: Provenance | None) -> Iterator[str]:
    """Say from what, how long and on what it was trained, and by which command."""
    yield "## Training"
    yield run_table(provenance) or "Data, hours and hardware are not recorded."
    versions = versions_line(provenance.versions) if provenance is not None else None
    yield f"Versions: {versions or 'not recorded'}."
    yield "## How to reproduce it"
    command = one_line(provenance.command or "", 2000) if provenance is not None else ""
    if not command:
        yield "The command is not recorded."
        return
    launcher = "accelerate launch " if command.startswith("recipes/") else ""
    # Indented, because a command may hold what would end a fence.
    yield f"    {launcher}{command}"


def citation(connectome: Connectome) -> Iterator[str]:
    """Name the sources of method, criterion and software."""
    from hf_connectome import __version__

    yield "## Citation"
    names = dict.fromkeys(str(row.get("criterion")) for row in connectome.lineage)
    found = {name: criteria.get(name) for name in names if name in criteria}
    if found:
        rows = [
            [quoted(name), one_line(c.paper), one_line(c.citation)] for name, c in found.items()
        ]
        yield table(["criterion", "source", "identifier"], rows)
    yield f"```bibtex\n{BIBTEX % __version__}\n```"


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
