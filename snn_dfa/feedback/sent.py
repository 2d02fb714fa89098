"""What a value of a layer is sent, in parts that are the same at all steps, and the rest."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Sent"]


class Sent(NamedTuple):
    r"""What a layer's value is sent by :meth:`FeedbackWeights.send`.

    Args:
        mean: [B, \*S], for the mean error of each sample.
        matrix: [C, \*S], for the differences from it: B of the mean ways.
        rest: [T * B, \*S], the differences times that matrix, which was not made: so where they are
            fewer than outputs.
        course: What the mean error is multiplied by at each step, [T]; ``None`` for 1.
    """

    mean: Tensor
    matrix: Tensor | None
    rest: Tensor | None
    course: Tensor | None

    def in_steps(self, steps: int, rest: Tensor | None) -> Tensor:
        """Return what it is at each step, [T, B, *S].

        Args:
            steps: T.
            rest: Differences [T * B, C] of which the matrix is.
        """
        sent = self.mean.expand(steps, *self.mean.shape)
        if self.course is not None:
            sent = sent * self.course.to(sent.dtype).view(-1, *(1,) * self.mean.dim())
        more = self.rest
        if more is None and self.matrix is not None and rest is not None:
            more = rest.to(self.matrix.dtype) @ self.matrix.flatten(1)
        return sent if more is None else sent + more.reshape(sent.shape)
