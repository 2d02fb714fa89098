"""Feedback types that learn: their options, their optimiser and their base class."""

from __future__ import annotations

import inspect
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import copy, deepcopy
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from snn_dfa._distributed import mean_over_ranks
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward
from snn_dfa.feedback.draw import gaussian, generator_for

__all__ = ["FeedbackOptimizer", "Learned", "LearningOptions", "Twin"]


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
        for name, gradient in self.take().items():
            matrices[name] = matrix = matrices[name].to(gradient.device)
            matrix.grad = gradient.to(matrix.dtype)
            optimizer = self._optimizer(name, matrix)
            optimizer.param_groups[0]["lr"] = self.lr
            optimizer.step()
            matrix.grad = None
            changed.append(name)
        return changed

    def take(self) -> dict[str, Tensor]:
        """Return the accumulated gradients that are finite, averaged over processes; forget all."""
        found = {n: mean_over_ranks(g) if self.over_ranks else g for n, g in self._pending.items()}
        self._pending.clear()
        if not found:
            return {}
        finite = [g.isfinite().all() for g in found.values()]
        # One look at all of them: a GPU is waited for once.
        right = torch.stack([each.to(finite[0].device) for each in finite]).tolist()
        return {name: g for (name, g), ok in zip(found.items(), right, strict=True) if ok}

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


class Twin:
    """An optimiser for matrices that is like one of weights: its class, its options, its own state.

    At each step the options (rate, decay, ...) are those that the optimiser of the weights has.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer, matrices = torch.optim.SGD([weight], lr=0.1), {"fc": torch.zeros(2)}
        >>> Twin().step(optimizer, matrices, {"fc": (weight, torch.ones(2))})
        >>> matrices["fc"]
        tensor([-0.1000, -0.1000])
    """

    def __init__(self) -> None:
        self._state: dict[str, dict[str, Any]] = {}
        self._of: str | None = None  # the class whose state it is: another one has other moments

    def step(
        self,
        optimizer: Optimizer,
        matrices: dict[str, Tensor],
        gradients: Mapping[str, tuple[Tensor | None, Tensor]],
    ) -> None:
        """Take a step.

        Args:
            optimizer: Of the weights.
            matrices: By name; they are changed, and moved to the device of their gradient.
            gradients: By name: the weight whose options a matrix has, ``None`` for those of the
                first group, and the gradient.
        """
        groups, of = optimizer.param_groups, type(optimizer).__qualname__
        if of != self._of:
            self._state, self._of = {}, of
        at = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
        twin = _blank(optimizer)
        state = twin.state
        parameters = {}
        for name, (weight, gradient) in gradients.items():
            matrices[name] = matrices[name].to(gradient.device)
            parameters[name] = parameter = torch.nn.Parameter(matrices[name])
            parameter.grad = gradient.to(parameter.dtype)
            twin.param_groups[0 if weight is None else at[id(weight)]]["params"].append(parameter)
            if name in self._state:
                state[parameter] = _moved(self._state[name], parameter.device)
        twin.param_groups = [_in_one_pass(group) for group in twin.param_groups if group["params"]]
        if parameters:
            twin.step()
        self._state.update({n: state[p] for n, p in parameters.items() if p in state})

    def state_dict(self) -> dict[str, Any]:
        """Return the state by name of the matrix, and the class of the optimiser that has it."""
        return {"class": self._of, "state": deepcopy(self._state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`."""
        self._of, self._state = state["class"], deepcopy(state["state"])


def _check_imitable(optimizer: Optimizer) -> None:
    """Raise an error for an optimiser of which a :class:`Twin` cannot take the steps."""
    inner = [name for name, value in vars(optimizer).items() if isinstance(value, Optimizer)]
    if inner:
        raise FeedbackError(
            f"optimizer: expected an optimiser that takes its steps itself, got a "
            f"{type(optimizer).__name__} around another one; give its .{inner[0]}"
        )
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise FeedbackError(
            f"optimizer: expected one whose step() needs no closure, got "
            f"{type(optimizer).__name__}; use torch.optim.AdamW, or feedback=KolenPollackProduct() "
            f"and dfa.follow(optimizer)"
        )


def _in_one_pass(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group whose step is one pass over memory, where PyTorch has one on the processor.

    In float32 the sums differ in the last digits from those of the weights' step; noise mends that.
    """
    kinds = {(p.device.type, p.dtype) for p in group["params"]}
    can = group.get("fused", True) is None and not group.get("differentiable")
    if can and kinds == {("cpu", torch.float32)}:
        return {**group, "fused": True, "foreach": False}
    return group


#: What belongs to one optimiser alone: what wraps its step, and what a gradient scaler gave it.
_ITS_OWN = ("step", "state", "param_groups", "grad_scale", "found_inf")


def _blank(optimizer: Optimizer) -> Any:
    """Return an optimiser of the same class and options without hooks, parameters and state.

    What the program's optimiser counts or keeps itself is copied, so that it stays as it is.
    """
    blank: Any = copy(optimizer)
    for name, value in vars(optimizer).items():
        if name not in _ITS_OWN and not name.startswith("_optimizer_"):
            vars(blank)[name] = _copied(value)
    blank.param_groups = [{**group, "params": []} for group in optimizer.param_groups]
    blank.state = defaultdict(dict)
    return blank


def _copied(value: Any) -> Any:
    """Return a copy of numbers in tensors and containers; parameters and objects are kept."""
    if isinstance(value, Tensor):
        return value if isinstance(value, torch.nn.Parameter) else value.detach().clone()
    if type(value) in (list, tuple, set):
        return type(value)(map(_copied, value))
    return {key: _copied(each) for key, each in value.items()} if type(value) is dict else value


def _try(optimizer: Optimizer) -> None:
    """See that a :class:`Twin` can take the steps of an optimiser, by one for other numbers.

    Raises:
        FeedbackError: if it cannot.
    """
    try:
        blank = _blank(optimizer)
        for group, its in zip(blank.param_groups, optimizer.param_groups, strict=True):
            for like in its["params"][:1]:
                parameter = torch.nn.Parameter(like.new_zeros(2, 2))
                parameter.grad = like.new_ones(2, 2)
                group["params"].append(parameter)
        blank.param_groups = [group for group in blank.param_groups if group["params"]]
        blank.step()
    except Exception as error:
        raise FeedbackError(
            f"optimizer: expected one of which feedback can take steps of its own, with a state "
            f"that is made in step(), got {type(optimizer).__name__} ({error!r}); use "
            f"torch.optim.AdamW, or feedback=KolenPollackProduct() and dfa.follow(optimizer)"
        ) from error


def _moved(state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, Tensor) and value.dim() else value
        for key, value in state.items()
    }


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
        #: An optimiser like that of the weights, if the matrices learn by one.
        self.twin: Twin | None = None
        self._tried: Callable[[], object | None] | None = None  # the optimiser that it can be like

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a Gaussian matrix, scaled by the option ``initial``."""
        factor = self.scale * self.feedback_optimizer.options.initial
        return factor * gaussian(shape, generator_for(self.seed, name, shape))

    def accumulate_gradient(self, name: str, gradient: Tensor) -> None:
        """Add to the gradient of a matrix."""
        self.feedback_optimizer.accumulate(name, gradient)

    def notify(self, name: str, error: Tensor) -> None:
        """Show the observer an error that a layer is about to get.

        Raises:
            FeedbackError: if the matrices cannot take steps as the followed optimiser does.
        """
        optimizer, tried = self.optimizer(), self._tried and self._tried()
        if self.twin is not None and isinstance(optimizer, Optimizer) and optimizer is not tried:
            _try(optimizer)
            self._tried = weakref.ref(optimizer)
        super().notify(name, error)

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Take one step with the accumulated gradients."""
        self._step({})

    def _step(self, gradients: Mapping[str, tuple[Tensor | None, Tensor]]) -> None:
        """Take one step.

        Args:
            gradients: Beside the accumulated ones, by matrix: the weight of which it is the
                gradient, and the gradient.
        """
        optimizer = self.optimizer()
        if self.twin is not None and isinstance(optimizer, Optimizer):
            own = {n: (None, g) for n, g in self.feedback_optimizer.take().items()}
            self.twin.step(optimizer, self.matrices, {**own, **gradients})
            self._cache.clear()
            return
        for name, (_, gradient) in gradients.items():
            self.accumulate_gradient(name, gradient)
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

        if self.twin is not None:
            _check_imitable(optimizer)

    def measure_like(self, original: FeedbackWeights) -> None:
        """Take no step if the original waits for its optimiser; average over no processes."""
        self.feedback_optimizer.over_ranks = False
        if original.has_optimizer:
            self.optimizer = lambda: original

    def state_dict(self) -> dict[str, Any]:
        """Return matrices, options, moments and accumulated gradients."""
        learner = self.feedback_optimizer.state_dict()
        learner["twin"] = None if self.twin is None else self.twin.state_dict()
        return {**super().state_dict(), "learner": learner}

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self.feedback_optimizer.load_state_dict(state["learner"], self.matrices)
        twin = state["learner"].get("twin")
        if twin is not None:
            self.twin = Twin()
            self.twin.load_state_dict(twin)
