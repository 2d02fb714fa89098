"""What traces of single steps and of chunks share: what they note, and when they rest."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa._attach.core import Core
from snn_dfa._attach.forward import Around
from snn_dfa._attach.hooks import After, Before
from snn_dfa._attach.layers import spiking_layers
from snn_dfa._attach.weights import SYNAPSES
from snn_dfa.errors import AttachError
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.sequence import NeuronOverTime, dynamics_of, has_trace, state_names

__all__ = ["TraceBase", "check_neuron", "cut", "given_states"]

_STATES = ("syn", "mem")  # which the current goes into
_NEURONS = (snn.Leaky, snn.Synaptic, snn.RLeaky, RefractoryLeaky)


def check_neuron(module: Any, where: str) -> None:
    """Refuse a neuron whose past no trace holds.

    Args:
        module: The neuron, or one over a sequence.
        where: What the error begins with.

    Raises:
        AttachError: with the reason.
    """
    if isinstance(module, NeuronOverTime):
        _check_over_time(module, where)
        module = module.neuron
    elif type(module) not in _NEURONS:
        known = ", ".join(sorted(kind.__name__ for kind in _NEURONS))
        raise AttachError(
            f"{where} is of type {type(module).__name__}, expected one of {known}, with one "
            f"time step for each call; use credit='membrane'"
        )
    elif _computes_otherwise(module):
        raise AttachError(
            f"{where} has a function of your own that computes its states, as state_quant or "
            f"state_function, expected those of snnTorch, which traces know; use credit='membrane'"
        )
    for constant in ("alpha", "beta"):
        if getattr(module, constant, torch.ones(())).numel() > 1:
            raise AttachError(
                f"{where} has a {constant} for each neuron, expected one for all, since they "
                f"share their inputs' traces; use credit='membrane'"
            )
    recurrent = getattr(module, "recurrent", None)
    learns = [n for n, p in module.named_parameters() if p.requires_grad]
    if isinstance(recurrent, SYNAPSES):
        learns = [n for n in learns if not n.startswith("recurrent.")]
    if learns:
        raise AttachError(
            f"{where} gives no gradient to its own parameter {learns[0]!r}, which has "
            f"requires_grad=True; set it to False, or use credit='membrane'"
        )


def _computes_otherwise(neuron: nn.Module) -> bool:
    """Return whether functions of the user's own make the states, which a trace would leave out.

    The quantisation of snnTorch passes gradients on as they are.
    """
    own = vars(neuron)
    quantises = own.get("state_quant")
    if quantises and getattr(quantises, "__module__", "") != "snntorch.functional.quant":
        return True
    function = getattr(own.get("state_function"), "__func__", None)
    replaced = any(callable(own[n]) for n in own if n != "forward" and hasattr(type(neuron), n))
    return replaced or (function is not None and function not in vars(type(neuron)).values())


def _check_over_time(module: NeuronOverTime, where: str) -> None:
    """Refuse a neuron whose trace over a sequence is not that of its decay alone."""
    dynamics = dynamics_of(module.neuron)
    if dynamics is None or not has_trace(dynamics):
        raise AttachError(
            f"{where} is a {type(module.neuron).__name__} without a trace over a sequence, "
            f"expected a Leaky, RefractoryLeaky or Lapicque that is scanned: nothing in it is "
            f"quantised or inhibited, its surrogate is this library's or a fixed function of "
            f"snnTorch's, and a Lapicque does not reset to zero; "
            f"give the network itself, not its over_time form, or use credit='membrane'"
        )


class TraceBase:
    """Functions around layers with weights, and traces from call to call.

    Args:
        net: The network.
        core: The attachment.
    """

    cuts: Container[str] = ()  # layers run with their graph, which ends at their states

    def __init__(self, net: nn.Module, core: Core) -> None:
        self._core = core
        # Also one behind a plain readout: its past is cut like that of the others.
        self._neurons = spiking_layers(net)
        self._inputs: dict[nn.Module, Tensor] = {}
        self._traces: dict[Any, Any] = {}
        # States with their versions, kept so that no other tensor has their place in memory.
        self._last: dict[str, list[tuple[Tensor, int]]] = {}
        # What learns by a neuron's traces in the sequence that is going on.
        self._learning: dict[str, list[tuple[nn.Module | None, list[str]]]] = {}
        self._handles: list[Any] = []

    def remove(self) -> None:
        """Take everything off and forget the traces."""
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        for kept in (self._inputs, self._traces, self._last, self._learning):
            kept.clear()

    def _place(self, module: nn.Module, before: Before, after: After) -> None:
        """Put functions around what a module computes."""
        self._handles.append(Around(module, self._core, before, after))

    @property
    def _idle(self) -> bool:
        return not self._core.active or not torch.is_grad_enabled()

    def _leave(self, name: str, neuron: Any) -> None:
        """Note the states that a neuron has left."""
        left = [getattr(neuron, state) for state in _STATES if hasattr(neuron, state)]
        self._last[name] = [(state.detach(), state._version) for state in left]

    def _begins(self, name: str, neuron: Any, given: Mapping[str, Any], shape: torch.Size) -> bool:
        """Return whether the states that come in begin a new sequence.

        Args:
            name: Of the neuron.
            neuron: It, with the states that are not given.
            given: The states that are given, by name.
            shape: Of a step's current.

        Raises:
            AttachError: if they are neither those that the neuron has left, nor constants.
        """
        states = [given.get(s, getattr(neuron, s)) for s in _STATES if hasattr(neuron, s)]
        if states[-1].shape != shape:  # the neuron will begin at rest
            return True
        last = self._last.get(name, [])
        if len(last) == len(states) and all(map(_is_as_left, states, last)):
            return False
        written = any(map(_is_written, states, last))
        if written or any(state.requires_grad for state in states):
            raise AttachError(
                f"credit='trace': layer {name!r}: expected the states that the neuron has left at "
                f"its last step, or, where a sequence begins, states without a gradient, as "
                f"snn_dfa.reset(net) makes them; got states that the program has changed, has "
                f"kept from an earlier step or learns, whose past no trace holds; begin a sequence "
                f"with state.detach().clone(), or use credit='membrane'"
            )
        return True

    def _see_that_it_learns_as_before(
        self, name: str, *synapses: nn.Module | None, begins: bool
    ) -> None:
        """See that the same parameters learn from a neuron as at the sequence's first step.

        Args:
            name: Of the neuron.
            synapses: Its synapse and its recurrent one; ``None`` for one that does not learn.
            begins: Whether a new sequence begins.

        Raises:
            AttachError: if they have changed, since traces have steps in between that they lack.
        """
        now = [(each, _learning(each)) for each in synapses]
        if begins:
            check_neuron(self._neurons[name], f"credit='trace': layer {name!r}")
            self._learning[name] = now
        elif self._learning[name] != now:
            before, after = (
                [name for _, names in found for name in names] or ["none"]
                for found in (self._learning[name], now)
            )
            raise AttachError(
                f"credit='trace': layer {name!r}: expected the same synapse, with the same "
                f"parameters that learn, at all steps of a sequence, got another one, or "
                f"parameters that were frozen or thawed in between ({', '.join(before)} at the "
                f"first step, {', '.join(after)} now); change them between sequences, and call "
                f"snn_dfa.reset(net) then, or use credit='membrane'"
            )


def _is_as_left(state: Tensor, left: tuple[Tensor, int]) -> bool:
    """Return whether a state is the one that was left, or a copy of it."""
    last = left[0]
    if state.shape != last.shape:
        return False
    if state.data_ptr() == last.data_ptr():
        return not _is_written(state, left)
    # Zeros without a gradient begin a sequence, even where those before have ended with zeros.
    goes_on = state.requires_grad or bool(state.any())
    return goes_on and torch.equal(state, last.to(state))


def _is_written(state: Tensor, left: tuple[Tensor, int]) -> bool:
    """Return whether a state is in the place of the one that was left, and changed there."""
    last, version = left
    return state.data_ptr() == last.data_ptr() and last._version != version


def _learning(synapse: nn.Module | None) -> list[str]:
    """Return which parameters of a synapse learn."""
    named = () if synapse is None else synapse.named_parameters()
    return [name for name, parameter in named if parameter.requires_grad]


def given_states(
    neuron: nn.Module, states: Sequence[Any], by_name: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the states with which a neuron is called, by name."""
    given = dict(zip(state_names(neuron), states, strict=False)) | by_name
    return {name: state for name, state in given.items() if isinstance(state, Tensor)}


def cut(state: Any) -> Any:
    """Return a state without its past."""
    return state.detach() if isinstance(state, Tensor) else state
