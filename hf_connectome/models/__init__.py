"""Architectures of our own, known to transformers' Auto classes once this package was imported.

``import hf_connectome`` alone does not import it: that costs no more than torch.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_connectome.models.connectome_jepa import (
    ConnectomeJepaConfig,
    ConnectomeJepaForCausalLM,
    ConnectomeJepaModel,
)

AutoConfig.register(ConnectomeJepaConfig.model_type, ConnectomeJepaConfig)
AutoModel.register(ConnectomeJepaConfig, ConnectomeJepaModel)
AutoModelForCausalLM.register(ConnectomeJepaConfig, ConnectomeJepaForCausalLM)

__all__ = ["ConnectomeJepaConfig", "ConnectomeJepaForCausalLM", "ConnectomeJepaModel"]
