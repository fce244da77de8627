"""BoundConfig: a config that carries its connectome to where PEFT and transformers hand on no more.

What is done with the two is adapter.py's business.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_connectome.config import ConnectomeConfig
from hf_connectome.hub import fetch, with_origin
from hf_connectome.storage import read, write

if TYPE_CHECKING:
    import os

    from torch import nn

    from hf_connectome.connectome import Connectome

_CARD = "README.md"
_ADAPTER_TAG = "base_model:adapter:"


class BoundConfig(ConnectomeConfig):
    """A config together with the connectome that it describes.

    A config is all that PEFT hands to a tuner, and its ``save_pretrained`` is what PEFT calls last
    when it saves, so the config carries the connectome in and writes it out. transformers' own
    mixin keeps nothing else: ``model.add_adapter(BoundConfig.from_pretrained(path))`` puts a stored
    connectome on a model as a frozen skill.
    """

    connectome: Connectome
    first_reset: str = "keep"
    """Policy that gives the survivors their first values where a connectome is put in place."""
    first_magnitude: float | None = None

    @classmethod
    def of(
        cls, connectome: Connectome, config: ConnectomeConfig, *, inference_mode: bool
    ) -> BoundConfig:
        """Join ``config`` and the connectome; ``inference_mode`` asks for a frozen skill."""
        bound = cls(**{field.name: getattr(config, field.name) for field in fields(config)})
        bound.inference_mode = inference_mode
        bound.connectome = connectome
        return bound

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        *,
        host: nn.Module | None = None,
        **download: Any,
    ) -> BoundConfig:
        """Read both files of a connectome and check all of them.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            subfolder: where in the folder or repository the connectome is.
            host: the model that it is for, where the config records no architecture.
            download: ``revision``, ``token``, ``cache_dir``, ``local_files_only``,
                ``force_download`` of a Hub id.

        Returns:
            The config of a frozen skill.

        Raises:
            FormatError: no connectome is there, or its files are damaged or altered.
            HubError: the Hub refused or could not be reached.
            ConfigError: no architecture is recorded and no host was given.
        """
        folder = fetch(pretrained_model_name_or_path, subfolder=subfolder, **download)
        connectome = with_origin(read(folder, host=host), pretrained_model_name_or_path, folder)
        assert connectome.config is not None
        return cls.of(connectome, connectome.config, inference_mode=True)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write both files of the connectome, in place of those that PEFT itself would write."""
        own = ConnectomeConfig(**{field.name: getattr(self, field.name) for field in fields(self)})
        if kwargs.get("auto_mapping_dict") is not None:
            own.auto_mapping = kwargs["auto_mapping_dict"]
        write(self.connectome.replace(config=own), save_directory)
        if "auto_mapping_dict" in kwargs:  # PEFT calls, and has just written its card
            for folder in (Path(save_directory), Path(save_directory).parent):
                _forget_local_base(folder / _CARD)


def _forget_local_base(card_file: Path) -> None:
    """Take out of a card what PEFT writes there of a base without a Hub id: its local path."""
    if not card_file.is_file():
        return
    from huggingface_hub import ModelCard

    card = ModelCard.load(card_file, ignore_metadata_errors=True)
    bases = {str(card.data.get("base_model") or "")}
    bases |= {tag[len(_ADAPTER_TAG) :] for tag in _tags(card) if tag.startswith(_ADAPTER_TAG)}
    local = {base for base in bases if not base or Path(base).exists() or Path(base).is_absolute()}
    foreign = {_ADAPTER_TAG + base for base in local}
    if foreign.isdisjoint(_tags(card)):
        return
    if card.data.get("base_model") in local:
        card.data["base_model"] = None
    card.data["tags"] = [tag for tag in _tags(card) if tag not in foreign] or None
    card.save(card_file)


def _tags(card: Any) -> list[str]:
    return list(card.data.get("tags") or [])
