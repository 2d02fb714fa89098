"""Applying a feedback matrix: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["correlation", "product", "project", "readout"]


def project(error: Tensor, feedback: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    r"""Send an error through a feedback matrix, e B.

    Args:
        error: [..., C], the error at the output.
        feedback: [C, \*S], the layer's matrix.
        dtype: Of the result; ``None`` for that of the product.

    Returns:
        [..., \*S]. It replaces the gradient at the layer's spikes.

    Source: Nøkland 2016, arXiv 1609.01596, eq. 9, with B transposed.

    Example:
        >>> project(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]))
        tensor([[0., 1., 2.]])
    """
    if error.dim() > 2 and error.shape[0] > 1 and error.stride(0) == 0:
        # A loss on spike counts gives the same error at every step: one product serves all steps.
        once = project(error[0], feedback, dtype)
        return once.expand(error.shape[0], *once.shape)
    if feedback.dim() == 2:
        projected = error @ feedback
    else:
        projected = (error @ feedback.flatten(1)).reshape(*error.shape[:-1], *feedback.shape[1:])
    return projected.to(dtype) if dtype is not None else projected


def readout(spikes: Tensor, feedback: Tensor) -> Tensor:
    r"""Read a score for each output off a layer's spikes, s B^T.

    Args:
        spikes: [..., \*S], the layer's spikes.
        feedback: [C, \*S], the layer's matrix; dimensions after the second may be 1.

    Returns:
        [..., C], in the dtype of the matrix.

    Source: Kaiser, Mostafa and Neftci 2020, arXiv 1811.10766, with fixed random readouts.

    Example:
        >>> readout(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[4.]])
    """
    dims = spikes.dim() - feedback.dim() + 1
    rows = feedback.expand(len(feedback), *spikes.shape[dims:]).flatten(1)
    return spikes.flatten(dims).to(feedback.dtype) @ rows.t()


def product(factors: Sequence[Tensor]) -> Tensor:
    """Return the matrix [C, N1] of factors [N2, N1], [N3, N2], ..., [C, Nk].

    The product starts at the last factor, which is cheaper if there are few outputs.

    Args:
        factors: From the first to the last. A factor has as many rows as the next one has columns.

    Returns:
        [C, N1].

    Example:
        >>> product([torch.ones(3, 4), torch.ones(2, 3)])
        tensor([[3., 3., 3., 3.],
                [3., 3., 3., 3.]])
    """
    *before, matrix = factors
    for factor in reversed(before):
        matrix = matrix @ factor
    return matrix


def correlation(signal: Tensor, spikes: Tensor) -> Tensor:
    r"""Sum the outer products of signal and spikes over all leading dimensions.

    Args:
        signal: [..., C], the broadcast signal.
        spikes: [..., \*S], the layer's own spikes.

    Returns:
        [C, \*S], at least in single precision. If the signal is the same at every step (stride
        zero in the first dimension), one product serves all steps.

    Source: Kolen and Pollack 1994, "Backpropagation without weight transport".

    Example:
        >>> correlation(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([[0., 1., 1.],
                [0., 2., 2.]])
    """
    dims, shape = signal.dim() - 1, spikes.shape[signal.dim() - 1 :]
    if dims > 1 and signal.stride(0) == 0:
        signal, spikes, dims = signal[0], spikes.sum(0), dims - 1
    dtype = torch.promote_types(signal.dtype, torch.float32)
    left = signal.reshape(-1, signal.shape[-1]).to(dtype)
    right = spikes.reshape(len(left), -1).to(dtype)
    return (left.t() @ right).reshape(-1, *shape)
