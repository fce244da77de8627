"""Which parameters of a model may lose weights, under names that survive any wrapper.

A tied parameter counts once, under the first name the model gives it. How a matrix is stored is
recorded here and nowhere else, so that a mask made for a Linear is never put on a Conv1D.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_connectome.errors import ScopeError, did_you_mean, some

if TYPE_CHECKING:
    from torch import Tensor

OUT_IN = "out_in"
"""nn.Linear: ``(out, in)``."""
IN_OUT = "in_out"
"""transformers' Conv1D: ``(in, out)``."""
EMBEDDING = "embedding"
"""nn.Embedding: ``(num, dim)``."""
CONV = "conv"
"""nn.Conv*d: ``(out, in / groups, *kernel)``."""
RAW = "raw"
"""Any other parameter, such as fused experts ``(experts, out, in)``."""

SCOPES = {
    "all-matrices": "every floating-point parameter with two or more dimensions",
    "all-linear": "Linear and Conv1D weights but the output embedding, as PEFT defines it",
    "body": "all matrices but embeddings and the output embedding",
    "embeddings": "embeddings and the output embedding only",
}

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}


@dataclass(frozen=True)
class ScopedParameter:
    """One parameter in scope."""

    name: str
    shape: tuple[int, ...]
    orientation: str

    @property
    def num_weights(self) -> int:
        """Weights of the parameter."""
        return prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """Number of matrices that the parameter holds, and outputs and inputs of each.

        Fused experts and other raw parameters of three and more dimensions are stacks of matrices.
        A convolution is one matrix whose inputs are channels x kernel positions; an embedding is
        one as it stands, a row a token, which is how a tied head reads it.
        """
        if is_stack(self.shape, self.orientation):
            return prod(self.shape[:-2]), self.shape[-2], self.shape[-1]
        rows, columns = self.shape[0], prod(self.shape[1:])
        return (1, columns, rows) if self.orientation == IN_OUT else (1, rows, columns)

    def matrices(self, tensor: Tensor) -> Tensor:
        """View a tensor of the parameter's shape as ``(matrices, out, in)``."""
        if self.orientation == IN_OUT:
            return tensor.reshape(1, self.shape[0], -1).mT
        return tensor.reshape(self.matrix_shape)

    def from_matrices(self, stack: Tensor) -> Tensor:
        """Return ``(matrices, out, in)`` in the parameter's own shape and storage."""
        stack = stack.mT if self.orientation == IN_OUT else stack
        return stack.reshape(self.shape)


def is_stack(shape: tuple[int, ...], orientation: str) -> bool:
    """Whether a parameter holds matrices in its last two dimensions instead of being one."""
    return orientation == RAW and len(shape) > 2


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DDP and torch.compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def clean_name(name: str) -> str:
    """Drop the segments that wrappers put into a parameter's name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's parameters by clean name, a tied one once."""
    return {clean_name(name): p for name, p in unwrap(model).named_parameters()}


def resolve(
    model: nn.Module,
    scope: str | Sequence[str] = "all-matrices",
    exclude: str | Sequence[str] | None = None,
) -> dict[str, ScopedParameter]:
    """Find the parameters that a scope names.

    Args:
        model: any module, also on the meta device or wrapped.
        scope: a name of :data:`SCOPES`; or, as PEFT's ``target_modules``, a list of module-name
            endings or one regular expression that matches whole module names.
        exclude: endings or a regular expression of modules to leave out.

    Returns:
        name -> parameter, in the model's order.

    Raises:
        ScopeError: nothing matches.
    """
    model = unwrap(model)
    owners = _owners(model)
    matrices = {
        name: p for name, p in parameters_of(model).items() if p.is_floating_point() and p.ndim >= 2
    }
    wanted = _wanted(model, scope, owners, matrices)
    if exclude is not None:
        wanted = {name for name in wanted if not _matches(exclude, name.rpartition(".")[0])}
    if not wanted:
        hint = "" if str(scope) in SCOPES else f" {did_you_mean(str(scope), SCOPES)}"
        raise ScopeError(
            f"the scope {scope!r} matches no parameter of {type(model).__name__}"
            f"{'' if exclude is None else f' once {exclude!r} is excluded'}. It has matrices such "
            f"as {some(matrices) or 'none at all'}.{hint}"
        )
    return {
        name: ScopedParameter(name, tuple(p.shape), _orientation(name, owners))
        for name, p in matrices.items()
        if name in wanted
    }


def fingerprint(parameters: Iterable[tuple[str, Sequence[int], str]]) -> str:
    """Hash what a host must have: SHA-256 of the canonical JSON of [[name, shape, orientation]…].

    Weights do not enter: a connectome fits every model of the same architecture.
    """
    rows = sorted([name, list(shape), orientation] for name, shape, orientation in parameters)
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def output_rows(shape: Sequence[int], orientation: str) -> Tensor:
    """Number the output that each weight leads to: its row in the (out, in) sense.

    An embedding leads from tokens to dimensions, so its rows are its columns as stored; a row of a
    convolution is a channel. Of a raw parameter, all dimensions but the last count rows.

    Returns:
        int64, of ``shape``.

    Example:
        >>> output_rows((2, 3), OUT_IN).tolist(), output_rows((2, 3), IN_OUT).tolist()
        ([[0, 0, 0], [1, 1, 1]], [[0, 1, 2], [0, 1, 2]])
    """
    if orientation in (IN_OUT, EMBEDDING):
        return torch.arange(shape[-1]).expand(*shape)
    outputs = shape[:-1] if orientation == RAW else shape[:1]
    rows = torch.arange(math.prod(outputs)).reshape(*outputs, *[1] * (len(shape) - len(outputs)))
    return rows.expand(*shape)


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Map each parameter's clean name to the module that holds it first."""
    owners: dict[str, nn.Module] = {}
    for prefix, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            owners.setdefault(clean_name(f"{prefix}.{leaf}" if prefix else leaf), module)
    return owners


def _orientation(name: str, owners: Mapping[str, nn.Module]) -> str:
    module = owners[name]
    if name.rpartition(".")[2] != "weight":
        return RAW
    if isinstance(module, nn.Linear):
        return OUT_IN
    if _is_conv1d(module):
        return IN_OUT
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    return CONV if isinstance(module, nn.modules.conv._ConvNd) else RAW


def _is_conv1d(module: nn.Module) -> bool:
    # By name: importing transformers only for its Conv1D would triple the import time.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _embedding_names(model: nn.Module, parameters: Mapping[str, Tensor]) -> set[str]:
    held = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(False)
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        held |= {id(p) for p in head.parameters()}  # a PEFT wrapper holds them one level down
    return {name for name, p in parameters.items() if id(p) in held}


def _wanted(
    model: nn.Module,
    scope: str | Sequence[str],
    owners: Mapping[str, nn.Module],
    matrices: Mapping[str, Tensor],
) -> set[str]:
    embeddings = _embedding_names(model, matrices)
    if scope == "all-matrices":
        return set(matrices)
    if scope == "all-linear":
        linear = {n for n in matrices if _orientation(n, owners) in (OUT_IN, IN_OUT)}
        return linear - embeddings
    if scope == "body":
        return set(matrices) - embeddings
    if scope == "embeddings":
        return embeddings
    return {name for name in matrices if _matches(scope, name.rpartition(".")[0])}


def _matches(pattern: str | Sequence[str], module_name: str) -> bool:
    if isinstance(pattern, str):
        try:
            return re.fullmatch(pattern, module_name) is not None
        except re.error as error:
            raise ScopeError(f"{pattern!r} is not a regular expression: {error}.") from error
    return any(module_name == end or module_name.endswith(f".{end}") for end in pattern)
