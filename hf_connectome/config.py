"""ConnectomeConfig: how a connectome came about and which architecture it fits (a PeftConfig).

It is the ``adapter_config.json`` of a connectome's repository. Which weights exist is not in it:
that is the connectome file's (storage.py).
"""

from __future__ import annotations

import enum
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from hf_connectome.errors import ConfigError
from hf_connectome.reset import resets
from hf_connectome.wirings import make_wiring

CONFIG_VERSION = 1
"""Version of the fields below; readers of a later one are refused with the way out."""


class ConnectomePeftType(str, enum.Enum):
    """PEFT's own enum is closed; every PEFT table only asks of a key that it hashes like a str."""

    CONNECTOME = "CONNECTOME"


def _field(default: Any, help_text: str) -> Any:
    metadata = {"help": help_text}
    if isinstance(default, (list, dict)):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ConnectomeConfig(PeftConfig):
    """Configuration of a connectome, whether drawn (a wiring) or evolved (a lineage).

    With :func:`peft.get_peft_model` it describes a connectome to draw: ``wiring`` over
    ``target_modules`` at ``density``, put on the model by ``reset``. The default reset keeps the
    model's own weights and only zeroes the dead ones.
    """

    target_modules: str | list[str] | None = _field(
        "all-matrices",
        "Scope: 'all-matrices' (every matrix, embeddings included), 'all-linear', 'body', "
        "'embeddings', a list of module-name endings, or a regular expression of module names.",
    )
    exclude_modules: str | list[str] | None = _field(
        None, "Endings or a regular expression of modules to leave out of scope."
    )
    wiring: str = _field(
        "random",
        "How to draw a connectome that is not read from a file: a wiring's name, or with options "
        "as 'brf:r=0.3'.",
    )
    density: float = _field(1.0, "Survivors over weights, in (0, 1], for a wiring to draw.")
    density_pattern: dict[str, float] = _field(
        {},
        "Density of parameters that differ from 'density', by name or by a regular expression of "
        "the end of names, as PEFT's patterns are.",
    )
    reset: str = _field(
        "keep",
        "First values of the survivors: sign_constant (the paper's sign x 0.02), init_std, "
        "variance_preserving, tensor_scale, fresh_magnitude or keep.",
    )
    magnitude: float = _field(
        0.02, "The constant of sign_constant, in units of the weights (the paper's 0.02)."
    )
    seed: int = _field(0, "Seed of the wiring, or of the run that evolved the connectome.")
    generation: int = _field(0, "How often survivors were pruned; 0 = dense.")
    lineage: list[dict[str, Any]] = _field(
        [], "One row a generation, oldest first: density, survivors, digest, losses, settings."
    )
    architecture: str | None = _field(
        None, "transformers class of the base model, such as GPT2LMHeadModel."
    )
    base_config: dict[str, Any] | None = _field(
        None, "The base model's config as a mapping, so that a fresh one needs no download."
    )
    base_fingerprint: str | None = _field(
        None, "SHA-256 of names, shapes and orientations of the parameters in scope."
    )
    digest: str | None = _field(
        None,
        "SHA-256 of the connectome that the config lies beside (docs/FORMAT.md, section 6), "
        "written with the file and compared when it is read.",
    )
    tokenizer: str | None = _field(None, "Id of the tokenizer that the token ids mean, if any.")
    tokenizer_digest: str | None = _field(None, "SHA-256 of that tokenizer (data.py).")
    origin: str | None = _field(
        None, "Hub repository and commit that it was fetched from, 'owner/name@commit', if any."
    )
    config_version: int = _field(CONFIG_VERSION, "Version of this config's fields.")

    def __post_init__(self) -> None:
        """Validate types and ranges: the file may come from a stranger."""
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:  # PEFT knows which task types there are
            raise ConfigError(f"task_type is refused by PEFT. {error}") from error
        # PEFT types the field by its closed enum; see ConnectomePeftType.
        self.peft_type = ConnectomePeftType.CONNECTOME
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        self._check_types()
        if self.config_version > CONFIG_VERSION:
            raise ConfigError(
                f"config_version is {self.config_version}; this release reads up to "
                f"{CONFIG_VERSION}. Upgrade: pip install -U hf_connectome."
            )
        if not 0.0 < self.density <= 1.0:
            raise ConfigError(f"density is {self.density}; expected a number in (0, 1].")
        # JSON has whole numbers that no float can hold; they compare, but do not multiply.
        if not 0.0 < self.magnitude <= sys.float_info.max:
            raise ConfigError(f"magnitude is {self.magnitude}; expected a positive number.")
        if self.generation < 0:
            raise ConfigError(f"generation is {self.generation}; expected 0 or more.")
        if self.digest is not None and not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise ConfigError(f"digest is {self.digest!r}; expected 64 hexadecimal digits.")
        resets.get(self.reset)
        make_wiring(self.wiring)

    def _check_types(self) -> None:
        kinds: dict[str, Any] = {
            "target_modules": (str, list, type(None)),
            "exclude_modules": (str, list, type(None)),
            "density": (int, float),
            "density_pattern": dict,
            "wiring": str,
            "reset": str,
            "magnitude": (int, float),
            "seed": int,
            "generation": int,
            "lineage": list,
            "architecture": (str, type(None)),
            "base_config": (dict, type(None)),
            "base_fingerprint": (str, type(None)),
            "digest": (str, type(None)),
            "tokenizer": (str, type(None)),
            "tokenizer_digest": (str, type(None)),
            "origin": (str, type(None)),
            "config_version": int,
        }
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not dict):
                raise ConfigError(
                    f"{name} is {value!r} ({type(value).__name__}); see the field's help for what "
                    "it may be."
                )
        self._check_items()

    def _check_items(self) -> None:
        lists = {"target_modules": str, "exclude_modules": str, "lineage": dict}
        for name, kind in lists.items():
            value = getattr(self, name)
            odd = [item for item in value or () if not isinstance(item, kind)]
            if odd:
                raise ConfigError(f"{name} has {odd[0]!r}; expected a list of {kind.__name__}.")
        for name, density in self.density_pattern.items():
            number = isinstance(density, (int, float)) and not isinstance(density, bool)
            if not number or not 0.0 < density <= 1.0:
                raise ConfigError(
                    f"density_pattern has {density!r} for {name!r}; expected a number in (0, 1]."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        fields: dict[str, Any] = super().to_dict()
        fields["peft_type"] = self.peft_type.value  # type: ignore[union-attr]
        return fields
