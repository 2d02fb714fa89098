"""The weights themselves as feedback, to compare with."""

from __future__ import annotations

from torch import Tensor

from snn_dfa.feedback.base import FeedbackWeights, Shapes

__all__ = ["Transpose"]


class Transpose(FeedbackWeights):
    """The product of the forward weights after a layer, as they are at each moment.

    Nothing is stored.
    """

    def _require(self, shapes: Shapes) -> None:
        pass

    def known(self) -> list[str]:
        """Return the names of all layers that get an error."""
        return list(self.shapes)

    def matrix(self, name: str, like: Tensor) -> Tensor:
        """Return :meth:`target_weights` in the dtype and on the device of ``like``."""
        return self.target_weights(name).to(like.device, like.dtype)
