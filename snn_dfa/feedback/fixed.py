"""Fixed random matrices, by the name of the function that draws them."""

from __future__ import annotations

import math

from torch import Tensor

from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.feedback.draw import KINDS, generator_for

__all__ = ["Channelwise", "Fixed"]


class Fixed(FeedbackWeights):
    """A matrix that a function of :data:`snn_dfa.feedback.KINDS` draws once for each layer."""

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        r"""Return a matrix [C, \*S] from the function of this name."""
        return self.scale * KINDS[self.type_name](shape, generator_for(self.seed, name, shape))


class Channelwise(Fixed):
    """One number for each output and channel: see :func:`snn_dfa.feedback.channelwise`."""

    for_weights = False

    def stored(self, name: str, shape: tuple[int, ...]) -> int:
        """Return C x channels."""
        return math.prod(shape[:2])
