"""JSON objects in files that may come from a stranger."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path


def read_object(file: Path, *, most_bytes: int, way_out: str) -> dict[str, Any]:
    """Read a JSON object of bounded size.

    Args:
        file: an existing file.
        most_bytes: above which it is not opened.
        way_out: what the user can do, for the message.

    Raises:
        FormatError: it is too large, no JSON, or something else than an object.
    """
    size = file.stat().st_size
    if size > most_bytes:
        raise FormatError(f"{file} has {size} bytes; expected at most {most_bytes}. {way_out}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also text that is no UTF-8, numbers too long
        raise FormatError(f"{file} is not JSON: {error}. {way_out}") from error
    if not isinstance(content, dict):
        raise FormatError(
            f"{file} holds a {type(content).__name__}; expected a JSON object. {way_out}"
        )
    return content
