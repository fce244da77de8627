"""Model connectomes: evolve, share and inherit the wiring of networks, without their weights.

Names are imported on first use, so that ``import hf_connectome`` costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BoundConfig": "adapter",
    "Connectome": "connectome",
    "ConnectomeConfig": "adapter",  # not "config": importing adapter registers the method with PEFT
    "ConnectomeError": "errors",
    "ConnectomeModel": "modeling",
    "ConnectomeTuner": "adapter",
    "GenerationalArguments": "arguments",
    "GenerationalTrainer": "trainer",
    "MaskCallback": "callbacks",
    "MaskEnforcer": "enforcement",
    "RewiringCallback": "rewiring_callbacks",
    "SignedMask": "connectome",
    "SurvivorAdamW": "optimizers",
    "SurvivorAllReduce": "optimizers",
    "publish": "publishing",
    "random_twin": "controls",
}

if TYPE_CHECKING:
    from hf_connectome.adapter import ConnectomeTuner
    from hf_connectome.arguments import GenerationalArguments
    from hf_connectome.bound import BoundConfig
    from hf_connectome.callbacks import MaskCallback
    from hf_connectome.config import ConnectomeConfig
    from hf_connectome.connectome import Connectome, SignedMask
    from hf_connectome.controls import random_twin
    from hf_connectome.enforcement import MaskEnforcer
    from hf_connectome.errors import ConnectomeError
    from hf_connectome.modeling import ConnectomeModel
    from hf_connectome.optimizers import SurvivorAdamW, SurvivorAllReduce
    from hf_connectome.publishing import publish
    from hf_connectome.rewiring_callbacks import RewiringCallback
    from hf_connectome.trainer import GenerationalTrainer

__all__ = [
    "BoundConfig",
    "Connectome",
    "ConnectomeConfig",
    "ConnectomeError",
    "ConnectomeModel",
    "ConnectomeTuner",
    "GenerationalArguments",
    "GenerationalTrainer",
    "MaskCallback",
    "MaskEnforcer",
    "RewiringCallback",
    "SignedMask",
    "SurvivorAdamW",
    "SurvivorAllReduce",
    "__version__",
    "publish",
    "random_twin",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
