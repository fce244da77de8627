"""Products with a matrix of survivors on the CPU, each by the kernel that is fastest there.

Which one is fastest depends on the number of tokens alone (docs/EXPORT.md).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

MOST_FOR_MKL = 16
"""Tokens up to which MKL's sparse product wins; from there on the gather of embedding_bag does."""
TILE = 32
"""Tokens a gather takes at once: their inputs stay in the cache between two rows."""


def to_csr(matrix: Tensor) -> Tensor:
    """Return a matrix as CSR with 32-bit indices, which MKL takes without a copy a call.

    Args:
        matrix: ``(out, in)``, dense. Half precision becomes float32, which MKL needs.
    """
    with warnings.catch_warnings():  # once a process: that CSR is in beta, that nothing is checked
        warnings.filterwarnings("ignore", "Sparse (CSR tensor|invariant checks)", UserWarning)
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).to_sparse_csr()
        return torch.sparse_csr_tensor(
            wide.crow_indices().int(), wide.col_indices().int(), wide.values(), wide.shape
        )


def num_bytes(weight: Tensor) -> int:
    """Return what a matrix of :func:`to_csr` takes: values, columns and starts of rows."""
    return sum(t.nbytes for t in (weight.values(), weight.col_indices(), weight.crow_indices()))


def product(weight: Tensor, tokens: Tensor) -> Tensor:
    """Multiply every token by the matrix.

    Args:
        weight: ``(out, in)``, of :func:`to_csr`.
        tokens: ``(tokens, in)``, of the same dtype.

    Returns:
        ``(tokens, out)``.

    Example:
        >>> product(to_csr(torch.tensor([[0.0, 2.0], [0.0, 0.0]])), torch.tensor([[1.0, 3.0]]))
        tensor([[6., 0.]])
    """
    parts = [_of_a_tile(weight, tile) for tile in tokens.split(TILE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _of_a_tile(weight: Tensor, tokens: Tensor) -> Tensor:
    if len(tokens) == 1:
        return torch.mv(weight, tokens[0])[None]
    if len(tokens) <= MOST_FOR_MKL:
        return (weight @ tokens.T).T
    # Each output is a bag of the inputs that its survivors lead from, weighted by them.
    return functional.embedding_bag(
        weight.col_indices(),
        tokens.T.contiguous(),
        weight.crow_indices(),
        mode="sum",
        per_sample_weights=weight.values(),
        include_last_offset=True,
    ).T


def rows(weight: Tensor, numbers: Tensor) -> Tensor:
    """Return rows of the matrix, dense.

    Args:
        weight: ``(rows, columns)``, of :func:`to_csr`.
        numbers: ``(n,)`` int64.

    Returns:
        ``(n, columns)``.

    Example:
        >>> rows(to_csr(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), torch.tensor([1, 0, 1]))
        tensor([[1., 0.],
                [0., 2.],
                [1., 0.]])
    """
    starts = weight.crow_indices()
    begin = starts[numbers]
    counts = starts[numbers + 1] - begin
    owner = torch.arange(len(numbers)).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    places = torch.arange(len(owner)) + (begin - before).repeat_interleave(counts)
    found = weight.values().new_zeros(len(numbers), weight.shape[1])
    found[owner, weight.col_indices()[places]] = weight.values()[places]
    return found
