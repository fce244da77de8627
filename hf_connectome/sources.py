"""Where a comparison finds what is inherited: the connectome's folder, and its parent's weights."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_connectome.errors import ConfigError, HostMismatchError, RunError, some
from hf_connectome.hosts import check_host
from hf_connectome.hub import TOKENIZER_FILES, fetch
from hf_connectome.runs import generations
from hf_connectome.storage import CONFIG_FILE, CONNECTOME_FOLDER
from hf_connectome.trained import load_trained

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hf_connectome.connectome import Connectome


def find_connectome(
    path: str | Path, *, revision: str | None = None, token: str | None = None
) -> Path:
    """Return the folder that holds the connectome: ``path``, one in it, or the last generation.

    A Hub id is downloaded, tokenizer and all, from ``revision`` with ``token``.

    Raises:
        RunError: there is no connectome there.
        HubError: the Hub refused or could not be reached.
    """
    folder = Path(path)
    if _is_hub_id(path):
        return fetch(path, revision=revision, token=token, also=TOKENIZER_FILES)
    if revision is not None:
        raise ConfigError(
            f"connectome_revision is {revision!r}, but {folder} is a folder here, which has no "
            "revisions. Name a generation's folder, or leave it out."
        )
    if (folder / CONFIG_FILE).is_file():
        return folder
    if (folder / CONNECTOME_FOLDER / CONFIG_FILE).is_file():
        return folder / CONNECTOME_FOLDER
    if found := generations(folder):
        return found[-1]
    raise RunError(
        f"{folder} holds no connectome: neither {CONFIG_FILE}, nor {CONNECTOME_FOLDER}/ or "
        "generation-<g> folders. Give the folder of a connectome, the output_dir of "
        "recipes/evolve.py, or a Hub id."
    )


def find_other(name: str, path: str | Path, folder: Path, *, token: str | None = None) -> Path:
    """Return the folder of another connectome that an arm names.

    Args:
        name: a folder, a Hub id (``owner/name`` or ``owner/name@revision``), or without a slash
            another generation of the same run: its folder, or its tag on the Hub.
        path: where the main connectome was asked for.
        folder: where it was found.
        token: of the Hub.

    Raises:
        RunError: there is no connectome there.
        HubError: the Hub refused or could not be reached.
    """
    if Path(name).is_dir():
        return find_connectome(name)
    if "/" in name:
        repo, _, revision = name.partition("@")
        return find_connectome(repo, revision=revision or None, token=token)
    if _is_hub_id(path):
        return find_connectome(path, revision=name, token=token)
    if (folder.parent / name).is_dir():
        return find_connectome(folder.parent / name)
    there = [found.name for found in generations(folder.parent)]
    raise RunError(
        f"there is no {name!r} beside {folder}, where there is {some(there) or 'no generation'}. "
        "Name one of these, the folder of a connectome or a Hub id."
    )


def _is_hub_id(path: str | Path) -> bool:
    """Whether this is 'owner/name', and neither a folder nor named like one of a run."""
    is_local = Path(path).exists() or Path(path).name.startswith(("generation-", "checkpoint-"))
    return not is_local and re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", str(path)) is not None


def default_output(path: str | Path) -> Path:
    """Return where results go by default: beside a generation or checkpoint, not into it.

    A generation is uploaded whole, a checkpoint is removed in its turn.
    """
    if _is_hub_id(path):
        return Path("runs", str(path).replace("/", "--"), "inherit")
    folder = Path(path)
    whole = folder.absolute()
    inside = whole.parent.name if whole.name == CONNECTOME_FOLDER else whole.name
    if not inside.startswith(("generation-", "checkpoint-")):
        return folder / "inherit"
    owner = whole.parent if whole.name == CONNECTOME_FOLDER else whole
    beside = owner.parent / f"inherit-{inside}"
    return beside if folder.is_absolute() else Path(os.path.relpath(beside))


def parent_weights(connectome: Connectome, folder: Path) -> dict[str, Tensor]:
    """Load the trained weights in scope that a connectome was pruned from.

    Raises:
        RunError: there is no checkpoint.
        HostMismatchError: the checkpoint is of another architecture, or its signs are not the
            connectome's, so that it is not its parent.
    """
    if not (folder / "config.json").is_file():
        raise RunError(
            f"parent is {str(folder)!r}, which is no checkpoint's folder here; expected one with "
            "config.json and model.safetensors, such as runs/mine/checkpoint-1800. Of a Hub "
            "repository: hf download owner/name --local-dir parent, then --parent parent."
        )
    weights = {
        name: parameter.detach().float()
        for name, parameter in check_host(connectome, load_trained(folder)).items()
        if name in connectome
    }
    for name, entry in connectome.items():
        if entry.sign_bits is None:  # then only the mask speaks, and it fits any parent
            continue
        alike = torch.where(weights[name] < 0, -1, 1) == entry.sign()
        wrong = int((entry.mask() & ~alike).sum())
        if wrong:
            raise HostMismatchError(
                f"{name!r}: {wrong} of {entry.num_survivors} survivors have another sign in "
                f"{folder} than in the connectome, so it was not pruned from it. Use the "
                "checkpoint of the step at which the connectome's generation began."
            )
    return weights


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights by name: which parent the arms that carry weights had."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
