"""Requests, answers, and the table of routes; nothing here knows repositories."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub.repository import RefusedError

if TYPE_CHECKING:
    from hub.server import Hub

_PARTS = {
    "kinds": r"models|datasets|spaces",
    "repo": r"[^/]+/[^/]+?",
    "revision": r"[^/]+",
    "name": r"[^/]+",
    "path": r".+",
    "oid": r"[0-9a-f]{64}",
    "access": r"read|write",
}
"""What may stand at each {placeholder} of a route."""


@dataclass(frozen=True)
class Request:
    """What was asked, and by whom (None: a visitor)."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    user: str | None

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise RefusedError(400, f"the body is no JSON: {error}") from error


@dataclass(frozen=True)
class Answer:
    """What is sent back; to a HEAD, without the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Answer:
        kind = {"Content-Type": "application/json; charset=utf-8"}
        return cls(status, json.dumps(value).encode(), kind | dict(headers or {}))


class Routes:
    """Which function answers what. A HEAD is answered as the GET is."""

    def __init__(self) -> None:
        self._table: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = []

    def __call__(self, method: str, *templates: str) -> Callable[[Any], Any]:
        """Declare the function below as what answers ``method`` on these paths."""

        def declare(function: Callable[..., Answer]) -> Callable[..., Answer]:
            for template in templates:
                pattern = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{_PARTS[m[1]]})", template)
                self._table.append((method, re.compile(pattern), function))
            return function

        return declare

    def answer(self, hub: Hub, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, function in self._table:
            found = pattern.fullmatch(request.path)
            if wanted == method and found is not None:
                parts = {name: unquote(part) for name, part in found.groupdict().items()}
                return function(hub, request, **parts)
        raise RefusedError(404, f"the stand-in has no {request.method} {request.path}")


route = Routes()
"""The one table, filled by the modules that are imported."""
