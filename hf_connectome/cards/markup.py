"""Text of strangers made harmless in Markdown, tables and the YAML head of a card.

What stands in a config may be anything. Here it loses its power to end a cell, a line, a code span
or the YAML head, and every local path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from hf_connectome.provenance import without_paths

MOST_CHARACTERS = 120
_PLAIN = re.compile(r"[A-Za-z0-9 _./:=,+%;()-]+")
_SAFE = re.compile(r"[A-Za-z0-9 ]")


def one_line(value: object, most: int = MOST_CHARACTERS) -> str:
    """Return a value as one line of printable text without local paths, cut at ``most``."""
    text = str(value)[: 4 * most]  # what is cut off below need not be cleaned
    text = "".join(c if c.isprintable() else " " for c in text)
    text = without_paths(" ".join(text.split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def quoted(value: object, most: int = MOST_CHARACTERS) -> str:
    """Return a stranger's text as Markdown code that renders as it was written.

    Example:
        >>> print(quoted("GPT2LMHeadModel"), quoted("a|b <i>"))
        `GPT2LMHeadModel` <code>a&#124;b &#60;i&#62;</code>
    """
    text = one_line(value, most)
    if _PLAIN.fullmatch(text):
        return f"`{text}`"
    # A code span cannot hold a backtick, nor a table's a pipe; character references can stand in
    # both, are text to Markdown and to HTML alike, and begin neither.
    return "<code>" + "".join(c if _SAFE.match(c) else f"&#{ord(c)};" for c in text) + "</code>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown without pipes and line breaks."""
    assert all("|" not in cell and "\n" not in cell for row in rows for cell in row)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def front_matter(**fields: Any) -> str:
    """Return the YAML head of a card; fields that are None are left out."""
    return f"---\n{ModelCardData(**fields).to_yaml()}\n---"


def percent(share: float) -> str:
    """Return a share in [0, 1] with three digits, such as ``26.2 %``.

    Example:
        >>> percent(0.262135), percent(0.0123), percent(1.0)
        ('26.2 %', '1.23 %', '100 %')
    """
    return f"{100 * share:.3g} %"


def number(value: object, form: str = ",", missing: str = "not recorded") -> str:
    """Format a number of a config, or say that it is missing: a stranger may have put anything."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        return missing
    if isinstance(value, float) and form == ",":
        form = "g"
    return format(value, form)
