"""First weights and feedback of Zhang et al. 2024, arXiv 2409.07776."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.feedback.draw import generator_for

__all__ = ["Zhang", "zhang_feedback", "zhang_weights"]


def zhang_weights(
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    *,
    alpha: float = 0.066,
    mean_rate: float = 8.0,
    second_moment: float = 164.0,
) -> Tensor:
    r"""Draw uniform weights whose mean and variance keep the activity of layers alike.

    Mean :math:`(\bar v - 0.8) / (\alpha N \bar v)`, and the variance follows from A.8.

    Args:
        shape: [N out, N in], or of a kernel [channels out, channels in, height, width]; N is the
            number of inputs of a neuron.
        generator: Where the numbers come from; ``None`` for torch's own.
        alpha: Slope of the neurons' response.
        mean_rate: Mean of their activity, v bar.
        second_moment: Mean of its square.

    Returns:
        Weights of this shape, float32.

    Source: Zhang et al. 2024, eqs. A.6 to A.8.

    Example:
        >>> zhang_weights((1000, 784)).mean().round(decimals=2)
        tensor(0.0200)
    """
    inputs = math.prod(shape[1:])
    gain = alpha * inputs * mean_rate
    mean = (mean_rate - 0.8) / gain
    square = (
        second_moment
        + (alpha * mean_rate * mean) ** 2 * (inputs - inputs**2)
        - 1.6 * gain * mean
        - 0.64
    ) / (alpha**2 * inputs * second_moment)
    spread = math.sqrt(square - mean**2)
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")
    return mean + 2 * math.sqrt(3) * spread * (uniform - 0.5)


def zhang_feedback(
    sizes: Sequence[int], generator: torch.Generator | None = None, *, gamma: float = 0.0338
) -> Tensor:
    r"""Draw B for a layer as gamma times a product of random matrices like the layers after it.

    Args:
        sizes: Neurons of the layer and of each layer after it up to the outputs, such as
            ``(250, 100, 10)``.
        generator: Where the numbers come from; ``None`` for torch's own.
        gamma: Factor on the product.

    Returns:
        [C, N], N the first and C the last of ``sizes``, float32.

    Source: Zhang et al. 2024, eq. A.5.

    Example:
        >>> zhang_feedback((250, 100, 10)).shape
        torch.Size([10, 250])
    """
    if len(sizes) == 1:  # the layer is the output
        return gamma * torch.eye(sizes[0], dtype=torch.float32, device="cpu")
    first, *others = ((n_out, n_in) for n_in, n_out in itertools.pairwise(sizes))
    matrix = zhang_weights(first, generator)
    for shape in others:
        matrix = zhang_weights(shape, generator) @ matrix
    return gamma * matrix


class Zhang(FeedbackWeights):
    """Fixed products of random matrices: see :func:`zhang_feedback`. For dense layers."""

    for_weights = False

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a matrix [C, N] of the sizes of this layer and of the layers after it.

        Raises:
            FeedbackError: if one of these layers is not dense.
        """
        generator = generator_for(self.seed, name, shape)
        return self.scale * zhang_feedback(self._sizes_from(name), generator)

    def stored(self, name: str, shape: tuple[int, ...]) -> int:
        """Return the numbers of the largest matrix in the product."""
        sizes = self._sizes_from(name)
        between = (n_in * n_out for n_in, n_out in itertools.pairwise(sizes))
        return max(sizes[0] * sizes[-1], *between)

    def _sizes_from(self, name: str) -> list[int]:
        """Return the sizes of this layer, of the layers after it and of the output."""
        after = list(self.path)[list(self.path).index(name) :]
        if any(len(self.path[n]) > 2 for n in after):
            raise FeedbackError(
                f"feedback: 'zhang' is for dense layers, got spikes of shape "
                f"{list(self.path[name][1:])} in or after layer {name!r}; use 'gaussian'"
            )
        return [*(self.path[n][1] for n in after), self.path[name][0]]
