r"""The maps from the output error to the hidden layers: how they are drawn and applied.

A feedback matrix B has the shape [C, \*S]: C outputs, S the shape of one sample's spikes in the
layer. Drawn matrices keep the norm of the error on average, whatever the layer's size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from snn_dfa.kolen_pollack import KolenPollack, KolenPollackProduct

__all__ = [
    "KINDS",
    "Draw",
    "Feedback",
    "channelwise",
    "gaussian",
    "generator_for",
    "orthogonal",
    "product",
    "project",
    "sparse",
    "uniform",
]

#: From a shape [C, ...] and a generator to a matrix of that shape, float32, on the CPU.
Draw: TypeAlias = Callable[[tuple[int, ...], torch.Generator], Tensor]
#: A kind's name, a function that draws, options for feedback that learns, or the matrices by
#: layer, which is what ``DFA(feedback=...)`` takes.
Feedback: TypeAlias = str | Draw | KolenPollack | KolenPollackProduct | Mapping[str, Tensor]


def project(error: Tensor, feedback: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    r"""Send an error through a feedback matrix, e B.

    Args:
        error: [..., C], the error at the output.
        feedback: [C, \*S], the layer's matrix.
        dtype: Of the result; ``None`` for that of the product.

    Returns:
        [..., \*S], what takes the place of the gradient at the layer's spikes.

    Source: Nøkland 2016, arXiv 1609.01596, eq. 9, with B transposed.

    Example:
        >>> project(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]))
        tensor([[0., 1., 2.]])
    """
    if error.dim() > 2 and error.shape[0] > 1 and error.stride(0) == 0:
        # The same error at every step, as a loss on spike counts has it: one product for all.
        sent = project(error[0], feedback, dtype)
        return sent.expand(error.shape[0], *sent.shape)
    sent = (error @ feedback.flatten(1)).reshape(*error.shape[:-1], *feedback.shape[1:])
    return sent.to(dtype) if dtype is not None else sent


def product(factors: Sequence[Tensor]) -> Tensor:
    """Return the matrix [C, N1] of factors [N2, N1], [N3, N2], ..., [C, Nk].

    It is made from the last factor on, which is the cheaper side where outputs are few.

    Args:
        factors: From the first to the last, each with the rows of the next one's columns.

    Example:
        >>> product([torch.ones(3, 4), torch.ones(2, 3)])
        tensor([[3., 3., 3., 3.],
                [3., 3., 3., 3.]])
    """
    *before, matrix = factors
    for factor in reversed(before):
        matrix = matrix @ factor
    return matrix


def generator_for(seed: int, name: str, shape: tuple[int, ...]) -> torch.Generator:
    """Return a generator that depends on these three and on no global state.

    So each process of a distributed run draws the same matrices, and a layer that is added changes
    those of no other.

    Args:
        seed: Of all feedback of a network.
        name: The layer's, as in ``net.named_modules()``.
        shape: Of its matrix.

    Returns:
        A generator on the CPU.

    Example:
        >>> a, b = (generator_for(0, "lif1", (10, 5)) for _ in range(2))
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}|{name}|{tuple(shape)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _neurons(shape: Sequence[int]) -> int:
    return math.prod(shape[1:])


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw entries :math:`\mathcal N(0, 1 / N)`, N neurons in the layer. Memory: C N numbers.

    Args:
        shape: [C, \*S], as for the other kinds.
        generator: Where the numbers come from.

    Returns:
        [C, \*S], float32, on the CPU.

    Example:
        >>> gaussian((10, 400), generator_for(0, "lif1", (10, 400))).norm(dim=1).mean().round()
        tensor(1.)
    """
    return torch.randn(shape, generator=generator) / math.sqrt(_neurons(shape))


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw entries evenly from an interval around zero of variance 1 / N. Memory: C N numbers.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.

    Returns:
        [C, \*S], float32, on the CPU; so for the other kinds.

    Source: the kind that Nøkland 2016, arXiv 1609.01596, draws.

    Example:
        >>> uniform((10, 3), generator_for(0, "lif1", (10, 3))).abs().max() < 1
        tensor(True)
    """
    edge = math.sqrt(3 / _neurons(shape))
    return edge * (2 * torch.rand(shape, generator=generator) - 1)


def orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw a matrix of orthonormal rows, so that e B has the norm of e. Memory: C N numbers.

    Where there are more outputs than neurons its columns are orthogonal, and the norm is kept on
    average.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.

    Source: Saxe et al. 2014, arXiv 1312.6120, for first weights.

    Example:
        >>> B = orthogonal((3, 8), generator_for(0, "lif1", (3, 8)))
        >>> torch.allclose(B @ B.t(), torch.eye(3), atol=1e-6)
        True
    """
    outputs, neurons = shape[0], _neurons(shape)
    normal = torch.randn((max(outputs, neurons), min(outputs, neurons)), generator=generator)
    q, r = torch.linalg.qr(normal.double())
    q = (q * r.diagonal().sign()).float()  # without the signs not every rotation is as likely
    if outputs > neurons:
        return (q * math.sqrt(outputs / neurons)).reshape(shape)
    return q.t().reshape(shape)


def sparse(shape: tuple[int, ...], generator: torch.Generator, *, density: float = 0.1) -> Tensor:
    r"""Draw Gaussian entries of which only a share is not zero, their variance 1 / (density N).

    For another density give ``feedback=functools.partial(sparse, density=0.02)``. The zeros are
    stored: C N numbers.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.
        density: Share of entries that are not zero, in (0, 1].

    Raises:
        ValueError: if ``density`` is not in (0, 1].

    Source: Crafton et al. 2019, arXiv 1903.02083.

    Example:
        >>> B = sparse((10, 1000), generator_for(0, "lif1", (10, 1000)), density=0.05)
        >>> (B != 0).float().mean().round(decimals=2)
        tensor(0.0500)
    """
    if not 0 < density <= 1:
        raise ValueError(f"density: expected a share in (0, 1], got {density}")
    kept = torch.rand(shape, generator=generator) < density
    return kept * gaussian(shape, generator) / math.sqrt(density)


def channelwise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw one Gaussian number for an output and a channel, the same at every place of the image.

    A matrix for each place, C x channels x height x width numbers, is averaged out by a kernel that
    all places share. This one holds C x channels numbers: shape [C, channels, 1, ...], and is
    spread over the image where it is applied. In a dense layer it is :func:`gaussian`.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.

    Example:
        >>> channelwise((10, 64, 8, 8), generator_for(0, "lif1", (10, 64, 8, 8))).shape
        torch.Size([10, 64, 1, 1])
    """
    small = (*shape[:2], *(1 for _ in shape[2:]))
    return torch.randn(small, generator=generator) / math.sqrt(_neurons(shape))


#: Name to the function that draws a fixed matrix of this kind.
KINDS: Mapping[str, Draw] = MappingProxyType(
    {
        "gaussian": gaussian,
        "uniform": uniform,
        "orthogonal": orthogonal,
        "sparse": sparse,
        "channelwise": channelwise,
    }
)
