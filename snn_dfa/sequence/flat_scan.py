"""A spiking neuron over a sequence in a network that runs once, on T * B samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from snn_dfa.errors import AttachError, InputError
from snn_dfa.sequence.attached import see_that_none_is_at_work
from snn_dfa.sequence.equations import dynamics_of, state_series
from snn_dfa.sequence.neuron import STATES, NeuronOverTime, state_names, states_of

__all__ = ["FlatScan", "Layout", "see_that_it_is_a_sequence", "twice"]


@dataclass
class Layout:
    """How T steps of B samples lie in one dimension of T * B while a network runs.

    Args:
        steps: T.
        batch: B.
        running: Whether the network runs.
        probes: Whether it runs to be compared with its loop: neurons take their own steps then,
            and the states that come in and go out are noted.
        in_neuron: Whether a neuron runs.
        last_neuron: The one that was called last.
        taken: States that have come into neurons, by identity.
        given: States that have come out of neurons, by identity.
        kept: The tensors behind both, so that no other one has their identity.

    Example:
        >>> import torch
        >>> Layout(steps=5, batch=2).first_dimension(torch.zeros(10, 3)).shape
        torch.Size([5, 2, 3])
    """

    steps: int = 1
    batch: int = 1
    running: bool = False
    probes: bool = False
    in_neuron: bool = False
    last_neuron: Any = None
    taken: dict[int, tuple[Any, str]] = field(default_factory=dict)
    given: dict[int, tuple[Any, str]] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)

    def first_dimension(self, t: Tensor) -> Tensor:
        """Return [T, B, ...] of a tensor [T * B, ...]."""
        return t.reshape(self.steps, self.batch, *t.shape[1:])

    def last(self, state: Any, dims: int) -> Any:
        """Return the state of the last step of a series; a state [B, ...] as it is.

        Args:
            state: A tensor, or tensors in a tuple.
            dims: How many dimensions a step has, that of the samples among them.
        """
        if isinstance(state, tuple):
            return tuple(self.last(s, dims) for s in state)
        if not isinstance(state, Tensor):
            return state
        if state.dim() == dims and len(state) == self.steps * self.batch:
            return self.first_dimension(state)[-1]
        is_series = state.dim() == dims + 1 and state.shape[:2] == (self.steps, self.batch)
        return state[-1] if is_series else state


class FlatScan(NeuronOverTime):
    """A spiking neuron in a network that runs once on T * B samples: [T * B, ...] in and out.

    In the network's own code it stands for the neuron: it has the neuron's attributes, and counts
    as an instance of its class. A state that comes in is that before the first step: [B, ...], or
    the last step of a series [T * B, ...]. States that go out are series.

    Args:
        neuron: See :class:`Scan`; its states may be explicit.
        layout: Shared with the network.
        stateful: See :class:`Scan`.

    Example:
        >>> import snntorch as snn, torch
        >>> layout = Layout(steps=4, batch=1, running=True)
        >>> neuron = FlatScan(snn.Leaky(beta=0.5, init_hidden=True), layout)
        >>> neuron(torch.full((4, 1), 0.6)).flatten()
        tensor([0., 0., 1., 0.])
        >>> isinstance(neuron, snn.Leaky)
        True
    """

    def __init__(self, neuron: nn.Module, layout: Layout, stateful: bool = False) -> None:
        super().__init__(neuron, stateful)
        self.layout = layout
        self.reads: set[str] = set()  # the hidden states that the network's code looks at
        self._series: dict[str, Any] = {}
        self._held: dict[str, Any] = {}
        self._calls = 0

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(self.lif1, snn.Leaky) is true in the network's code
        neuron = vars(self).get("_modules", {}).get("neuron")
        return FlatScan if neuron is None else type(neuron)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in vars(self) or "neuron" not in vars(self)["_modules"]:
                raise
        if self.layout.running:
            if name.startswith("init_") and name != "init_hidden":
                return self.reset_mem  # snnTorch's older name
            if name in self._series:
                self.reads.add(name)
                return self._series[name]
        return getattr(self.neuron, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in STATES and self.layout.running:
            raise AttachError(
                f"over_time: the network's forward sets the state {name!r} of a "
                f"{type(self.neuron).__name__}, which has run over all steps by then; pass the "
                f"state to the neuron and take it from there, or loop over time around the network"
            )
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        return _bare_flat_scan, (), dict(vars(self))

    def begin(self) -> None:
        """Note the states that the last call has left: the network may clear them before use."""
        self._calls = 0
        if self.stateful:
            self._held = {n: v for n, v in states_of(self.neuron)}

    def end(self) -> None:
        """Forget the series of this pass."""
        for name in self._series:
            vars(self).pop(name, None)
        self._series, self._held = {}, {}

    def reset_mem(self) -> Any:
        """Return cleared states; while a stateful network runs, those to go on with."""
        if not (self.layout.running and self.stateful):
            return self.neuron.reset_mem()
        cleared = self.neuron.reset_mem()
        places = {id(value): name for name, value in states_of(self.neuron)}
        for name, value in self._held.items():
            setattr(self.neuron, name, value)
        if isinstance(cleared, Tensor):
            return self._held[places[id(cleared)]]
        if any(state is None or id(state) not in places for state in cleared):
            raise AttachError(
                f"over_time: stateful=True with a {type(self.neuron).__name__} needs the states "
                f"inside; make the neuron with init_hidden=True"
            )
        return tuple(self._held[places[id(state)]] for state in cleared)

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the neuron over all steps; arguments and results are those of a step."""
        if not self.layout.running:
            return self.neuron(input_, *args, **kwargs)
        self.layout.in_neuron = True
        try:
            return self._all_steps(input_, args, kwargs)
        finally:
            self.layout.in_neuron = False

    def _all_steps(self, input_: Tensor, args: Any, kwargs: Any) -> Any:
        layout, neuron, dims = self.layout, self.neuron, input_.dim()
        see_that_none_is_at_work(neuron)
        if len(input_) != layout.steps * layout.batch:
            raise InputError(
                f"over_time: a {type(neuron).__name__} got {len(input_)} samples, expected all "
                f"T * B = {layout.steps} * {layout.batch}; in the network's forward leave the "
                f"first dimension, the samples, as it is"
            )
        named = dict(zip(state_names(neuron), args, strict=False)) | kwargs
        given = {name: state for name, state in named.items() if state is not None}
        self._see_calls(given)
        if layout.probes:
            layout.last_neuron = self
            layout.taken.update({id(state): (self, name) for name, state in given.items()})
        given = {name: layout.last(state, dims) for name, state in given.items()}
        if self._held and not given:
            for name, value in self._held.items():
                setattr(neuron, name, value)
        x = layout.first_dimension(input_)
        reads = self.reads if not layout.probes else {n for n, _ in states_of(neuron, all_of=True)}
        dynamics = None if layout.probes else dynamics_of(neuron, self._facts)
        if dynamics is None or not reads <= set(state_series(dynamics)):
            result, series = self._steps(x, given, sorted(reads), hands_on=bool(named))
        else:
            result, series = self._scan(x, dynamics, given, bool(reads))
        result, series = _flat(result), {name: _flat(s) for name, s in series.items()}
        self._note(result, given, series)
        return result

    def _see_calls(self, given: Mapping[str, Any]) -> None:
        self._calls += 1
        if self._calls > 1 and not given:
            raise twice(self.neuron)

    def _note(self, result: Any, given: Mapping[str, Any], series: Mapping[str, Any]) -> None:
        """Keep the series of states that are read, and note those that go out."""
        self._series = dict(series)
        if self.layout.probes:
            if given and isinstance(result, tuple):
                names = state_names(self.neuron)
                outs = zip(names, result[-len(names) :], strict=True)
                self.layout.given.update({id(state): (self, name) for name, state in outs})
                self.layout.kept += [t for t in result if isinstance(t, Tensor)]
            return
        # As attributes of this module, where DFA finds what a layer leaves beside its result.
        vars(self).update(series)


def _bare_flat_scan() -> FlatScan:
    return FlatScan.__new__(FlatScan)


def see_that_it_is_a_sequence(x: Any) -> None:
    """See that what a form is called with is a sequence [T, B, ...].

    Args:
        x: Its first argument.

    Raises:
        InputError: if it is not.
    """
    if not isinstance(x, Tensor):
        got = "none" if x is None else f"a {type(x).__name__}"
        raise InputError(
            f"over_time: expected one tensor [T, B, ...] as the network's first argument, got "
            f"{got}; give the sequence there, and what else the network takes after it"
        )
    if x.dim() < 3 or not len(x) or not x.is_floating_point():
        raise InputError(
            f"over_time: expected floating point numbers [T, B, ...] of one step or more, got "
            f"{x.dtype} of shape {list(x.shape)}; add the time steps, as with "
            f"encoding.constant(x, num_steps), and convert integers with x.float()"
        )


def twice(neuron: nn.Module) -> AttachError:
    """Return the error for a neuron with a hidden state that has two places."""
    return AttachError(
        f"over_time: expected each neuron once in the network, got a {type(neuron).__name__} "
        f"that is used twice, whose one state would go from place to place at every step; make "
        f"one for each place"
    )


def _flat(result: Any) -> Any:
    """Return [T * B, ...] of each tensor [T, B, ...]."""
    if isinstance(result, Tensor):
        return result.flatten(0, 1)
    return tuple(_flat(each) for each in result)
