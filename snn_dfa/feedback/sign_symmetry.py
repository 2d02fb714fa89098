"""The signs of the weights as feedback, with one magnitude for all."""

from __future__ import annotations

import math

from torch import Tensor

from snn_dfa.feedback.transpose import Transpose

__all__ = ["SignSymmetry"]


class SignSymmetry(Transpose):
    """Signs of the product of the forward weights after a layer, each of size scale / sqrt(N).

    With ``rule="fa"`` the product is the layer's own weight: sign symmetry as in the literature. A
    zero weight has a zero. Nothing is stored.

    Source: Liao, Leibo and Poggio 2016, arXiv 1510.05067, "uniform sign-concordant feedbacks".
    """

    def matrix(self, name: str, like: Tensor) -> Tensor:
        r"""Return the signs [C, \*S], scaled, in the dtype and on the device of ``like``."""
        neurons = math.prod(self.path[name][1:])
        return super().matrix(name, like).sign() * (self.scale / math.sqrt(neurons))
