"""combine, lesion: connectomes as sets of links."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_connectome.cli import describing
from hf_connectome.cli.converting import copy_companions
from hf_connectome.cli.options import (
    CacheDir,
    Json,
    LocalFilesOnly,
    PathOrId,
    Revision,
    Source,
    Subfolder,
    Token,
)
from hf_connectome.cli.output import Facts, Result, count, share
from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from hf_connectome.connectome import Connectome
    from hf_connectome.operations import Combined, Lines

_Out = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder for the result.", show_default=False)
]


def combine(
    operation: Annotated[
        str,
        typer.Argument(
            metavar="OPERATION",
            help="union, intersection, difference (what only the first has), "
            "symmetric-difference, or vote (see --least).",
            show_default=False,
        ),
    ],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Two or more folders or Hub ids.", show_default=False),
    ],
    to: _Out,
    conflicts: Annotated[
        str,
        typer.Option(
            help="Of weights with opposite signs: error, drop, first (the first one's sign), or "
            "majority (a tie drops)."
        ),
    ] = "error",
    least: Annotated[
        int | None, typer.Option(help="Of a vote: how many must have a weight.")
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Unite, intersect or subtract connectomes.

    Options hold for all; owner/name@REVISION names a revision.
    """
    options = _options(operation, conflicts, least)
    place = (revision, subfolder, token, cache_dir, local_files_only)
    sources = [Source(path, *place) for path in paths]
    made = _operation(operation)(*(source.connectome() for source in sources), **options)
    document = _write(made.connectome, sources[0], to)
    document |= {
        "operation": operation,
        "of": paths,
        "num_conflicts": made.num_conflicts,
        "num_dropped": made.num_dropped,
        "conflicts": dict(made.conflicts),
    }
    return Result(document, [_combined(document, made)], json)


def _options(operation: str, conflicts: str, least: int | None) -> dict[str, Any]:
    if (operation == "vote") != (least is not None):
        raise ConfigError(
            f"--least is {least} for the operation {operation!r}; a vote needs it, and nothing "
            "else does. Give --least 2 to keep what two or more have."
        )
    if operation == "difference":
        return {}  # what only the first has, no other can contradict
    return {"conflicts": conflicts} | ({} if least is None else {"least": least})


def _operation(name: str) -> Any:
    from hf_connectome.operations import OPERATIONS

    if name not in OPERATIONS:
        raise UnknownNameError(f"unknown operation {name!r}. {did_you_mean(name, OPERATIONS)}")
    return OPERATIONS[name]


def _combined(document: dict[str, Any], made: "Combined") -> Facts:
    what = f"{document['operation']} of {', '.join(document['of'])}"
    conflicts = f"{count(made.num_conflicts)}, of which left out {count(made.num_dropped)}"
    return Facts([("made", what), ("sign conflicts", conflicts), *_facts(document)])


def lesion(
    path: PathOrId,
    to: _Out,
    part: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Remove the links of this connectome (folder or id)."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LINES",
            help="Remove rows of a parameter as it is stored, such as w=0,4-7; may be repeated.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LINES", help="Remove columns, likewise; may be repeated."),
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
) -> Result:
    """Remove links: a part, or rows and columns."""
    from hf_connectome.operations import lesion as remove

    lines = _lines(rows or (), columns or ())
    if part is None and not lines:
        raise ConfigError("there is nothing to remove; give --part, --rows or --columns.")
    source = Source(path, revision, subfolder, token, cache_dir, local_files_only)
    whole = source.connectome()
    made = remove(whole, lines) if lines else whole
    if part is not None:
        made = remove(
            made, Source(part, None, None, token, cache_dir, local_files_only).connectome()
        )
    document = _write(made, source, to)
    document |= {"from": path, "num_removed": whole.num_survivors - made.num_survivors}
    facts = Facts([("from", path), ("removed", count(document["num_removed"])), *_facts(document)])
    return Result(document, [facts], json)


def _lines(rows: Sequence[str], columns: Sequence[str]) -> "dict[str, Lines]":
    from hf_connectome.operations import Lines

    by_kind = [dict(map(_named, given)) for given in (rows, columns)]
    return {
        name: Lines(*(kind.get(name, []) for kind in by_kind)) for name in by_kind[0] | by_kind[1]
    }


def _named(text: str) -> tuple[str, list[int]]:
    """Read NAME=0,4-7."""
    name, _, lines = text.rpartition("=")
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in lines.split(",")]
    if not name or not all(parts):
        raise ConfigError(f"{text!r} names no lines; expected NAME=LINES, such as w=0,4-7.")
    ranges = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    return name, [line for first, last in ranges for line in range(first, last + 1)]


def _write(made: "Connectome", source: Source, to: Path) -> dict[str, Any]:
    """Write the result, with the tokenizer of what it was made from, and describe it."""
    from hf_connectome.hub import TOKENIZER_FILES
    from hf_connectome.storage import write

    folder = source.folder(TOKENIZER_FILES)
    write(made, to)
    copy_companions(folder, to, provenance=False)
    return {"path": str(to), **describing.identity(made)}


def _facts(document: dict[str, Any]) -> list[tuple[str, object]]:
    weights = f"{count(document['num_survivors'])} of {count(document['num_weights'])} weights"
    return [
        ("to", document["path"]),
        ("survivors", weights),
        ("density", share(document["density"])),
        ("digest", document["digest"]),
    ]
