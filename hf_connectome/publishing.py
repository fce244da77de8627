"""What a push puts on the Hub: a connectome, a whole run, or a trained sparse checkpoint.

A generation is one commit and one tag. How a commit is made is hub.py's; what the card says is
cards.py's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome import hub
from hf_connectome.cards import (
    FIGURE_FILE,
    Results,
    card,
    read_results,
    write_card,
    write_checkpoint_card,
)
from hf_connectome.errors import ConfigError, FormatError, HubError
from hf_connectome.hosts import check_host
from hf_connectome.hub import Pushed
from hf_connectome.provenance import PROVENANCE_FILE, Provenance, hub_id
from hf_connectome.runs import STATE_FILE, generations
from hf_connectome.storage import (
    CONFIG_FILE,
    CONNECTOME_FOLDER,
    read,
    write,
)
from hf_connectome.trained import load_trained

if TYPE_CHECKING:
    import os

    from hf_connectome.connectome import Connectome

_MODEL_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_OURS = (*hub.TOKENIZER_FILES, PROVENANCE_FILE, FIGURE_FILE, ".eval_results/*")
"""What of an earlier push would be said of this one if it stayed."""
_PLACES = ("base_model_name_or_path", "tokenizer")
"""Fields of a config that may name a place on this machine."""


def publish(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    tag: bool = True,
    license: str | None = None,
    results: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    parent: str | None = None,
) -> list[Pushed]:
    """Push a connectome, a run of evolve.py (every generation), or a trained sparse checkpoint.

    Each generation is one commit with the tag ``generation-<g>``. Generations that are there
    already are left alone, so a push that was interrupted is gone on with by the same call; only
    ``results`` or ``license`` write the card of the last one anew. The card is generated: a README
    in the folder or on the Hub gives way to it.

    Args:
        path: a connectome's folder, a run's ``output_dir``, or a checkpoint with ``connectome/``.
        repo_id: ``owner/name``, created if need be.
        private: whether a repository that is created here is private.
        token: as in huggingface_hub; None takes the saved one.
        branch: by default ``main``.
        tag: False leaves the tags out.
        license: id of the licence that the card names, such as ``apache-2.0``.
        results: output folder of inherit.py, or the ``results.json`` in it, for the card.
        dataset: Hub id of the text that they were measured on, for the Hub's own list of scores.
        parent: of a checkpoint, the repository of its connectome, ``owner/name`` or
            ``owner/name@revision``; by default what the connectome itself records.

    Raises:
        FormatError: there is nothing of the kind at ``path``, or it is damaged.
        HubError: the Hub refused, the repository holds something else, or the connection was lost.
    """
    folder = Path(path)
    options: dict[str, Any] = {"token": token, "branch": branch, "license": license}
    found = [folder] if (folder / CONFIG_FILE).is_file() else generations(folder)
    is_checkpoint = not found and (folder / CONNECTOME_FOLDER / CONFIG_FILE).is_file()
    if not found and not is_checkpoint:
        raise FormatError(
            f"{folder} holds neither a connectome ({CONFIG_FILE}), nor generation-<g> folders, nor "
            f"a trained checkpoint with a {CONNECTOME_FOLDER}/ folder. Check the path."
        )
    if is_checkpoint:
        _refuse_options("checkpoint", results=results, dataset=dataset)
        _check_checkpoint(folder)
        repo_id = hub.create_repository(repo_id, private=private, token=token)
        return [_publish_checkpoint(folder, repo_id, parent=parent, **options)]
    _refuse_options("connectome", parent=parent)
    measured = None if results is None else read_results(results, dataset=dataset)
    *_, newest = [read(one) for one in found]
    card(newest, results=measured, license=license)  # refuses before anything is created
    repo_id = hub.create_repository(repo_id, private=private, token=token)
    refuse_other_kind(repo_id, token=token, branch=branch)
    return _publish_all(found, newest, repo_id, tag=tag, results=measured, **options)


def _publish_all(
    found: Sequence[Path],
    newest: Connectome,
    repo_id: str,
    *,
    tag: bool,
    results: Results | None,
    **options: Any,
) -> list[Pushed]:
    """Push what is not there yet, oldest first; the last again if there is more to say of it."""
    *earlier, last = found
    if tag and options["branch"] is None:
        _refuse_going_back(last, newest, repo_id, token=options["token"])
    pushed = [
        publish_one(folder, repo_id, tag=tag, **options)
        for folder in earlier
        if not (tag and is_published(folder, repo_id, token=options["token"]))
    ]
    says_more = bool(pushed) or results is not None or options["license"] is not None
    if tag and not says_more and (there := is_published(last, repo_id, token=options["token"])):
        return [there]
    return [*pushed, publish_one(last, repo_id, tag=tag, results=results, **options)]


def _refuse_options(kind: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"{given[0]} was given ({options[given[0]]!r}), but what is pushed is a {kind}, which "
            "has no use for it. Leave it out."
        )


def _refuse_going_back(
    folder: Path, connectome: Connectome, repo_id: str, *, token: str | bool | None
) -> None:
    """Refuse to make an older generation the head of the repository."""
    assert connectome.config is not None
    generation = connectome.config.generation
    numbers = [name.removeprefix("generation-") for name in hub.tags(repo_id, token=token)]
    newest = max((int(n) for n in numbers if n.isdecimal()), default=-1)
    if generation < newest:
        raise HubError(
            f"{repo_id!r} is at generation {newest}, and {folder} is generation {generation}: "
            "pushing it would make the older one what everybody pulls. Push the whole run, or to a "
            "branch of its own (branch=…)."
        )


def publish_connectome(
    connectome: Connectome,
    repo_id: str,
    *,
    tokenizer: Any = None,
    **options: Any,
) -> Pushed:
    """Push a connectome that is in memory; ``options`` are those of :func:`publish`.

    Args:
        connectome: with a config.
        repo_id: ``owner/name``, created if need be.
        tokenizer: what its embedding rows belong to; saved beside it.
        options: as in :func:`publish`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "connectome"
        write(connectome, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        return publish(folder, repo_id, **options)[-1]


def is_published(folder: Path, repo_id: str, *, token: str | bool | None = None) -> Pushed | None:
    """Return where the repository has this generation under its tag, None if it has not.

    Raises:
        HubError: it has another connectome under that tag.
    """
    connectome = read(folder)
    tag = _tag_of(connectome, folder)
    there = hub.tags(repo_id, token=token).get(tag or "")
    if there is None:
        return None
    fields = hub.read_config(repo_id, revision=there, token=token) or {}
    if fields.get("digest") != connectome.digest:
        raise HubError(
            f"{repo_id!r} has another connectome under the tag {tag!r}: digest "
            f"{str(fields.get('digest'))[:12]}… there, {connectome.digest[:12]}… in {folder}. It "
            "belongs to another run; push to another repository."
        )
    return Pushed(repo_id, there, hub.url(repo_id, revision=tag), tag)


# ---- one commit ----------------------------------------------------------------------------------


def publish_one(
    folder: Path,
    repo_id: str,
    *,
    token: str | bool | None,
    branch: str | None,
    license: str | None,
    tag: bool = True,
    results: Results | None = None,
) -> Pushed:
    """Push one connectome's folder as one commit, with its card.

    Raises:
        HubError: the repository has another connectome under its tag, or another push came first.
    """
    connectome = _public(read(folder))
    name = _tag_of(connectome, folder) if tag else None
    head = hub.head(repo_id, branch=branch, token=token)  # before the look at what is there
    if name is not None:
        is_published(folder, repo_id, token=token)  # refuses another run's
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        write(connectome, staged, codec="zstd")
        _copy(folder, staged, hub.TOKENIZER_FILES)
        if (provenance := Provenance.read(folder)) is not None:
            provenance.cleaned().write(staged)
        there = hub.tags(repo_id, token=token) if name is not None else {}
        write_card(
            staged,
            connectome,
            repo_id=repo_id,
            revision=name,
            tags={*there, *([name] if name is not None else [])},
            results=results,
            license=license,
        )
        return hub.commit(
            _files_of(staged),
            repo_id,
            message=_message(connectome),
            tag=name,
            branch=branch,
            delete=_OURS,
            parent=head,
            token=token,
        )


def _publish_checkpoint(
    folder: Path,
    repo_id: str,
    *,
    token: str | bool | None,
    branch: str | None,
    license: str | None,
    parent: str | None,
) -> Pushed:
    connectome = _public(read(folder / CONNECTOME_FOLDER))
    assert connectome.config is not None
    there = hub.files(repo_id, branch=branch, token=token)
    if CONFIG_FILE in there:
        raise HubError(
            f"{repo_id!r} holds a connectome ({CONFIG_FILE}), and a checkpoint beside it would "
            "make loaders take it for an adapter. Push the checkpoint to another repository."
        )
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        write(connectome, staged / CONNECTOME_FOLDER, codec="zstd")
        _copy(folder, staged, (*hub.TOKENIZER_FILES, _MODEL_CONFIG, _GENERATION_CONFIG))
        repository, _, revision = (parent or connectome.config.origin or "").partition("@")
        write_checkpoint_card(
            staged,
            parent_repo=repository or None,
            parent_revision=revision or None,
            repo_id=repo_id,
            loss=_last_loss(folder / STATE_FILE),
            license=license,
        )
        weights = _weights_of(folder)
        return hub.commit(
            {**weights, **_files_of(staged)},
            repo_id,
            message=f"Trained sparse checkpoint, density {connectome.density:.1%}",
            branch=branch,
            delete=(*_OURS, *_WEIGHTS, _GENERATION_CONFIG),
            token=token,
        )


def _weights_of(folder: Path) -> dict[str, Path | bytes]:
    return {file.name: file for pattern in _WEIGHTS for file in folder.glob(pattern)}


def _check_checkpoint(folder: Path) -> None:
    if not _weights_of(folder) or not (folder / _MODEL_CONFIG).is_file():
        raise FormatError(
            f"{folder} has a connectome but no {_MODEL_CONFIG} and {_WEIGHTS[0]}; it is no "
            "checkpoint of transformers. Only safetensors are pushed."
        )
    check_dead_weights(folder, read(folder / CONNECTOME_FOLDER))


def _public(connectome: Connectome) -> Connectome:
    """Leave out of the config what names a place on this machine."""
    config = connectome.config
    assert config is not None
    clean: dict[str, Any] = {name: hub_id(getattr(config, name)) for name in _PLACES}
    return connectome.replace(config=dataclasses.replace(config, **clean))


def _last_loss(state: Path) -> float | None:
    """Return the last held-out loss that a checkpoint's log has, if any."""
    try:
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
        return float([row["eval_loss"] for row in history if "eval_loss" in row][-1])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def check_dead_weights(folder: Path, connectome: Connectome) -> None:
    """Check that a checkpoint's dead weights are exactly 0.

    Raises:
        FormatError: one is not, so the connectome beside it is not this checkpoint's.
    """
    for name, parameter in check_host(connectome, load_trained(folder)).items():
        if name in connectome and bool((parameter.detach()[~connectome.mask(name)] != 0).any()):
            raise FormatError(
                f"{folder}: {name!r} has weights that are not 0 where the connectome has none. It "
                "is not this checkpoint's connectome, or training ran without MaskCallback."
            )


def refuse_other_kind(repo_id: str, *, token: str | bool | None, branch: str | None) -> None:
    """Refuse a repository of a whole model.

    Raises:
        HubError: it is one, or it could not be asked.
    """
    if _MODEL_CONFIG in hub.files(repo_id, branch=branch, token=token):
        raise HubError(
            f"{repo_id!r} holds a whole model ({_MODEL_CONFIG}), and a connectome beside it would "
            "make loaders take the model for an adapter. Push to another repository."
        )


def _tag_of(connectome: Connectome, folder: Path) -> str | None:
    """Return ``generation-<g>``, or None for a connectome that was drawn, not evolved."""
    assert connectome.config is not None
    generation = connectome.config.generation
    is_start = folder.name == "generation-0"  # dense, like a wiring of density 1
    return f"generation-{generation}" if generation or is_start else None


def _message(connectome: Connectome) -> str:
    assert connectome.config is not None
    what = f"Generation {connectome.config.generation}" if connectome.lineage else "Connectome"
    return f"{what}: density {connectome.density:.1%}, {connectome.num_survivors:,} survivors"


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy2(file, target / file.name)


def _files_of(folder: Path) -> dict[str, Path | bytes]:
    # Contents, because the folder is gone before a retry; weights of checkpoints stay paths.
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
