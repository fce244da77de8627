"""What takes the place of Linear, Conv1D and Embedding modules in an exported model.

The weight is no parameter: nothing trains it, moves it or casts it. A state dict has it dense,
under the name, shape and dtype that it had, so that saving writes an ordinary checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from hf_connectome.errors import UnsupportedError
from hf_connectome.export.csr import product, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """The survivors of one parameter; modules that are tied hold the same object."""

    matrix: Tensor
    """``(out, in)``, CSR or 2:4; of an embedding a row a token."""
    dtype: torch.dtype
    """Of the parameter; CSR holds half precision as float32."""
    transposed: bool
    """Whether the parameter is stored ``(in, out)``."""

    def __deepcopy__(self, _: dict[int, Any]) -> SparseWeight:
        return self  # nothing changes it, and torch cannot copy CSR

    def dense(self) -> Tensor:
        """Return the parameter as it was."""
        dense = self.matrix.to_dense().to(self.dtype)
        return dense.T.contiguous() if self.transposed else dense


class SparseLayer(nn.Module):
    """A module whose weight holds the survivors only."""

    bias: nn.Parameter | None

    def __init__(self, weight: SparseWeight, bias: nn.Parameter | None = None) -> None:
        """Hold the weight; the bias stays the parameter that it was."""
        super().__init__()
        self.sparse = weight
        self.register_parameter("bias", bias)
        super().train(False)

    @property
    def weight(self) -> Tensor:
        """The survivors, ``(out, in)``; for code that asks a weight for its dtype or device."""
        return self.sparse.matrix

    def train(self, mode: bool = True) -> SparseLayer:
        """Refuse to be trained.

        Raises:
            UnsupportedError: ``mode`` is True.
        """
        if mode:
            raise UnsupportedError(
                "an exported model cannot be trained: its survivors take no gradient. Call eval() "
                "on it, and train the model that it was exported from."
            )
        super().train(False)
        return self

    def extra_repr(self) -> str:
        """Say how large the matrix is and how it is held."""
        size = " x ".join(map(str, self.sparse.matrix.shape))
        return f"{size}, {type(self.sparse.matrix).__name__} {self.sparse.matrix.layout}"

    def _refuse_gradient(self, inputs: Tensor) -> None:
        if inputs.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(
                "an exported layer was asked for a gradient, which it does not give. Run the model "
                "under torch.no_grad(), or train the model that it was exported from."
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseLayer:
        was = torch.empty(0, dtype=self.sparse.dtype, device=self.sparse.matrix.device)
        asked = fn(was)
        if (asked.device, asked.dtype) != (was.device, was.dtype):
            raise UnsupportedError(
                f"an exported layer, {was.dtype} on {was.device}, was asked to become "
                f"{asked.dtype} on {asked.device}, where another form may be the fast one. Load "
                "the model anew, convert it, then export it."
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.sparse.dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any) -> None:
        del state_dict
        raise UnsupportedError(
            f"{prefix}weight is exported, and no weights can be loaded into it. Load them into a "
            "model of transformers, then export that."
        )


class CsrLinear(SparseLayer):
    """Linear or Conv1D on the CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply; in float32 where the model is in half precision."""
        self._refuse_gradient(inputs)
        matrix = self.sparse.matrix
        flat = inputs.reshape(-1, matrix.shape[1]).to(matrix.dtype)
        result = product(matrix, flat)
        if self.bias is not None:
            result = result + self.bias
        return result.to(inputs.dtype).reshape(*inputs.shape[:-1], -1)


class CsrEmbedding(SparseLayer):
    """Embedding on the CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Look rows up."""
        found = rows(self.sparse.matrix, inputs.flatten()).to(self.sparse.dtype)
        return found.reshape(*inputs.shape, -1)


class SemiStructuredLinear(SparseLayer):
    """Linear or Conv1D on CUDA, 2 of every 4 inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by torch's 2:4 kernels."""
        self._refuse_gradient(inputs)
        return functional.linear(inputs, self.sparse.matrix, self.bias)
