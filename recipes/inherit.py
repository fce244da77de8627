# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Let fresh models inherit a connectome, and compare them with models that do not.

    accelerate launch recipes/inherit.py --config cpu_inherit --connectome runs/cpu

All arms of a seed start from the same fresh model and see the same data in the same order. The
same command again trains only what is missing. What it writes into --output_dir: arms/*.json (one a
run), results.json, table.md and curves.png.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.figures import inheritance_curves
from hf_connectome.connectome import Connectome
from hf_connectome.data import DataArguments, load_corpus, load_tokenizer, tokenizer_digest
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import as_json, by_arm, markdown_table, summarise
from hf_connectome.hosts import check_tokenizer
from hf_connectome.inheritance import EXTENDING, InheritanceArguments, find_connectome, train_arms
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.runs import claim, deciding
from hf_connectome.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from hf_connectome.evaluation.arms import ArmResult

CONFIGS = Path(__file__).parent / "configs"


def inherited_tokenizer(
    connectome: Connectome, folder: Path, data: DataArguments
) -> PreTrainedTokenizerFast | None:
    """Return the connectome's own tokenizer; one named on the command line must be the same.

    Raises:
        HostMismatchError: another tokenizer was named.
    """
    default = {f.name: f.default for f in dataclasses.fields(DataArguments)}["tokenizer"]
    if data.tokenizer != default:
        tokenizer = load_tokenizer(data.tokenizer)
        check_tokenizer(connectome, tokenizer_digest(tokenizer))
        return tokenizer
    if not (folder / "tokenizer_config.json").is_file():
        return None
    tokenizer = load_tokenizer(str(folder))
    check_tokenizer(connectome, tokenizer_digest(tokenizer))
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Run the inner loop from the command line."""
    with friendly_errors("inherit.py"):
        arguments, data, training = parse(
            (InheritanceArguments, DataArguments, TrainingArguments),
            argv,
            prog="inherit.py",
            description=__doc__ or "",
            config_dir=CONFIGS,
        )
        source = find_connectome(arguments.connectome)
        connectome = Connectome.from_pretrained(source)
        if training.output_dir in (None, "trainer_output"):
            training.output_dir = str(Path(arguments.connectome) / "inherit")
        output = Path(training.output_dir)
        transformers_logging.disable_progress_bar()
        settings = deciding(explicit_settings((arguments, data, training)))
        settings = {key: value for key, value in settings.items() if key not in EXTENDING}
        claim(output, settings | {"connectome": connectome.digest})
        tokenizer = inherited_tokenizer(connectome, source, data)
        with training.main_process_first(desc="tokenising"):
            corpus = load_corpus(data, tokenizer)
        if corpus.tokenizer is not None:
            check_tokenizer(connectome, tokenizer_digest(corpus.tokenizer))
        if training.should_save:
            print(f"{source}: {connectome}")
            print(corpus.describe())
        results = train_arms(connectome, corpus, arguments, training, output)
        if training.should_save:
            report(results, output)


def report(results: Sequence[ArmResult], output: Path) -> None:
    """Print the table and write table, results and curves."""
    table = markdown_table(summarise(results))
    write_atomically(output / "table.md", (table + "\n").encode())
    text = json.dumps(as_json(results), indent=1)
    write_atomically(output / "results.json", (text + "\n").encode())
    print(table)
    try:
        curves = {arm: [run.curve for run in runs] for arm, runs in by_arm(results).items()}
        inheritance_curves(curves, output / "curves.png")
    except ConfigError as error:
        print(f"no curves.png: {error}")
    print(f"saved table.md, results.json and curves.png in {output}")


if __name__ == "__main__":
    main()
