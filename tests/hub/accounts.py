"""Who asks; creating, changing and deleting repositories; checking cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from hub.http import Answer, Request, route
from hub.repository import FOLDERS, RefusedError, Repository, card_metadata

if TYPE_CHECKING:
    from hub.server import Hub


@route("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Answer:
    user = hub.user(request)
    theirs = [{"name": o, "type": "org"} for o, users in hub.organisations.items() if user in users]
    token = {"displayName": "a token", "role": "write"}
    return Answer.json(
        {
            "type": "user",
            "name": user,
            "fullname": user,
            "orgs": theirs,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@route("POST", "/api/repos/create")
def create(hub: Hub, request: Request) -> Answer:
    wanted, user = request.json(), hub.user(request)
    kind, namespace = wanted.get("type") or "model", wanted.get("organization") or user
    if not hub.may_write(user, namespace):
        raise RefusedError(403, f"You don't have the rights to create a {kind} under {namespace}")
    id = f"{namespace}/{wanted['name']}"
    url = f"{hub.url}/{FOLDERS[kind]}{id}"
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    with hub.lock:
        if (kind, id) in hub.repositories:
            said = f"You already created this {kind} repo"
            raise RefusedError(409, said, body={"error": said, "url": url})
        hub.repositories[kind, id] = Repository(kind, id, user, private=private)
    return Answer.json({"url": url, "name": id, "id": id})


@route("DELETE", "/api/repos/delete")
def delete(hub: Hub, request: Request) -> Answer:
    wanted = request.json()
    id = f"{wanted.get('organization') or request.user}/{wanted['name']}"
    repository = hub.writable(request, f"{wanted.get('type') or 'model'}s", id)
    del hub.repositories[repository.kind, repository.id]
    return Answer()


@route("PUT", "/api/{kinds}/{repo}/settings")
def change_settings(hub: Hub, request: Request, kinds: str, repo: str) -> Answer:
    repository, wanted = hub.writable(request, kinds, repo), request.json()
    if "visibility" in wanted:
        repository.private = wanted["visibility"] == "private"
    repository.gated = wanted.get("gated", repository.gated)
    return Answer.json({"private": repository.private, "gated": repository.gated})


@route("GET", "/api/{kinds}/{repo}/auth-check")
def check_access(hub: Hub, request: Request, kinds: str, repo: str) -> Answer:
    hub.open(request, kinds, repo)
    return Answer()


@route("POST", "/api/validate-yaml")
def validate_card(hub: Hub, request: Request) -> Answer:
    block, errors, warnings = card_metadata(request.json()["content"]), [], []
    if block is None:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    else:
        try:
            loaded = yaml.safe_load(block) or {}
            if not isinstance(loaded, dict):
                errors.append({"message": "the metadata must be a mapping"})
            elif not isinstance(loaded.get("tags", []), list):
                errors.append({"message": '"tags" must be an array'})
        except yaml.YAMLError as error:
            errors.append({"message": f"invalid YAML: {error}"})
    return Answer.json({"errors": errors, "warnings": warnings}, 400 if errors else 200)
