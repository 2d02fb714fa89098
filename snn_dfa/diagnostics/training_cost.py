"""What a training step costs: memory, feedback, dependent steps, operations, energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from snn_dfa._attach.weights import mirror_rows
from snn_dfa.diagnostics.watched_pass import Layer, Neurons, Seen, watched
from snn_dfa.errors import InputError
from snn_dfa.feedback.weight_mirror import SELDOM
from snn_dfa.kolen_pollack import ProductFeedbackAlignment
from snn_dfa.rules import canonical

__all__ = ["EnergyConstants", "Operations", "TrainingCost", "training_cost"]

_RULES = ("bptt", "fa", "error", "sign", "target", "local", "shallow")
_DIRECT = ("error", "sign", "target", "local")


@dataclass(frozen=True)
class EnergyConstants:
    """Energy of an operation and of memory access, in picojoules.

    Args:
        mac: Of a multiply-accumulate, in float32 at 45 nm: 3.7 + 0.9.
        ac: Of an accumulate, in float32 at 45 nm.
        byte: Of a byte read from or written to DRAM: 640 for 32 bits.

    Sources: Horowitz 2014, ISSCC, "Computing's energy problem", figure 1.1.9; the value for DRAM as
    in Han et al. 2015, arXiv 1506.02626, table 1.

    Example:
        >>> EnergyConstants(byte=5.0).ac  # memory beside the processor
        0.9
    """

    mac: float = 4.6
    ac: float = 0.9
    byte: float = 160.0


@dataclass(frozen=True)
class Operations:
    """Arithmetic of a part of a training step, for a whole batch over all time steps.

    Args:
        macs: Multiply-accumulates.
        acs: Accumulates: a weight or an error that is added for a spike.

    Example:
        >>> Operations(macs=10.0) + Operations(acs=5.0)
        Operations(macs=10.0, acs=5.0)
    """

    macs: float = 0.0
    acs: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.macs + other.macs, self.acs + other.acs)


@dataclass(frozen=True)
class TrainingCost:
    """What a training step of one batch costs.

    Args:
        rule: ``"bptt"`` or a rule of :class:`snn_dfa.DFA`.
        credit: Of that class.
        kept_bytes: What autograd keeps for the backward pass: over all steps, or with
            ``credit="trace"`` of one step.
        trace_bytes: Of the traces of ``credit="trace"``, one for each input of a layer.
        feedback_bytes: Of the feedback matrices.
        transport_bytes: Of the weights that the backward pass reads transposed, which hardware has
            to carry to where errors are computed.
        chain: Longest chain of steps from the loss to the last weight's gradient, each of which
            needs the one before: one layer at one time step, or one projection. With
            ``credit="trace"`` it is that of each step.
        waits: Whether a hidden layer waits for the output before it can learn (update locking).
        forward: Operations of the forward pass.
        backward: Operations that carry errors to all layers, and through the neurons.
        update: Operations that make the gradients of weights from errors.
        weight_bytes: Of all weights.
        steps: T.

    Example:
        >>> TrainingCost("bptt", "membrane", kept_bytes=1000, weight_bytes=10).memory_traffic
        2040
    """

    rule: str
    credit: str
    kept_bytes: int = 0
    trace_bytes: int = 0
    feedback_bytes: int = 0
    transport_bytes: int = 0
    chain: int = 0
    waits: bool = True
    forward: Operations = field(default_factory=Operations)
    backward: Operations = field(default_factory=Operations)
    update: Operations = field(default_factory=Operations)
    weight_bytes: int = 0
    steps: int = 1

    @property
    def memory_traffic(self) -> int:
        """Bytes that are moved, with what is kept and traces written and read.

        The forward pass reads weights. The update reads weights, and writes weights and gradients.
        The backward pass reads feedback and transported weights once.
        """
        passes = self.steps if self.credit == "trace" else 1
        kept = 2 * (passes * self.kept_bytes + passes * self.trace_bytes)
        return kept + 4 * self.weight_bytes + self.feedback_bytes + self.transport_bytes

    def energy(self, constants: EnergyConstants | None = None) -> float:
        """Return the energy of a training step in joules, arithmetic and memory access.

        It says how rules compare under stated constants, and not what a machine will need: caches,
        idle parts and control are left out.

        Args:
            constants: Of the hardware; ``None`` for :class:`EnergyConstants`.

        Example:
            >>> cost = TrainingCost("bptt", "membrane", forward=Operations(macs=1e12))
            >>> round(cost.energy(), 2)
            4.6
        """
        of = constants or EnergyConstants()
        total = self.forward + self.backward + self.update
        picojoules = of.mac * total.macs + of.ac * total.acs + of.byte * self.memory_traffic
        return picojoules * 1e-12


def training_cost(
    net: nn.Module,
    run: Callable[[nn.Module], Any],
    rules: Iterable[str] = ("bptt", "fa", "dfa", "shallow"),
    credit: str = "membrane",
    feedback: str = "gaussian",
) -> dict[str, TrainingCost]:
    r"""Return what a training step costs by each rule, from shapes and from rates of a batch.

    The network is run once, without gradients; the rest is computed. What is kept is what this
    library and PyTorch keep for ``nn.Linear``, convolutions, batch normalisation, pooling, and
    ``Leaky`` or ``RefractoryLeaky``. For other neurons and for what a program does between layers
    it is a lower bound. Weights inside neurons, biases and normalisations are not among the
    operations. Where a current is the same at every step, :func:`snn_dfa.over_time` computes it
    once, and it is counted once.

    Args:
        net: A network, best without a rule attached; it is left as it was.
        run: Runs the network, its argument, over a whole batch.
        rules: Rules of :class:`snn_dfa.DFA`, and ``"bptt"``.
        credit: Of :class:`snn_dfa.DFA`; back-propagation has ``"membrane"``.
        feedback: Name of its type. ``"shared"`` keeps the largest layer's matrix alone,
            ``"channelwise"`` one of C x channels for each hidden layer, ``"weight-mirror"`` and
            ``"kolen-pollack-product"`` one of the shape of each weight but the first,
            ``"product-feedback-alignment"`` two, of its usual expansion. ``"transpose"`` and
            ``"sign-symmetry"`` keep none, and transport weights or a bit for each. Every other has
            a matrix [C, N] for each hidden layer, with ``rule="fa"`` one of each weight's shape.
            With ``"weight-mirror"`` the direct rules are counted as ``DFA(net, optimizer=...)`` on
            a loss that gives the same error at all steps: the error at the output's current, the
            gates of neurons, one way back for each sample, and noise at one step of eight.

    Returns:
        Rule, as it was asked for, to :class:`TrainingCost`.

    Raises:
        InputError: if a rule is unknown, or the network ran no spiking layer and no layer with
            weights.

    Example:
        >>> import snntorch as snn
        >>> from snn_dfa import over_time
        >>> net = over_time(nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(8, 2),
        ... ))
        >>> costs = training_cost(net, lambda net: net(torch.rand(5, 3, 4)))  # T=5, B=3
        >>> costs["bptt"].transport_bytes, costs["dfa"].transport_bytes  # 2 x 8 numbers, or none
        (64, 0)
        >>> costs["bptt"].chain, costs["dfa"].chain
        (6, 6)
    """
    names = {rule: "bptt" if rule == "bptt" else canonical(rule) for rule in rules}
    unknown = next((rule for rule, name in names.items() if name not in _RULES), None)
    if unknown is not None:
        raise InputError(f"rules: expected some of {', '.join(_RULES)}, got {unknown!r}")
    with watched(net) as seen, torch.no_grad(), _buffers_as_they_are(net):
        run(net)
    if not seen.layers or not seen.neurons:
        raise InputError(
            "run: expected a function that runs a spiking layer and a layer with weights, got one "
            "that runs none"
        )
    return {rule: _cost(seen, name, canonical(credit), feedback) for rule, name in names.items()}


@contextmanager
def _buffers_as_they_are(net: nn.Module) -> Iterator[None]:
    """Give statistics of normalisation and states of neurons back after the block."""
    held = [
        (module._buffers, name, b, b.clone())
        for module in net.modules()
        for name, b in module._buffers.items()
        if b is not None and not is_lazy(b)
    ]
    try:
        yield
    finally:
        for buffers, name, buffer, value in held:
            buffers[name] = buffer
            if not buffer.is_inference():  # nothing can have written into such a one
                buffer.data.copy_(value)  # as before also for a graph that is still to be used


def _cost(seen: Seen, rule: str, credit: str, feedback: str) -> TrainingCost:
    credit = "membrane" if rule in ("bptt", "fa", "shallow") else credit
    layers, steps = list(seen.layers.values()), max(n.steps for n in seen.neurons.values())
    hidden = [n for name, n in seen.neurons.items() if _before(seen, name)]
    stored, transported = _feedback(rule, feedback, seen, hidden)
    mirrors = feedback == "weight-mirror" and (rule == "fa" or rule in _DIRECT) and bool(hidden)
    by_sample = mirrors and rule in ("error", "sign", "target")
    return TrainingCost(
        rule=rule,
        credit=credit,
        kept_bytes=_kept(seen, rule, credit, steps),
        trace_bytes=sum(layer.inputs for layer in layers) if credit == "trace" else 0,
        feedback_bytes=stored,
        transport_bytes=transported,
        chain=_chain(rule, credit, steps, seen, hidden if by_sample else ()),
        waits=rule not in ("target", "local", "shallow"),
        forward=Operations(
            sum(layer.macs for layer in layers) + sum(n.values for n in seen.neurons.values()),
            sum(layer.acs for layer in layers),
        ),
        backward=_backward(seen, rule, hidden, steps if by_sample else 0),
        update=_update(layers[-1:] if rule == "shallow" else layers, credit)
        + (_mirrored(layers[1:]) if mirrors else Operations()),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        steps=steps,
    )


def _backward(seen: Seen, rule: str, hidden: Sequence[Neurons], steps: int) -> Operations:
    """Return what carries errors through the neurons of layers that learn, and to them.

    Args:
        seen: The network.
        rule: Its canonical name.
        hidden: Layers.
        steps: T where each sample has its own way back, else 0.
    """
    layers = list(seen.layers.values())
    through = sum(n.values for n in seen.neurons.values())
    if rule == "shallow":
        return Operations(through - sum(n.values for n in hidden))
    if rule in ("bptt", "fa"):
        return Operations(through + sum(layer.dense for layer in layers[1:]))
    outputs = _outputs(seen)
    if steps:
        gates = sum(n.values for n in hidden[1:])
        back = sum(layer.dense for layer in layers[1:]) / steps
        spiking = len(seen.neurons) > len(hidden)  # then errors at its current differ by the step
        return Operations(through + gates + back + spiking * outputs * hidden[-1].values)
    readouts = outputs * sum(n.fired for n in hidden) if rule == "local" else 0.0
    return Operations(through + outputs * sum(n.values for n in hidden), readouts)


def _update(learning: Sequence[Layer], credit: str) -> Operations:
    """Return what makes the gradients of weights from errors."""
    if credit == "trace":  # a trace is no spike
        return Operations(sum(layer.dense for layer in learning))
    return Operations(sum(each.macs for each in learning), sum(each.acs for each in learning))


def _mirrored(layers: Sequence[Layer]) -> Operations:
    """Return a step's share of the noise: the answers of layer and factor, and what V gets."""
    weights = [layer.module.weight for layer in layers]
    return Operations(sum(3 * mirror_rows(w) * w.numel() for w in weights) / SELDOM)


def _before(seen: Seen, name: str) -> bool:
    """Whether a spiking layer comes before the last layer with weights, so that it is hidden."""
    *_, last = seen.layers  # in the order of their first calls
    return seen.order.index(name) < seen.order.index(last)


def _kept(seen: Seen, rule: str, credit: str, steps: int) -> int:
    if credit == "trace":
        return sum(dict(seen.last.values()).values()) + seen.margins // steps
    inputs = sum(seen.kept.values()) + (seen.saved_by_events if rule == "fa" else 0)
    return inputs + (sum(seen.currents.values()) if credit == "current" else seen.margins)


def _feedback(rule: str, feedback: str, seen: Seen, hidden: Sequence[Neurons]) -> tuple[int, int]:
    """Return bytes of feedback, and of weights that are carried to where errors are computed."""
    layers = list(seen.layers.values())
    weights = sum(layer.weight_bytes for layer in layers[1:])
    if rule == "bptt":
        return 0, weights
    if rule == "shallow" or not hidden:
        return 0, 0
    size = layers[-1].module.weight.element_size()
    if feedback in ("transpose", "sign-symmetry"):
        return 0, weights if feedback == "transpose" else weights // (8 * size)
    if feedback == "product-feedback-alignment":
        return ProductFeedbackAlignment.expansion * sum(map(_two_factors, layers[1:])), 0
    if rule == "fa" or feedback in ("kolen-pollack-product", "weight-mirror"):
        return weights, 0
    sizes = [n.channels if feedback == "channelwise" else n.size for n in hidden]
    numbers = _outputs(seen) * (max(sizes) if feedback == "shared" else sum(sizes))
    return size * numbers, 0


def _outputs(seen: Seen) -> int:
    """Return C, of the last layer with weights, also where it gets all steps in one call."""
    layer, of = list(seen.layers.values())[-1], max(seen.neurons.values(), key=lambda n: n.steps)
    steps_and_batch = of.steps, of.values // (of.steps * of.size)
    at_once = layer.calls < max(of.steps, 2) and len(layer.shape) > 2
    rows = 2 if at_once and sorted(layer.shape[:2]) == sorted(steps_and_batch) else 1
    return math.prod(layer.shape[rows:])


def _two_factors(layer: Layer) -> int:
    """Return the bytes of U, of the weight's shape, and of R, square, at an expansion of one."""
    weight = layer.module.weight
    return int(layer.weight_bytes + weight.element_size() * len(weight) ** 2)


def _chain(rule: str, credit: str, steps: int, seen: Seen, by_sample: Sequence[Neurons]) -> int:
    """Return the longest chain from the loss on: over layers and steps, or through one layer.

    Args:
        rule: Its canonical name.
        credit: Its canonical name.
        steps: T.
        seen: The network.
        by_sample: The hidden layers on each sample's own way back, if it has one.
    """
    through, depth = 1 if credit in ("current", "trace") else steps, len(seen.neurons)
    if rule in ("bptt", "fa"):
        return through + depth  # errors enter a layer a step after they left the one above
    if by_sample:  # through the output's steps, back to the first layer, through its steps
        return steps * (depth > len(by_sample)) + len(by_sample) + through
    return through + (rule in _DIRECT) + (rule == "local")  # a projection, a readout before it
