"""From the errors at the outputs to what each hidden layer is sent: all steps in one product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snn_dfa._attach import messages
from snn_dfa._attach.calls import Arrivals, Call, reached, with_earlier
from snn_dfa._attach.sample_errors import SentByWays, send_by_ways
from snn_dfa._attach.samples import dims_of, with_samples
from snn_dfa.errors import AttachError, BackwardError
from snn_dfa.feedback import project
from snn_dfa.feedback.apply import readout
from snn_dfa.feedback.sample_ways import index_of, layer_of
from snn_dfa.rules import broadcast_signal, check_finite, local

if TYPE_CHECKING:
    from snn_dfa._attach.core import Core

__all__ = ["Broadcast"]

#: The errors at the outputs of one step, by the output's name.
Errors = dict[str, Tensor]


class Broadcast:
    """One backward pass's broadcast."""

    def __init__(self, core: Core) -> None:
        assert core.rule is not None
        self._core, self._layers, self._rule = core, core.layers, core.rule
        self._feedback, self._shapes = core.feedback, core.shapes
        self._errors: dict[tuple[int, ...], Tensor] = {}  # of a group of steps
        self._signals: dict[int, Tensor] = {}  # what the rule made of one of these
        self._by_ways: SentByWays | None = None  # of feedback with ways of samples

    def __call__(self, arrived: Arrivals) -> Arrivals:
        """Return the hidden calls with what each is sent at its spikes.

        Args:
            arrived: Calls, and the loss's gradients at their values.
        """
        at_outputs = [a for a in arrived if a[0].layer in self._layers.outputs]
        steady = self._feedback.by_sample and _is_steady(at_outputs)
        if self._core.at_current:
            came, arrived = len(arrived), self._at_currents(arrived)
            steady &= len(arrived) == came  # the loss reads all steps
        steps = self._steps(arrived)
        errors: list[tuple[str, list[Call], Tensor]] = []
        shapes: dict[str, tuple[int, ...]] = {}
        for name, of_layer in steps.items():
            for group in _alike(of_layer):
                e, dims = self._errors_of(name, group)
                shapes[name] = (e.shape[-1], *group[0][0].shape[dims:])
                errors.append((name, [call for call, _ in group], e))
        if shapes:
            read = reached(arrived, self._layers.outputs) if self._core.follows_ways else {}
            self._choose(read)
            self._feedback.require(shapes, self._path(e.shape[-1], dims))
            name, calls, e = errors[0]
            alike = self._rule is not local and all(each[2] is e for each in errors)
            if self._feedback.by_sample and alike and dims and e.numel():
                signal = self._signal(name, e, calls)
                self._by_ways = send_by_ways(self._core, read, signal, calls, dims, steady=steady)
            elif self._feedback.needs_ways and e.numel():  # without samples nothing is sent
                raise messages.without_ways(self._feedback.needs_ways)
        return [sent for each in errors for sent in self._send(*each)]

    def _choose(self, calls: Mapping[str, Sequence[Call]]) -> None:
        """Let feedback that is made of what comes into layers take what came into some calls."""
        if self._core.follows_ways:
            self._core.paths.choose(
                {name: [call.read for call in each] for name, each in calls.items()},
                {name: sum([call.hears for call in each]) for name, each in calls.items()},
            )

    def require(self, outputs: Sequence[Call], calls: Mapping[str, Sequence[Call]]) -> None:
        """See that each hidden layer has a matrix that fits.

        Args:
            outputs: One call of each output that was called, of the same step.
            calls: All of their pass, by layer.
        """
        self._choose(calls)
        hidden = {name: call for out in outputs for name, call in out.below.items() if call.learns}
        if hidden:
            dims = dims_of(outputs[0], self._layers)
            count = sum(self._count(name, dims) for name in self._layers.outputs)
            shapes = {n: (count, *hidden[n].shape[dims:]) for n in self._shapes if n in hidden}
            self._feedback.require(shapes, self._path(count, dims))

    def _at_currents(self, arrived: Arrivals) -> Arrivals:
        """Return what has arrived, with the errors of spiking outputs taken at their currents.

        The error at the current of a step is dL/dI, by way of the neuron's surrogate, of its later
        steps and of all that the loss reads of it. It is what the last weights learn from.
        """
        running, layers = self._core.running, self._layers
        spiking = layers.neurons.intersection(layers.outputs)
        own = [a for a in arrived if a[0].layer in spiking and any(g is not None for g in a[1])]
        # Of a loss on the last membrane, say, nothing arrives at the calls before.
        asked = [c for c in with_earlier(call for call, _ in own) if c.layer in spiking]
        assert running is not None
        found: dict[Call, Sequence[Tensor | None]] = {
            c: [e, *[None] * (len(c.values) - 1)]
            for c, e in zip(asked, running.at_currents(own, asked), strict=True)
            if e is not None and e.shape == c.shape
        }
        return [a for a in arrived if a[0] not in found] + list(found.items())

    def _path(self, count: int, dims: int) -> dict[str, tuple[int, ...]]:
        return {
            name: (count, *shapes[0][dims:])
            for name, shapes in self._shapes.items()
            if name not in self._layers.outputs
        }

    def _count(self, output: str, dims: int) -> int:
        """Return how many numbers of one sample an output has.

        Raises:
            OutOfStepError: if it was not called yet, and its size does not tell.
        """
        if output not in self._shapes:
            if output not in self._layers.sizes:
                raise messages.not_yet_called(output)
            return self._layers.sizes[output]
        spikes, *returned = self._shapes[output]
        others = [
            s
            for s in returned
            if s != spikes and s[:dims] == spikes[:dims] and output not in self._layers.neurons
        ]
        return sum(shape[dims:].numel() for shape in (spikes, *others))

    def _steps(self, arrived: Arrivals) -> dict[str, dict[Call, Errors]]:
        """Return for each hidden layer its calls, with the errors at the outputs of their step."""
        steps: dict[str, dict[Call, Errors]] = {}
        #: Of an output that was called more than once on a call's values; one for all layers.
        sums: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        for call, grads in sorted(arrived, key=lambda each: each[0].number):
            output = call.layer
            if output not in self._layers.outputs or all([g is None for g in grads]):
                continue
            steps_below = call.steps_below
            if not any([hidden.learns for below in steps_below for hidden in below.values()]):
                continue
            each = _of_each_step(call, self._error(call, grads), len(steps_below))
            for error, below in zip(each, steps_below, strict=True):
                for name, hidden in below.items():
                    if hidden.learns:
                        errors = steps.setdefault(name, {}).setdefault(hidden, {})
                        known = errors.get(output)
                        if known is None:
                            errors[output] = error
                        elif known.shape == error.shape:
                            errors[output] = _sum(known, error, sums)
                        else:
                            shapes = hidden.shape, error.shape
                            raise messages.other_steps(name, *shapes, error.dim() - 1)
        return {name: steps[name] for name in self._shapes if name in steps}

    def _error(self, call: Call, grads: Sequence[Tensor | None]) -> Tensor:
        """Return the error [*batch, C] at one call of an output; of all steps with time.

        Values of the spikes' shape are those of the same neurons: their errors add up. Others that
        a readout returned are further outputs, if they are of the same samples.

        Raises:
            AttachError: if the loss reads a state of another shape than the spikes'.
            BackwardError: if it reads a value that is not of the samples.
        """
        shape = call.shape
        dims = dims_of(call, self._layers) + (call.along is not None)
        samples = with_samples(shape, call, dims)[:dims]
        pairs = list(zip(grads, call.values, strict=True))
        alike = [g for g, value in pairs if g is not None and value.shape == shape]
        if alike:
            parts = [sum(alike[1:], alike[0])]
        else:
            parts = [next(g for g in grads if g is not None).new_zeros(shape)]
        for i, (grad, value) in enumerate(pairs):
            if value.shape == shape:
                continue
            if i < call.returned and call.layer not in self._layers.neurons:
                if with_samples(value.shape, call, dims)[:dims] == samples:
                    parts.append(grad if grad is not None else torch.zeros_like(value))
                elif grad is not None:
                    raise BackwardError(
                        f"output {call.layer!r}: the loss reads a further value that it returns, "
                        f"of shape {list(value.shape)}; expected a shape that begins with "
                        f"{list(samples)}, as that of the first value, since each sample of a "
                        f"hidden layer gets the error of its own sample. Compute such a value, as "
                        f"a penalty or the loss, outside of {call.layer!r}, from the first value "
                        f"or from parameters; or let the loss leave it out"
                    )
            elif grad is not None:
                raise AttachError(
                    f"output {call.layer!r}: the loss reads a state of shape {list(value.shape)}, "
                    f"expected the shape of the spikes, {list(call.shape)}; return the value "
                    f"through a module and name that module with output="
                )
        wholes = [with_samples(p.shape, call, dims) for p in parts]
        flat = [
            p if len(w) == dims + 1 == p.dim() else p.reshape(*samples, w[dims:].numel())
            for p, w in zip(parts, wholes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def _errors_of(self, name: str, group: Sequence[tuple[Call, Errors]]) -> tuple[Tensor, int]:
        """Return the errors at the outputs of some steps.

        Returns:
            [*batch, C] of one step, [K, *batch, C] of K; and how many dimensions the batch has.
        """
        key = tuple([id(e) for _, errors in group for e in errors.values()])
        first = next(iter(group[0][1].values()))
        batch = first.shape[:-1]
        shape = group[0][0].shape
        if shape[: len(batch)] != batch:
            raise messages.other_steps(name, shape, first.shape, len(batch))
        if key not in self._errors:
            e = _stacked([self._joined(each) for _, each in group])
            check_finite(e, " and ".join(self._layers.outputs))
            self._errors[key] = e
        return self._errors[key], len(batch)

    def _signal(self, name: str, e: Tensor, calls: Sequence[Call]) -> Tensor:
        """Return what the rule makes of the errors of some calls of a layer."""
        if self._rule is local:
            scores = readout(_spikes(name, calls), self._feedback.matrix(name, e))
            return self._made(e, calls, scores)
        if id(e) not in self._signals:
            self._signals[id(e)] = self._made(e, calls)
        return self._signals[id(e)]

    def _made(self, e: Tensor, calls: Sequence[Call], scores: Tensor | None = None) -> Tensor:
        """Return what the rule makes of errors and a layer's scores, in the order of the calls."""
        own, steps, given = [c.targets for c in calls], calls[0].steps, self._core.targets
        if given is not None or all(y is own[0] for y in own):
            targets = own[0] if given is None else given
            return broadcast_signal(self._rule, e, targets, steps, scores)
        each = [None] * len(own) if scores is None else scores
        return torch.stack(
            [
                broadcast_signal(self._rule, *of[:2], steps, of[2])
                for of in zip(e, own, each, strict=True)
            ]
        )

    def _joined(self, errors: Errors) -> Tensor:
        """Return the errors of all outputs side by side; one that the loss did not read is zero."""
        if len(self._layers.outputs) == 1:
            return next(iter(errors.values()))
        like = next(iter(errors.values()))
        parts = []
        for output in self._layers.outputs:
            if output in errors:
                parts.append(errors[output])
                continue
            count = self._count(output, like.dim() - 1)
            parts.append(like.new_zeros(*like.shape[:-1], count))
        return torch.cat(parts, -1)

    def _send(self, name: str, calls: Sequence[Call], e: Tensor) -> Arrivals:
        """Return what the steps of one layer are sent."""
        signal = self._signal(name, e, calls)
        own = self._feedback.with_own_matrix
        if self._feedback.accumulates and (not own or name in own):
            self._feedback.accumulate(name, signal, _spikes(name, calls))
        values = [name] if self._by_ways is None else self._feedback.values_of(name)
        return [sent for value in values for sent in self._send_at(value, calls, signal)]

    def _send_at(self, value: str, calls: Sequence[Call], signal: Tensor) -> Arrivals:
        """Return what the steps of one layer are sent at one of its values."""
        name, index, spikes0 = layer_of(value), index_of(value), calls[0].spikes
        dtype = signal.dtype if spikes0 is None else spikes0.dtype
        if self._by_ways is None:
            sent = project(signal, self._feedback.matrix(name, signal))
        else:
            sent = self._by_ways.to(value, signal, calls)
        sent = sent.to(dtype)
        shape = calls[0].shape if len(calls) == 1 else (len(calls), *calls[0].shape)
        sent = sent if sent.shape == shape else sent.expand(shape)
        self._feedback.notify(name, sent)
        each, before = [sent] if len(calls) == 1 else sent, (None,) * index
        pairs = zip(calls, each, strict=True)
        return [(call, (*before, e)) for call, e in pairs if call.hears_at(index)]


def _of_each_step(call: Call, error: Tensor, count: int) -> Sequence[Tensor]:
    """Return the error of each step that an output's call belongs with, given that of the call."""
    if call.along is not None:
        return error.unbind(call.along)
    if call.chosen is not None:
        of = torch.tensor(call.chosen, device=error.device)
        return [error.masked_fill((of != i).unsqueeze(1), 0) for i in range(count)]
    # As if it had been called at each step, and the results averaged.
    return [error if count == 1 else error / count] * count


def _sum(a: Tensor, b: Tensor, sums: dict[tuple[int, int], tuple[Tensor, ...]]) -> Tensor:
    """Return a sum that is computed once; both parts are kept, since they are known by identity."""
    key = id(a), id(b)
    if key not in sums:
        sums[key] = a, b, a + b
    return sums[key][2]


def _is_steady(arrived: Arrivals) -> bool:
    """Return whether the loss gives the same errors at all steps."""
    errors: dict[tuple[str | None, int], list[Tensor]] = {}
    if any(call.chosen is not None for call, _ in arrived):
        return False
    for call, grads in arrived:
        for i, grad in enumerate(grads):
            if grad is not None:
                steps = grad if call.steps is None else grad.reshape(call.steps, -1)
                steps = steps if call.along is None else steps.movedim(call.along, 0)
                errors.setdefault((call.layer, i), []).append(steps)
    return all(_is_same(each) for each in errors.values())


def _is_same(errors: Sequence[Tensor]) -> bool:
    """Return whether all errors are equal; of one alone, those along its first dimension."""
    first = errors[0]
    if len(errors) > 1:
        return _is_one(errors) or all(torch.equal(e, first) for e in errors)
    return not (first.dim() and first.stride(0)) or torch.equal(first, first[:1].expand_as(first))


def _is_one(errors: Sequence[Tensor]) -> bool:
    """Return whether errors are one, in the memory of one."""
    first = errors[0]
    return all(e.data_ptr() == first.data_ptr() and e.stride() == first.stride() for e in errors)


def _spikes(name: str, calls: Sequence[Call]) -> Tensor:
    """Return the spikes of some calls of a layer, [*batch, *S] of one, [K, *batch, *S] of K.

    Raises:
        BackwardError: if the program has changed them in place.
    """
    spikes = [call.spikes.detach() for call in calls if call.spikes is not None]
    if any([c.spikes is not None and c.spikes._version != c.spikes_version for c in calls]):
        raise BackwardError(
            f"backward: the spikes of layer {name!r} were changed in place behind the layer, and "
            f"rule='local' or the feedback learns from the spikes as the layer has returned them; "
            f"expected them unchanged; write spk * mask in place of spk.mul_(mask), and leave out "
            f"inplace=True, as of nn.Dropout"
        )
    return spikes[0] if len(spikes) == 1 else torch.stack(spikes)


def _alike(calls: Mapping[Call, Errors]) -> list[list[tuple[Call, Errors]]]:
    """Return the calls in groups of the same shapes."""
    groups: dict[object, list[tuple[Call, Errors]]] = {}
    for call, errors in calls.items():
        key = (call.shape, *errors, *[e.shape for e in errors.values()])
        groups.setdefault(key, []).append((call, errors))
    return list(groups.values())


def _stacked(errors: Sequence[Tensor]) -> Tensor:
    """Return [K, ...]; where all steps have the same error, in the memory of one."""
    first = errors[0]
    if len(errors) == 1:
        return first
    if _is_one(errors):
        return first.expand(len(errors), *first.shape)
    return torch.stack(list(errors))
