"""The layers: a hop along the synapses, and attention between positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from hf_connectome.models.connectome_jepa.configuration_connectome_jepa import (
        ConnectomeJepaConfig,
    )

    Angles = tuple[Tensor, Tensor]


def rms_norm(states: Tensor, config: ConnectomeJepaConfig) -> Tensor:
    """Divide by the root mean square over the last dimension; there is nothing to learn."""
    return functional.rms_norm(states, states.shape[-1:], eps=config.rms_norm_eps)


class WiredLinear(nn.Linear):
    """A Linear of which the synapses exist; what its weight holds elsewhere is not looked at."""

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the weights where ``mask``, ``(out, in)`` bool, has a synapse."""
        return functional.linear(input, self.weight.masked_fill(~mask, 0.0), self.bias)


class SilentLinear(nn.Linear):
    """A Linear whose first weights are 0, so that what it leads to begins without effect."""


class NeuronAttention(nn.Module):
    """Causal attention over positions, from neurons to neurons; its output begins at 0."""

    def __init__(self, config: ConnectomeJepaConfig, layer_idx: int) -> None:
        """Make the projections; ``layer_idx`` is the layer of the cache."""
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.is_causal, self.num_key_value_groups = True, 1
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.num_neurons, width, bias=False)
        self.k_proj = nn.Linear(config.num_neurons, width, bias=False)
        self.v_proj = nn.Linear(config.num_neurons, width, bias=False)
        self.out_proj = SilentLinear(width, config.num_neurons, bias=False)

    def forward(
        self,
        state: Tensor,
        angles: Angles,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what to add to ``(B, T, neurons)`` and, if eager, the attention weights."""
        shape = (*state.shape[:-1], -1, self.config.head_dim)
        query, key, value = (
            projection(state).view(shape).transpose(1, 2)  # (B, heads, T, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *angles)
        query, key = rms_norm(query, self.config), rms_norm(key, self.config)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.config.head_dim**-0.5,
            **kwargs,
        )
        return self.out_proj(mixed.reshape(*state.shape[:-1], -1)), weights


class ConnectomeJepaHop(GradientCheckpointingLayer):
    """One step along all synapses at once, then perhaps re-injection and attention."""

    def __init__(self, config: ConnectomeJepaConfig, number: int) -> None:
        """Make hop ``number``, counted from 0."""
        super().__init__()
        self.config = config
        round_, after = divmod(number + 1, config.attention_every)
        is_last = number + 1 == config.num_hops
        self.linear = WiredLinear(config.num_neurons, config.num_neurons)
        self.scale = nn.Parameter(torch.empty(config.num_neurons))
        self.gate: nn.Parameter | None = None
        if after == 0 and not is_last and config.reinject:
            self.gate = nn.Parameter(torch.empty(1))
        self.attention = NeuronAttention(config, round_ - 1) if after == 0 else None

    def forward(
        self,
        state: Tensor,
        injected: Tensor,
        mask: Tensor,
        angles: Angles,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the next ``(B, T, neurons)``; ``injected`` is what came in, on all neurons."""
        hopped = self.linear(rms_norm(state, self.config), mask)
        state = state + self.scale * functional.gelu(hopped)
        if self.gate is not None:
            state = state + self.gate * injected
        if self.attention is not None:
            normed = rms_norm(state, self.config)
            mixed, _ = self.attention(normed, angles, attention_mask, past_key_values, **kwargs)
            state = state + mixed
        return state
