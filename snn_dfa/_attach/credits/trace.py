"""Credit by eligibility traces: no graph reaches back in time, each step's gradient is whole.

A synapse, an ``nn.Linear`` or a convolution, hands on its values with another backward pass: the
error at its output meets, in place of its input, the trace of its inputs. Which neuron's decay the
trace has is known once its output reaches a neuron, which is long before the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from snn_dfa._attach.core import Core
from snn_dfa._attach.credits.chunk_trace import LINEAR, ChunkTraces
from snn_dfa._attach.credits.functions import Traced
from snn_dfa._attach.credits.trace_base import TraceBase, check_neuron, cut, given_states
from snn_dfa._attach.functions import in_backward
from snn_dfa._attach.hooks import place
from snn_dfa._attach.layers import is_spiking, spiking_layers
from snn_dfa._attach.weights import (
    SYNAPSES,
    check_weights,
    computes_as,
    gradient_at_input,
    gradient_at_weight,
    inside_neurons,
    synapses,
)
from snn_dfa.eligibility import advance
from snn_dfa.errors import AttachError, BackwardError
from snn_dfa.sequence import NeuronOverTime

__all__ = ["Traces", "check", "traces_of"]

_STATES = ("mem", "syn", "spk")
# Between synapse and neuron: what commutes with the sum over time, exactly or (a normalisation
# that is training) nearly.
_BETWEEN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *LINEAR)


def check(
    net: nn.Module, modules: Mapping[str, nn.Module], outputs: Sequence[str], rule: str
) -> None:
    """Refuse neurons whose past no trace holds, and a rule that needs what is to come.

    Raises:
        AttachError: naming the layer and the reason.
    """
    if rule == "fa":
        raise AttachError(
            "credit='trace': expected a rule that sends errors straight to each layer, got "
            "rule='fa', which needs the errors of later steps; use credit='membrane'"
        )
    check_weights(net, "credit='trace'", "credit='membrane'")
    for name, module in {**modules, **spiking_layers(net)}.items():
        where = f"credit='trace': layer {name!r}"
        if not is_spiking(module) and name in outputs:
            _check_readout(module, where)
        else:
            check_neuron(module, where)


def _check_readout(module: nn.Module, where: str) -> None:
    """Refuse a readout with a past."""
    inside = spiking_layers(module)
    if inside:
        raise AttachError(
            f"{where}: the output has a spiking neuron {next(iter(inside))!r} in it, expected "
            f"none, since its past has no trace; name the last neuron, or the layers after it, "
            f"with output=, or use credit='membrane'"
        )


def traces_of(net: nn.Module, modules: Mapping[str, nn.Module], core: Core) -> Traces | ChunkTraces:
    """Return the traces of a network that takes a step a call, or of a form over sequences."""
    over_time = any(isinstance(m, NeuronOverTime) for m in net.modules())
    return ChunkTraces(net, modules, core) if over_time else Traces(net, modules, core)


@dataclass
class _Call:
    """One call of a synapse: what its weight's gradient is made of."""

    module: Any
    weight: Tensor
    x: Tensor
    bias_input: Tensor
    below_learns: bool
    used: bool = False

    def __post_init__(self) -> None:
        self._versions = self.weight._version, self.x._version

    def gradients(self, core: Core, error: Tensor, below: bool) -> tuple[Tensor | None, ...]:
        """Return those at weight, bias and, of a head that no neuron gets, the input.

        Raises:
            BackwardError: if the loss reads the current of a neuron.
        """
        if self.used and (core.running is None or core.running.losses is not None):
            raise BackwardError(
                f"credit='trace': the loss reads what a {type(self.module).__name__} returns and a "
                f"neuron gets, whose gradient is that of the neuron's trace; expected a loss on "
                f"spikes or membranes; use credit='membrane'"
            )
        if not self.used and self._versions != (self.weight._version, self.x._version):
            raise BackwardError(
                f"credit='trace': the weight or the input of a {type(self.module).__name__} has "
                f"been changed in place since it was called, expected both as they were; change "
                f"them after backward()"
            )
        at_weight, at_bias = gradient_at_weight(self.module, self.x, error), None
        if self.module.bias is not None:
            channel = -1 if isinstance(self.module, nn.Linear) else 1
            over = [d for d in range(error.dim()) if d != channel % error.dim()]
            at_bias = (error.sum(over) if over else error) * self.bias_input
        if self.used or not below:
            return at_weight, at_bias, None
        weight = self.weight.detach()
        return at_weight, at_bias, gradient_at_input(self.module, self.x, weight, error)


class Traces(TraceBase):
    """What synapses and layers do before and after a call, and traces between steps.

    Args:
        net: The network; what :func:`check` has passed.
        modules: Its layers by name.
        core: The attachment.
    """

    def __init__(self, net: nn.Module, modules: Mapping[str, nn.Module], core: Core) -> None:
        super().__init__(net, core)
        # What a synapse, or a module behind it, returned, and its version -> the synapse's call.
        self._calls = WeakTensorKeyDictionary()
        self._latest: dict[nn.Module, _Call] = {}
        layers = set(modules.values())
        blocks = [m for n, m in modules.items() if n not in self._neurons]  # which have no past
        inside = {m for block in blocks for m in block.modules() if m is not block}
        for synapse in synapses(net).values():
            if synapse in inside:
                continue
            if synapse in layers:  # a readout: its values have a port by now
                self._handles += place(
                    synapse, None, partial(self._after_port, synapse), first=True
                )
            else:
                self._hook(synapse, self._note, partial(self._after_synapse, synapse))
        within = inside_neurons(net)
        for module in net.modules():
            if computes_as(module, _BETWEEN) and module not in within:
                self._hook(module, self._note, partial(self._after_between, module))
        for name, neuron in self._neurons.items():
            if neuron not in layers:
                before = partial(self._before_neuron, name)
                self._hook(neuron, before, partial(self._after_neuron, name))
            recurrent = getattr(neuron, "recurrent", None)
            if isinstance(recurrent, SYNAPSES):
                after = partial(self._after_recurrent, name, neuron, recurrent)
                self._hook(recurrent, self._note, after)

    def _hook(self, module: nn.Module, before: Any, after: Any) -> None:
        self._place(module, partial(before, module), after)

    def remove(self) -> None:
        """Take everything off and forget the traces."""
        super().remove()
        self._latest.clear()

    # -- between layers ----------------------------------------------------------------------------

    def _note(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._core.active and in_backward():
            raise AttachError(
                f"credit='trace': activation checkpointing calls a {type(module).__name__} again "
                f"in the backward pass, so that its trace would take the step twice; leave the "
                f"checkpointing out: traces keep no past steps, so that it saves no memory"
            )
        if not self._idle:
            self._inputs[module] = args[0] if args else kwargs["input"]

    def _after_synapse(self, module: Any, output: Tensor) -> Tensor | None:
        x = self._inputs.pop(module, None)
        if x is None or not any(p.requires_grad for p in module.parameters()):
            return None
        below = self._core.entry.learns(x)
        weight = module.weight
        ones = torch.ones_like(x[..., :1].flatten()[:1])
        call = _Call(module, weight, x.detach(), ones, below)
        gradients = partial(call.gradients, self._core)
        handed = Traced.apply(gradients, output.detach(), weight, module.bias, x)
        self._latest[module] = call
        self._calls[handed] = call, handed._version
        return handed

    def _after_port(self, module: nn.Module, output: Tensor) -> None:
        if not self._idle and module in self._latest:
            self._calls[output] = self._latest[module], output._version

    def _after_between(self, module: nn.Module, output: Tensor) -> None:
        x = self._inputs.pop(module, None)
        if x is not None and x in self._calls:
            call, version = self._calls[x]
            self._calls[output] = call, output._version + x._version - version

    # -- a call of a layer -------------------------------------------------------------------------

    def before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cut a neuron's states and carry its trace on; note a readout's input."""
        if name in self._neurons:
            changed: tuple[Any, Any] = self._before_neuron(name, module, args, kwargs)
            return changed
        if isinstance(module, SYNAPSES):
            self._note(module, args, kwargs)
        return args, kwargs

    def after(self, name: str, module: nn.Module, values: list[Tensor]) -> list[Tensor]:
        """Note where a neuron is; return a readout's value with the gradient of its trace."""
        if name in self._neurons:
            self._after_neuron(name, None)
            return values
        handed = self._after_synapse(module, values[0])
        return values if handed is None else [handed, *values[1:]]

    # -- one call of a neuron ----------------------------------------------------------------------

    def _before_neuron(self, name: str, neuron: Any, args: Any, kwargs: Any) -> Any:
        """Cut the states from their past; carry the trace of the current's synapse on."""
        if self._idle:
            return None
        current = args[0]
        given = given_states(neuron, args[1:], kwargs)
        begins = self._begins(name, neuron, given, current.shape)
        kwargs = {k: cut(v) for k, v in kwargs.items()}
        args = (current, *(cut(state) for state in args[1:]))
        for state in _STATES:
            value = getattr(neuron, state, None)
            if isinstance(value, Tensor) and value.requires_grad:
                setattr(neuron, state, value.detach())
        if begins:
            for key in [k for k in self._traces if k[0] == name]:
                del self._traces[key]
        call = None
        if current in self._calls or self._core.entry.learns(current):
            call = self._call_of(name, current)
        synapse = None if call is None else call.module
        recurrent = getattr(neuron, "recurrent", None)
        self._see_that_it_learns_as_before(name, synapse, recurrent, begins=begins)
        if call is not None:
            self._carry(name, neuron, call)
        return args, kwargs

    def _call_of(self, name: str, current: Tensor) -> _Call:
        call, version = self._calls.get(current, (None, 0))  # type: ignore[no-untyped-call]
        between = ", ".join(kind.__name__ for kind in _BETWEEN)
        if call is None or call.used or version != current._version:
            raise AttachError(
                f"credit='trace': layer {name!r}: expected its input to be the output of one "
                f"nn.Linear or convolution that no other neuron gets; only {between} may lie "
                f"between, and no hook or in-place operation may change what they return; if a "
                f"layer was replaced after DFA(net), call dfa.remove(), then DFA(net) again; else "
                f"use credit='membrane'"
            )
        if call.below_learns:
            raise AttachError(
                f"credit='trace': layer {name!r}: expected one layer with weights between it and "
                f"the neuron before, got more, and only the last would get a trace; use "
                f"credit='membrane'"
            )
        return call

    def _carry(self, name: str, neuron: Any, call: _Call) -> None:
        """Take this call's input into the trace, and give the call the trace for its gradient."""
        decays = [getattr(neuron, n).detach().clamp(0, 1).to(call.x.device)
                  for n in ("alpha", "beta") if hasattr(neuron, n)]  # fmt: skip
        before = self._traces.get((name, call.module), (None, None))
        if before[0] is not None and before[0][0].shape != call.x.shape:
            before = (None, None)
        if before[0] is None:
            call.x = call.x.clone()  # a program may write the next step's input over it
        inputs = advance(before[0], call.x, decays)
        biases = advance(before[1], call.bias_input, decays)
        self._traces[name, call.module] = (inputs, biases)
        call.x, call.bias_input, call.used = inputs[-1], biases[-1], True

    def _after_recurrent(self, name: str, neuron: Any, module: Any, output: Tensor) -> Any:
        handed = self._after_synapse(module, output)
        if handed is not None:
            self._carry(name, neuron, self._latest[module])
        return handed

    def _after_neuron(self, name: str, output: Any) -> None:
        if not self._idle:
            self._leave(name, self._neurons[name])
