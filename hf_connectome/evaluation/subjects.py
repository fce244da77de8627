"""Which models to evaluate: a name -> what kind of model it is, its tokenizer, and how to load it.

A connectome means fresh models, one a seed; a folder with weights is evaluated as it is.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.architecture import build_host
from hf_connectome.connectome import Connectome
from hf_connectome.data import load_tokenizer, tokenizer_digest
from hf_connectome.errors import ConfigError, DataError, did_you_mean, some
from hf_connectome.evaluation.lm_model import check_vocabulary, check_weights
from hf_connectome.evaluation.surprisal import context_length
from hf_connectome.hosts import check_tokenizer, fresh_reset
from hf_connectome.hub import TOKENIZER_FILES, snapshot
from hf_connectome.modeling import ConnectomeModel
from hf_connectome.runs import generations
from hf_connectome.storage import CONFIG_FILE, CONNECTOME_FOLDER, WEIGHTS_FILE
from hf_connectome.trained import check_weight_files, load_trained, recorded_architecture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FRESH, SPARSE, CHECKPOINT = "fresh, wired", "sparse checkpoint", "checkpoint"
_MODEL_CONFIG = "config.json"
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "generation_config.json")
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?")
_DIGITS_OF_NAME = 10


@dataclass(frozen=True)
class Subject:
    """One model to evaluate; its weights are not loaded until they are asked for."""

    label: str
    """Short, and unlike that of all others."""
    source: str
    """As the user named it."""
    kind: str
    """``FRESH``, ``SPARSE`` or ``CHECKPOINT``."""
    folder: Path
    """Of the connectome or checkpoint, on this machine."""
    seed: int | None
    """Of a fresh model."""
    reset: str | None
    """First values of a fresh model."""
    digest: str
    """Of the weights, or of the connectome."""
    tokenizer: PreTrainedTokenizerFast
    tokenizer_digest: str
    architecture: str
    num_parameters: int
    density: float | None
    """Of the connectome, None where there is none."""
    max_context: int | None
    """Tokens that it has positions for, None where there is no limit."""

    @property
    def folder_name(self) -> str:
        """A name for its results: the same wherever the model lies, another for other weights."""
        stem = re.sub(r"[^\w.-]+", "-", Path(self.source.partition("@")[0]).name)
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{stem}-{self.digest[:_DIGITS_OF_NAME]}{seed}"

    @property
    def is_causal(self) -> bool:
        """Whether transformers lists its class as a causal language model."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return self.architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    def identity(self) -> dict[str, Any]:
        """Return what decides its results, as JSON types."""
        return {
            "model": self.digest,
            "seed": self.seed,
            "reset": self.reset,
            "tokenizer": self.tokenizer_digest,
        }

    def facts(self) -> dict[str, Any]:
        """Return what a table says of it, as JSON types."""
        return self.identity() | {
            "label": self.label,
            "source": self.source,
            "kind": self.kind,
            "architecture": self.architecture,
            "num_parameters": self.num_parameters,
            "density": self.density,
            "num_tokens": len(self.tokenizer),
        }

    def load(self, device: str) -> PreTrainedModel:
        """Load its weights, or build the fresh model.

        Raises:
            FormatError: files are missing or damaged.
            HostMismatchError: a sparse checkpoint has other zeros than its connectome.
        """
        model: Any
        if self.kind == FRESH:
            assert self.seed is not None
            fresh = ConnectomeModel.from_pretrained(self.folder, seed=self.seed, reset=self.reset)
            model = fresh.get_base_model()
        else:
            model = load_trained(self.folder)
        if self.kind == SPARSE:
            check_weights(Connectome.from_pretrained(self.folder / CONNECTOME_FOLDER), model)
        loaded: PreTrainedModel = model.to(device).eval()
        return loaded


def find_subjects(
    sources: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    reset: str | None = None,
    tokenizer: str | None = None,
) -> list[Subject]:
    """Look every model up, and check all that can be checked without its weights.

    Args:
        sources: folders, or Hub ids with or without a revision (``org/x@generation-3``).
        seeds: of the fresh models of a connectome.
        reset: their first values, by default what the connectome records for a fresh model.
        tokenizer: for models that come without one.

    Raises:
        ConfigError: a name that is no model, a model without a tokenizer, or one named twice.
        FormatError: a folder that holds neither a connectome nor weights.
        HubError: the Hub refused or could not be reached.
        HostMismatchError: a tokenizer that is not the model's.
    """
    folders = [_folder_of(source) for source in sources]
    twice = [s for s, folder in zip(sources, folders, strict=True) if folders.count(folder) > 1]
    if twice:
        raise ConfigError(f"models names the same one twice: {some(twice)}. Name each once.")
    labels = shortest_names(sources)
    subjects: list[Subject] = []
    for source, folder, label in zip(sources, folders, labels, strict=True):
        subjects += _subjects(source, folder, label, seeds, reset, tokenizer)
    return subjects


# ---- folders -------------------------------------------------------------------------------------


def _folder_of(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        _check_kind(source, folder)
        return folder.resolve()
    local = folder.name.startswith(("generation-", "checkpoint-")) and "@" not in source
    if local or folder.exists() or _HUB_ID.fullmatch(source) is None:
        beside = folder.parent
        near = sorted(f.name for f in beside.iterdir() if f.is_dir()) if beside.is_dir() else []
        hint = did_you_mean(folder.name, near) if near else f"There is nothing in {str(beside)!r}."
        raise ConfigError(
            f"models names {source!r}, which is neither a folder here nor a Hub id (owner/name, "
            f"owner/name@revision). {hint}"
        )
    repo_id, _, revision = source.partition("@")
    options: dict[str, Any] = {"revision": revision or None, "token": None}
    kinds = [CONFIG_FILE, _MODEL_CONFIG, f"{CONNECTOME_FOLDER}/{CONFIG_FILE}"]
    root = snapshot(repo_id, kinds, **options)
    _check_kind(source, root)
    wanted = [*kinds, *TOKENIZER_FILES]
    if (root / _MODEL_CONFIG).is_file():
        wanted += [*_WEIGHTS, f"{CONNECTOME_FOLDER}/{WEIGHTS_FILE}"]
    else:
        wanted += [WEIGHTS_FILE]
    return snapshot(repo_id, wanted, **options)


def _check_kind(source: str, folder: Path) -> None:
    if (folder / CONFIG_FILE).is_file() or (folder / _MODEL_CONFIG).is_file():
        return
    inside = generations(folder)[-1:] + sorted(folder.glob("checkpoint-*"))[-1:]
    way_out = "Name the folder of a connectome or of a checkpoint."
    if inside:
        names = " or ".join(str(Path(source, found.name)) for found in inside)
        way_out = f"It is the folder of a run: name one in it, such as {names}."
    raise ConfigError(
        f"{source!r} holds neither a connectome ({CONFIG_FILE}) nor a model ({_MODEL_CONFIG}). "
        + way_out
    )


def shortest_names(sources: Sequence[str]) -> list[str]:
    """Shorten names to as many last parts as tell all of them apart."""
    parts = [Path(source.replace("@", "/")).parts for source in sources]
    most = max((len(p) for p in parts), default=1)
    for length in range(1, most + 1):
        labels = ["/".join(p[-length:]) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(sources)


# ---- what is in a folder -------------------------------------------------------------------------


def _subjects(
    source: str,
    folder: Path,
    label: str,
    seeds: Sequence[int],
    reset: str | None,
    named: str | None,
) -> list[Subject]:
    is_fresh = not (folder / _MODEL_CONFIG).is_file()
    inside = folder if is_fresh else folder / CONNECTOME_FOLDER
    connectome = None
    if (inside / CONFIG_FILE).is_file():
        connectome = Connectome.from_pretrained(inside)
    assert connectome is None or connectome.config is not None
    if is_fresh:
        assert connectome is not None
        recorded = connectome.config
        digest = connectome.digest
        reset = reset or fresh_reset(connectome)
    else:
        check_weight_files(folder)
        recorded, digest, reset = recorded_architecture(folder), _digest(folder), None
    host: Any = build_host(recorded, device="meta")  # type: ignore[arg-type]
    tokenizer = _tokenizer(source, folder, named)
    found = tokenizer_digest(tokenizer)
    if connectome is not None:
        check_tokenizer(connectome, found)
    check_vocabulary(host, tokenizer)
    kind = CHECKPOINT if connectome is None else FRESH if is_fresh else SPARSE
    return [
        Subject(
            label=f"{label} seed {seed}" if is_fresh else label,
            source=source,
            kind=kind,
            folder=folder,
            seed=seed,
            reset=reset,
            digest=digest,
            tokenizer=tokenizer,
            tokenizer_digest=found,
            architecture=type(host).__name__,
            num_parameters=sum(p.numel() for p in host.parameters()),
            density=None if connectome is None else connectome.density,
            max_context=context_length(host),
        )
        for seed in (seeds if is_fresh else [None])
    ]


def _tokenizer(source: str, folder: Path, named: str | None) -> PreTrainedTokenizerFast:
    places = [folder, folder.parent] if folder.name == CONNECTOME_FOLDER else [folder]
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    own = next((p for p in places if any((p / file).is_file() for file in files)), None)
    if own is None and named is None:
        raise ConfigError(
            f"{source!r} comes without a tokenizer, and no text can be read without the one that "
            "it was trained with. Save that beside it, or name it: --tokenizer PATH_OR_REPO."
        )
    try:
        return load_tokenizer(str(own or named))
    except DataError as error:
        raise ConfigError(f"models names {source!r}, but its {error}") from error


def _digest(folder: Path) -> str:
    """Return the SHA-256 of the weights and of the config that says what they mean."""
    digest = hashlib.sha256()
    for file in sorted([folder / _MODEL_CONFIG, *folder.glob("model*.safetensors")]):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
