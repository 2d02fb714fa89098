"""A spiking neuron over a sequence: the states it begins with, its scan, or its own steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.errors import AttachError, InputError
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.sequence.facts import Facts
from snn_dfa.sequence.scan import Dynamics, leaky_scan
from snn_dfa.state import reset
from snn_dfa.surrogate import Surrogate, derivative_of, recognise

__all__ = ["FlatScan", "Layout", "NeuronOverTime", "Scan", "dynamics_of", "has_trace"]

# States beside those that a neuron's forward names: of neurons that keep all of them inside.
_STATES = ("mem", "mem_prev", "spk", "syn", "syn_exc", "syn_inh", "counter")


class NeuronOverTime(nn.Module):
    """A neuron over sequences [T, B, ...]; what is common to the two layouts of a sequence.

    Args:
        neuron: Any of snnTorch's that takes a step a call, or one of a user's making.
        stateful: Whether a call begins with the states that the last one has left.

    Example:
        >>> isinstance(Scan(snn.Leaky(beta=0.5)), NeuronOverTime)
        True
    """

    def __init__(self, neuron: nn.Module, stateful: bool = False) -> None:
        super().__init__()
        self.neuron: Any = neuron
        self.stateful = stateful
        # In half precision spikes stay half on the way to the next layer; those of the network's
        # last layer, which go into a loss, are in single precision as in the loop over time.
        self.is_last = False
        # Of the credit `trace`: whether the gradient passes over resets, and a zero whose gradient
        # is that at the membrane before the first step.
        self.traces = False
        self.carried: Tensor | None = None
        self._facts = Facts()

    def _run(self, x: Tensor, given: Mapping[str, Any]) -> Any:
        """Run over [T, B, ...] from the states that are given by name; no others are given."""
        dynamics = dynamics_of(self.neuron, self._facts)
        return self._steps(x, given)[0] if dynamics is None else self._scan(x, dynamics, given)[0]

    def _scan(
        self, x: Tensor, dyn: Dynamics, given: Mapping[str, Any], reads: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Return what the neuron gives, and the series of its states where they are read."""
        neuron = self.neuron
        alone = neuron.init_hidden and not neuron.output
        dtype = torch.promote_types(x.dtype, torch.float32) if self.is_last else x.dtype
        names = state_series(dyn)
        first = self._first(x, given, names)
        mem, carried, self.carried = first["mem"], self.carried, None  # it is no state that is left
        if mem is not None:
            if _is_reset_at_first(mem, dyn) and not self.traces:
                return self._steps(x, given, names if reads else [])
            first["mem"] = mem if carried is None else mem + carried
        wait = self._counter(mem) if dyn.refractory_steps and mem is not None else None
        counts = dyn.refractory_steps > 0 and not neuron.init_hidden
        keeps, wants = self.stateful or counts, reads or not alone
        start = first["mem"], wait, *(first[name] for name in names[:-1])
        spikes, *rest = leaky_scan(x, dyn, wants, dtype, start, keeps, self.traces)
        series, lasts = rest[: len(names) * wants], rest[len(names) * wants :]
        if keeps and dyn.refractory_steps:
            neuron.counter = lasts.pop(1)
        if self.stateful:
            for name, last in zip((names[-1], *names[:-1]), lasts, strict=True):
                setattr(neuron, name, last.clone())  # no view, which detach_hidden() could not cut
        factor = neuron.graded_spikes_factor
        if not self._facts.holds("factor", factor, _is_one):
            spikes = spikes * factor
        read = dict(zip(names, series, strict=True)) if reads else {}
        return spikes if alone else (spikes, *series), read

    def _first(
        self, x: Tensor, given: Mapping[str, Any], names: Sequence[str]
    ) -> dict[str, Tensor | None]:
        """Return the states to begin with; snnTorch takes any of another shape for rest."""
        found = {n: given.get(n, getattr(self.neuron, n) if self.stateful else None) for n in names}
        return {
            n: t if t is not None and t.shape == x.shape[1:] else None for n, t in found.items()
        }

    def _counter(self, mem: Tensor) -> Tensor | None:
        """Return a refractory neuron's silent steps that are left; from rest there are none."""
        counter: Tensor = self.neuron.counter
        fits = counter.shape == mem.shape and (self.stateful or bool(mem.any()))
        return counter if fits else None

    def _steps(
        self, x: Tensor, given: Mapping[str, Any], reads: Sequence[str] = ()
    ) -> tuple[Any, dict[str, Any]]:
        """Call the neuron step by step; return as :meth:`_scan`."""
        neuron, states, steps, read = self.neuron, dict(given), [], []
        if not self.stateful:
            reset(neuron)
        names = state_names(neuron)
        for step in x:
            result = neuron(step, **states)
            steps.append(result)
            read.append({name: getattr(neuron, name) for name in reads})
            if states:
                states = dict(zip(names, result[-len(names) :], strict=True))
        if self.stateful:
            _detach(neuron)
        else:
            reset(neuron)  # its last state would keep the whole graph alive
        return _stacked(steps), {name: _stacked([r[name] for r in read]) for name in reads}


class Scan(NeuronOverTime):
    """A spiking neuron over a sequence: [T, B, ...] in and out, from rest.

    It gives what the neuron gives at a step, stacked over T.

    Args:
        neuron: Any of snnTorch's that keeps its state inside (``init_hidden=True``).
        stateful: Begin where the last call ended, instead of at rest.

    Example:
        >>> Scan(snn.Leaky(beta=0.5, init_hidden=True))(torch.full((4, 1, 1), 0.6)).flatten()
        tensor([0., 0., 1., 0.])
    """

    def forward(self, x: Tensor) -> Any:
        """Run the neuron over the sequence [T, B, ...]."""
        return self._run(x.contiguous() if self.is_last else x, {})


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
        if name in _STATES and self.layout.running:
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
            self._held = {n: v for n, v in _states(self.neuron)}

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
        places = {id(value): name for name, value in _states(self.neuron)}
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
        if len(input_) != layout.steps * layout.batch:
            raise InputError(
                f"over_time: a {type(neuron).__name__} got {len(input_)} samples, expected all "
                f"T * B = {layout.steps} * {layout.batch}; in the network's forward leave the "
                f"first dimension, the samples, as it is"
            )
        given = dict(zip(state_names(neuron), args, strict=False)) | kwargs
        given = {name: state for name, state in given.items() if state is not None}
        self._see_calls(given)
        if layout.probes:
            layout.last_neuron = self
            layout.taken.update({id(state): (self, name) for name, state in given.items()})
        given = {name: layout.last(state, dims) for name, state in given.items()}
        if self._held and not given:
            for name, value in self._held.items():
                setattr(neuron, name, value)
        x = layout.first_dimension(input_)
        reads = self.reads if not layout.probes else {n for n, _ in _states(neuron, all_of=True)}
        dynamics = None if layout.probes else dynamics_of(neuron, self._facts)
        if dynamics is None or not reads <= set(state_series(dynamics)):
            result, series = self._steps(x, given, sorted(reads))
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


def twice(neuron: nn.Module) -> AttachError:
    """Return the error for a neuron with a hidden state that has two places."""
    return AttachError(
        f"over_time: expected each neuron once in the network, got a {type(neuron).__name__} "
        f"that is used twice, whose one state would go from place to place at every step; make "
        f"one for each place"
    )


@functools.cache
def _names_of(kind: type) -> tuple[str, ...]:
    parameters = list(inspect.signature(kind.forward).parameters.values())  # type: ignore[attr-defined]
    plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return tuple(plain[2:])  # without self and the current


def state_names(neuron: nn.Module) -> tuple[str, ...]:
    """Return the names of the states that a neuron's ``forward`` takes, in order."""
    return _names_of(type(neuron))  # type: ignore[arg-type]


def _states(neuron: nn.Module, all_of: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the states that a neuron keeps inside; ``all_of``: those with a value at each step."""
    for name in _STATES:
        skipped = all_of and name in ("counter", "mem_prev")
        if not skipped and (name in neuron._buffers or name in vars(neuron)):
            yield name, getattr(neuron, name)


def _detach(neuron: nn.Module) -> None:
    """Cut the states that a neuron keeps from their past."""
    for store in (neuron._buffers, vars(neuron)):
        for name, value in store.items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                store[name] = value.detach()


def _stacked(steps: Sequence[Any]) -> Any:
    """Return what a neuron gave at each step, tensors or tuples of them, stacked over T."""
    if isinstance(steps[0], Tensor):
        return torch.stack(list(steps))
    return tuple(_stacked(each) for each in zip(*steps, strict=True))


def _flat(result: Any) -> Any:
    """Return [T * B, ...] of each tensor [T, B, ...]."""
    if isinstance(result, Tensor):
        return result.flatten(0, 1)
    return tuple(_flat(each) for each in result)


def dynamics_of(neuron: Any, facts: Facts | None = None) -> Dynamics | None:
    """Return the equations of a neuron that ``leaky_scan`` knows; ``None`` for any other.

    Known are ``Leaky``, ``RefractoryLeaky``, ``Lapicque``, ``Synaptic`` and ``Alpha`` (not their
    subclasses, which may do anything) with the surrogates of this library and those of snnTorch
    that are fixed functions, where nothing in the neuron is quantised or inhibited and the
    threshold is above zero. Decays and thresholds of ``Leaky`` and ``Synaptic`` may learn, and the
    threshold of ``Lapicque``.

    Args:
        neuron: One of snnTorch's, or derived from it.
        facts: What is known of the neuron's tensors.

    Example:
        >>> dynamics_of(snn.Leaky(beta=0.5)).beta
        tensor(0.5000)
        >>> dynamics_of(snn.RLeaky(beta=0.5, linear_features=2)) is None
        True
    """
    kind, surrogate = type(neuron), recognise(neuron.spike_grad) or _differentiated(neuron)
    if kind not in _MAKERS or surrogate is None:
        return None
    if neuron.inhibition or neuron.state_quant:
        return None
    if not (facts or Facts()).holds("threshold", neuron.threshold, _is_positive):
        return None
    maker, may_learn = _MAKERS[kind]
    if kind is RefractoryLeaky and not neuron.refractory_steps:
        may_learn = _MAKERS[snn.Leaky][1]
    learns = {n for n, p in neuron.named_parameters() if p.requires_grad}
    return maker(neuron, surrogate) if learns <= may_learn | {"graded_spikes_factor"} else None


def _leaky(neuron: Any, surrogate: Surrogate) -> Dynamics:
    refractory = type(neuron) is RefractoryLeaky
    return Dynamics(
        beta=neuron.beta.clamp(0, 1),
        threshold=neuron.threshold,
        surrogate=surrogate,
        gain=neuron.input_gain if refractory else 1.0,
        reset=_mechanism(neuron),
        immediate_reset=not neuron.reset_delay,
        refractory_steps=neuron.refractory_steps if refractory else 0,
        clamp=refractory and neuron.refractory == "clamp",
    )


def _lapicque(neuron: Any, surrogate: Surrogate) -> Dynamics | None:
    """Return a leaky neuron with the decay and the input gain of a resistor and a capacitor."""
    constants = (neuron.R, neuron.C, neuron.time_step)
    if any(c.numel() > 1 or c.requires_grad for c in constants):
        return None
    tau = neuron.R * neuron.C
    return Dynamics(
        beta=(1 - neuron.time_step / tau).reshape(()),
        threshold=neuron.threshold,
        surrogate=surrogate,
        gain=float(neuron.R * (1 / tau) * neuron.time_step),
        reset=_cleared(_mechanism(neuron)),
    )


def _synaptic(neuron: Any, surrogate: Surrogate) -> Dynamics:
    reset, immediate = _mechanism(neuron), not neuron.reset_delay
    return Dynamics(
        beta=neuron.beta.clamp(0, 1),
        threshold=neuron.threshold,
        surrogate=surrogate,
        reset=reset if immediate else _cleared(reset),
        immediate_reset=immediate,
        alpha=neuron.alpha.clamp(0, 1),
    )


def _alpha(neuron: Any, surrogate: Surrogate) -> Dynamics | None:
    alpha, beta = neuron.alpha.clamp(0, 1), neuron.beta.clamp(0, 1)
    if alpha.requires_grad or beta.requires_grad:
        return None
    tau = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
    return Dynamics(
        beta, neuron.threshold, surrogate, reset=_mechanism(neuron), alpha=alpha, tau=tau
    )


def _cleared(reset: str) -> str:
    """Return the reset to zero of neurons that drop the input of its step, too."""
    return "clear" if reset == "zero" else reset


# How a neuron's equations are made, and which of its parameters may learn.
_MAKERS: dict[type, tuple[Callable[[Any, Surrogate], Dynamics | None], set[str]]] = {
    snn.Leaky: (_leaky, {"beta", "threshold"}),
    RefractoryLeaky: (_leaky, set()),
    snn.Lapicque: (_lapicque, {"threshold"}),
    snn.Synaptic: (_synaptic, {"alpha", "beta", "threshold"}),
    snn.Alpha: (_alpha, set()),
}


def has_trace(dyn: Dynamics) -> bool:
    """Return whether a scan computes the neuron's eligibility traces: those of one decay.

    Args:
        dyn: From :func:`dynamics_of`.

    Example:
        >>> [has_trace(dynamics_of(n)) for n in (snn.Leaky(0.5), snn.Synaptic(0.5, 0.5))]
        [True, False]
    """
    return not dyn.currents and dyn.reset != "clear"


def state_series(dyn: Dynamics) -> tuple[str, ...]:
    """Return the names of the states that a scan has at each step, in snnTorch's order."""
    return ((), ("syn",), ("syn_exc", "syn_inh"))[dyn.currents] + ("mem",)


# Of snnTorch's other surrogates those that are fixed functions of mem - threshold.
_FIXED = ("heaviside", "sigmoid", "spike_rate_escape", "straight_through_estimator", "triangular")


@dataclass(frozen=True)
class _Differentiated(Surrogate):
    """A surrogate of snnTorch whose slope autograd gives."""

    spike_grad: Callable[[Tensor], Tensor]

    def derivative(self, x: Tensor) -> Tensor:
        """Return the slope at ``x = mem - threshold``."""
        return derivative_of(self.spike_grad)(x)


def _differentiated(neuron: Any) -> Surrogate | None:
    # In refractory steps the margin is minus infinity, where not every slope is zero.
    spike_grad = neuron.spike_grad
    names = [f"{name}.<locals>.inner" for name in _FIXED]
    known = getattr(spike_grad, "__qualname__", "") in names
    if not known or getattr(spike_grad, "__module__", "") != "snntorch.surrogate":
        return None
    return None if getattr(neuron, "refractory_steps", 0) else _Differentiated(spike_grad)


def _mechanism(neuron: Any) -> str:
    """The reset that is at work: ``Leaky`` keeps the one that it was made with."""
    if isinstance(neuron, RefractoryLeaky):
        return neuron.reset_mechanism
    bound = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    # Of the function, not of the bound method, since older compilers do not know the latter's name.
    return bound[neuron.state_function.__func__.__name__]


def _is_reset_at_first(mem: Tensor, dyn: Dynamics) -> bool:
    """Return whether a neuron that resets at once to zero begins above its threshold.

    Then it makes no reset in its first step, which the scan does not know.
    """
    resets_at_once = dyn.immediate_reset and dyn.reset == "zero" and not dyn.refractory_steps
    return resets_at_once and bool((mem > dyn.threshold).any())


def _is_positive(threshold: Tensor) -> bool:
    return bool((threshold > 0).all())


def _is_one(factor: Tensor) -> bool:
    return factor.numel() == 1 and bool(factor == 1)
