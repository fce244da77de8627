"""What cannot work on a model, refused before anything on it is changed.

What a file or a config has wrong in itself is refused where it is read (storage.py, config.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from peft.utils.constants import EMBEDDING_LAYER_NAMES

from hf_connectome.bound import BoundConfig
from hf_connectome.errors import UnsupportedError, some

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


@contextmanager
def configs_as_they_were(model: nn.Module) -> Iterator[None]:
    """Undo, where the block raises, what transformers and PEFT note on a model beforehand."""
    configs = getattr(model, "peft_config", {})
    before = dict(configs)
    try:
        yield
    except BaseException:
        for name in configs.keys() - before.keys():
            del configs[name]
        if hasattr(model, "_hf_peft_config_loaded"):
            model._hf_peft_config_loaded = bool(before)  # type: ignore[assignment]
        raise


def refuse_second(configs: Mapping[str, PeftConfig]) -> None:
    """Refuse one more connectome where one is in place.

    Raises:
        UnsupportedError: names the one that is there.
    """
    for name, config in configs.items():
        if isinstance(config, BoundConfig) and not config.inference_mode:
            raise UnsupportedError(
                f"the connectome {name!r} is in place on this model, where there is room for "
                "one: its dead weights are gone. Call merge_and_unload() first, or start from "
                "a new model."
            )


def refuse_without_tuner(config: PeftConfig) -> None:
    """Refuse what cannot work where nobody keeps the tuner: transformers' own adapter methods.

    Raises:
        UnsupportedError: a stored connectome without its masks, or one to train under.
    """
    if not isinstance(config, BoundConfig) and getattr(config, "base_fingerprint", None):
        raise UnsupportedError(
            "model.load_adapter(path) and AutoModel….from_pretrained(path) of transformers cannot "
            "read a connectome: they copy tensors of a file into buffers of the same name and "
            "shape, but this file is packed. Use "
            "model.add_adapter(BoundConfig.from_pretrained(path)) (from hf_connectome.adapter), "
            "ConnectomeModel.from_pretrained(model, path) or PeftModel.from_pretrained(model, "
            "path). To draw a new connectome by this config, set its base_fingerprint to None."
        )
    if not config.inference_mode:
        raise UnsupportedError(
            "model.add_adapter of transformers and inject_adapter_in_model of PEFT hold frozen "
            "skills only (inference_mode=True): they keep no object that could hold dead weights "
            "at 0 in training. To train under a connectome use get_peft_model(model, "
            "ConnectomeConfig(...)) or ConnectomeModel.from_pretrained(model, path, "
            "is_trainable=True)."
        )


def refuse_embeddings_saved(model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
    """Refuse a save in which PEFT adds whole embeddings, in a file over that of the connectome.

    Raises:
        UnsupportedError: ``target_modules`` matches a layer that PEFT knows as an embedding.
    """
    targets = getattr(config, "target_modules", None) or []
    if isinstance(targets, str):
        names = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
        found = {name.rpartition(".")[2] for name in names} & set(EMBEDDING_LAYER_NAMES)
    else:
        found = set(targets) & set(EMBEDDING_LAYER_NAMES)
    if found and targets != "all-linear":
        raise UnsupportedError(
            f"target_modules matches {some(sorted(found))}, for which PEFT adds whole embeddings "
            "to the file, over the masks. Save by "
            f"model.peft_config[{adapter_name!r}].save_pretrained(folder)."
        )
