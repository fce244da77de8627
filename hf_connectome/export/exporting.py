"""A trained model and its connectome -> the same model with weights in a form that is faster.

Exported models have no files of their own: they are saved as ordinary checkpoints, zeros in place,
and exported again once those are loaded.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_connectome.errors import (
    HostMismatchError,
    ScopeError,
    UnknownNameError,
    UnsupportedError,
    did_you_mean,
    some,
)
from hf_connectome.export.csr import to_csr
from hf_connectome.export.layers import (
    CsrEmbedding,
    CsrLinear,
    SemiStructuredLinear,
    SparseLayer,
    SparseWeight,
)
from hf_connectome.hosts import check_host, refuse_offloaded
from hf_connectome.scope import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from hf_connectome.connectome import Connectome

FORMS = {
    "csr": "survivors with their columns, for the CPU",
    "semi-structured": "2 of every 4 inputs as torch multiplies them on CUDA",
    "dense": "zeros in place, as the model is",
}
_LINEAR, _EMBEDDING = (nn.Linear, Conv1D), (nn.Embedding,)

Place = tuple[nn.Module, str]
"""A module and the name of the child in it that uses a parameter."""


def export(model: nn.Module, connectome: Connectome, *, to: str = "csr") -> nn.Module:
    """Put the weights in scope into a form that is faster; in place, and for inference only.

    Linear, Conv1D and (as CSR) Embedding modules are replaced, tied ones with one weight for all.
    Convolutions, fused experts and subclasses with a forward of their own stay dense.

    Args:
        model: trained under ``connectome``, where it is to run; plain, without adapters.
        connectome: says which parameters are sparse, and which weights of them are 0.
        to: a name of :data:`FORMS`.

    Returns:
        ``model``, in evaluation mode, no parameter trainable.

    Raises:
        UnknownNameError: no such form.
        HostMismatchError: the connectome is of another model, or a dead weight is not 0.
        ScopeError: nothing in scope can have the form, or a weight is not 2:4.
        UnsupportedError: the model's device cannot multiply this form, or it has adapters.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from hf_connectome import ConnectomeConfig, ConnectomeModel
        >>> host = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16))
        >>> trained = ConnectomeModel(host, ConnectomeConfig(density=0.25, reset="sign_constant"))
        >>> connectome = trained.connectome
        >>> model = export(trained.merge_and_unload(), connectome, to="csr")
        >>> model.transformer.h[0].mlp.c_fc
        CsrLinear(32 x 8, Tensor torch.sparse_csr)
    """
    if to not in FORMS:
        raise UnknownNameError(f"unknown form {to!r}. {did_you_mean(to, FORMS)}")
    model = unwrap(model)
    _refuse_special(model)
    parameters = check_host(connectome, model)
    refuse_offloaded(model)
    _check_dead_weights(connectome, parameters)
    if to != "dense":
        kinds = _LINEAR + _EMBEDDING if to == "csr" else _LINEAR
        places = _places(model, parameters, kinds)
        layers = (_as_csr if to == "csr" else _as_semi_structured)(parameters, places)
        for (parent, child_name), layer in layers.items():
            setattr(parent, child_name, layer)
        model.register_state_dict_post_hook(_tie)
    return model.requires_grad_(False).eval()


def _refuse_special(model: nn.Module) -> None:
    modules = list(model.modules())
    if any(isinstance(module, SparseLayer) for module in modules):
        raise UnsupportedError(
            f"this {type(model).__name__} is exported already. Load the checkpoint anew to have "
            "another form."
        )
    if any(isinstance(module, (PeftModel, BaseTunerLayer)) for module in modules):
        raise UnsupportedError(
            f"this {type(model).__name__} has adapters, whose masks an export would pass by. "
            "Export what model.merge_and_unload() returns."
        )


@torch.no_grad()
def _check_dead_weights(connectome: Connectome, parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        dead = ~connectome.mask(name).to(parameter.device)
        if alive := int(torch.count_nonzero(parameter[dead])):
            raise HostMismatchError(
                f"{name!r}: {alive} of {int(dead.sum())} dead weights are not 0; expected none. "
                "The model was not trained under this connectome: use its own, or put this one on "
                "it first, by ConnectomeModel.from_pretrained(model, path).merge_and_unload()."
            )


def _places(
    model: nn.Module, parameters: Mapping[str, Tensor], kinds: tuple[type[nn.Module], ...]
) -> dict[str, list[Place]]:
    """Find the modules that can be replaced, by the name of their weight."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    places: dict[str, list[Place]] = defaultdict(list)
    for parent in model.modules():
        for child_name, child in parent._modules.items():
            weight = None if child is None else child._parameters.get("weight")
            if id(weight) in names and type(child) in kinds and _is_plain(child):
                places[names[id(weight)]].append((parent, child_name))
    if not places:
        raise ScopeError(
            f"none of {some(parameters)} is the weight of a plain "
            f"{', '.join(kind.__name__ for kind in kinds)} module, so nothing would be faster. "
            "Leave the model as it is."
        )
    return places


def _is_plain(module: Any) -> bool:
    """Whether a module does what its class says and no more."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and getattr(module, "max_norm", None) is None


def _as_csr(
    parameters: Mapping[str, Tensor], places: Mapping[str, list[Place]]
) -> dict[Place, SparseLayer]:
    if not torch.backends.mkl.is_available():
        raise UnsupportedError(
            "this build of torch has no MKL, whose sparse product 'csr' needs. Leave the model "
            "dense, or use a build with MKL (the ordinary one of x86)."
        )
    layers: dict[Place, SparseLayer] = {}
    for name in places:
        if parameters[name].device.type != "cpu":
            raise UnsupportedError(
                f"{name!r} is on {parameters[name].device}; 'csr' is for the CPU. Move the model "
                "first: model.to('cpu')."
            )
    for name, users in places.items():
        matrix, transposed = _matrix(parameters[name], users)
        weight = SparseWeight(to_csr(matrix), matrix.dtype, transposed)
        for place in users:
            child = _child(place)
            if isinstance(child, nn.Embedding):
                layers[place] = CsrEmbedding(weight)
            else:
                layers[place] = CsrLinear(weight, child.bias)
    return layers


def _as_semi_structured(
    parameters: Mapping[str, Tensor], places: Mapping[str, list[Place]]
) -> dict[Place, SparseLayer]:
    matrices = {name: _matrix(parameters[name], users) for name, users in places.items()}
    for name, (matrix, _) in matrices.items():
        _check_two_of_four(name, matrix)
    layers: dict[Place, SparseLayer] = {}
    for name, (matrix, transposed) in matrices.items():
        try:
            held = torch.sparse.to_sparse_semi_structured(matrix.contiguous())
        except RuntimeError as error:
            raise UnsupportedError(
                f"{name!r} ({tuple(matrix.shape)}, {matrix.dtype}, on {matrix.device}) cannot be "
                f"semi-structured: {error} Move the model to CUDA in float16 or bfloat16, or "
                "leave it dense."
            ) from error
        weight = SparseWeight(held, matrix.dtype, transposed)
        for place in places[name]:
            layers[place] = SemiStructuredLinear(weight, _child(place).bias)
    return layers


def _check_two_of_four(name: str, matrix: Tensor) -> None:
    outputs, inputs = matrix.shape
    if inputs % 4:
        raise ScopeError(f"{name!r} has {inputs} inputs, which 4 does not divide; it is not 2:4.")
    counts = torch.count_nonzero(matrix.reshape(outputs, -1, 4), dim=2)
    if len(wrong := (counts > 2).nonzero()):
        row, group = wrong[0].tolist()
        raise ScopeError(
            f"{name!r}: row {row} has {int(counts[row, group])} weights at inputs {4 * group} to "
            f"{4 * group + 3}; expected at most 2 of every 4. Evolve the connectome with "
            "structure='2:4', or export to 'csr' or 'dense'."
        )


def _child(place: Place) -> Any:
    parent, child_name = place
    return parent._modules[child_name]


def _matrix(parameter: Tensor, users: list[Place]) -> tuple[Tensor, bool]:
    """Return a parameter as ``(out, in)``, and whether it is stored the other way."""
    transposed = isinstance(_child(users[0]), Conv1D)
    return (parameter.detach().T if transposed else parameter.detach()), transposed


def _tie(model: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Let tied weights be one tensor in a state dict too: transformers saves such a one once."""
    first: dict[int, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseLayer):
            key = f"{prefix}{name}.weight"
            state_dict[key] = first.setdefault(id(module.sparse), state_dict[key])
