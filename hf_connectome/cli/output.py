"""What a command found, once, and its two faces: text for people, one JSON document for programs.

Tables never cut a digest or a name: a terminal wraps what is too long, a pipe gets it whole.
"""

import contextlib
import enum
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer.core import TyperCommand

from hf_connectome.errors import ConnectomeError

if TYPE_CHECKING:
    from rich.console import Console

    Context = Any  # click's, which later releases of typer carry inside

_WIDE = 10_000  # columns that rich may take before it cuts; lines end where their text does


class Code(enum.IntEnum):
    """Exit codes, as the help says them."""

    FINE = 0
    REFUSED = 1
    USAGE = 2
    DIFFERENT = 3
    INTERRUPTED = 130


@dataclass(frozen=True)
class Facts:
    """Names and values, one a line; a value of None is left out."""

    rows: Sequence[tuple[str, object]]


@dataclass(frozen=True)
class Table:
    """A heading and rows; the first column and those named are text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    text: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Result:
    """What a command hands back to be printed."""

    document: dict[str, Any]
    """For ``--json``: plain JSON types."""
    parts: Sequence[str | Facts | Table]
    as_json: bool
    code: Code = Code.FINE

    def print(self, stream: TextIO) -> None:
        """Write the document or the text, nothing else."""
        if self.as_json:
            text = json.dumps(_finite(self.document), indent=2)
        else:
            text = _text(self.parts, stream)
        stream.write(text + "\n")
        stream.flush()


class Command(TyperCommand):
    """A command whose function returns a :class:`Result`.

    While it runs, whatever a library prints goes to stderr, so that stdout holds the result alone.
    """

    def invoke(self, ctx: "Context") -> None:
        """Run the command, print its result, and leave with its code."""
        stdout = sys.stdout
        try:
            with contextlib.redirect_stdout(sys.stderr):
                result = super().invoke(ctx)
        except (ConnectomeError, OSError) as error:
            sys.stderr.write(f"error: {printable(str(error))}\n")
            raise typer.Exit(Code.REFUSED) from error
        except KeyboardInterrupt as error:
            sys.stderr.write("interrupted\n")
            raise typer.Exit(Code.INTERRUPTED) from error
        assert isinstance(result, Result)
        result.print(stdout)
        raise typer.Exit(result.code)


def count(number: int) -> str:
    """Write a count with its thousands apart."""
    return f"{number:,}"


def share(value: float | None, digits: int = 4) -> str:
    """Write a share in [0, 1]; a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def printable(text: str) -> str:
    """Escape what a terminal would obey: a stranger's config may hold control sequences."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _text(parts: Sequence[str | Facts | Table], stream: TextIO) -> str:
    from rich.console import Console

    console = Console(file=stream, width=_WIDE, highlight=False)
    with console.capture() as captured:
        for number, part in enumerate(parts):
            if number:
                console.print()
            _draw(console, part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _draw(console: "Console", part: str | Facts | Table) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    if isinstance(part, str):
        console.print(Text(printable(part)), soft_wrap=True)
        return
    grid = Grid(box=None, show_header=isinstance(part, Table), pad_edge=False, padding=(0, 2, 0, 0))
    if isinstance(part, Facts):
        grid.add_column(style="bold")
        grid.add_column()
        for name, value in part.rows:
            if value is not None:
                grid.add_row(name, Text(printable(str(value))))
    else:
        for number, title in enumerate(part.header):
            is_text = number == 0 or title in part.text
            grid.add_column(title, justify="left" if is_text else "right")
        for row in part.rows:
            grid.add_row(*(Text("-" if c is None else printable(str(c))) for c in row))
    console.print(grid)


def _finite(value: Any) -> Any:
    """Put null where JSON has no number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
