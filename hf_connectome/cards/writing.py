"""Cards as files: README.md, its figure, and the scores that the Hub shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.analysis.densities import density_figure
from hf_connectome.cards.compose import card, checkpoint_card
from hf_connectome.cards.facts import HUB
from hf_connectome.cards.results import Results, eval_results
from hf_connectome.codecs import codec_of
from hf_connectome.errors import ConfigError, FormatError
from hf_connectome.provenance import Provenance
from hf_connectome.storage import (
    CONNECTOME_FOLDER,
    WEIGHTS_FILE,
    read,
    refused_writes_named,
    write_atomically,
)

if TYPE_CHECKING:
    import os

    from hf_connectome.connectome import Connectome

CARD_FILE = "README.md"
FIGURE_FILE = "densities.png"


def write_card(
    folder: str | os.PathLike[str],
    connectome: Connectome,
    *,
    results: Results | None = None,
    provenance: Provenance | None = None,
    repo_id: str | None = None,
    **about: Any,
) -> list[Path]:
    """Write the card of a connectome into its folder, over one that is there.

    Args:
        folder: of the connectome's files, or any other.
        connectome: whose card it is.
        results: see :func:`card`.
        provenance: by default the ``provenance.json`` in the folder, if any.
        repo_id: see :func:`card`.
        about: what else :func:`card` takes.

    Returns:
        The files that were written: README.md; densities.png, if matplotlib is installed; and
        ``.eval_results/*.yaml`` for results on a dataset of the Hub.

    Raises:
        ConfigError: as :func:`card`, or the folder holds the files of another connectome.
        FormatError: a file in the folder is damaged.
        StorageError: the file system refused.
    """
    folder = Path(folder)
    provenance = provenance or Provenance.read(folder)
    about.setdefault("file_bytes", _file_bytes(folder, connectome))
    facts = {"results": results, "provenance": provenance, "repo_id": repo_id, **about}
    card(connectome, **facts)  # refuses before anything is written
    figure = folder / FIGURE_FILE
    drawn = _draw(connectome, figure)
    files = {folder / CARD_FILE: card(connectome, figure=FIGURE_FILE if drawn else None, **facts)}
    if results is not None:
        source = f"{HUB}/{repo_id}" if repo_id else None
        scores = eval_results(results, source=source)
        files |= {folder / path: text for path, text in scores.items()}
    return _write(files) + ([figure] if drawn else [])


def write_checkpoint_card(checkpoint: str | os.PathLike[str], **about: Any) -> list[Path]:
    """Write the card of a trained sparse checkpoint, whose connectome is in ``connectome/``.

    Args:
        checkpoint: its folder.
        about: what :func:`checkpoint_card` takes beside the connectome.

    Raises:
        FormatError: there is no sound connectome in ``connectome/``.
        ConfigError: as :func:`checkpoint_card`.
        StorageError: the file system refused.
    """
    folder = Path(checkpoint)
    connectome = read(folder / CONNECTOME_FOLDER)
    about.setdefault("provenance", Provenance.read(folder))
    return _write({folder / CARD_FILE: checkpoint_card(connectome, **about)})


def _draw(connectome: Connectome, file: Path) -> bool:
    """Draw the figure; without matplotlib there is none, nor one of an earlier connectome."""
    with refused_writes_named(file):
        try:
            density_figure(connectome, file)
        except ConfigError:
            file.unlink(missing_ok=True)
            return False
    return True


def _file_bytes(folder: Path, connectome: Connectome) -> dict[str, int] | None:
    """Return codec -> size of the connectome's file in a folder, if it is there."""
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS_FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="np") as handle:
            codec = codec_of(handle.keys())
            digest = (handle.metadata() or {}).get("content_digest")
    except SafetensorError as error:
        raise FormatError(f"{file} is not a sound safetensors file: {error}.") from error
    if digest != connectome.digest:
        raise ConfigError(
            f"{file} holds the connectome {str(digest)[:12]}, the card would be of "
            f"{connectome.digest[:12]}. Write the connectome there first, or choose its folder."
        )
    return {codec: file.stat().st_size}


def _write(files: dict[Path, str]) -> list[Path]:
    for file, text in files.items():
        with refused_writes_named(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text.encode())
    return list(files)
