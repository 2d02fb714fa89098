"""Fixed matrices that a user's function draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward
from snn_dfa.feedback.draw import generator_for

__all__ = ["Function"]


class Function(FeedbackWeights):
    """A matrix that a function of shape and generator draws once for each layer.

    A state holds what was drawn, but not the function.
    """

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward)
        self._function = given

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        r"""Return the function's matrix [C, \*S]; the function runs with the CPU as default."""
        with torch.device("cpu"):
            matrix = self._function(shape, generator_for(self.seed, name, shape))
        if not isinstance(matrix, Tensor):
            raise FeedbackError(
                f"feedback: expected a function that returns a tensor of shape {list(shape)}, got "
                f"a {type(matrix).__name__} for layer {name!r}"
            )
        return self.scale * matrix.detach()

    def stored(self, name: str, shape: tuple[int, ...]) -> int:
        """Return 0: the size is the user's choice."""
        return 0

    @property
    def argument(self) -> Any:
        """The function."""
        return self._function

    @classmethod
    def _given(cls, current: FeedbackWeights) -> Any:
        if not isinstance(current, Function):
            raise FeedbackError(
                "state_dict: expected feedback that is not drawn by a function, which cannot be "
                "saved; give the function to DFA(feedback=)"
            )
        return current._function
