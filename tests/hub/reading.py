"""What is there: descriptions, listings, history, and the files themselves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from hub.http import Answer, Request, route
from hub.repository import File, RefusedError, Repository

if TYPE_CHECKING:
    from hub.server import Hub


@route("GET", "/api/{kinds}")
def search(hub: Hub, request: Request, kinds: str) -> Answer:
    asked = {name: values[0] for name, values in request.query.items()}
    found = []
    for repository in hub.repositories.values():
        if f"{repository.kind}s" != kinds or not hub.may_see(request.user, repository):
            continue
        facts = describe(repository, repository.resolve("main"))
        if (
            asked.get("search", "").lower() in repository.id.lower()
            and asked.get("author", facts["author"]) == facts["author"]
            and set(request.query.get("filter", [])) <= set(facts["tags"])
        ):
            found.append(facts)
    if asked.get("sort") == "lastModified":
        found.sort(key=lambda facts: facts["lastModified"], reverse=True)
    return Answer.json(found[: int(asked.get("limit", "1000"))])


@route("GET", "/api/{kinds}/{repo}", "/api/{kinds}/{repo}/revision/{revision}")
def info(hub: Hub, request: Request, kinds: str, repo: str, revision: str = "main") -> Answer:
    repository = hub.visible(request, kinds, repo)
    blobs = "blobs" in request.query
    return Answer.json(describe(repository, repository.resolve(revision), blobs=blobs))


def describe(repository: Repository, oid: str, *, blobs: bool = False) -> dict[str, Any]:
    """Say of a repository what its page says."""
    commit = repository.commits[oid]
    card = commit.card()
    base = card.get("base_model") or []
    tags = [*card.get("tags", []), *[card[key] for key in ("library_name",) if key in card]]
    tags += [f"base_model:{name}" for name in ([base] if isinstance(base, str) else base)]
    tags += [f"license:{card['license']}"] if "license" in card else []
    return {
        "_id": oid[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": oid,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "lastModified": commit.date,
        "createdAt": repository.created,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "cardData": card,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "model-index": card.get("model-index"),
        "siblings": [_sibling(*item, blobs=blobs) for item in sorted(commit.files.items())],
        "spaces": [],
    }


def _sibling(path: str, file: File, *, blobs: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"rfilename": path}
    if blobs:
        facts |= {"size": file.size, "blobId": file.oid}
        if file.is_large:
            facts["lfs"] = file.lfs | {"sha256": file.sha256}
    return facts


@route(
    "GET",
    "/api/{kinds}/{repo}/tree/{revision}",
    "/api/{kinds}/{repo}/tree/{revision}/{path}",
)
def tree(
    hub: Hub, request: Request, kinds: str, repo: str, revision: str, path: str = ""
) -> Answer:
    repository = hub.visible(request, kinds, repo)
    oid = repository.resolve(revision)
    top = path.rstrip("/") + "/" if path else ""
    inside = {p: f for p, f in repository.commits[oid].files.items() if p.startswith(top)}
    if path and not inside:
        said = f"{path} does not exist on '{revision}'"
        raise RefusedError(404, said, "EntryNotFound", headers={"X-Repo-Commit": oid})
    recursive = request.query.get("recursive", ["false"])[0].lower() in {"true", "1"}
    folders, files = set(), []
    for name, file in sorted(inside.items()):
        steps = name[len(top) :].split("/")
        deepest = len(steps) if recursive else min(2, len(steps))
        folders |= {top + "/".join(steps[:depth]) for depth in range(1, deepest)}
        if recursive or len(steps) == 1:
            files.append(_entry(name, file))
    return Answer.json([_folder(folder) for folder in sorted(folders)] + files)


@route("POST", "/api/{kinds}/{repo}/paths-info/{revision}")
def paths_info(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    files = hub.visible(request, kinds, repo).at(revision).files
    if "json" in request.headers.get("Content-Type", ""):
        paths = request.json()["paths"]
    else:
        paths = parse_qs(request.body.decode()).get("paths", [])
    entries = [_entry(path, files[path]) for path in paths if path in files]
    folders = {path for path in paths if any(f.startswith(f"{path.rstrip('/')}/") for f in files)}
    return Answer.json(entries + [_folder(path) for path in sorted(folders)])


def _entry(path: str, file: File) -> dict[str, Any]:
    facts: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.is_large:
        facts["lfs"] = file.lfs
    if file.xet_hash is not None:
        facts["xetHash"] = file.xet_hash
    return facts


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


@route("GET", "/api/{kinds}/{repo}/refs")
def refs(hub: Hub, request: Request, kinds: str, repo: str) -> Answer:
    repository = hub.visible(request, kinds, repo)
    branches = _refs("heads", repository.branches)
    return Answer.json(
        {"branches": branches, "tags": _refs("tags", repository.tags), "converts": []}
    )


def _refs(folder: str, named: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid}
        for name, oid in named.items()
    ]


@route("GET", "/api/{kinds}/{repo}/commits/{revision}")
def commits(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    return Answer.json(
        [
            {
                "id": oid,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for oid, commit in hub.visible(request, kinds, repo).history(revision)
        ]
    )


# ---- downloads -----------------------------------------------------------------------------------


@route("GET", "/{repo}/resolve/{revision}/{path}", "/{kinds}/{repo}/resolve/{revision}/{path}")
def resolve(
    hub: Hub, request: Request, repo: str, revision: str, path: str, kinds: str = "models"
) -> Answer:
    """Give a file; a large one from another host, as the Hub does, which never sees the token."""
    repository = hub.open(request, kinds, repo)
    oid = repository.resolve(revision)
    file = repository.commits[oid].files.get(path)
    if file is None:
        headers = {"X-Repo-Commit": oid}
        raise RefusedError(404, "Entry not found", "EntryNotFound", headers=headers)
    headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    if not file.is_large:
        return _bytes(request, file.read(), headers | {"ETag": f'"{file.oid}"'})
    hub.on_cdn[file.sha256] = file
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    headers["Location"] = f"{hub.cdn_url}/cdn/{file.sha256}"
    if file.xet_hash is not None:
        refresh = f"{hub.url}/api/{repository.kind}s/{repo}/xet-read-token/{oid}"
        headers |= {"X-Xet-Hash": file.xet_hash, "X-Xet-Refresh-Route": refresh}
    return Answer(302, b"", headers)


@route("GET", "/cdn/{oid}")
def cdn(hub: Hub, request: Request, oid: str) -> Answer:
    if oid not in hub.on_cdn:
        raise RefusedError(404, f"nobody was sent here for {oid}")
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
    return _bytes(request, hub.on_cdn[oid].read(), headers)


def _bytes(request: Request, content: bytes, headers: Mapping[str, str]) -> Answer:
    """Give all of a file, or the range asked for: how a client goes on with half a file."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if wanted is None:
        return Answer(200, content, headers)
    first = int(wanted[1])
    last = min(int(wanted[2] or len(content)), len(content) - 1)
    if first > last:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    shown = f"bytes {first}-{last}/{len(content)}"
    return Answer(206, content[first : last + 1], {**headers, "Content-Range": shown})
