"""The built-in corpus taken apart: code, prose and tables are three skills with one tokenizer."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from typing import TYPE_CHECKING

from hf_connectome.data.documents import STDLIB, document_key, find_corpus, read_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_parts(max_bytes: int) -> dict[str, list[str]]:
    """Read about ``max_bytes`` of each part of the running Python's sources, in a fixed order.

    Returns:
        ``code``, sources without comments and docstrings; ``prose``, those comments and
        docstrings; ``tables``, the modules of encodings as they are. One document a file.
    """
    parts: dict[str, list[str]] = {"code": [], "prose": [], "tables": []}
    sizes = dict.fromkeys(parts, 0)

    def add(name: str, text: str) -> None:
        if text and sizes[name] < max_bytes:
            parts[name].append(text)
            sizes[name] += len(text.encode())

    _, files = find_corpus(STDLIB)
    tables = [file for file in files if file.parent.name == "encodings"]
    for text in _in_order(tables):
        add("tables", text)
    for text in _in_order(sorted(set(files) - set(tables))):
        for name, piece in pieces_of(text):
            add(name, piece)
        if min(sizes["code"], sizes["prose"]) >= max_bytes:
            break
    return parts


def _in_order(files: Iterable[Path]) -> list[str]:
    texts = read_files(files, skip_unreadable=True)
    return sorted(texts, key=lambda text: document_key(text)[1])


def pieces_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield the code and the prose of one source; nothing of one that does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in the sources
        try:
            tree = ast.parse(source)
            comments = [
                token.string.lstrip("#! ")
                for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT
            ]
        except (SyntaxError, tokenize.TokenError):
            return
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING):
            docstrings.append(ast.get_docstring(node) or "")
            if docstrings[-1]:
                node.body = node.body[1:] or [ast.Pass()]
    yield "code", ast.unparse(tree)
    yield "prose", "\n".join(filter(None, [*docstrings, *comments]))
