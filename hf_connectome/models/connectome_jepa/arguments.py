"""JepaArguments: which graph a Connectome-JEPA is built on, and its sizes; and how it is built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_connectome.controls.graphs import graph_twin
from hf_connectome.errors import ConfigError
from hf_connectome.graphs.base import NeuronGraph, check_direction
from hf_connectome.models.connectome_jepa.configuration_connectome_jepa import HOP_INITS
from hf_connectome.models.connectome_jepa.modeling_connectome_jepa import ConnectomeJepaForCausalLM
from hf_connectome.scope import OUT_IN, ScopedParameter
from hf_connectome.wirings import make_wiring
from hf_connectome.wirings.graph import GraphWiring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FILES = {"celegans": (), "file": ("path", "neurons"), "larva": ("synapses", "annotations")}
"""Options of the wirings of graphs, in the order of ``wiring_file`` and ``neurons_file``."""


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class JepaArguments:
    """Which graph the tokens travel through, and the sizes of the model around it."""

    wiring: str = _field(
        "celegans",
        "celegans, file or larva for a graph of neurons; any other wiring, such as random, is "
        "drawn for 'neurons' at 'density'.",
    )
    wiring_file: str | None = _field(
        None, "Of file: edges or matrix, .csv or .npz. Of larva: the synapses."
    )
    neurons_file: str | None = _field(
        None, "Of file: table of neurons with name and role. Of larva: the annotations."
    )
    twin: str | None = _field(
        None,
        "Use a twin of the graph instead: random, degrees, hubs-capped, permuted, or roles (as "
        "many edges from each role to each).",
    )
    wiring_seed: int = _field(0, "Seed of a wiring that is drawn, and of a twin.")
    direction: str = _field("along", "Which way signals run on a synapse: along or against.")
    neurons: int = _field(300, "Neurons of a wiring that is drawn.")
    inputs: int = _field(88, "Of these, the first so many take the tokens in.")
    outputs: int = _field(123, "Of these, the last so many are read.")
    density: float = _field(5084 / 300**2, "Density of a wiring that is drawn.")
    hidden_size: int = _field(768, "Width of embeddings and read-out.")
    hops: int = _field(6, "Steps along the synapses.")
    attention_every: int = _field(2, "Attention and re-injection after every so many hops.")
    heads: int = _field(4, "Heads of each attention.")
    head_dim: int = _field(128, "Width of a head.")
    reinject: bool = _field(True, "Add the inputs again, through learned gates.")
    bypass: float = _field(0.0, "First value of a learned way around all neurons; 0 is none.")
    hop_init: str = _field("in_degree", f"First weights of a hop: {' or '.join(HOP_INITS)}.")
    allow_unreached: bool = _field(False, "Accept outputs that no input reaches by synapses.")
    jepa_weight: float = _field(0.5, "Weight of the prediction of masked spans; 0 is none.")
    sigreg_weight: float = _field(1e-4, "Weight of SIGReg; 0 is none.")

    def __post_init__(self) -> None:
        """Refuse a wiring that does not exist and files that it does not take."""
        make_wiring(self.wiring)
        takes = _FILES.get(self.wiring.partition(":")[0], ())
        given = (("wiring_file", self.wiring_file), ("neurons_file", self.neurons_file))
        odd = [name for name, value in given[len(takes) :] if value is not None]
        if odd:
            raise ConfigError(f"the wiring {self.wiring!r} takes no {odd[0]}; leave it out.")
        check_direction(self.direction)
        if self.inputs + self.outputs > self.neurons:
            raise ConfigError(
                f"{self.inputs} inputs and {self.outputs} outputs are more than the "
                f"{self.neurons} neurons. Raise neurons, or lower the others."
            )


def build_graph(arguments: JepaArguments) -> NeuronGraph:
    """Read or draw the graph, and its twin if one is asked for.

    Raises:
        ConfigError: its package or its files are missing, or it is no graph.
        DataError: a file cannot be read.
        UnknownNameError: there is no such twin.
    """
    wiring = make_wiring(arguments.wiring)
    if isinstance(wiring, GraphWiring):
        takes = _FILES[arguments.wiring.partition(":")[0]]
        files = zip(takes, (arguments.wiring_file, arguments.neurons_file), strict=False)
        graph = replace(wiring, **{name: file for name, file in files if file}).graph()
    else:
        graph = _drawn(arguments)
    if arguments.twin is None:
        return graph
    return graph_twin(graph, arguments.twin, arguments.wiring_seed)


def _drawn(arguments: JepaArguments) -> NeuronGraph:
    num = arguments.neurons
    scope = {"hops": ScopedParameter("hops", (num, num), OUT_IN)}
    mask = (
        make_wiring(arguments.wiring)
        .build(scope, arguments.density, arguments.wiring_seed)
        .mask("hops")
    )
    names = tuple(f"neuron {number}" for number in range(num))
    sides = tuple(range(arguments.inputs)), tuple(range(num - arguments.outputs, num))
    return NeuronGraph(names, mask.T.float(), *sides)  # out x in: columns are presynaptic


def build_model(
    arguments: JepaArguments,
    graph: NeuronGraph,
    *,
    vocab_size: int,
    tokenizer: PreTrainedTokenizerFast | None,
    block_size: int,
    seed: int,
) -> ConnectomeJepaForCausalLM:
    """Build a fresh model; torch's global generator is put back afterwards."""
    tokens = {
        name: getattr(tokenizer, name, None)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConnectomeJepaForCausalLM.from_graph(
            graph,
            direction=arguments.direction,
            vocab_size=vocab_size,
            hidden_size=arguments.hidden_size,
            num_hops=arguments.hops,
            attention_every=arguments.attention_every,
            num_attention_heads=arguments.heads,
            head_dim=arguments.head_dim,
            reinject=arguments.reinject,
            bypass=arguments.bypass,
            hop_init=arguments.hop_init,
            allow_unreached=arguments.allow_unreached,
            jepa_weight=arguments.jepa_weight,
            sigreg_weight=arguments.sigreg_weight,
            max_position_embeddings=block_size,
            **tokens,
        )
