"""ConnectomeJepaConfig: sizes, settings of the losses, and the counts that the wiring must have.

Which synapses exist is not in it: that is a buffer of the checkpoint, so that there is one source.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from hf_connectome.errors import ConfigError, UnknownNameError, did_you_mean
from hf_connectome.graphs.base import check_direction

HOP_INITS = ("in_degree", "constant")


class ConnectomeJepaConfig(PreTrainedConfig):
    """Configuration of a Connectome-JEPA; the defaults are those of the published experiment.

    Its learned bypass from embedding to output and its constant initialisation are off by default:
    ``bypass=0.1`` and ``hop_init="constant"`` bring them back.
    """

    model_type = "connectome_jepa"
    keys_to_ignore_at_inference = [  # noqa: RUF012 (transformers wants a list)
        "past_key_values",
        "cross_entropy",
        "jepa",
        "sigreg",
    ]
    default_theta = 10000.0

    vocab_size: int = 1024
    hidden_size: int = 768
    """Width of the embeddings, of what is read out and of the tied logits."""

    num_neurons: int = 300
    num_inputs: int = 88
    num_outputs: int = 123
    num_edges: int | None = None
    """Synapses of the wiring; None is every neuron onto every neuron, which needs no graph."""
    direction: str = "along"
    """Which way signals run: along the synapses or against them, as in the published code."""
    allow_unreached: bool = False
    """Accept outputs that no input reaches by synapses within ``num_hops``."""

    num_hops: int = 6
    attention_every: int = 2
    """Attention, and re-injection of the inputs, come after every so many hops."""
    reinject: bool = True
    """Add the inputs again, by a learned gate, after every so many hops but the last."""
    gate_init: float = 0.1
    bypass: float = 0.0
    """First value of the learned way around all neurons, from embedding to output; 0 is none."""
    num_attention_heads: int = 4
    head_dim: int = 128
    attention_dropout: float = 0.0
    max_position_embeddings: int = 1024
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-6
    logit_cap: float = 30.0

    hop_init: str = "in_degree"
    """Deviation of a synapse: 1 / sqrt(synapses onto its neuron), or ``initializer_range``."""
    initializer_range: float = 0.02

    jepa_weight: float = 0.5
    mask_fraction: float = 0.3
    mask_span: float = 4.0
    """Mean length of a span of masked tokens."""
    sigreg_weight: float = 1e-4
    sigreg_directions: int = 64
    sigreg_knots: int = 17
    sigreg_range: float = 3.0

    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse counts and settings that no model can have."""
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        check_direction(self.direction)
        if self.hop_init not in HOP_INITS:
            raise UnknownNameError(
                f"unknown hop_init {self.hop_init!r}. {did_you_mean(self.hop_init, HOP_INITS)}"
            )
        for name in ("vocab_size", "hidden_size", "num_inputs", "num_outputs", "attention_every"):
            self._at_least(name, 1)
        for name in ("num_attention_heads", "sigreg_directions", "sigreg_knots"):
            self._at_least(name, 1)
        self._at_least("num_hops", self.attention_every, "or there is no attention at all")
        self._check_wiring()
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; expected an even number, for RoPE.")
        if not 0.0 < self.mask_fraction < 1.0 or self.mask_span < 1.0:
            raise ConfigError(
                f"mask_fraction is {self.mask_fraction} and mask_span {self.mask_span}; expected a "
                "number in (0, 1) and one of at least 1."
            )
        if self.logit_cap <= 0 or self.jepa_weight < 0 or self.sigreg_weight < 0:
            raise ConfigError(
                f"logit_cap is {self.logit_cap}, jepa_weight {self.jepa_weight} and sigreg_weight "
                f"{self.sigreg_weight}; expected above 0, and 0 or more of the weights."
            )
        if not self.tie_word_embeddings:
            raise ConfigError("the logits are tied to the embeddings; leave tie_word_embeddings.")

    @property
    def num_hidden_layers(self) -> int:
        """Layers of attention, as a cache of keys and values counts them."""
        return self.num_hops // self.attention_every

    @property
    def num_key_value_heads(self) -> int:
        """As many as heads."""
        return self.num_attention_heads

    def _at_least(self, name: str, least: int, why: str | None = None) -> None:
        if getattr(self, name) < least:
            reason = "" if why is None else f", {why}"
            raise ConfigError(
                f"{name} is {getattr(self, name)}; expected at least {least}{reason}."
            )

    def _check_wiring(self) -> None:
        if self.num_inputs + self.num_outputs > self.num_neurons:
            raise ConfigError(
                f"{self.num_inputs} inputs and {self.num_outputs} outputs are more than the "
                f"{self.num_neurons} neurons; expected no neuron to be both."
            )
        most = self.num_neurons**2
        if self.num_edges is not None and not 1 <= self.num_edges <= most:
            raise ConfigError(f"num_edges is {self.num_edges}; expected 1 to {most}.")
