"""Feedback types that learn: their options, their optimiser and their base class."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from snn_dfa._distributed import mean_over_ranks
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward
from snn_dfa.feedback.draw import gaussian, generator_for

__all__ = ["FeedbackOptimizer", "Learned", "LearningOptions"]


@dataclass(frozen=True)
class LearningOptions:
    """The options of every feedback type that learns.

    Args:
        lr: Learning rate of AdamW.
        weight_decay: Of AdamW.
        initial: Factor on the standard deviation of the first matrices.

    Raises:
        FeedbackError: if a number is out of its range.

    Example:
        >>> LearningOptions(lr=1e-2)
        LearningOptions(lr=0.01, weight_decay=0.0, initial=1.0)
    """

    lr: float = 3e-3
    weight_decay: float = 0.0
    initial: float = 1.0

    @property
    def over_ranks(self) -> bool:
        """Whether gradients are averaged over processes."""
        return False

    def __post_init__(self) -> None:
        name_of_class = type(self).__name__
        if not self.lr > 0:
            raise FeedbackError(f"{name_of_class}: lr: expected a number above zero, got {self.lr}")
        for name in ("weight_decay", "initial"):
            if not getattr(self, name) >= 0:
                raise FeedbackError(
                    f"{name_of_class}: {name}: expected zero or more, got {getattr(self, name)}"
                )


class FeedbackOptimizer:
    """AdamW for feedback matrices: it accumulates gradients, and :meth:`step` updates all matrices.

    Args:
        options: Rate and decay; ``lr`` may be set later.

    Example:
        >>> matrices = {"lif1": torch.zeros(2, 3)}
        >>> optimizer = FeedbackOptimizer(LearningOptions(lr=0.1))
        >>> optimizer.accumulate("lif1", torch.ones(2, 3))
        >>> optimizer.step(matrices)
        ['lif1']
        >>> matrices["lif1"][0]
        tensor([-0.1000, -0.1000, -0.1000])
    """

    def __init__(self, options: LearningOptions) -> None:
        self.options = options
        self.lr = options.lr
        self.over_ranks = options.over_ranks
        self._pending: dict[str, Tensor] = {}
        self._optimizers: dict[str, torch.optim.AdamW] = {}

    def accumulate(self, name: str, gradient: Tensor) -> None:
        """Add to the gradient of a matrix."""
        known = self._pending.get(name)
        self._pending[name] = gradient if known is None else known + gradient

    def step(self, matrices: dict[str, Tensor]) -> list[str]:
        """Update the matrices by their gradients; return the names of the updated ones.

        A gradient that is not finite is dropped, as the ``GradScaler`` of mixed precision drops
        the step of the weights.

        Args:
            matrices: By name. A matrix is moved to the device of its gradient, and stays there.
        """
        changed = []
        for name, own in self._pending.items():
            gradient = mean_over_ranks(own) if self.over_ranks else own
            if bool(gradient.isfinite().all()):
                matrices[name] = matrix = matrices[name].to(gradient.device)
                matrix.grad = gradient.to(matrix.dtype)
                optimizer = self._optimizer(name, matrix)
                optimizer.param_groups[0]["lr"] = self.lr
                optimizer.step()
                matrix.grad = None
                changed.append(name)
        self._pending.clear()
        return changed

    def _optimizer(self, name: str, matrix: Tensor) -> torch.optim.AdamW:
        known = self._optimizers.get(name)
        if known is not None and known.param_groups[0]["params"][0] is matrix:
            return known
        options = self.options
        fresh = torch.optim.AdamW([matrix], lr=options.lr, weight_decay=options.weight_decay)
        if known is not None:  # the matrix has moved to another device, or was loaded
            fresh.load_state_dict(known.state_dict())
        self._optimizers[name] = fresh
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """Return options, moments and accumulated gradients, as tensors and plain values."""
        return {
            "options": asdict(self.options),
            "lr": self.lr,
            "pending": {name: gradient.clone() for name, gradient in self._pending.items()},
            "optimizers": {n: deepcopy(o.state_dict()) for n, o in self._optimizers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], matrices: dict[str, Tensor]) -> None:
        """Restore a state of :meth:`state_dict`, for these matrices."""
        self.options = type(self.options)(**state["options"])
        self.lr, self.over_ranks = state["lr"], self.options.over_ranks
        self._pending = {name: gradient.clone() for name, gradient in state["pending"].items()}
        self._optimizers = {}
        for name, saved in state["optimizers"].items():
            self._optimizer(name, matrices[name]).load_state_dict(deepcopy(saved))


class Learned(FeedbackWeights):
    """The base class of feedback types that learn.

    A subclass names its :attr:`options`, and says which gradients the matrices follow.
    """

    options: ClassVar[type[LearningOptions]] = LearningOptions

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward)
        self.feedback_optimizer = FeedbackOptimizer(given or self.options())

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a Gaussian matrix, scaled by the option ``initial``."""
        factor = self.scale * self.feedback_optimizer.options.initial
        return factor * gaussian(shape, generator_for(self.seed, name, shape))

    def accumulate_gradient(self, name: str, gradient: Tensor) -> None:
        """Add to the gradient of a matrix."""
        self.feedback_optimizer.accumulate(name, gradient)

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Take one step of AdamW with the accumulated gradients."""
        if self.feedback_optimizer.step(self.matrices):
            self._cache.clear()

    def follow(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        """Follow an optimiser of the weights, as long as it is alive; :meth:`learn` is its step.

        Args:
            optimizer: Of the weights.
            parameters: Those of the network.

        Raises:
            FeedbackError: if it is no optimiser, or maximises.
        """
        self._check_optimizer(optimizer, parameters)
        self.optimizer = weakref.ref(optimizer)

    def _check_optimizer(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise FeedbackError(
                f"follow: expected a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise FeedbackError(
                "follow: expected an optimiser that minimises, as feedback that learns does, got "
                "one with maximize=True; negate the loss"
            )

    def measure_like(self, original: FeedbackWeights) -> None:
        """Take no step if the original waits for its optimiser; average over no processes."""
        self.feedback_optimizer.over_ranks = False
        if original.has_optimizer:
            self.optimizer = lambda: original

    def state_dict(self) -> dict[str, Any]:
        """Return matrices, options, moments and accumulated gradients."""
        return {**super().state_dict(), "learner": self.feedback_optimizer.state_dict()}

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self.feedback_optimizer.load_state_dict(state["learner"], self.matrices)
