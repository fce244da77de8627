"""Connectome-JEPA: a language model whose tokens travel through a graph of neurons.

After the submission of that name to openai/parameter-golf (pull request 1152), whose code was read
and is not used; docs/paper_index.md lists the settings and what differs.
"""

from hf_connectome.models.connectome_jepa.configuration_connectome_jepa import ConnectomeJepaConfig
from hf_connectome.models.connectome_jepa.modeling_connectome_jepa import (
    ConnectomeJepaForCausalLM,
    ConnectomeJepaModel,
)

__all__ = ["ConnectomeJepaConfig", "ConnectomeJepaForCausalLM", "ConnectomeJepaModel"]
