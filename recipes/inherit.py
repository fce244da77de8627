# /// script
# requires-python = ">=3.10"
# dependencies = ["hf_connectome[report]"]
# ///
"""Let fresh models inherit a connectome, and compare them with models that do not.

    accelerate launch recipes/inherit.py --config cpu_inherit --connectome runs/cpu

All arms of a seed start from the same fresh model and see the same data in the same order. The
same command again trains only what is missing. What it writes into --output_dir: arms/*.json (one a
run), results.json, table.md and curves.png; if there are other arms than connectome, random and
dense, ladder.png and inheritance_curve.png; if there are other generations, densities.png.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_connectome.analysis.arm_kinds import ladder_order
from hf_connectome.analysis.arm_panels import arm_panels
from hf_connectome.analysis.density_curve import density_curve, of_generation
from hf_connectome.analysis.figures import inheritance_curves
from hf_connectome.analysis.inheritance_curve import inheritance_curve
from hf_connectome.analysis.null_ladder import null_ladder
from hf_connectome.arms import source_of
from hf_connectome.connectome import Connectome
from hf_connectome.data import DataArguments, load_corpus, load_tokenizer, tokenizer_digest
from hf_connectome.errors import ConfigError
from hf_connectome.evaluation.arms import (
    as_json,
    by_arm,
    has_ladder,
    markdown_table,
    summarise,
    table_notes,
)
from hf_connectome.hosts import check_tokenizer
from hf_connectome.inheritance import (
    EXTENDING,
    InheritanceArguments,
    check_arms,
    check_vocabulary,
    reset_of,
    start_of,
    stored_results,
    train_arms,
)
from hf_connectome.parsing import explicit_settings, friendly_errors, parse
from hf_connectome.runs import claim, deciding, refuse_named_checkpoint
from hf_connectome.sources import (
    default_output,
    digest_of,
    find_connectome,
    find_other,
    parent_weights,
)
from hf_connectome.storage import CONNECTOME_FOLDER, refused_writes_named, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerFast

    from hf_connectome.evaluation.arms import ArmResult

CONFIGS = Path(__file__).parent / "configs"
MOST_ARMS_IN_A_PANEL = 7


def inherited_tokenizer(
    connectome: Connectome, folder: Path, data: DataArguments
) -> PreTrainedTokenizerFast | None:
    """Return the connectome's own tokenizer; one named on the command line must be the same.

    None: it has none and records none, so that any may be used.

    Raises:
        HostMismatchError: another tokenizer was named.
        ConfigError: it records one that is not there, or 'bpe:…' asks to train another.
    """
    assert connectome.config is not None
    recorded = connectome.config.tokenizer_digest
    places = [folder, folder.parent] if folder.name == CONNECTOME_FOLDER else [folder]
    own = next((place for place in places if (place / "tokenizer_config.json").is_file()), None)
    default = {f.name: f.default for f in dataclasses.fields(DataArguments)}["tokenizer"]
    trains_one = data.tokenizer.startswith("bpe:")
    if data.tokenizer != default and trains_one and (own is not None or recorded is not None):
        raise ConfigError(
            f"tokenizer is {data.tokenizer!r}, which trains one; inherit uses the connectome's own "
            "tokenizer, to which its embeddings belong. Leave --tokenizer out."
        )
    if not trains_one:
        tokenizer = load_tokenizer(data.tokenizer)
        check_tokenizer(connectome, tokenizer_digest(tokenizer))
        return tokenizer
    if own is None and recorded is not None:
        raise ConfigError(
            f"{folder} has no tokenizer, but the connectome was evolved with one "
            f"({connectome.config.tokenizer or recorded[:12] + '…'}). Name it with --tokenizer."
        )
    if own is None:
        return None
    tokenizer = load_tokenizer(str(own))
    check_tokenizer(connectome, tokenizer_digest(tokenizer))
    return tokenizer


def other_connectomes(
    arguments: InheritanceArguments, folder: Path, output: Path, token: str | None
) -> dict[str, Connectome]:
    """Return the connectomes that arms name beside the main one, by that name.

    Raises:
        RunError: one is not there, or results of this folder are of another one by that name.
    """
    others = {}
    for name in filter(None, map(source_of, arguments.arms)):
        found = find_other(name, arguments.connectome, folder, token=token)
        others[name] = Connectome.from_pretrained(found)
        claim(output / "others" / name.replace("/", "+"), {"connectome": others[name].digest})
    return others


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
        refuse_named_checkpoint(training.resume_from_checkpoint)
        source = find_connectome(
            arguments.connectome,
            revision=arguments.connectome_revision,
            token=training.hub_token,
        )
        connectome = Connectome.from_pretrained(source)
        if training.output_dir in (None, "trainer_output"):
            training.output_dir = str(default_output(arguments.connectome))
        output = Path(training.output_dir)
        transformers_logging.disable_progress_bar()
        settings = deciding(explicit_settings((arguments, data, training)))
        settings = {key: value for key, value in settings.items() if key not in EXTENDING}
        settings |= {"connectome": connectome.digest}
        settings |= start_of(connectome, arguments, training)
        claim(output, settings, record=False)
        tokenizer = inherited_tokenizer(connectome, source, data)
        parent = None
        if arguments.parent is not None:
            parent = parent_weights(connectome, Path(arguments.parent))
            claim(output / "parent", {"weights": digest_of(parent)})
        others = other_connectomes(arguments, source, output, training.hub_token)
        check_arms(connectome, arguments, data.block_size, parent, others)
        with training.main_process_first(desc="tokenising"):
            corpus = load_corpus(data, tokenizer)
        if corpus.tokenizer is not None:
            for inherited in (connectome, *others.values()):
                check_tokenizer(inherited, tokenizer_digest(corpus.tokenizer))
            check_vocabulary(connectome, corpus.tokenizer)
        claim(output, settings | {"corpus": corpus.identity()})
        if training.should_save:
            print(f"{source}: {connectome}")
            print(corpus.describe())
            announce_reset(connectome, arguments)
        train_arms(connectome, corpus, arguments, training, output, parent, others)
        if training.should_save:
            report(stored_results(output, arguments.arms), output)


def announce_reset(connectome: Connectome, arguments: InheritanceArguments) -> None:
    """Say so where the arms start from other values than the connectome records."""
    recorded = connectome.config.reset if connectome.config is not None else None
    reset = reset_of(connectome, arguments)
    if arguments.child_reset is None and reset != recorded:
        print(
            f"reset: {reset}, because the recorded {recorded!r} needs the weights of a parent; "
            "--child_reset chooses another"
        )


def report(results: Sequence[ArmResult], output: Path) -> None:
    """Print the table and write table, results and figures; without a figure it goes on."""
    grouped = by_arm(results)
    summaries = summarise(results)
    if has_ladder(grouped):
        found = {summary.arm: summary for summary in summaries}
        summaries = [found[arm] for arm in ladder_order(found)]
    table = f"{markdown_table(summaries)}\n\n{table_notes(summaries)}"
    print(table)
    text = json.dumps(as_json(results), indent=1)
    for name, content in (("table.md", table), ("results.json", text)):
        with refused_writes_named(output / name):
            write_atomically(output / name, (content + "\n").encode())
    saved = ["table.md", "results.json"]
    curves = {s.arm: [run.curve for run in grouped[s.arm]] for s in summaries}
    draw_curves = arm_panels if len(curves) > MOST_ARMS_IN_A_PANEL else inheritance_curves
    figures: dict[str, Callable[[Path], None]] = {"curves.png": partial(draw_curves, curves)}
    if any(map(of_generation, grouped)):
        figures["densities.png"] = partial(density_curve, summaries)
    if has_ladder(grouped):
        ladder = [s for s in summaries if not of_generation(s.arm)]
        figures["ladder.png"] = partial(null_ladder, ladder)
        figures["inheritance_curve.png"] = partial(inheritance_curve, ladder)
    saved += [name for name, draw in figures.items() if was_drawn(output / name, draw)]
    print(f"saved {', '.join(saved)} in {output}")


def was_drawn(path: Path, draw: Callable[[Path], None]) -> bool:
    """Draw a figure; say why where that fails: hours of training are not lost for it."""
    try:
        draw(path)
    except (ConfigError, OSError) as error:  # of which StorageError is one
        print(f"no {path.name}: {error}")
        return False
    return True


if __name__ == "__main__":
    main()
