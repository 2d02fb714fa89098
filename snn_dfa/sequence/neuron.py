"""A spiking neuron over a sequence: the states it begins with, its scan, or its own steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa.sequence.attached import see_that_no_hook_is_left_out, see_that_none_is_at_work
from snn_dfa.sequence.equations import dynamics_of, state_series
from snn_dfa.sequence.facts import Facts
from snn_dfa.sequence.scan import Dynamics, leaky_scan
from snn_dfa.state import reset

__all__ = ["STATES", "NeuronOverTime", "Scan", "state_names", "states_of"]

# States beside those that a neuron's forward names: of neurons that keep all of them inside.
STATES = ("mem", "mem_prev", "spk", "syn", "syn_exc", "syn_inh", "counter")


class NeuronOverTime(nn.Module):
    """A neuron over sequences [T, B, ...]; what is common to the two layouts of a sequence.

    Args:
        neuron: Any of snnTorch's that takes a step a call, or one of a user's making.
        stateful: Whether a call begins with the states that the last one has left.

    Example:
        >>> import snntorch as snn
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
        see_that_none_is_at_work(self.neuron)
        dynamics = dynamics_of(self.neuron, self._facts)
        return self._steps(x, given)[0] if dynamics is None else self._scan(x, dynamics, given)[0]

    def _scan(
        self, x: Tensor, dyn: Dynamics, given: Mapping[str, Any], reads: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Return what the neuron gives, and the series of its states where they are read."""
        neuron = self.neuron
        see_that_no_hook_is_left_out(neuron)
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
        self,
        x: Tensor,
        given: Mapping[str, Any],
        reads: Sequence[str] = (),
        *,
        hands_on: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """Call the neuron step by step; return as :meth:`_scan`.

        Args:
            x: Of all steps.
            given: The states before the first step.
            reads: Names of states whose series are wanted.
            hands_on: Whether the states that are returned go into the next step, if none are given:
                a user's neuron may begin with ``None``.
        """
        neuron, states, steps, read = self.neuron, dict(given), [], []
        if not self.stateful:
            reset(neuron)
        names = state_names(neuron)
        for step in x:
            result = neuron(step, **states)
            steps.append(result)
            read.append({name: getattr(neuron, name) for name in reads})
            if states or (hands_on and isinstance(result, tuple) and len(result) > len(names)):
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
        >>> import snntorch as snn
        >>> Scan(snn.Leaky(beta=0.5, init_hidden=True))(torch.full((4, 1, 1), 0.6)).flatten()
        tensor([0., 0., 1., 0.])
    """

    def forward(self, x: Tensor) -> Any:
        """Run the neuron over the sequence [T, B, ...]."""
        return self._run(x.contiguous() if self.is_last else x, {})


@functools.cache
def _names_of(kind: type) -> tuple[str, ...]:
    parameters = list(inspect.signature(kind.forward).parameters.values())  # type: ignore[attr-defined]
    plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return tuple(plain[2:])  # without self and the current


def state_names(neuron: nn.Module) -> tuple[str, ...]:
    """Return the names of the states that a neuron's ``forward`` takes, in order.

    Args:
        neuron: Of snnTorch, or one of a user's making.

    Example:
        >>> import snntorch as snn
        >>> state_names(snn.Synaptic(alpha=0.9, beta=0.8))
        ('syn', 'mem')
    """
    return _names_of(type(neuron))  # type: ignore[arg-type]


def states_of(neuron: nn.Module, all_of: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield the states that a neuron keeps inside; ``all_of``: those with a value at each step."""
    for name in STATES:
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


def _is_reset_at_first(mem: Tensor, dyn: Dynamics) -> bool:
    """Return whether a neuron that resets at once to zero begins above its threshold.

    Then it makes no reset in its first step, which the scan does not know.
    """
    resets_at_once = dyn.immediate_reset and dyn.reset == "zero" and not dyn.refractory_steps
    return resets_at_once and bool((mem > dyn.threshold).any())


def _is_one(factor: Tensor) -> bool:
    return factor.numel() == 1 and bool(factor == 1)
