"""The credit `trace` over whole sequences, in chunks: traces go from chunk to chunk.

Within a chunk the gradient of a membrane's decay is computed backwards in time, by the scan, which
passes over resets: the sum over t of error_t times trace_t is that of filtered errors times inputs.
What the steps before the chunk add is the gradient at the membrane before the first step times
their trace. So a membrane that goes on has, added, a zero with that gradient: the current that
the trace would give, minus itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from snn_dfa._attach.core import Core
from snn_dfa._attach.credits.trace_base import TraceBase, cut, given_states
from snn_dfa._attach.forward import Forward
from snn_dfa._attach.hooks import eager
from snn_dfa._attach.weights import SYNAPSES, answer, computes_as, inside_neurons
from snn_dfa.eligibility import advance_chunk
from snn_dfa.errors import AttachError
from snn_dfa.sequence import AtOnce, FlatScan, dynamics_of
from snn_dfa.sequence.attached import has_hooks

__all__ = ["LINEAR", "ChunkTraces"]

#: What may lie between a synapse and its neuron: it commutes with the sum over time.
LINEAR = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Flatten, nn.Identity)


class _Traced(Forward):
    """A neuron's call by its trace: also where the call fails, the next one is a plain one."""

    @partial(eager, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.plain(*args, **kwargs)
        finally:
            neuron: Any = self.module
            neuron.traces, neuron.carried = False, None


class ChunkTraces(TraceBase):
    """What synapses and neurons do before and after a call, and traces between chunks.

    Args:
        net: A form of :func:`snn_dfa.over_time` that has passed
            :func:`snn_dfa._attach.credits.trace.check`.
        modules: Its layers by name.
        core: The attachment.
    """

    def __init__(self, net: nn.Module, modules: Mapping[str, nn.Module], core: Core) -> None:
        super().__init__(net, core)
        # What a synapse or a module behind it returned -> its version, input of the synapse, and
        # all of them.
        self._ways = WeakTensorKeyDictionary()
        within = inside_neurons(net)
        wrapped = {m.module for m in net.modules() if isinstance(m, AtOnce)}
        for module in net.modules():
            inner = module.module if isinstance(module, AtOnce) else module
            if module in within or module in wrapped or not computes_as(inner, SYNAPSES + LINEAR):
                continue
            before = partial(self._note, module, inner)
            after = partial(self._after, module, inner)
            self._place(module, before, after)
        for name, neuron in self._neurons.items():
            self._handles.append(_Traced(neuron, core))
            if neuron not in set(modules.values()):
                before = partial(self.before, name, neuron)
                self._place(neuron, before, partial(self._after_neuron, name))

    # -- between layers ----------------------------------------------------------------------------

    def _note(self, module: nn.Module, inner: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._idle:
            if module is not inner and has_hooks(inner):
                raise AttachError(
                    f"credit='trace': a {type(inner).__name__} has a forward hook, and its trace "
                    f"would be without what the hook changes; expected none; write it into the "
                    f"network, or use credit='membrane'"
                )
            self._inputs[module] = args[0] if args else kwargs["input"]

    def _after(self, module: nn.Module, inner: nn.Module, output: Tensor) -> None:
        x = self._inputs.pop(module, None)
        if x is None:
            return
        if not isinstance(inner, SYNAPSES):
            if x in self._ways and self._ways[x][0] == x._version:
                _, source, learns, modules = self._ways[x]
                self._ways[output] = output._version, source, learns, (*modules, inner)
        elif any(p.requires_grad for p in inner.parameters()):
            learns = self._core.entry.learns(x)
            self._ways[output] = output._version, x.detach(), learns, (inner,)

    # -- a call of a layer -------------------------------------------------------------------------

    def before(self, name: str, module: Any, args: Any, kwargs: Any) -> Any:
        """Let a neuron begin with a membrane that has the gradient of the trace."""
        if name not in self._neurons or self._idle:
            return args, kwargs
        current, *states = args
        begins = self._is_new(name, module, current, states, kwargs)
        if current in self._ways or self._core.entry.learns(current):
            self._carry(name, module, current, begins)
        else:
            self._see_that_it_learns_as_before(name, None, begins=begins)
        module.traces = True
        return (current, *map(cut, states)), {k: cut(v) for k, v in kwargs.items()}

    def after(self, name: str, module: Any, values: list[Tensor]) -> list[Tensor]:
        """Note where a neuron is."""
        if name in self._neurons:
            self._after_neuron(name, None)
        return values

    def _after_neuron(self, name: str, output: Any) -> None:
        neuron: Any = self._neurons[name]
        self._leave(name, neuron.neuron)

    def _carry(self, name: str, scan: Any, current: Tensor, begins: bool) -> None:
        """Give the neuron the gradient of the trace so far, and take the chunk into the trace."""
        version, *way = self._ways.get(current, (None,))  # type: ignore[no-untyped-call]
        if version != current._version:
            between = ", ".join(kind.__name__ for kind in LINEAR)
            raise AttachError(
                f"credit='trace': layer {name!r}: expected the output of one nn.Linear or "
                f"convolution as its current, straight or through {between}, and not changed in "
                f"place; give the network itself, one step a call, or use credit='membrane'"
            )
        x, below_learns, modules = way
        if below_learns:
            raise AttachError(
                f"credit='trace': layer {name!r}: expected one layer with weights before it, got "
                f"more, and the first ones would get no trace; use credit='membrane'"
            )
        x = _steps_first(scan, x)
        before = self._traces.get(name)
        self._see_that_it_learns_as_before(name, modules[0], begins=begins)
        if before is not None and (begins or before[0].shape != x.shape[1:]):
            before = None
        dynamics = dynamics_of(scan.neuron)
        assert dynamics is not None  # it was checked when DFA was attached
        if before is not None:
            with torch.enable_grad():
                y = _current(modules, *before) * dynamics.gain
            scan.carried = y - y.detach()
        if scan.stateful:
            beta = dynamics.beta.detach().to(x)
            one = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
            pairs = zip(before or (None, None), (x, one), strict=True)
            inputs, biases = (advance_chunk(trace, xs, beta) for trace, xs in pairs)
            self._traces[name] = inputs, biases

    def _is_new(
        self, name: str, scan: Any, current: Tensor, states: list[Any], by_name: dict[str, Any]
    ) -> bool:
        """Whether the membrane that comes in begins a new sequence."""
        given = given_states(scan.neuron, states, by_name)
        steps = _steps_first(scan, current)
        if isinstance(scan, FlatScan):
            given = {n: scan.layout.last(s, current.dim()) for n, s in given.items()}
        if not (given or scan.stateful):  # it begins at rest, whatever the last one has left
            return True
        if not scan.stateful:
            self._last.pop(name, None)
        return self._begins(name, scan.neuron, given, steps.shape[1:])


def _steps_first(scan: Any, x: Tensor) -> Tensor:
    """Return values of samples and steps as [T, ...]."""
    return scan.layout.first_dimension(x) if isinstance(scan, FlatScan) else x


def _current(modules: Any, inputs: Tensor, biases: Tensor) -> Tensor:
    """Return the current that a trace of inputs gives, with the weights' graph."""
    synapse, *between = modules
    bias = None if synapse.bias is None else synapse.bias * biases
    y = answer(synapse, inputs, synapse.weight, bias)
    for module in between:
        y = module.forward(y)
    return y
