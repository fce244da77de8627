"""The model: tokens enter at input neurons, hop along synapses, and are read at output neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from hf_connectome.errors import ConfigError, some
from hf_connectome.graphs.base import check_neurons, unreached_outputs
from hf_connectome.models.connectome_jepa.configuration_connectome_jepa import ConnectomeJepaConfig
from hf_connectome.models.connectome_jepa.layers import (
    ConnectomeJepaHop,
    NeuronAttention,
    SilentLinear,
    WiredLinear,
    rms_norm,
)
from hf_connectome.models.connectome_jepa.losses import jepa_loss, sigreg_loss, span_mask

if TYPE_CHECKING:
    from transformers.cache_utils import Cache
    from typing_extensions import Self

    from hf_connectome.graphs import NeuronGraph


@dataclass
class ConnectomeJepaOutput(CausalLMOutputWithPast):
    """What a causal model gives, and the three terms whose sum is the loss, weighted as in it.

    ``jepa`` and ``sigreg`` are there in training only, and None where their weight is 0.
    """

    cross_entropy: Tensor | None = None
    jepa: Tensor | None = None
    sigreg: Tensor | None = None


class ConnectomeJepaPreTrainedModel(PreTrainedModel):
    """Initialisation, loading, and the check of the wiring that a checkpoint brings."""

    config: ConnectomeJepaConfig
    config_class = ConnectomeJepaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConnectomeJepaHop"]  # noqa: RUF012 (transformers wants lists)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ConnectomeJepaHop, "attentions": NeuronAttention}  # noqa: RUF012

    @classmethod
    def from_graph(cls, graph: NeuronGraph, *, direction: str = "along", **settings: Any) -> Self:
        """Build a fresh model on a graph; weights are drawn from torch's global generator.

        Args:
            graph: neurons, synapses, inputs and outputs.
            direction: along the synapses, or against them.
            settings: other fields of :class:`ConnectomeJepaConfig`.

        Raises:
            ConfigError: a setting is out of range, or synapses lead from no input to some output.
        """
        config = ConnectomeJepaConfig(
            num_neurons=graph.num_neurons,
            num_inputs=len(graph.inputs),
            num_outputs=len(graph.outputs),
            num_edges=graph.num_edges,
            direction=direction,
            **settings,
        )
        sides = torch.tensor(graph.inputs), torch.tensor(graph.outputs)
        return cls(config, wiring=(graph.linear_mask(direction), *sides))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as any model of transformers, and check the wiring that came with it.

        Raises:
            ConfigError: it is missing, or is not the one that the config counts.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _base(model).check_wiring()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the first weights; what was loaded stays."""
        if isinstance(module, WiredLinear):
            mask = _base(self).mask
            init.normal_(module.weight)
            std: Tensor | float = self.config.initializer_range
            if self.config.hop_init == "in_degree":
                std = mask.sum(1, keepdim=True).clamp(min=1).rsqrt()
            init.copy_(module.weight, (module.weight * std).masked_fill(~mask, 0.0))
            init.zeros_(module.bias)
            return
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, SilentLinear):
            init.zeros_(module.weight)
        elif isinstance(module, ConnectomeJepaHop):
            init.constant_(module.scale, self.config.num_hops**-0.5)
            if module.gate is not None:
                init.constant_(module.gate, self.config.gate_init)
        elif isinstance(module, ConnectomeJepaModel):
            init.zeros_(module.mask_embedding)
            if module.bypass is not None:
                init.constant_(module.bypass, self.config.bypass)


def _base(model: ConnectomeJepaPreTrainedModel) -> ConnectomeJepaModel:
    base = model.base_model
    assert isinstance(base, ConnectomeJepaModel)
    return base


class ConnectomeJepaModel(ConnectomeJepaPreTrainedModel):
    """From tokens to what the output neurons say, without logits."""

    mask: Tensor
    """``(out, in)`` bool, the synapses: the one source of which weights exist."""
    inputs: Tensor
    outputs: Tensor

    def __init__(
        self,
        config: ConnectomeJepaConfig,
        wiring: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Make the layers.

        Args:
            config: sizes and counts.
            wiring: ``(out, in)`` bool mask of the synapses, numbers of the inputs, numbers of the
                outputs; None where a checkpoint brings them, or where every neuron is to synapse
                onto every neuron, with inputs first and outputs last.

        Raises:
            ConfigError: the config counts synapses but there are none, or other ones.
        """
        super().__init__(config)
        num = config.num_neurons
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.input_proj = nn.Linear(config.hidden_size, config.num_inputs, bias=False)
        self.hops = nn.ModuleList(ConnectomeJepaHop(config, n) for n in range(config.num_hops))
        self.output_proj = nn.Linear(config.num_outputs, config.hidden_size, bias=False)
        self.bypass = nn.Parameter(torch.empty(1)) if config.bypass else None
        self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        given = wiring is not None
        if wiring is None:
            sides = torch.arange(config.num_inputs), torch.arange(num - config.num_outputs, num)
            wiring = torch.ones(num, num, dtype=torch.bool), *sides
        for name, part in zip(("mask", "inputs", "outputs"), wiring, strict=True):
            self.register_buffer(name, part)
        if self.mask.device.type != "meta":  # there it waits for a checkpoint
            if not given and config.num_edges is not None:
                raise ConfigError(
                    f"the config counts {config.num_edges} synapses but does not say which. Use "
                    "from_graph(graph, ...), or from_pretrained(folder) for a trained model; "
                    "num_edges=None wires every neuron to every neuron."
                )
            self.check_wiring()
        self.post_init()  # type: ignore[no-untyped-call]

    def check_wiring(self) -> None:
        """Refuse a wiring that is not what the config counts, or that leaves outputs unreached.

        Raises:
            ConfigError: says what differs, or which outputs.
        """
        config, num = self.config, self.config.num_neurons
        if tuple(self.mask.shape) != (num, num):
            raise ConfigError(
                f"the mask of the synapses is {tuple(self.mask.shape)}; the config has {num} "
                f"neurons, expected a square ({num}, {num})."
            )
        inputs, outputs = self.inputs.tolist(), self.outputs.tolist()
        check_neurons(num, inputs, outputs)
        found = (int(self.mask.sum()), len(inputs), len(outputs))
        wanted = (config.num_edges or num**2, config.num_inputs, config.num_outputs)
        if found != wanted:
            raise ConfigError(
                f"the wiring has {found[0]} synapses, {found[1]} inputs and {found[2]} outputs; "
                f"the config counts {wanted[0]}, {wanted[1]} and {wanted[2]}. The checkpoint was "
                "altered, or lost its wiring."
            )
        missing = unreached_outputs(self.mask, inputs, outputs, config.num_hops)
        if missing and not config.allow_unreached:
            raise ConfigError(
                f"no input reaches the output neurons {some(map(str, missing))} within "
                f"{config.num_hops} hops. Raise num_hops, change the direction, or set "
                "allow_unreached=True: attention reaches them all the same."
            )

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the tokens."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Exchange the embedding of the tokens."""
        self.embed_tokens = value  # type: ignore[assignment]

    def _embedded(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, masked: Tensor | None
    ) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if masked is None:
            return embedded
        return torch.where(masked[..., None], self.mask_embedding, embedded)

    def _injected(self, tokens: Tensor) -> Tensor:
        entered: Tensor = self.input_proj(tokens)  # (B, T, num_inputs)
        nothing = entered.new_zeros(*entered.shape[:-1], self.config.num_neurons)
        return nothing.index_copy(-1, self.inputs, entered)  # (B, T, num_neurons)

    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        masked: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the text through the neurons.

        Args:
            input_ids: ``(B, T)``; or else ``inputs_embeds``.
            attention_mask: ``(B, T)``, 0 where there is padding.
            position_ids: ``(B, T)``, by default counted from the start of the cache.
            past_key_values: keys and values of earlier positions.
            inputs_embeds: ``(B, T, hidden_size)`` instead of tokens.
            masked: ``(B, T)`` bool, tokens to replace by the learned embedding of a hole.
            use_cache: by default the config's, and never in training.
            kwargs: for the attention function.

        Returns:
            The normed read-out ``(B, T, hidden_size)``; hidden states are those of the neurons.
        """
        inputs_embeds = self._embedded(input_ids, inputs_embeds, masked)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            steps = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = (steps + seen)[None]
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        tokens = rms_norm(inputs_embeds, self.config)  # (B, T, hidden_size)
        angles = self.rotary_emb(tokens, position_ids)
        state = injected = self._injected(tokens)
        kwargs["past_key_values"] = past_key_values  # the name under which checkpointing knows it
        for hop in self.hops:
            state = hop(state, injected, self.mask, angles, causal_mask, **kwargs)
        read = self.output_proj(state.index_select(-1, self.outputs))  # (B, T, hidden_size)
        if self.bypass is not None:
            read = read + self.bypass * tokens
        return BaseModelOutputWithPast(
            last_hidden_state=rms_norm(read, self.config),
            past_key_values=past_key_values if use_cache else None,
        )


class ConnectomeJepaForCausalLM(ConnectomeJepaPreTrainedModel, GenerationMixin):
    """With logits, tied to the embeddings and capped; and, in training, the two further terms."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(
        self,
        config: ConnectomeJepaConfig,
        wiring: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Make the model; see :class:`ConnectomeJepaModel`."""
        super().__init__(config)
        self.model = ConnectomeJepaModel(config, wiring)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ConnectomeJepaOutput:
        """Give logits and, with ``labels``, the loss.

        In evaluation the loss is the cross-entropy alone; in training, that and the weighted terms
        of JEPA and SIGReg.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 0 where there is padding, which no term of the loss counts.
            labels: ``(B, T)``, shifted here; -100 is not counted.
            logits_to_keep: how many of the last positions, or which; 0 is all.
            num_items_in_batch: labels of all the micro-batches of a step, if there are several.
            kwargs: what :class:`ConnectomeJepaModel` takes.
        """
        text = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        outputs = self.model(**text)
        states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        cap = self.config.logit_cap
        logits = cap * torch.tanh(self.lm_head(states[:, kept]) / cap)
        terms: dict[str, Tensor] = {}
        if labels is not None:
            terms["cross_entropy"] = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
            if self.training:
                num_labels = (labels[:, 1:] != -100).sum()
                share = 1.0 if num_items_in_batch is None else num_labels / num_items_in_batch
                further = self._further_terms(text, states)
                terms |= {name: share * term for name, term in further.items()}
        return ConnectomeJepaOutput(
            loss=torch.stack(list(terms.values())).sum() if terms else None,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **terms,
        )

    def _further_terms(self, text: dict[str, Any], states: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of JEPA and SIGReg, those of weight 0 left out."""
        config, terms = self.config, {}
        rows, length = states.shape[:2]
        padding = text["attention_mask"]
        is_text = torch.ones(rows, length, dtype=torch.bool, device=states.device)
        if padding is not None and padding.ndim == 2:
            is_text = padding.bool()
        if config.jepa_weight:
            masked = is_text & span_mask(
                rows, length, config.mask_fraction, config.mask_span, states.device
            )
            predicted = self.model(**text, masked=masked).last_hidden_state
            terms["jepa"] = config.jepa_weight * jepa_loss(predicted, states, masked)
        if config.sigreg_weight:
            distance = sigreg_loss(
                states,
                is_text,
                num_directions=config.sigreg_directions,
                num_knots=config.sigreg_knots,
                most=config.sigreg_range,
            )
            terms["sigreg"] = config.sigreg_weight * distance
        return terms
