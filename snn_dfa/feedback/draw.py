r"""Drawing feedback matrices: pure functions of a shape and a generator.

A feedback matrix B has the shape [C, \*S]: C outputs, S the shape of one sample's spikes in the
layer. Drawn matrices keep the norm of the error on average, whatever the layer's size. They are
float32 on the CPU, whatever torch's default dtype and device are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "KINDS",
    "Draw",
    "channelwise",
    "gaussian",
    "generator_for",
    "low_rank",
    "orthogonal",
    "sparse",
    "uniform",
]

#: From a shape [C, ...] and a generator to a matrix of that shape, float32, on the CPU.
Draw: TypeAlias = Callable[[tuple[int, ...], torch.Generator], Tensor]


def generator_for(seed: int, name: str, shape: tuple[int, ...]) -> torch.Generator:
    """Return a generator that depends on these three arguments and on no global state.

    Therefore each process of a distributed run draws the same matrices, and a new layer changes
    the matrices of no other layer.

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
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _neurons(shape: Sequence[int]) -> int:
    return math.prod(shape[1:])


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def _even(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw entries :math:`\mathcal N(0, 1 / N)`, N neurons in the layer. Memory: C N numbers.

    Args:
        shape: [C, \*S], as for the other functions here.
        generator: Where the numbers come from.

    Returns:
        [C, \*S], float32, on the CPU.

    Example:
        >>> gaussian((10, 400), generator_for(0, "lif1", (10, 400))).norm(dim=1).mean().round()
        tensor(1.)
    """
    return _normal(shape, generator) / math.sqrt(_neurons(shape))


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw entries evenly from an interval around zero of variance 1 / N. Memory: C N numbers.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.

    Returns:
        [C, \*S], float32, on the CPU; so for the other functions here.

    Source: Nøkland 2016, arXiv 1609.01596, draws such matrices.

    Example:
        >>> uniform((10, 3), generator_for(0, "lif1", (10, 3))).abs().max() < 1
        tensor(True)
    """
    edge = math.sqrt(3 / _neurons(shape))
    return edge * (2 * _even(shape, generator) - 1)


def orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw a matrix of orthonormal rows, so that e B has the norm of e. Memory: C N numbers.

    If there are more outputs than neurons, the columns are orthogonal, and e B keeps the norm on
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
    normal = _normal((max(outputs, neurons), min(outputs, neurons)), generator)
    q, r = torch.linalg.qr(normal.double())
    q = (q * r.diagonal().sign()).float()  # without the signs not every rotation is as likely
    if outputs > neurons:
        return (q * math.sqrt(outputs / neurons)).reshape(shape)
    return q.t().reshape(shape)


def sparse(shape: tuple[int, ...], generator: torch.Generator, *, density: float = 0.1) -> Tensor:
    r"""Draw Gaussian entries of variance 1 / (density N) for a share of a matrix, the rest zero.

    For another density, pass ``feedback=functools.partial(sparse, density=0.02)``. The zeros are
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
    kept = _even(shape, generator) < density
    return kept * gaussian(shape, generator) / math.sqrt(density)


def low_rank(
    shape: tuple[int, ...], generator: torch.Generator, *, rank: int | None = None
) -> Tensor:
    r"""Draw P Q of Gaussian factors P [C, r] and Q [r, N], a matrix of rank r and variance 1 / N.

    Hidden layers are then told r combinations of the C errors. The product is stored: C N numbers.
    For another rank, pass ``feedback=functools.partial(low_rank, rank=2)``.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.
        rank: r; ``None`` for half of the outputs, rounded up.

    Raises:
        ValueError: if ``rank`` is below one.

    Source: Hanut and Kadmon 2025, arXiv 2502.20580. There both factors learn; here they are fixed.

    Example:
        >>> B = low_rank((10, 50), generator_for(0, "lif1", (10, 50)), rank=3)
        >>> torch.linalg.matrix_rank(B)
        tensor(3)
    """
    rank = -(-shape[0] // 2) if rank is None else rank
    if rank < 1:
        raise ValueError(f"rank: expected one or more, got {rank}")
    left, right = _normal((shape[0], rank), generator), _normal((rank, *shape[1:]), generator)
    return torch.tensordot(left, right, 1) / math.sqrt(rank * _neurons(shape))


def channelwise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    r"""Draw one Gaussian number for each output and channel, the same at every place of the image.

    With a number for each place, a convolution averages the projected errors over all places. This
    matrix holds C x channels numbers: shape [C, channels, 1, ...]. :func:`project` spreads its
    result over the image. In a dense layer the matrix is that of :func:`gaussian`.

    Args:
        shape: [C, \*S], as for :func:`gaussian`.
        generator: Where the numbers come from.

    Example:
        >>> channelwise((10, 64, 8, 8), generator_for(0, "lif1", (10, 64, 8, 8))).shape
        torch.Size([10, 64, 1, 1])
    """
    small = (*shape[:2], *(1 for _ in shape[2:]))
    return _normal(small, generator) / math.sqrt(_neurons(shape))


#: Name of a feedback type to the function that draws its fixed matrices. A new function in this
#: table is a new feedback type.
KINDS: Mapping[str, Draw] = MappingProxyType(
    {
        "gaussian": gaussian,
        "uniform": uniform,
        "orthogonal": orthogonal,
        "sparse": sparse,
        "low-rank": low_rank,
        "channelwise": channelwise,
    }
)
