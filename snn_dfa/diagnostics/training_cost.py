"""What a training step costs: memory, feedback, dependent steps, operations, energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa._attach.hooks import place
from snn_dfa._attach.layers import spiking_layers, takes_sequences
from snn_dfa._attach.weights import inside_neurons, synapses
from snn_dfa.diagnostics.cost import _are_spikes, _connections
from snn_dfa.errors import InputError
from snn_dfa.rules import canonical
from snn_dfa.sequence import AtOnce

__all__ = ["EnergyConstants", "Operations", "TrainingCost", "training_cost"]

#: A product on spikes keeps their places, and not their values, from so many multiplications on
#: and up to such a share of ones (float32 on the CPU, :func:`snn_dfa.over_time`).
_LARGE, _SPARSE = 1 << 22, 0.25
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_RULES = ("bptt", "fa", "error", "sign", "target", "shallow")
_DIRECT = ("error", "sign", "target")


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


@dataclass
class _Layer:
    """What a layer with weights did."""

    module: Any
    macs: float = 0.0  # on inputs that are no spikes
    acs: float = 0.0  # on spikes
    dense: float = 0.0  # if every input counted
    inputs: int = 0  # bytes of one step's input
    features: int = 0  # of one sample's output

    @property
    def weight_bytes(self) -> int:
        return int(self.module.weight.nbytes)


@dataclass
class _Neurons:
    """What a spiking layer did."""

    size: int = 0  # N
    values: int = 0  # T B N
    steps: int = 0


@dataclass
class _Seen:
    layers: dict[str, _Layer] = field(default_factory=dict)
    neurons: dict[str, _Neurons] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    kept: dict[tuple[str, int], int] = field(default_factory=dict)
    #: Of each module's last call, by the place in memory.
    last: dict[nn.Module, tuple[int, int]] = field(default_factory=dict)
    saved_by_events: int = 0  # bytes, where places of spikes are kept and not their values
    held: list[Tensor] = field(default_factory=list)  # so that no address is used twice
    margins: int = 0  # bytes, with credit "membrane" and "trace"
    currents: dict[int, int] = field(default_factory=dict)  # with credit "current"

    def keep(self, module: nn.Module, t: Tensor) -> None:
        """Count a tensor once, however many layers keep it."""
        self.held.append(t)
        storage = t.untyped_storage()
        self.kept["value", storage.data_ptr()] = storage.nbytes()
        self.last[module] = storage.data_ptr(), storage.nbytes()


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
        feedback: ``"shared"`` keeps the largest layer's matrix alone,
            ``"kolen-pollack-product"`` one of the shape of each weight but the first, every other
            a matrix [C, N] for each hidden layer.

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
    with _watched(net) as seen, torch.no_grad():
        run(net)
    if not seen.layers or not seen.neurons:
        raise InputError(
            "run: expected a function that runs a spiking layer and a layer with weights, got one "
            "that runs none"
        )
    return {rule: _cost(seen, name, canonical(credit), feedback) for rule, name in names.items()}


def _cost(seen: _Seen, rule: str, credit: str, feedback: str) -> TrainingCost:
    credit = "membrane" if rule in ("bptt", "fa", "shallow") else credit
    layers, steps = list(seen.layers.values()), max(n.steps for n in seen.neurons.values())
    output = layers[-1]
    hidden = [n for name, n in seen.neurons.items() if _before(seen, name)]
    learning = layers[-1:] if rule == "shallow" else layers
    transported = sum(layer.weight_bytes for layer in layers[1:])
    ways = sum(layer.dense for layer in layers[1:])
    projections = sum(output.features * n.values for n in hidden)
    through = sum(n.values for n in seen.neurons.values()) - (
        sum(n.values for n in hidden) if rule == "shallow" else 0
    )
    on_spikes = sum(layer.acs for layer in learning)
    update = Operations(sum(layer.macs for layer in learning), on_spikes)
    if credit == "trace":  # a trace is no spike
        update = Operations(sum(layer.dense for layer in learning), 0.0)
    return TrainingCost(
        rule=rule,
        credit=credit,
        kept_bytes=_kept(seen, rule, credit, steps),
        trace_bytes=sum(layer.inputs for layer in layers) if credit == "trace" else 0,
        feedback_bytes=_feedback(rule, feedback, output, hidden, transported),
        transport_bytes=transported if rule == "bptt" else 0,
        chain=_chain(rule, credit, steps, len(seen.neurons)),
        waits=rule not in ("target", "shallow"),
        forward=Operations(
            sum(layer.macs for layer in layers) + sum(n.values for n in seen.neurons.values()),
            sum(layer.acs for layer in layers),
        ),
        backward=Operations(
            through + (ways if rule in ("bptt", "fa") else projections if rule in _DIRECT else 0)
        ),
        update=update,
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        steps=steps,
    )


def _before(seen: _Seen, name: str) -> bool:
    """Whether a spiking layer comes before the last layer with weights, so that it is hidden."""
    *_, last = seen.layers  # in the order of their first calls
    return seen.order.index(name) < seen.order.index(last)


def _kept(seen: _Seen, rule: str, credit: str, steps: int) -> int:
    if credit == "trace":
        return sum(dict(seen.last.values()).values()) + seen.margins // steps
    inputs = sum(seen.kept.values()) + (seen.saved_by_events if rule == "fa" else 0)
    return inputs + (sum(seen.currents.values()) if credit == "current" else seen.margins)


def _feedback(
    rule: str, feedback: str, output: _Layer, hidden: Sequence[_Neurons], weights: int
) -> int:
    if rule == "fa" or (rule in _DIRECT and feedback == "kolen-pollack-product"):
        return weights
    if rule not in _DIRECT or not hidden:
        return 0
    sizes = [n.size for n in hidden]
    each = output.features * output.module.weight.element_size()
    return each * (max(sizes) if feedback == "shared" else sum(sizes))


def _chain(rule: str, credit: str, steps: int, depth: int) -> int:
    """Return the longest chain from the loss on: over layers and steps, or through one layer."""
    through = 1 if credit in ("current", "trace") else steps
    if rule in ("bptt", "fa"):
        return through + depth  # errors enter a layer a step after they left the one above
    return through + (rule in _DIRECT)


# -- watching one pass -----------------------------------------------------------------------------


@contextmanager
def _watched(net: nn.Module) -> Any:
    seen, handles = _Seen(), list[Any]()
    neurons, layers = spiking_layers(net), synapses(net)
    inside = inside_neurons(net) | {m for n in neurons.values() for m in n.modules()}
    sequences = {m.module for m in net.modules() if isinstance(m, AtOnce)}
    inputs: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs[module] = args[0] if args else next(iter(kwargs.values()))

    for name, module in neurons.items():
        after = partial(_neuron_ran, seen, name, module, inputs)
        handles += place(module, partial(note, module), after)
    for name, module in layers.items():
        after = partial(_layer_ran, seen, name, module, inputs, module in sequences)
        handles += place(module, partial(note, module), after)
    for module in net.modules():
        if module not in inside and isinstance(module, _NORMS + _MAX_POOLS + _AVERAGE_POOLS):
            handles += place(module, partial(note, module), partial(_kept_by, seen, module, inputs))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        seen.held.clear()


def _neuron_ran(
    seen: _Seen, name: str, module: nn.Module, inputs: dict[nn.Module, Tensor], output: Any
) -> None:
    current, spikes = inputs.pop(module), output[0] if isinstance(output, tuple) else output
    of = seen.neurons.setdefault(name, _Neurons())
    dims = 2 if takes_sequences(module) else 1
    of.size = spikes[(0,) * dims].numel()
    of.values += spikes.numel()
    of.steps += len(spikes) if dims == 2 else 1
    seen.order.append(name)
    seen.margins += spikes.numel() * current.element_size()
    storage = current.untyped_storage()
    seen.held.append(current)
    seen.currents[storage.data_ptr()] = storage.nbytes()


def _layer_ran(
    seen: _Seen,
    name: str,
    module: Any,
    inputs: dict[nn.Module, Tensor],
    whole: bool,
    output: Tensor,
) -> None:
    x = inputs.pop(module)
    of = seen.layers.setdefault(name, _Layer(module))
    dense = _connections(module, torch.ones_like(x), output)
    of.dense += dense
    of.features = output.numel() // max(output.shape[0], 1)
    of.inputs = x.nbytes  # of the last call: a step's, where steps are calls
    seen.order.append(name)
    spikes = _are_spikes(x)
    if spikes:
        of.acs += _connections(module, x.ne(0), output)
    else:
        of.macs += dense
    if whole and spikes and _kept_as_events(module, x):
        places = 4 * int(x.count_nonzero()) + 8 * (len(x) + 1)
        seen.held.append(x)
        seen.kept["events", x.untyped_storage().data_ptr()] = places
        seen.saved_by_events += x.nbytes - places
    else:
        seen.keep(module, x)


def _kept_as_events(module: nn.Module, x: Tensor) -> bool:
    ones = int(x.count_nonzero())
    return (
        isinstance(module, nn.Linear)
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() * module.out_features >= _LARGE
        and ones <= _SPARSE * x.numel()
        and bool(x.max() <= 1)
    )


def _kept_by(
    seen: _Seen, module: nn.Module, inputs: dict[nn.Module, Tensor], output: Tensor
) -> None:
    seen.keep(module, inputs.pop(module))
    if isinstance(module, _MAX_POOLS):
        seen.held.append(output)
        indices = output.numel() * torch.int64.itemsize
        seen.kept["indices", output.untyped_storage().data_ptr()] = indices
