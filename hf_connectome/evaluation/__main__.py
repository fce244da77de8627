"""``python -m hf_connectome.evaluation lm …``: lm-eval's command line with wired models in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_connectome.errors import ConfigError, did_you_mean
from hf_connectome.parsing import friendly_errors

_PROG = "python -m hf_connectome.evaluation"
_USAGE = f"""usage: {_PROG} lm [run|ls|validate] [options of lm-eval] [--data_dir DIR]

lm-eval's own command line, with the model 'connectome' and the tasks hellaswag_per_token and
mmlu_cloze. --data_dir reads the rows of tasks from a folder, <dataset>/<config>/<split>.jsonl.

  {_PROG} lm --model connectome --model_args connectome=REPO,seed=0 --tasks hellaswag
  {_PROG} lm --model connectome --model_args pretrained=gpt2,connectome=REPO --tasks mmlu
  {_PROG} lm --model connectome --model_args checkpoint=DIR --tasks lambada_openai
  {_PROG} lm --model hf --model_args pretrained=DIR --tasks arc_easy --data_dir rows/
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the evaluations; today that is ``lm``.

    Args:
        argv: by default the command line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with friendly_errors(_PROG):
        if not arguments or arguments[0] in ("-h", "--help"):
            sys.stdout.write(_USAGE)
            return
        if arguments[0] != "lm":
            raise ConfigError(
                f"unknown evaluation {arguments[0]!r}. {did_you_mean(arguments[0], ['lm'])}"
            )
        if not arguments[1:]:
            sys.stdout.write(_USAGE)
            return
        lm(arguments[1:])


def lm(argv: Sequence[str]) -> None:
    """Run lm-eval's command line.

    Args:
        argv: its arguments, and ``--data_dir``.

    Raises:
        ConnectomeError: what was asked for cannot be evaluated.
    """
    from hf_connectome.evaluation.lm import require_lm_eval
    from hf_connectome.evaluation.lm_model import Source, connectome_lm
    from hf_connectome.evaluation.lm_sources import check_tasks, task_files

    require_lm_eval()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_dir")
    ours, theirs = parser.parse_known_args(argv)
    harness, args = _parse(theirs)
    connectome_lm()
    if getattr(args, "model", None) == "connectome":
        Source.of(args.model_args or {}).folder()  # before lm-eval indexes all of its tasks
    tasks = getattr(args, "tasks", None)
    names = check_tasks(tasks) if ours.data_dir is not None and tasks else []
    if ours.data_dir is not None and not names:
        raise ConfigError("--data_dir was given without --tasks, for which it holds the rows.")
    with task_files(names, ours.data_dir, getattr(args, "num_fewshot", None)) as folders:
        # `validate` and `ls` take the same option as `run`.
        args.include_path = [*_included(args), *map(str, folders)]
        harness.execute(args)


def _parse(argv: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    from lm_eval.__main__ import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    harness, before = HarnessCLI(), sys.argv
    sys.argv = ["lm-eval", *argv]  # it reads nothing else
    try:
        return harness, harness.parse_args()
    finally:
        sys.argv = before


def _included(args: argparse.Namespace) -> list[str]:
    """Return the folders of tasks that the user named, in the command or in its config file."""
    given = getattr(args, "include_path", None)
    if given is None and getattr(args, "config", None):
        import yaml

        given = (yaml.safe_load(Path(args.config).read_text()) or {}).get("include_path")
    return [given] if isinstance(given, str) else list(given or [])


if __name__ == "__main__":
    main()
