# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[eval,report]"]
# ///
r"""Evaluate connectomes and checkpoints: held-out text, lm-eval, reading times, brain.

    python recipes/evaluate.py --models runs/cpu/generation-6 runs/cpu/checkpoint-1440 \
      --tasks loss,lm --dataset python-stdlib --data_dir rows/ --output_dir runs/evaluation

A connectome is put on a fresh model, one a seed; a checkpoint is taken as it is. Models whose names
end in -seed0, -seed1, … (inherit.py --save_children) are compared arm by arm, paired by seed. All
data and models are checked first. The same command again, with more models or tasks, does only
what is missing. What it writes into --output_dir: models/*/*/result.json (one a model and task),
table.md, results.json, scores.png, and where they were measured reading.png and brain.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.evaluation_figures import brain_figure, lag_profiles, score_bars
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arguments import EvaluationArguments
from hf_connectome.evaluation.groups import group_scores, group_table, groups_as_json
from hf_connectome.evaluation.report import as_json, markdown_table, measures
from hf_connectome.evaluation.subjects import find_subjects
from hf_connectome.evaluation.suite import Materials, plan, refuse_processes, run
from hf_connectome.parsing import friendly_errors, parse
from hf_connectome.storage import refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_connectome.evaluation.subjects import Subject
    from hf_connectome.evaluation.suite import Outcome

CONFIGS = Path(__file__).parent / "configs"


def progress(line: str) -> None:
    """Print a line of progress where it does not mix with the table."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all evaluations from the command line."""
    with friendly_errors("evaluate.py"):
        (arguments,) = parse(
            (EvaluationArguments,),
            argv,
            prog="evaluate.py",
            description=__doc__ or "",
            config_dir=CONFIGS,
        )
        refuse_processes()
        transformers_logging.disable_progress_bar()
        output = Path(arguments.output_dir)
        materials = Materials(arguments)
        materials.check()
        subjects = find_subjects(
            arguments.models,
            seeds=arguments.seeds,
            reset=arguments.reset,
            tokenizer=arguments.tokenizer,
        )
        for subject in subjects:
            progress(f"{subject.label}: {subject.kind}, {subject.num_parameters:,} parameters")
        for text in materials.texts if "loss" in arguments.tasks else ():
            progress(text.describe())
        outcomes = list(run(plan(subjects, materials), output, arguments.device, progress))
        report(subjects, outcomes, output)


def report(subjects: Sequence[Subject], outcomes: Sequence[Outcome], output: Path) -> None:
    """Print the table and write table, results and figures; without figures it goes on."""
    table = markdown_table(subjects, outcomes)
    groups = group_scores(measures(outcomes))
    if groups:
        table += f"\n\n{group_table(groups)}"
    print(table)
    found = as_json(subjects, outcomes) | {"arms": groups_as_json(groups)}
    for name, content in (("table.md", table), ("results.json", json.dumps(found, indent=1))):
        with refused_writes_named(output / name):
            write_atomically(output / name, (content + "\n").encode())
    saved = ["table.md", "results.json", *draw(outcomes, output)]
    num = sum(outcome.is_new for outcome in outcomes)
    print(f"\n{num} of {len(outcomes)} results are new; saved {', '.join(saved)} in {output}")


def draw(outcomes: Sequence[Outcome], output: Path) -> list[str]:
    """Draw the figures, or say why there are none; returns the names of those written."""
    found = {
        task: {outcome.label: outcome.result for outcome in outcomes if outcome.task == task}
        for task in ("reading", "brain")
    }
    try:
        score_bars(measures(outcomes), output / "scores.png")
        saved = ["scores.png"]
        for task, figure in (("reading", lag_profiles), ("brain", brain_figure)):
            if found[task]:
                figure(found[task], output / f"{task}.png")
                saved.append(f"{task}.png")
    except (ConfigError, OSError) as error:  # of which StorageError is one
        print(f"no figures: {error}")
        return []
    return saved


if __name__ == "__main__":
    # Tasks of lm-eval import Hugging Face's evaluate, and would find this file in its place.
    sys.path[:] = [p for p in sys.path if Path(p).absolute() != Path(__file__).absolute().parent]
    main()
