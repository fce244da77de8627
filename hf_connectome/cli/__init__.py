"""The command line, ``hf-connectome``: it parses, calls the library, and prints.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from hf_connectome import __version__
from hf_connectome.cli.combining import combine, lesion
from hf_connectome.cli.converting import convert, load_test
from hf_connectome.cli.inspecting import diff, show, verify
from hf_connectome.cli.lineage import lineage
from hf_connectome.cli.output import Command, Result
from hf_connectome.cli.sharing import pull, push, search
from hf_connectome.cli.speed import speed
from hf_connectome.cli.wiring import wire
from hf_connectome.errors import ConfigError

__all__ = ["app", "main"]

_EPILOG = """\b
A first look:
  hf-connectome show runs/cpu/generation-6
  hf-connectome verify owner/name --revision generation-6
  hf-connectome load-test runs/cpu/generation-6

\b
Exit codes:
    0  fine
    1  refused, or it could not be done; stderr says why
    2  the command line is wrong
    3  verify, diff --exit-code or load-test found damage or a difference
  130  interrupted
"""

app = typer.Typer(
    name="hf-connectome",
    help="Look at, check, convert and share connectomes: the wiring of networks without weights.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    # Help and usage errors are the same in a terminal and in a file, and rich stays unloaded.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"hf-connectome {__version__}\n")
        raise typer.Exit


def _import(names: list[str] | None) -> None:
    if not names:
        return
    from hf_connectome.plugins import import_plugin

    try:
        for name in names:
            import_plugin(name)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            callback=_import,
            is_eager=True,
            help="Module with a reset of your own that a connectome records: a dotted name or the "
            "path of a .py file; may come several times.",
        ),
    ] = None,
) -> None:
    del version, plugins


_COMMANDS: dict[Callable[..., Result], list[str]] = {
    show: ["show runs/cpu/generation-6", "show owner/name --revision generation-6 --all"],
    verify: ["verify owner/name --digest 57ef02508d52", "verify my-copy --against owner/name"],
    diff: ["diff runs/cpu/generation-5 runs/cpu/generation-6", "diff owner/name@generation-5 mine"],
    convert: [
        "convert runs/cpu/generation-6 small --codec zstd",
        "convert my-pruned-gpt2 my-connectome --exclude wpe",
        "convert out/run/model_generation_5.pt paper-connectome",
    ],
    wire: [
        "wire my-wiring --wiring brf:r=0.3 --density 0.05",
        "wire my-wiring --wiring erk --model llama --model-overrides num_hidden_layers=2",
    ],
    combine: [
        "combine union runs/a/generation-6 runs/b/generation-6 both --conflicts drop",
        "combine vote a b c kept --least 2 --conflicts majority",
    ],
    lesion: [
        "lesion runs/cpu/generation-6 without --part skill",
        "lesion my-connectome without --rows transformer.h.0.mlp.c_proj.weight=0,4-7",
    ],
    lineage: [
        "lineage runs/cpu lineage.safetensors",
        "lineage lineage.safetensors",
        "lineage lineage.safetensors generation-3 --generation 3",
    ],
    load_test: ["load-test runs/cpu/generation-6"],
    speed: ["speed my-trained-gpt2"],
    push: ["push runs/cpu owner/name --license apache-2.0"],
    pull: ["pull owner/name my-connectome --revision generation-6"],
    search: ["search gpt2 --limit 5"],
}

for _function, _examples in _COMMANDS.items():
    app.command(
        _function.__name__.replace("_", "-"),
        cls=Command,
        epilog="\b\nFor example:\n" + "\n".join(f"  hf-connectome {one}" for one in _examples),
    )(_function)


def main() -> None:
    """Run the program on this process's arguments; it exits by one of the documented codes."""
    app(prog_name="hf-connectome")
