"""What a push puts on the Hub: a connectome, a whole run, or a trained sparse checkpoint.

A generation is one commit and one tag. How a commit is made is hub.py's; what the card says is
cards.py's.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome import hub
from hf_connectome.cards import Results, read_results, write_card, write_checkpoint_card
from hf_connectome.errors import FormatError, HubError, some
from hf_connectome.hosts import check_host
from hf_connectome.provenance import PROVENANCE_FILE
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
    from hf_connectome.hub import Pushed

logger = logging.getLogger(__name__)

_MODEL_CONFIG = "config.json"
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")


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
    already are left alone, so a push that was interrupted is gone on with by the same call.

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
    measured = None if results is None else read_results(results, dataset=dataset)
    repo_id = hub.create_repository(repo_id, private=private, token=token)
    if is_checkpoint:
        return [_publish_checkpoint(folder, repo_id, parent=parent, **options)]
    _refuse_other_kind(repo_id, token=token, branch=branch)
    *earlier, last = found
    pushed = [
        _publish_one(f, repo_id, tag=tag, **options)
        for f in earlier
        if not (tag and is_published(f, repo_id, token=token))
    ]
    return [*pushed, _publish_one(last, repo_id, tag=tag, results=measured, **options)]


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


def is_published(folder: Path, repo_id: str, *, token: str | bool | None = None) -> bool:
    """Whether the repository has this generation under its tag.

    Raises:
        HubError: it has another connectome under that tag.
    """
    connectome = read(folder)
    tag = _tag_of(connectome, folder)
    there = hub.tags(repo_id, token=token).get(tag or "")
    if there is None:
        return False
    fields = hub.read_config(repo_id, revision=there, token=token) or {}
    if fields.get("digest") != connectome.digest:
        raise HubError(
            f"{repo_id!r} has another connectome under the tag {tag!r}: digest "
            f"{str(fields.get('digest'))[:12]}… there, {connectome.digest[:12]}… in {folder}. It "
            "belongs to another run; push to another repository."
        )
    return True


# ---- one commit ----------------------------------------------------------------------------------


def _publish_one(
    folder: Path,
    repo_id: str,
    *,
    token: str | bool | None,
    branch: str | None,
    license: str | None,
    tag: bool = True,
    results: Results | None = None,
) -> Pushed:
    connectome = read(folder)
    name = _tag_of(connectome, folder) if tag else None
    if name is not None:
        is_published(folder, repo_id, token=token)  # refuses another run's
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        write(connectome, staged, codec="zstd")
        _copy(folder, staged, (*hub.TOKENIZER_FILES, PROVENANCE_FILE))
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
    connectome = read(folder / CONNECTOME_FOLDER)
    assert connectome.config is not None
    if not any(folder.glob(_WEIGHTS[0])) or not (folder / _MODEL_CONFIG).is_file():
        raise FormatError(
            f"{folder} has a connectome but no {_MODEL_CONFIG} and {_WEIGHTS[0]}; it is no "
            "checkpoint of transformers. Only safetensors are pushed."
        )
    check_dead_weights(folder, connectome)
    there = hub.files(repo_id, branch=branch, token=token)
    if CONFIG_FILE in there:
        raise HubError(
            f"{repo_id!r} holds a connectome ({CONFIG_FILE}), and a checkpoint beside it would "
            "make loaders take it for an adapter. Push the checkpoint to another repository."
        )
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch)
        write(connectome, staged / CONNECTOME_FOLDER, codec="zstd")
        _copy(folder, staged, (*hub.TOKENIZER_FILES, _MODEL_CONFIG, "generation_config.json"))
        repository, _, revision = (parent or connectome.config.origin or "").partition("@")
        write_checkpoint_card(
            staged,
            parent_repo=repository or None,
            parent_revision=revision or None,
            repo_id=repo_id,
            loss=_last_loss(folder / STATE_FILE),
            license=license,
        )
        weights = {file.name: file for pattern in _WEIGHTS for file in folder.glob(pattern)}
        return hub.commit(
            {**weights, **_files_of(staged)},
            repo_id,
            message=f"Trained sparse checkpoint, density {connectome.density:.1%}",
            branch=branch,
            token=token,
        )


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


def _refuse_other_kind(repo_id: str, *, token: str | bool | None, branch: str | None) -> None:
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


# ---- a run that goes on --------------------------------------------------------------------------


class GenerationPublisher:
    """Pushes generations in the order that they are given, beside the training that makes them.

    A push that fails is tried again with the next one and at the end; training goes on meanwhile.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
    ) -> None:
        """Create the repository, so that a wrong name or token shows before any training.

        Raises:
            HubError: the Hub refused.
        """
        self.repo_id = hub.create_repository(repo_id, private=private, token=token)
        self._options: dict[str, Any] = {"token": token, "branch": branch}
        _refuse_other_kind(self.repo_id, token=token, branch=branch)
        self._asked: set[Path] = set()
        self._waiting: list[Path] = []
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._last: Future[None] | None = None
        self._closing = False

    def check(self, saved: Sequence[Path]) -> None:
        """Refuse a repository that has generations which are not those of this run.

        Raises:
            HubError: it has, or it could not be asked.
        """
        for folder in saved:
            is_published(folder, self.repo_id, token=self._options["token"])
        there = hub.tags(self.repo_id, token=self._options["token"])
        known = {folder.name for folder in saved}
        unknown = [t for t in there if t.startswith("generation-") and t not in known]
        if unknown:
            raise HubError(
                f"{self.repo_id!r} has {some(unknown)} already, and this run has {some(known)}. "
                "They belong to another run; push to another repository, or go on with that run."
            )

    def publish(self, folder: Path) -> None:
        """Push a generation in the background, after those before it; again does nothing."""
        if folder not in self._asked:
            self._asked.add(folder)
            self._last = self._worker.submit(self._push, folder)

    def finish(self) -> None:
        """Wait for what is under way, and try once more what failed.

        Raises:
            HubError: generations are left that could not be pushed; the local ones are whole.
        """
        self._closing = True
        if self._last is not None:
            self._last.result()
        self._drain()
        if self._waiting:
            names = ", ".join(folder.name for folder in self._waiting)
            raise HubError(
                f"{names} could not be pushed to {self.repo_id!r}; the log says why. They are "
                f"whole in {self._waiting[0].parent}: the same command pushes them, or "
                f"hf-connectome push {self._waiting[0].parent} {self.repo_id}"
            )

    def _push(self, folder: Path) -> None:
        self._waiting.append(folder)
        if not self._closing:  # else finish() tries all that is left, once
            self._drain()

    def _drain(self) -> None:
        while self._waiting:
            folder = self._waiting[0]
            try:
                if not is_published(folder, self.repo_id, token=self._options["token"]):
                    pushed = _publish_one(folder, self.repo_id, license=None, **self._options)
                    logger.info("%s pushed: %s", folder.name, pushed.url)
            except (HubError, OSError) as error:
                logger.warning("%s was not pushed yet: %s", folder.name, error)
                return
            self._waiting.pop(0)
