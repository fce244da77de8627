"""The six tiny hosts by short names, and connectomes drawn for them."""

from __future__ import annotations

import torch
from tiny_hosts import tiny

from hf_connectome.connectome import SignedMask
from hf_connectome.hosts import describe
from hf_connectome.scope import parameters_of, resolve
from hf_connectome.wirings import RandomWiring

KINDS = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "mixtral": "MixtralForCausalLM",
}


def tiny_model(kind, seed=0, **changes):
    """Build a random model of hidden size 32 and two layers; ``changes`` are set on its config."""
    return tiny(KINDS[kind], seed=seed, **changes)


def drawn(model, *, density=0.25, seed=0, scope="all-matrices", carry=False, **config):
    """Draw a connectome that fits ``model``; with ``carry`` it has scales and values too."""
    from hf_connectome.config import ConnectomeConfig

    scoped = resolve(model, scope)
    connectome = RandomWiring().build(scoped, density, seed)
    if carry:
        connectome = connectome.replace(
            {
                name: SignedMask.pack(
                    entry.mask(),
                    entry.sign(),
                    scale=torch.linspace(0.01, 0.02, entry.rows if entry.rows % 2 else 1),
                    orientation=entry.orientation,
                )
                for name, entry in connectome.items()
            },
            values={
                name: parameter.detach() + 0.25
                for name, parameter in parameters_of(model).items()
                if parameter.ndim == 1
            },
        )
    settings = ConnectomeConfig(target_modules=scope, density=density, **config)
    return connectome.replace(config=describe(model, settings, scoped))


def state_of(model):
    """Copy the weights, to compare them later."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    """Whether two states are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
