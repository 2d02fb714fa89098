"""Fixed matrices that the user gives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward, check_tensor

__all__ = ["Given"]


class Given(FeedbackWeights):
    """Matrices from a mapping of layer name to tensor, copied, and not scaled.

    Raises:
        FeedbackError: if the mapping holds anything else than tensors of floating point numbers.
    """

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward)
        for name, matrix in (given or {}).items():
            check_tensor(name, matrix)
            self.matrices[name] = matrix.detach().clone()

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Raise an error: the mapping has no matrix for the layer."""
        raise FeedbackError(
            f"feedback: no matrix for hidden layer {name!r}; expected a tensor of shape "
            f"{list(shape)}, got matrices for {sorted(self.matrices)}"
        )

    def stored(self, name: str, shape: tuple[int, ...]) -> int:
        """Return 0: the size is the user's choice."""
        return 0

    @property
    def argument(self) -> Any:
        """No matrix: the state has them."""
        return {}
