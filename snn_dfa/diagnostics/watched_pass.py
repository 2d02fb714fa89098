"""What one forward pass did, for what a training step costs: shapes, spikes, memory kept."""

from __future__ import annotations

from collections.abc import Iterator
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
from snn_dfa.sequence import AtOnce

__all__ = ["Layer", "Neurons", "Seen", "watched"]

#: A product on spikes keeps their places, and not their values, from so many multiplications on
#: and up to such a share of ones (float32 on the CPU, :func:`snn_dfa.over_time`).
_LARGE, _SPARSE = 1 << 22, 0.25
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass
class Layer:
    """What a layer with weights did."""

    module: Any
    macs: float = 0.0  # on inputs that are no spikes
    acs: float = 0.0  # on spikes
    dense: float = 0.0  # if every input counted
    inputs: int = 0  # bytes of one step's input
    calls: int = 0
    shape: tuple[int, ...] = ()  # of the last call's output

    @property
    def weight_bytes(self) -> int:
        """Of the weight."""
        return int(self.module.weight.nbytes)


@dataclass
class Neurons:
    """What a spiking layer did."""

    size: int = 0  # N
    channels: int = 0
    fired: int = 0  # spikes of all samples and steps
    values: int = 0  # T B N
    steps: int = 0


@dataclass
class Seen:
    """What a network did, by the names of its layers, in the order of their calls."""

    layers: dict[str, Layer] = field(default_factory=dict)
    neurons: dict[str, Neurons] = field(default_factory=dict)
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


@contextmanager
def watched(net: nn.Module) -> Iterator[Seen]:
    """Watch the passes of a network inside the block; what it computes is unchanged."""
    seen, handles = Seen(), list[Any]()
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
        after = partial(_layer_ran, seen, net, name, module, inputs, module in sequences)
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
    seen: Seen, name: str, module: nn.Module, inputs: dict[nn.Module, Tensor], output: Any
) -> None:
    current, spikes = inputs.pop(module), output[0] if isinstance(output, tuple) else output
    of = seen.neurons.setdefault(name, Neurons())
    dims = 2 if takes_sequences(module) else 1
    of.size = spikes[(0,) * dims].numel()
    of.channels = spikes.shape[dims]
    of.fired += int(spikes.count_nonzero())
    of.values += spikes.numel()
    of.steps += len(spikes) if dims == 2 else 1
    seen.order.append(name)
    seen.margins += spikes.numel() * current.element_size()
    storage = current.untyped_storage()
    seen.held.append(current)
    seen.currents[storage.data_ptr()] = storage.nbytes()


def _layer_ran(
    seen: Seen,
    net: nn.Module,
    name: str,
    module: Any,
    inputs: dict[nn.Module, Tensor],
    whole: bool,
    output: Tensor,
) -> None:
    x = inputs.pop(module)
    of = seen.layers.setdefault(name, Layer(module))
    dense = _connections(module, torch.ones_like(x), output)
    of.dense += dense
    of.calls, of.shape = of.calls + 1, output.shape
    of.inputs = x.nbytes  # of the last call: a step's, where steps are calls
    seen.order.append(name)
    spikes = _are_spikes(x, net)
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
    seen: Seen, module: nn.Module, inputs: dict[nn.Module, Tensor], output: Tensor
) -> None:
    seen.keep(module, inputs.pop(module))
    if isinstance(module, _MAX_POOLS):
        seen.held.append(output)
        indices = output.numel() * torch.int64.itemsize
        seen.kept["indices", output.untyped_storage().data_ptr()] = indices
