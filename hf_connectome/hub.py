"""The Hub's side: fetch a connectome's folder, commit files, look at what is there.

Knows repositories and files, not connectomes; what is pushed is publishing.py's, what a refusal
means hub_errors.py's.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hf_connectome.errors import FormatError
from hf_connectome.hub_errors import hub_errors_named
from hf_connectome.storage import CONFIG_FILE, CONNECTOME_FOLDER, WEIGHTS_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from hf_connectome.connectome import Connectome

    PathOrRepo = str | os.PathLike[str]

TAG = "connectome"
"""Tag of every card that this library writes; ``search`` goes by it."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What tokenizers of transformers consist of; by name, so that nothing else goes along."""
_NO_FOLDER = " It is no folder here either."
_UNPUBLISHED = " Nothing of it was published; the local files are whole."
_UNKNOWN = " The local files are whole, and if it did land nothing is done twice."


# ---- pulling -------------------------------------------------------------------------------------


def fetch(
    source: PathOrRepo,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    also: Sequence[str] = (),
) -> Path:
    """Return the local folder of a connectome, downloaded if ``source`` is a Hub id.

    What is in the cache serves when the Hub cannot be reached.

    Args:
        source: a folder, or a Hub id (``owner/name``).
        subfolder: where in the folder or repository the connectome is.
        revision: branch, tag (``generation-3``) or commit of a repository.
        token: as in huggingface_hub; None takes the saved one, False none.
        cache_dir: where downloads go, in place of the usual cache.
        local_files_only: take what is in the cache and ask nobody.
        force_download: download again what is in the cache, such as a damaged file.
        also: patterns of further files, such as ``TOKENIZER_FILES``.

    Raises:
        HubError: the Hub refused, or could not be reached and the cache has nothing.
        FormatError: neither a folder nor a Hub id, or no connectome is there.
    """
    root, shown = Path(source), os.fspath(source)
    if not root.is_dir():
        inside = PurePosixPath(subfolder or "")
        patterns = [str(inside / name) for name in (CONFIG_FILE, WEIGHTS_FILE, *also)]
        # Of a checkpoint, its connectome's config tells which kind of repository this is.
        patterns += [f"{CONNECTOME_FOLDER}/{CONFIG_FILE}"]
        root = snapshot(
            shown,
            patterns,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        shown += f" at {revision!r}" if revision else ""
    elif revision is not None:
        raise FormatError(
            f"revision={revision!r} was given, but {shown} is a folder here, which has no "
            "revisions. Leave it out; a run's generations are folders (…/generation-3)."
        )
    folder = root / (subfolder or "")
    if not (folder / CONFIG_FILE).is_file():
        raise FormatError(_not_a_connectome(shown, root, subfolder))
    return folder


def snapshot(repo_id: str, patterns: list[str], **options: Any) -> Path:
    """Return the local folder of the files of a repository that match; ``options`` as in fetch.

    Raises:
        HubError: the Hub refused, or could not be reached and the cache has nothing.
    """
    from huggingface_hub import snapshot_download

    with hub_errors_named(
        repo_id, revision=options.get("revision"), token=options.get("token"), absent_too=_NO_FOLDER
    ):
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **options, **_client()))


def with_origin(connectome: Connectome, source: PathOrRepo, folder: Path) -> Connectome:
    """Record the repository and commit that a connectome was fetched from, if from the Hub."""
    if Path(source).is_dir() or connectome.config is None:
        return connectome
    commit = next(p.name for p in (folder, *folder.parents) if p.parent.name == "snapshots")
    origin = f"{os.fspath(source)}@{commit}"
    return connectome.replace(config=dataclasses.replace(connectome.config, origin=origin))


def _not_a_connectome(shown: str, root: Path, subfolder: str | None) -> str:
    if (root / CONNECTOME_FOLDER / CONFIG_FILE).is_file():
        return (
            f"{shown} is a trained sparse checkpoint, with its connectome in a folder of its own. "
            "For a fresh model use ConnectomeModel.from_pretrained(path, subfolder='connectome') "
            "(--subfolder connectome); for the trained weights AutoModel….from_pretrained(path)."
        )
    if found := sorted(root.glob(f"generation-*/{CONFIG_FILE}")):
        return f"{shown} is a run, with a connectome a generation. Name one: {found[-1].parent}"
    where = f"{shown}, subfolder {subfolder!r}," if subfolder else shown
    return (
        f"{where} holds no connectome: there is no {CONFIG_FILE}. If it is a whole model, load it "
        "by AutoModel….from_pretrained and read its wiring by Connectome.from_model(model)."
    )


# ---- pushing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub."""

    repo_id: str
    commit: str
    """Hash of the commit; that of the branch's head if nothing had changed."""
    url: str
    tag: str | None = None


def create_repository(
    repo_id: str, *, private: bool | None = None, token: str | bool | None = None
) -> str:
    """Create a model repository unless it is there; return its full id (``owner/name``)."""
    with hub_errors_named(repo_id, token=token):
        url = _api(token).create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    return str(url.repo_id)


def commit(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    message: str,
    tag: str | None = None,
    branch: str | None = None,
    delete: Sequence[str] = (),
    parent: str | None = None,
    token: str | bool | None = None,
) -> Pushed:
    """Put files into a repository as one commit, all or nothing, and tag it.

    The commit names the head that it was made for, so one that another push has overtaken is
    refused instead of undoing that push. Pushing the same again changes nothing.

    Args:
        files: path in the repository -> local file or content.
        repo_id: an existing repository.
        message: first line of the commit.
        tag: moved here if it exists.
        branch: by default ``main``; created if it is not there.
        delete: patterns; files there that match one and are not pushed go.
        parent: the head that the push was made for; by default the one found now.
        token: as in huggingface_hub.

    Raises:
        HubError: the Hub refused, another push came first, or the connection was lost.
    """
    api = _api(token)
    with hub_errors_named(repo_id, token=token, after=_UNPUBLISHED, after_loss=_UNKNOWN):
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        info = api.model_info(repo_id, revision=branch)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        gone = [p for p in there - files.keys() if any(fnmatch(p, pattern) for pattern in delete)]
        operations = _operations(files, sorted(gone))
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=branch,
            parent_commit=parent or info.sha,
        )
    oid = str(done.oid or info.sha)
    untagged = (
        f" It is published (commit {oid[:12]}), only not tagged {tag!r}; push the same again."
    )
    with hub_errors_named(repo_id, token=token, after=untagged):
        if tag is not None:
            _move_tag(api, repo_id, tag, oid)
    return Pushed(repo_id, oid, url(repo_id, revision=tag), tag)


def _operations(files: Mapping[str, Path | bytes], gone: Sequence[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [
        CommitOperationAdd(path, str(data) if isinstance(data, Path) else data)
        for path, data in files.items()
    ]
    return [*added, *(CommitOperationDelete(path) for path in gone)]


def head(repo_id: str, *, branch: str | None = None, token: str | bool | None = None) -> str:
    """Return the commit that a branch is at; a branch that is not there is created."""
    api = _api(token)
    with hub_errors_named(repo_id, revision=branch, token=token):
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        return str(api.model_info(repo_id, revision=branch).sha)


def url(repo_id: str, *, revision: str | None = None) -> str:
    """Return the page of a repository."""
    page = f"{_api(None).endpoint}/{repo_id}"
    return page if revision is None else f"{page}/tree/{revision}"


def tags(repo_id: str, *, token: str | bool | None = None) -> dict[str, str]:
    """Return tag -> commit of a repository."""
    with hub_errors_named(repo_id, token=token):
        refs = _api(token).list_repo_refs(repo_id)
    return {ref.name: str(ref.target_commit) for ref in refs.tags}


def read_config(
    repo_id: str, *, revision: str, token: str | bool | None = None
) -> dict[str, Any] | None:
    """Return the connectome's config at a revision as plain JSON, None if there is none to read."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with hub_errors_named(repo_id, revision=revision, token=token):
        try:
            file = hf_hub_download(
                repo_id, CONFIG_FILE, revision=revision, token=token, **_client()
            )
            fields = json.loads(Path(file).read_text(encoding="utf-8"))
        except LocalEntryNotFoundError:  # the Hub did not answer; an EntryNotFoundError too
            raise
        except (EntryNotFoundError, ValueError):
            return None
    return fields if isinstance(fields, dict) else None


def files(repo_id: str, *, branch: str | None = None, token: str | bool | None = None) -> list[str]:
    """Return the paths of the files on a branch; none where there is no such branch yet."""
    from huggingface_hub.errors import RevisionNotFoundError

    with hub_errors_named(repo_id, revision=branch, token=token):
        try:
            return _api(token).list_repo_files(repo_id, revision=branch)
        except RevisionNotFoundError:
            return []


def _move_tag(api: HfApi, repo_id: str, tag: str, oid: str) -> None:
    refs = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if refs.get(tag) == oid:
        return
    if tag in refs:
        api.delete_tag(repo_id, tag=tag)
    api.create_tag(repo_id, tag=tag, revision=oid)


# ---- looking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One repository that carries the library's tag."""

    repo_id: str
    last_modified: str | None
    downloads: int | None
    private: bool
    tags: tuple[str, ...]


def search(
    query: str | None = None,
    *,
    author: str | None = None,
    limit: int = 50,
    token: str | bool | None = None,
) -> list[Found]:
    """List Hub repositories that carry the library's tag, most recently changed first."""
    with hub_errors_named(query or author or TAG, token=token):
        models = _api(token).list_models(
            search=query, author=author, filter=[TAG], limit=limit, sort="last_modified"
        )
        return [
            Found(
                repo_id=model.id,
                last_modified=model.last_modified.isoformat() if model.last_modified else None,
                downloads=model.downloads,
                private=bool(model.private),
                tags=tuple(model.tags or ()),
            )
            for model in models
        ]


def _api(token: str | bool | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, **_client())


def _client() -> dict[str, Any]:
    from hf_connectome import __version__

    return {"library_name": "hf_connectome", "library_version": __version__}
