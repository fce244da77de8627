"""Uploads, commits, branches and tags."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from hub import xet
from hub.http import Answer, Request, route
from hub.repository import FOLDERS, Commit, File, RefusedError, is_large

if TYPE_CHECKING:
    from hub.server import Hub


@route("POST", "/api/{kinds}/{repo}/preupload/{revision}")
def preupload(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    """Tell how each file is to be sent, and what is there: so the client leaves equal files out."""
    there = hub.writable(request, kinds, repo).at(revision).files
    answers = []
    for file in request.json()["files"]:
        path, old = file["path"], there.get(file["path"])
        mode = "lfs" if is_large(path, file["size"]) else "regular"
        facts = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if old is not None:
            facts["oid"] = old.sha256 if old.is_large else old.oid
        answers.append(facts)
    return Answer.json({"files": answers})


# ---- large files ---------------------------------------------------------------------------------


@route("POST", "/{repo}.git/info/lfs/objects/batch", "/{kinds}/{repo}.git/info/lfs/objects/batch")
def upload_batch(hub: Hub, request: Request, repo: str, kinds: str = "models") -> Answer:
    """Say where to send each large file; nothing for one that is stored already."""
    hub.writable(request, kinds, repo)
    answers = []
    for wanted in request.json()["objects"]:
        facts = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.large:
            upload, verify = f"{hub.url}/lfs/{wanted['oid']}", f"{hub.url}/lfs-verify"
            facts["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        answers.append(facts)
    return Answer.json({"transfer": "basic", "objects": answers})


@route("PUT", "/lfs/{oid}")
def upload(hub: Hub, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise RefusedError(400, "the bytes do not have the announced SHA-256")
    hub.large[oid] = request.body
    return Answer()


@route("POST", "/lfs-verify")
def verify_upload(hub: Hub, request: Request) -> Answer:
    wanted = request.json()
    if len(hub.large.get(wanted["oid"], b"")) != wanted["size"]:
        raise RefusedError(404, f"{wanted['oid']} is missing or of another size")
    return Answer.json({})


@route("GET", "/api/{kinds}/{repo}/xet-{access}-token/{revision}")
def xet_token(
    hub: Hub, request: Request, kinds: str, repo: str, access: str, revision: str
) -> Answer:
    (hub.writable if access == "write" else hub.open)(request, kinds, repo)
    if hub.xet_store is None:
        raise RefusedError(404, "this stand-in has no Xet store; set HF_HUB_DISABLE_XET=1")
    url, token, end = xet.address(hub.xet_store), "any", int(time.time()) + 3600
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(end),
    }
    # hf_xet itself reads the body, its Python side the headers.
    return Answer.json({"casUrl": url, "accessToken": token, "exp": end}, headers=headers)


# ---- commits -------------------------------------------------------------------------------------


@route("POST", "/api/{kinds}/{repo}/commit/{revision}")
def commit(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    """Apply all operations or none, and only onto the commit that they were made for."""
    repository = hub.writable(request, kinds, repo)
    assert request.user is not None
    steps = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    head = next(step["value"] for step in steps if step["key"] == "header")
    with repository.lock:
        if revision not in repository.branches:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = repository.branches[revision]
        if head.get("parentCommit", parent) != parent:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[parent].files)
        for step in steps:
            _apply(hub, files, step["key"], step["value"])
        title, message = head.get("summary", ""), head.get("description", "")
        done = repository.add(revision, Commit(files, title, message, request.user, parent))
    url = f"{hub.url}/{FOLDERS[repository.kind]}{repo}/commit/{done.oid}"
    return Answer.json({"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": ""})


def _apply(hub: Hub, files: dict[str, File], key: str, value: Mapping[str, Any]) -> None:
    if key == "header":
        return
    path = value["path"]
    if key == "file":
        encoded = value.get("encoding") == "base64"
        content = base64.b64decode(value["content"]) if encoded else value["content"].encode()
        files[_checked(path)] = File.regular(content)
    elif key == "lfsFile":
        files[_checked(path)] = _large_file(hub, path, value["oid"])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        for inside in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
            del files[inside]
    else:
        raise RefusedError(400, f"the stand-in does not know the operation {key!r}")


def _checked(path: str) -> str:
    steps = PurePosixPath(path)
    if steps.is_absolute() or ".." in steps.parts or steps.parts[0] == ".git":
        raise RefusedError(400, f"invalid path: {path}")
    return path


def _large_file(hub: Hub, path: str, oid: str) -> File:
    if oid in hub.large:
        content = hub.large[oid]
        return File.large(oid, len(content), lambda: content)
    store = hub.xet_store
    if store is not None and oid in (stored := xet.stored_files(store)):
        xet_hash, size = stored[oid]
        return File.large(oid, size, lambda: xet.read_file(store, xet_hash, size), xet_hash)
    raise RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")


# ---- branches and tags ---------------------------------------------------------------------------


@route("POST", "/api/{kinds}/{repo}/branch/{name}")
def create_branch(hub: Hub, request: Request, kinds: str, repo: str, name: str) -> Answer:
    repository = hub.writable(request, kinds, repo)
    with repository.lock:
        if name in repository.branches:
            raise RefusedError(409, f"Branch {name} already exists")
        start = request.json().get("startingPoint") or "main"
        repository.branches[name] = repository.resolve(start)
    return Answer()


@route("DELETE", "/api/{kinds}/{repo}/branch/{name}")
def delete_branch(hub: Hub, request: Request, kinds: str, repo: str, name: str) -> Answer:
    repository = hub.writable(request, kinds, repo)
    with repository.lock:
        if name == "main":
            raise RefusedError(403, "the main branch stays")
        if repository.branches.pop(name, None) is None:
            raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer()


@route("POST", "/api/{kinds}/{repo}/tag/{revision}")
def create_tag(hub: Hub, request: Request, kinds: str, repo: str, revision: str) -> Answer:
    repository, tag = hub.writable(request, kinds, repo), request.json()["tag"]
    with repository.lock:
        if tag in repository.tags:
            raise RefusedError(409, f"Tag {tag} already exists")
        repository.tags[tag] = repository.resolve(revision)
    return Answer()


@route("DELETE", "/api/{kinds}/{repo}/tag/{name}")
def delete_tag(hub: Hub, request: Request, kinds: str, repo: str, name: str) -> Answer:
    repository = hub.writable(request, kinds, repo)
    with repository.lock:
        if repository.tags.pop(name, None) is None:
            raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer()
