"""What layers are sent by each sample's own way back: the mean signal, and what steps add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from snn_dfa._attach.between.cells import local_gates
from snn_dfa._attach.between.ways import Passage, gate_over, ways_of
from snn_dfa._attach.calls import Call
from snn_dfa._attach.samples import with_samples
from snn_dfa.feedback.sample_ways import Ways, course_of, index_of, sizes_of
from snn_dfa.feedback.sent import Sent
from snn_dfa.sequence.scan import InSteps, gate_of, is_scanned

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core
    from snn_dfa._attach.run import Run

__all__ = ["SentByWays", "send_by_ways"]


@dataclass
class SentByWays:
    """What each layer is sent.

    Args:
        sent: By the layer's value: the layer's name for its spikes.
        rest: By what the signal of each step differs from the mean one, which is taken as large as
            that step's, [T, B, C]; ``None`` for nothing.
        neurons: The layers that are spiking neurons.
    """

    sent: dict[str, Sent]
    rest: Tensor | None
    neurons: set[str]

    def to(self, value: str, signal: Tensor, calls: Sequence[Call]) -> Tensor:
        r"""Return what a layer is sent for a signal at one of its values, [..., \*S]."""
        once, matrix, rest, course = self.sent[value]
        steps = _in_steps(signal, calls[0].steps)
        if rest is not None:
            sent = _added(rest.reshape(len(steps), *once.shape), once, course)
        elif matrix is not None and self.rest is not None:
            sent = _added(_through(self.rest, matrix, calls[0].spikes), once, course)
        elif course is None:
            sent = once.expand(len(steps), *once.shape)
        else:  # the parts are for scans; hooks and functions in a block see what they know
            sent = InSteps.of(once, course.to(once.dtype))
            parts = value in self.neurons and is_scanned(calls[0].spikes)
            sent = sent if parts and len(calls) == 1 else sent.product()
        shape = (*signal.shape[:-1], *once.shape[1:])
        return sent if sent.shape == shape else sent.reshape(shape)


def send_by_ways(
    core: Core,
    reached: Mapping[str, Sequence[Call]],
    signal: Tensor,
    calls: Sequence[Call],
    dims: int,
    *,
    steady: bool,
) -> SentByWays | None:
    """Send the mean signal over all steps back by each sample's own way.

    Args:
        core: The attachment.
        reached: By layer the calls that the loss reads.
        signal: That of all steps, the same for all layers.
        calls: Of a layer, one for each step.
        dims: How many dimensions of a call are samples and steps.
        steady: Whether the loss is the same function of each step.
    """
    batch, steps = calls[0].shape[:dims], _in_steps(signal, calls[0].steps)
    mean, rest, courses = steps[:1], None, dict[str, Tensor]()
    if steps.stride(0) and len(steps) > 1:
        mean, course = steps.mean(0, keepdim=True), course_of(sizes_of(steps))
        rest = torch.addcmul(steps, course.to(steps.dtype).view(-1, 1, 1), mean, value=-1)
        courses = dict.fromkeys(core.layers.outputs, course)
    passed = {
        name: [c for c in each if name in core.layers.outputs or c.shape[:dims] == batch]
        for name, each in reached.items()
    }
    ways = _ways(core, passed, steps.shape[1], dims)
    known = {n: each for n, each in ways.courses.items() if len(each) == len(steps) > 1}
    in_steps = {value: g for value, g in ways.steps.items() if len(g) == len(steps)}
    ways = replace(ways, courses=known | courses, steps=in_steps)
    flat = None if rest is None else rest.flatten(0, 1)
    sent = core.feedback.send(mean[0], flat, ways, steady=steady)
    return SentByWays(sent, rest, core.layers.neurons) if sent else None


def _ways(core: Core, calls: dict[str, list[Call]], batch: int, dims: int) -> Ways:
    """Return how samples have passed layers, as means over the steps.

    Args:
        core: The attachment.
        calls: Of each layer, one for each step.
        batch: How many samples there are.
        dims: How many dimensions of a call are samples and steps.
    """
    run, passages = core.running, dict[str, list[tuple[Passage, int]]]()
    gates, courses, steps = dict[str, Tensor](), dict[str, Tensor](), dict[str, Any]()
    assert run is not None
    for layer, each in calls.items():
        known = [(c, c.passage) for c in each if c.passage is not None]  # others flow in there
        if known:
            shapes = [with_samples(c.without_time(c.shape), c, dims) for c, _ in known]
            passages[layer] = [
                (p, s[:dims].numel()) for (_, p), s in zip(known, shapes, strict=True)
            ]
            inner = core.feedback.cells.get(layer)
            alone = inner is not None or all(p.alone for _, p in known)
            if layer in core.layers.outputs or not alone:
                continue
            asked, sizes = [c for c, _ in known], list[Tensor]()
            weight = None if inner is None else core.paths.weight(inner)
            for value in core.feedback.values_of(layer):
                if weight is None:
                    found = _gate(run, each, asked, batch, dims, index_of(value))
                else:
                    local = _of_cell(run, asked, weight, index_of(value))
                    found = None if local is None else gate_over(local, batch, dims)
                    steps |= {} if local is None else {value: local}
                if found is not None:
                    gates[value] = found[0]
                    sizes.append(found[1])
            if sizes:
                courses[layer] = course_of(torch.stack(sizes).sum(0))
    return Ways(gates, ways_of(passages, core.paths.signatures, batch), courses, steps)


def _gate(
    run: Run, calls: Sequence[Call], asked: Sequence[Call], batch: int, dims: int, index: int
) -> tuple[Tensor, Tensor] | None:
    r"""Return what the sum of a layer's values gains by a change of its currents.

    Args:
        run: What runs.
        calls: Of the layer.
        asked: Those into which others flow.
        batch: How many samples there are.
        dims: How many dimensions of a call are samples and steps.
        index: Which value; 0 for the spikes.

    Returns:
        The mean over steps [B, \*S], and the sum of the sizes of each step's, [T].
    """
    heard = [(c, c.values[index]) for c in calls if c.values and c.hears_at(index)]
    if len(heard) < len(asked):
        return None
    if len(calls) == 1 and not index and isinstance(asked[0].tap, GradientEdge):
        gate = gate_of(heard[0][1], asked[0].tap.node, dims)
        if gate is not None:
            return gate
    one = heard[0][1].new_ones(())  # in the memory of one, which a scan reads once
    before = (None,) * index
    found = run.at_currents([(c, (*before, one.expand(s.shape))) for c, s in heard], asked)
    grads = [g for g in found if g is not None]
    return gate_over(grads, batch, dims) if len(grads) == len(asked) else None


def _of_cell(run: Run, asked: Sequence[Call], weight: Tensor, index: int) -> list[Tensor] | None:
    """Return what a cell's value gains in each step by what its input weights make, if known."""
    if not all(c.values and c.hears_at(index) for c in asked):
        return None
    with run.asking():
        return local_gates([c.values[index] for c in asked], weight)


def _in_steps(signal: Tensor, steps: int | None) -> Tensor:
    """Return a signal as [T, B, C].

    Args:
        signal: [B, C], [T, B, C], or more dimensions of steps; with ``steps`` [T * B, C].
        steps: T, where time is part of the samples.
    """
    if steps is not None:
        return signal.reshape(-1, signal.shape[-2] // steps, signal.shape[-1])
    return signal if signal.dim() == 3 else signal.reshape(-1, *signal.shape[-2:])


def _through(errors: Tensor, matrix: Tensor, spikes: Tensor | None) -> Tensor:
    r"""Return errors [T, B, C] times B [C, \*S], as spikes lie in memory: so neurons read them."""
    order = _order_of(spikes, matrix.dim())
    rows = matrix.permute(order)
    sent = (errors @ rows.flatten(1).to(errors.dtype)).view(*errors.shape[:2], *rows.shape[1:])
    return sent.permute(0, *(1 + order.index(i) for i in range(len(order))))


def _added(sent: Tensor, once: Tensor, course: Tensor | None) -> Tensor:
    r"""Return what is sent, [T, B, \*S], with one part for all steps added by its course."""
    if course is None:
        return sent.add_(once)
    return sent.addcmul_(course.to(once.dtype).view(-1, *(1,) * once.dim()), once)


def _order_of(spikes: Tensor | None, dims: int) -> list[int]:
    """Return the dimensions of [B, *S], those of a sample as they lie in memory."""
    strides = [0] * dims if spikes is None else spikes.stride()[-dims:]
    return [0, *sorted(range(1, dims), key=lambda i: (-strides[i], i))]
