"""What a repository holds: files in commits, branches and tags that name commits."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import yaml

LARGE = ("*.safetensors", "*.bin", "*.pt", "*.npz", "*.parquet", "*.zst", "*.zip", "*.gz", "*.png")
"""What a new repository's .gitattributes stores as large files, as the Hub's own does."""
LARGE_BYTES = 10 << 20
FOLDERS = {"model": "", "dataset": "datasets/", "space": "spaces/"}
"""Kind of repository -> where its page is."""


class RefusedError(Exception):
    """An answer that is not the one asked for; ``code`` is what the client tells errors by."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body or {"error": message}
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class File:
    """One file of a commit. Git holds a large one as a pointer, so its ``oid`` is the pointer's."""

    size: int
    sha256: str
    is_large: bool
    oid: str
    read: Callable[[], bytes]
    xet_hash: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        return cls(len(content), sha256, False, _blob_id(content), lambda: content)

    @classmethod
    def large(
        cls, sha256: str, size: int, read: Callable[[], bytes], xet_hash: str | None = None
    ) -> File:
        return cls(size, sha256, True, _blob_id(_pointer(sha256, size)), read, xet_hash)

    @property
    def lfs(self) -> dict[str, Any]:
        """What listings say of a large file."""
        pointer_size = len(_pointer(self.sha256, self.size))
        return {"oid": self.sha256, "size": self.size, "pointerSize": pointer_size}


def _pointer(sha256: str, size: int) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int) -> bool:
    """Whether the Hub stores such a file as a large one."""
    name = PurePosixPath(path).name
    return size > LARGE_BYTES or any(fnmatch(name, pattern) for pattern in LARGE)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Commit:
    """All files as they were at one time."""

    files: Mapping[str, File]
    title: str
    message: str
    author: str
    parent: str | None
    date: str = field(default_factory=_now)

    @property
    def oid(self) -> str:
        listing = [f"{path} {file.oid}" for path, file in sorted(self.files.items())]
        about = [str(self.parent), self.author, self.date, self.title, self.message]
        return hashlib.sha1("\n".join(about + listing).encode()).hexdigest()

    def card(self) -> dict[str, Any]:
        """Return the metadata at the head of README.md, empty if there is none to be read."""
        readme = self.files.get("README.md")
        block = card_metadata(readme.read().decode()) if readme is not None else None
        with contextlib.suppress(yaml.YAMLError):
            loaded = yaml.safe_load(block or "")
            return loaded if isinstance(loaded, dict) else {}
        return {}


def card_metadata(text: str) -> str | None:
    """Return the YAML block at the head of a card."""
    found = re.match(r"^---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    return None if found is None else found[1]


class Repository:
    """One repository with its whole history."""

    def __init__(self, kind: str, id: str, owner: str, *, private: bool) -> None:
        self.kind, self.id, self.private = kind, id, private
        self.gated: str | bool = False
        self.granted: set[str] = set()
        """Users to whom the owner of a gated repository gave access."""
        self.lock = threading.RLock()
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        attributes = "".join(
            f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE
        )
        files = {".gitattributes": File.regular(attributes.encode())}
        self.created = self.add("main", Commit(files, "initial commit", "", owner, None)).date

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def add(self, branch: str, commit: Commit) -> Commit:
        """Make ``commit`` the head of a branch."""
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def resolve(self, revision: str) -> str:
        """Return the hash of the commit that a branch, a tag or a hash names."""
        name = "main" if revision == "HEAD" else revision
        oid = self.branches.get(name) or self.tags.get(name)
        if oid is None and name in self.commits:
            oid = name
        if oid is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def at(self, revision: str) -> Commit:
        return self.commits[self.resolve(revision)]

    def history(self, revision: str) -> list[tuple[str, Commit]]:
        """List (hash, commit), newest first."""
        found, oid = [], self.resolve(revision) or None
        while oid is not None:
            found.append((oid, self.commits[oid]))
            oid = self.commits[oid].parent
        return found
