"""The one class that a user needs: direct feedback alignment, attached and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from snn_dfa._attach.assemble import assemble
from snn_dfa._attach.between.cells import cell_weights
from snn_dfa._attach.between.made_matrices import made_for
from snn_dfa._attach.between.paths import Paths
from snn_dfa._attach.credits import feedback_alignment, trace
from snn_dfa._attach.credits.local_gradient import check_choices
from snn_dfa._attach.hooks import after_steps
from snn_dfa._attach.layers import Reference, find_layers
from snn_dfa._attach.weights import matrices, synapses
from snn_dfa.errors import AttachError, FeedbackError
from snn_dfa.feedback import Feedback
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.feedback.learning import FeedbackOptimizer, Twin
from snn_dfa.feedback.make import check_names, learned, load, make, type_of
from snn_dfa.rules import canonical

__all__ = ["DFA"]

_SINGLE = torch.zeros((), dtype=torch.float32, device="cpu")


class DFA:
    r"""Train a snnTorch network by direct feedback alignment (DFA), until ``remove()``.

    Forward values do not change. In ``loss.backward()`` the output block (everything after the
    last hidden spikes) gets its true gradient. Each hidden block (from the values of other layers
    to its own spikes) gets the gradient of its own graph, with e B at its spikes. e = dL/d(output)
    is the loss's own error at that step, and B is the layer's feedback matrix, random and fixed by
    default. No error goes from one layer into another, and autograd computes no product with a
    transposed weight.

    A loss on hidden spikes or membranes trains their layer and no lower layer. If a loss reads a
    hidden layer through weights that are no output, it also trains that layer and no lower one; a
    warning then says how to name the output.

    Args:
        net: Any network of snnTorch neurons; the loop over time may be around it or inside.
        output: Name or module of the output layer; it may be a plain readout such as
            ``nn.Linear``. ``None``: the spiking neuron that is called last. A list names several
            outputs: their errors are set side by side, so that each output has its own rows of B.
            Values of one output that have the same shape, such as spikes and membrane, have one
            error; other values that a readout returns have rows of their own.
        hidden: Names or modules of the hidden layers. ``None``: all other
            ``snntorch.SpikingNeuron``.
        optimizer: The optimiser of the weights. With an optimiser the feedback learns at each of
            its steps, as ``"weight-mirror"`` (:class:`WeightMirror`) unless ``feedback`` names
            another type. Without an optimiser the feedback is random and fixed, as in the
            literature.
        rule: The value that each hidden layer gets. ``"error"`` or ``"dfa"``: e. ``"sign"`` or
            ``"sdfa"``: its sign. ``"target"`` or ``"drtp"``: the targets, given by :meth:`targets`.
            ``"local"`` or ``"decolle"``: the error of the layer's own readout, which predicts the
            targets through the fixed B, and no error from the output
            (:func:`snn_dfa.rules.local`). ``"shallow"`` or ``"last-layer"``: nothing; only the
            output block learns, hidden parameters keep ``grad=None``. ``"fa"`` is feedback
            alignment: errors go from layer to layer as in back-propagation, with a random matrix in
            place of each transposed weight.
        feedback: The matrices B [C, \*S]: C outputs, S the shape of one sample's spikes in the
            layer. ``None``: ``"gaussian"``, or ``"weight-mirror"`` with an ``optimizer``.
            Drawn and fixed: ``"gaussian"``, ``"uniform"``, ``"orthogonal"``, ``"sparse"``,
            ``"low-rank"``, ``"channelwise"`` (see :mod:`snn_dfa.feedback`), ``"zhang"``
            (:func:`snn_dfa.zhang.zhang_feedback`); ``"shared"``: slices of one Gaussian matrix, of
            which only the largest layer's is kept. Your own: a function of shape and generator, or
            a mapping of layer name to tensor. Learned: ``"weight-mirror"``; ``"kolen-pollack"`` or
            a :class:`KolenPollack`; ``"kolen-pollack-product"`` or a :class:`KolenPollackProduct`;
            ``"product-feedback-alignment"`` or a :class:`ProductFeedbackAlignment`. All of these
            need :meth:`follow` or ``optimizer``, and ``error_at="current"``, to become the weights.
            For comparison: ``"transpose"``, the product of the forward weights, and
            ``"sign-symmetry"``, its signs. With ``rule="fa"`` a matrix has the shape of its weight.
        scale: Factor on drawn matrices (of a product, on each factor). Without it their standard
            deviation is 1 / sqrt(N), N neurons in the layer.
        credit: How a layer turns e B at its spikes into a gradient at its input. ``"membrane"``:
            through the neuron's own surrogate and its membrane over time, as autograd does inside
            the layer. ``"current"``: times g at the input current of the same step, also in the
            output; a step keeps only input, current and spikes. ``"trace"`` or ``"online"``: see
            below.
        error_at: Where the error of a spiking output is taken. ``"spikes"``: dL/d(spikes and
            membrane) of the step, from the loss alone. ``"current"``: dL/d(input current) of the
            step, which is the error that the last weights see; only with ``credit="membrane"``.
            ``None``: ``"current"`` with an ``optimizer`` and this credit, else ``"spikes"``. For a
            plain readout both are the same.
        derivative: g for ``credit="current"``, a function of current - threshold; ``None`` for
            the derivative of the neuron's surrogate. An arbitrary g is augmented DFA.
        seed: Of the feedback. A layer's matrix depends on the seed, its name and its shape.

    With ``credit="trace"`` a step keeps one trace for each input of a layer, and nothing else of
    the steps before. Call ``backward()`` after each step on that step's loss, and memory does not
    grow with the number of steps. It works for linear and convolutional layers into ``Leaky``,
    ``Synaptic``, ``RLeaky`` and ``RefractoryLeaky``. In ``Leaky`` and ``Synaptic`` with a reset by
    subtraction or none, and ``reset_delay=True``, only the decay leads from one membrane to the
    next. There the gradient equals that of ``"membrane"`` for the same losses. Elsewhere it is an
    approximation:

    - Other resets (OTTT) and the held membranes of a refractory neuron have no gradient.
    - In ``RLeaky``, or if a layer gets its own spikes, the effect of a spike on the layer's later
      spikes has no gradient (e-prop).
    - A batch normalisation in training counts as if it had been the same at every step, and its
      weight and bias learn from the step alone.
    - An error at a plain readout before a spiking neuron is that of the step.

    A trace goes on if the states that the neuron has left come in again, also detached or cloned.
    Other states without a gradient begin a new sequence; other states with one raise an error.

    Raises:
        AttachError: if the network or an argument cannot be used; the network is then untouched.
        FeedbackError: if ``feedback`` is of a wrong type, or, at the first forward pass, shape.
        BackwardError: in ``loss.backward()``, if the loss reads a value between two layers that the
            network does not return, or a state of the last batch goes on without ``reset``.
        OutOfStepError: in the forward pass, if layers are not called as often as the output.

    Every error is raised before a gradient is written. ``torch.autograd.grad`` and
    ``backward(inputs=...)`` do not go to a hidden layer's own values. If the loss reads such a
    value beside the output, as a penalty on spikes, they raise an error: call ``loss.backward()``.

    Sources: Nøkland 2016, arXiv 1609.01596 (DFA); Frenkel et al. 2021, arXiv 1909.01311 (sDFA,
    DRTP); Kaiser et al. 2020, arXiv 1811.10766 (DECOLLE); Lillicrap et al. 2016, Nat. Commun. 7,
    13276 (FA); Liao et al. 2016, arXiv 1510.05067 (sign symmetry); Ji-An and Benna 2024, arXiv
    2405.20594 (product feedback alignment); Zhang et al. 2024, arXiv 2409.07776,
    and Nakajima et al. 2022, Nat. Commun. 13 (augmented DFA, spiking); Bellec et al. 2020, Nat.
    Commun. 11, 3625 (e-prop); Xiao et al. 2022, arXiv 2210.04195 (OTTT).

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
        ... )
        >>> dfa = DFA(net)
        >>> spk = torch.stack([net(x) for x in torch.rand(5, 3, 4)])  # T=5, B=3
        >>> spk.sum().backward()
        >>> {name: tuple(B.shape) for name, B in dfa.feedback.items()}
        {'1': (2, 8)}
        >>> dfa.remove()
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        output: Reference | Sequence[Reference] | None = None,
        hidden: Reference | Iterable[Reference] | None = None,
        optimizer: Optimizer | None = None,
        rule: str = "error",
        feedback: Feedback | None = None,
        scale: float = 1.0,
        credit: str = "membrane",
        error_at: str | None = None,
        derivative: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        rule, credit = canonical(rule), canonical(credit)
        if feedback is None:
            feedback = "gaussian" if optimizer is None else "weight-mirror"
        if error_at is None:
            learns = optimizer is not None and credit == "membrane"
            error_at = "current" if learns else "spikes"
        check_choices(rule, credit, derivative)
        _check_error_at(error_at, credit)
        layers, modules = find_layers(net, output, hidden)
        weights = feedback_alignment.check(net) if rule == "fa" else {}
        if credit == "trace":
            trace.check(net, modules, layers.outputs, rule)
        if isinstance(feedback, Mapping):
            known = list(weights) or [n for n in layers.names if n not in layers.outputs]
            check_names(feedback, known, "feedback")
        paths = (feedback_alignment.OwnWeights if weights else Paths)(net, layers)
        matrices = make(feedback, scale, seed, paths)
        if weights:
            feedback_alignment.check_feedback(type(matrices), matrices.type_name)
        self._net = net
        self._names = list(weights) or list(modules)
        self._options: dict[str, Any] = {"rule": rule, "credit": credit, "derivative": derivative}
        self._options["error_at"] = error_at
        # What hidden= gave, by name, so that a copy or an unpickled DFA can be attached alike.
        self._named_hidden = layers.hidden if layers.named else None
        self._attached = True
        self._unfollow: Callable[[], None] = lambda: None
        self._core, self._parts = assemble(
            net, layers, modules, matrices, paths, weights,
            rule=rule, credit=credit, derivative=derivative, at_current=error_at == "current",
        )  # fmt: skip
        if optimizer is not None:
            self._follow_exactly(optimizer)

    @property
    def _feedback(self) -> FeedbackWeights:
        return self._core.feedback

    @property
    def net(self) -> nn.Module:
        """The network that this was attached to."""
        return self._net

    @property
    def output(self) -> str | tuple[str, ...] | None:
        """Name of the output layer, or of several; ``None`` until a forward pass has shown it."""
        outputs = self._core.layers.outputs
        return outputs if len(outputs) > 1 else next(iter(outputs), None)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the hidden layers; empty until the output is known."""
        return tuple(self._core.layers.hidden)

    @property
    def feedback(self) -> Mapping[str, Tensor]:
        r"""Layer name to feedback matrix [C, \*S], in the network's dtype and on its device.

        With ``rule="fa"``: name of a layer with weights to a matrix of their shape. Drawn matrices
        and products are missing until a forward pass has shown the layers' shapes.
        """
        tensors = chain(self._net.parameters(), self._net.buffers())
        like = next((t for t in tensors if t.is_floating_point()), _SINGLE)
        names = [n for n in self._names if n in self._feedback.known()]
        return MappingProxyType({name: self._feedback.matrix(name, like) for name in names})

    @property
    def sites(self) -> Mapping[str, tuple[int, ...]]:
        r"""Layer name to the shape [C, \*S] of its feedback, in order of calls; at first empty."""
        return MappingProxyType(self._feedback.shapes)

    @property
    def feedback_lr(self) -> float:
        """Learning rate of feedback that learns; may be set, to follow the weights' schedule.

        Raises:
            FeedbackError: if the feedback is fixed or has the rates of an optimiser, or if the rate
                is below zero.
        """
        return self._own_optimizer().lr

    @feedback_lr.setter
    def feedback_lr(self, lr: float) -> None:
        own = self._own_optimizer()
        if not lr >= 0:
            raise FeedbackError(f"feedback_lr: expected zero or more, got {lr}")
        own.lr = lr

    def _own_optimizer(self) -> FeedbackOptimizer:
        if learned(self._feedback).twin is not None:
            raise FeedbackError(
                "feedback_lr: the feedback has the rates of the optimiser it follows"
            )
        return learned(self._feedback).feedback_optimizer

    def follow(self, optimizer: Optimizer) -> None:
        """Let feedback that learns take a step whenever this optimiser takes one, and only then.

        Without ``follow``, ``"kolen-pollack"`` takes a step at the first forward pass after each
        backward pass. If gradients are accumulated, or ``backward()`` is called after each time
        step, these are more steps than the weights take. The other types that learn need
        ``follow``. ``DFA(net, optimizer=...)`` calls it; only a copy has to call it again. If a
        weight is not among the optimiser's, its factor does not change. A second call of
        ``follow`` replaces the optimiser.

        Raises:
            FeedbackError: if the feedback is fixed, or the optimiser is none that it can follow.
        """
        learned(self._feedback).follow(optimizer, self._net.parameters())
        self._unfollow()
        self._unfollow = after_steps(optimizer, lambda stepped: self._feedback.learn(stepped))

    def _follow_exactly(self, optimizer: Optimizer) -> None:
        """Let feedback learn by an optimiser like this one, at its steps."""
        try:
            feedback = learned(self._feedback)
            feedback.twin = Twin()
            self.follow(optimizer)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove DFA from the network, which is then the plain snnTorch network that it was."""
        for part in self._parts:
            part.remove()
        self._unfollow()
        self._attached = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Back-propagation through time inside the ``with`` block, DFA again after it.

        The forward pass decides: a graph that is built inside the block has the gradients of
        back-propagation, also if ``backward()`` is called after the block.
        """
        before, self._core.active = self._core.active, False
        try:
            yield
        finally:
            self._core.active = before

    @contextmanager
    def targets(self, y: Tensor) -> Iterator[None]:
        """Give ``rule="target"`` or ``"local"`` the targets, for the passes in the block.

        Args:
            y: Class indices [B], or targets [B, C], or targets of each step [T, B, C] if the output
                has time steps.

        Example:
            >>> import snntorch as snn
            >>> net = nn.Sequential(
            ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
            ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
            ... )
            >>> dfa = DFA(net, rule="target")
            >>> y = torch.tensor([0, 1, 1])
            >>> spk = torch.stack([net(x) for x in torch.rand(5, 3, 4)])
            >>> with dfa.targets(y):
            ...     nn.functional.cross_entropy(spk.sum(0), y).backward()
        """
        before, self._core.targets = self._core.targets, y
        try:
            yield
        finally:
            self._core.targets = before

    def __enter__(self) -> DFA:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the feedback, tensors and plain values, to be saved beside the network's state."""
        return self._feedback.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved feedback.

        Raises:
            FeedbackError: if the state is of another network; nothing is changed then.
        """
        fa, feedback = self._options["rule"] == "fa", type_of(state)
        if fa:
            feedback_alignment.check_feedback(feedback, state["kind"])
        own = [n for n in self._names if n not in self._core.layers.outputs]
        known = list(synapses(self._net)) if fa or feedback.by_weight else own
        if feedback.by_weight and not fa:
            saved = state["matrices"]
            others = (*matrices(self._net), *cell_weights(self._net))
            known += [n for n in others if n in saved]
            known += [n for n in saved if made_for(n) in self._names]
        check_names(state["matrices"], known, "state_dict")
        self._core.feedback = load(state, self._feedback)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the network with it, and attach anew to that."""
        options = {**self._options, "output": list(self._core.layers.outputs) or None,
                   "hidden": self._named_hidden, "feedback": self._feedback.argument}  # fmt: skip
        return _rebuild, (self._net, options, self.state_dict(), self._attached)

    def __repr__(self) -> str:
        shown = {k: v for k, v in self._options.items() if v not in (None, "spikes")}
        options = ", ".join(f"{k}={v!r}" for k, v in shown.items())
        state = f"output={self.output!r}, hidden={self.hidden}" if self._attached else "removed"
        own, no_way = self._feedback.with_own_matrix, self._feedback.without_way
        state += f", no_way={no_way}" if no_way else ""
        state += f", own_matrix={own}" if own else ""
        return f"DFA({options}, feedback={self._feedback.type_name!r}, {state})"


def _check_error_at(error_at: str, credit: str) -> None:
    if error_at not in ("spikes", "current"):
        raise AttachError(f"error_at: expected 'spikes' or 'current', got {error_at!r}")
    if error_at == "current" and credit != "membrane":
        raise AttachError(
            f"error_at='current': expected credit='membrane', got {credit!r}; name the layer with "
            f"the last weights with output="
        )


def _rebuild(net: nn.Module, options: dict[str, Any], state: dict[str, Any], attached: bool) -> DFA:
    dfa = DFA(net, **options)
    dfa.load_state_dict(state)
    if not attached:
        dfa.remove()
    return dfa
