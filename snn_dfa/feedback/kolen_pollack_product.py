"""Kolen and Pollack's rule for each weight: a matrix is a product of factors that learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from snn_dfa._distributed import whole
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward, Shapes
from snn_dfa.feedback.jacobians import in_order, jacobians
from snn_dfa.feedback.learning import Learned, LearningOptions
from snn_dfa.feedback.sample_ways import layer_of
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["KolenPollackProduct", "KolenPollackProductFeedback", "leading"]

#: A warning comes where the weights have changed so often without a step of the factors.
_MISSED = 10


@dataclass(frozen=True)
class KolenPollackProduct(LearningOptions):
    r"""Feedback matrices that are products of factors; one factor for each weight after a layer.

    Each weight W [N_out, N_in] after a hidden layer has a factor V of the same shape. V is drawn at
    random, and never uses W. At each step of the weights' optimiser, AdamW updates V by the
    gradient of W. The B of a layer is the product of the factors after it, V_L ... V_(l+1):
    each layer still gets the error at the output by one matrix. If W and V get the same updates and
    the same decay, V becomes W, and the B of every layer becomes the product of the weights. With
    :class:`KolenPollack` this happens in the last hidden layer alone.

    The first batch shows what lies between two layers. Dense layers, convolutions, pooling,
    normalisation, sums, branches and concatenations may be there: B is the derivative of a linear
    network that has a factor in place of each weight, a mean in place of maximum pooling, and
    nothing in place of what acts on each number alone. For other functions ``DFA`` raises an error.

    Call ``dfa.follow(optimizer)`` before the first backward pass. With ``rule="fa"`` each factor is
    the B of its own layer. V uses the gradient of W as the optimiser had it: averaged over
    processes, clipped and unscaled, if the program does so.

    Args:
        lr: Learning rate of AdamW; use the rate of the weights. If their rate changes, set
            ``dfa.feedback_lr``.
        weight_decay: Of AdamW; use the decay of the weights.
        initial: Factor on the standard deviation of each first V, 1 / sqrt(N_in), beside ``scale``.
            With 1 the first B have the size of ``"gaussian"`` matrices.

    Sources: Kolen and Pollack 1994, "Backpropagation without weight transport"; Akrout et al.
    2019, arXiv 1904.05391: the factors are their reciprocal weights. The product of the factors,
    in place of a chain of errors from layer to layer, is ours.

    Raises:
        FeedbackError: if a number is out of its range.

    Example:
        >>> import snntorch as snn
        >>> from torch import nn
        >>> from snn_dfa import DFA
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 6), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(6, 2),
        ... )
        >>> options = KolenPollackProduct(lr=1e-2, weight_decay=0.1)
        >>> dfa = DFA(net, output="4", feedback=options)
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
        >>> dfa.follow(optimizer)
        >>> net(torch.rand(3, 4)).sum().backward()
        >>> {name: tuple(B.shape) for name, B in dfa.feedback.items()}
        {'1': (2, 8), '3': (2, 6)}
    """


class KolenPollackProductFeedback(Learned):
    """Matrices that are products of factors, one factor for each weight after a layer.

    :attr:`matrices` holds the factors by layer with weights.
    """

    options: ClassVar[type[LearningOptions]] = KolenPollackProduct
    by_weight = True

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward, given)
        self._inflows: Mapping[str, Inflow] | None = {}
        self._direct: tuple[str, ...] = ()  # hidden layers with a matrix of their own
        self._made_for: list[Any] = []
        self._order: list[str] = []  # hidden layers in the order in which values flow
        # Layers that have had a matrix of their own, which rests while a way is known.
        self._own: dict[str, None] = {}
        # Of the weights, and how often they have changed in a row without a step of these factors.
        self._versions: list[int] = []
        self._missed = 0

    def _require(self, shapes: Shapes) -> None:
        self._note_unknown(self.forward.unknown())
        self._see_that_it_learns()
        inflows = self.forward.inflows()
        made = [] if inflows is None else list(map(id, inflows.values()))
        wanted = [list(self.shapes.items()), list(self.path.items()), made]
        if wanted == self._made_for:
            self.path = {layer: self.path[layer] for layer in self._order}
            return
        self._order = in_order(list(self.path), inflows or {})
        self.path = {layer: self.path[layer] for layer in self._order}
        if inflows is None:
            layers = list(self.shapes)
        else:
            inflows = leading(inflows, (*self.forward.outputs, *self._direct))
            layers = list(dict.fromkeys(w for each in inflows.values() for w in each.weights))
        for layer in layers:
            known = self.matrices.get(layer)
            weight = self._weight(layer, None if known is None else known.shape)
            if known is None:
                self._check_memory(layer, tuple(weight.shape))
                self.matrices[layer] = self.draw(layer, tuple(weight.shape))
        self._inflows, self._made_for = inflows, wanted
        self._cache.clear()

    def _note_unknown(self, unknown: Mapping[str, tuple[str, list[str]]]) -> None:
        """Take note of layers into which no linear function leads.

        Raises:
            FeedbackError: if there are any.
        """
        for layer, (why, _) in unknown.items():
            raise FeedbackError(
                f"feedback: a product of factors needs linear functions between the layers, and "
                f"the input of layer {layer!r} passes {why!r}; use feedback='weight-mirror', which "
                f"gives the layers before it a matrix of their own"
            )

    def _weight(self, layer: str, shape: torch.Size | None) -> Tensor:
        """Return the weight that a factor follows; check the shape of the factor, if it is drawn.

        Raises:
            FeedbackError: if the weight is no parameter, or has another shape.
        """
        weight = self.forward.weight(layer)
        self._see_that_it_fits(layer, weight, shape)
        return weight

    def _see_that_it_fits(self, layer: str, weight: Tensor, shape: torch.Size | None) -> None:
        if not isinstance(weight, Parameter):
            raise FeedbackError(
                f"feedback: {self.type_name!r} follows weights that are parameters, but the weight "
                f"of layer {layer!r} is computed from other parameters; use 'weight-mirror'"
            )
        if shape is not None and not is_lazy(weight) and weight.shape != shape:
            raise FeedbackError(
                f"feedback: expected a factor of shape {list(weight.shape)}, that of the weight of "
                f"layer {layer!r}, got {list(shape)}. Does the layer have another weight than at "
                f"DFA(net)? Then call dfa.remove(), and DFA(net) again"
            )

    def known(self) -> list[str]:
        """Return the names of the hidden layers whose factors are drawn."""
        return list(self.shapes) if self._made_for else []

    def _make(self, name: str, device: torch.device) -> Tensor:
        factors = self._factors(device)
        if self._inflows is None:
            return factors[name]
        found = dict[str, Tensor]()
        for value, matrix in self._through(jacobians, factors).items():
            layer = layer_of(value)  # all that it hands out as one
            found[layer] = found[layer] + matrix if layer in found else matrix
        self._cache.update(found)
        return found[name]

    def _through(
        self, sent: Callable[..., dict[str, Tensor]], factors: Mapping[str, Tensor], *args: Any
    ) -> dict[str, Tensor]:
        """Return what goes back through the linear network, by one of its functions."""
        outputs = {name: self.forward.sizes.get(name) for name in self.forward.outputs}
        try:
            return sent(self._inflows, outputs, self.path, factors, self._direct, *args)
        except RuntimeError as error:  # of shapes
            raise FeedbackError(
                f"feedback: the layers of {list(self.path)} change shapes in a way that no linear "
                f"network of factors follows ({error}); use feedback='kolen-pollack'"
            ) from error

    def _factors(self, device: torch.device) -> dict[str, Tensor]:
        """Return the factor of each weight, of the weight's shape."""
        # Factors that have not learnt yet may lie on another device.
        return {layer: factor.to(device) for layer, factor in self.matrices.items()}

    def notify(self, name: str, error: Tensor) -> None:
        """Show the observer an error that a layer is about to get.

        Raises:
            FeedbackError: if no optimiser is followed.
        """
        if not self.has_optimizer:
            raise FeedbackError(
                f"feedback: {self.type_name!r} learns at the steps of the weights' optimiser, but "
                f"follows no optimiser: none was given, or the program keeps no reference to it, "
                f"or this is a copy; keep the optimiser in a variable and call "
                f"dfa.follow(optimizer) before a backward pass, or use 'kolen-pollack'"
            )
        super().notify(name, error)

    def _see_that_it_learns(self) -> None:
        """Warn where weights change, and the optimiser that is followed takes no step.

        Raises:
            FeedbackError: if a factor can follow its weight no longer.
        """
        factors = {name: each for name, each in self.matrices.items() if name not in self._own}
        weights = [self._weight(name, each.shape) for name, each in factors.items()]
        versions = [w._version for w in weights if isinstance(w, Parameter)]
        changed = bool(self._versions) and versions != self._versions
        self._missed, self._versions = self._missed + changed, versions
        if changed and self._missed == _MISSED:
            warnings.warn(
                f"feedback: the weights have changed {_MISSED} times, and the optimiser that was "
                f"given to DFA has taken no step in between, so that the feedback does not learn; "
                f"call dfa.follow(optimizer) with the optimiser whose step() changes the weights",
                stacklevel=2,
            )

    def _check_optimizer(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        super()._check_optimizer(optimizer, parameters)
        its = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if its.isdisjoint(map(id, parameters)):
            raise FeedbackError(
                "follow: expected an optimiser of the network's parameters, got one that has none "
                "of them; give the one whose step() changes the weights"
            )

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Take one step of AdamW with the gradients of the weights that were stepped."""
        changed, found = {id(parameter) for parameter in stepped}, {}
        for layer, factor in self.matrices.items():
            weight = self._weight(layer, factor.shape)
            if weight.grad is not None and id(weight) in changed:
                found[layer] = weight, whole(weight.grad)
        self._step(found)
        self._missed, self._versions = 0, []

    def measure_like(self, original: FeedbackWeights) -> None:
        """Need no optimiser: it would only take a step after the pass."""
        super().measure_like(original)
        self.optimizer = lambda: original

    def _check_saved(self, name: str, matrix: Tensor, current: FeedbackWeights) -> None:
        self._weight(name, matrix.shape)


def leading(inflows: Mapping[str, Inflow], ends: Iterable[str]) -> dict[str, Inflow]:
    """Return the inflows on the ways to some layers, from the first on."""
    todo, leading = list(ends), set[str]()
    while todo:
        layer = todo.pop()
        if layer in inflows and layer not in leading:
            leading.add(layer)
            todo += inflows[layer].sources
    return {layer: each for layer, each in inflows.items() if layer in leading}
