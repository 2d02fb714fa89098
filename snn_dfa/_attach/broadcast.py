"""From the errors at the outputs to what each hidden layer is sent: all steps in one product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from snn_dfa._attach import messages
from snn_dfa._attach.calls import Arrivals, Call
from snn_dfa._attach.layers import Layers
from snn_dfa.errors import AttachError, OutOfStepError
from snn_dfa.feedback import project
from snn_dfa.feedback.apply import readout
from snn_dfa.feedback.base import FeedbackWeights, Sent
from snn_dfa.feedback.sample_ways import Ways, course_of, sizes_of
from snn_dfa.rules import Rule, broadcast_signal, check_finite, local
from snn_dfa.sequence.scan import InSteps, is_scanned

__all__ = ["Broadcast", "is_steady"]

#: The errors at the outputs of one step, by the output's name.
Errors = dict[str, Tensor]


class Broadcast:
    """One backward pass's broadcast.

    Args:
        layers: The layers.
        rule: What is broadcast.
        feedback: The feedback.
        shapes: Of the spikes of each layer, then of all that it returned, in order of calls.
        targets: For the rule that sends them.
        ways: From the calls of layers, the number of samples, and how many dimensions of a call are
            samples and steps, to how the samples have passed the layers.
        steady: Whether the loss is the same function of each step.
    """

    def __init__(
        self,
        layers: Layers,
        rule: Rule,
        feedback: FeedbackWeights,
        shapes: Mapping[str, Sequence[torch.Size]],
        targets: Tensor | None,
        ways: Callable[[Mapping[str, Sequence[Call]], int, int], Ways],
        *,
        steady: bool = False,
    ) -> None:
        self._ways, self._steady = ways, steady
        self._layers, self._rule, self._feedback = layers, rule, feedback
        self._shapes, self._targets = shapes, targets
        self._errors: dict[tuple[int, ...], Tensor] = {}  # of a group of steps
        self._signals: dict[int, Tensor] = {}  # what the rule made of one of these
        # Of feedback with ways of samples: what each layer is sent, and by what the signal of each
        # step differs from the mean one, which is taken as large as that step's, [T, B, C].
        self._rest: Tensor | None = None
        self._by_sample: dict[str, Sent] = {}

    def __call__(self, arrived: Arrivals) -> Arrivals:
        """Return the hidden calls with what each is sent at its spikes.

        Args:
            arrived: Calls, and the loss's gradients at their values.
        """
        steps = self._steps(arrived)
        errors: list[tuple[str, list[Call], Tensor]] = []
        shapes: dict[str, tuple[int, ...]] = {}
        for name, calls in steps.items():
            for group in _alike(calls):
                e, dims = self._errors_of(name, group)
                shapes[name] = (e.shape[-1], *group[0][0].shape[dims:])
                errors.append((name, [call for call, _ in group], e))
        if shapes:
            self._feedback.require(shapes, self._path(e.shape[-1], dims))
            self._take_ways(arrived, errors, dims)
        return [sent for each in errors for sent in self._send(*each)]

    def require(self, outputs: Sequence[Call]) -> None:
        """See that each hidden layer has a matrix that fits.

        Args:
            outputs: One call of each output that was called, of the same step.
        """
        hidden = {name: call for out in outputs for name, call in out.below.items() if call.learns}
        if hidden:
            dims = self._dims(outputs[0])
            count = sum(self._count(name, dims) for name in self._layers.outputs)
            shapes = {n: (count, *hidden[n].shape[dims:]) for n in self._shapes if n in hidden}
            self._feedback.require(shapes, self._path(count, dims))

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
                raise OutOfStepError(messages.not_yet_called(output))
            return self._layers.sizes[output]
        spikes, *returned = self._shapes[output]
        others = [s for s in returned if s != spikes and output not in self._layers.neurons]
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
            error, count = self._error(call, grads), len(call.steps_below)
            if call.along is not None:
                each = error.unbind(call.along)
            elif call.chosen is not None:
                of = torch.tensor(call.chosen, device=error.device)
                each = tuple(error.masked_fill((of != i).unsqueeze(1), 0) for i in range(count))
            else:  # as if it had been called at each step, and the results averaged
                each = (error if count == 1 else error / count,) * count
            for error, below in zip(each, call.steps_below, strict=True):
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
                            raise OutOfStepError(
                                messages.other_steps(name, *shapes, error.dim() - 1)
                            )
        return {name: steps[name] for name in self._shapes if name in steps}

    def _error(self, call: Call, grads: Sequence[Tensor | None]) -> Tensor:
        """Return the error [*batch, C] at one call of an output; of all steps with time.

        Values of the spikes' shape are those of the same neurons: their errors add up. Others that
        a readout returned are further outputs.
        """
        dims, shape = self._dims(call) + (call.along is not None), call.shape
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
                parts.append(grad if grad is not None else torch.zeros_like(value))
            elif grad is not None:
                raise AttachError(
                    f"output {call.layer!r}: the loss reads a state of shape {list(value.shape)}, "
                    f"expected the shape of the spikes, {list(call.shape)}; return the value "
                    f"through a module and name that module with output="
                )
        flat = [
            p if p.dim() == dims + 1 else p.reshape(*p.shape[:dims], p.shape[dims:].numel())
            for p in parts
        ]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)

    def _dims(self, call: Call) -> int:
        """Return how many leading dimensions of an output are samples and steps, not features.

        Of one that was given all steps, those of one step.
        A lone sample has none: then the hidden layers have no dimension in common with the output.

        Raises:
            OutOfStepError: if steps and samples cannot be told from samples and features.
        """
        if call.along is not None:
            return 1
        dims = 2 if self._layers.sequences else 1
        if dims == len(call.shape) == 2 and call.shape[0] == call.shape[1]:
            raise OutOfStepError(messages.square(call.layer or "", call.shape[0]))
        if len(call.shape) == 1:
            shapes = [hidden.shape for hidden in call.below.values()]
            if not shapes or any(len(s) == 1 or s[0] != call.shape[0] for s in shapes):
                return 0
        return min(dims, len(call.shape))

    def _errors_of(self, name: str, group: Sequence[tuple[Call, Errors]]) -> tuple[Tensor, int]:
        """Return the errors at the outputs of some steps.

        Returns:
            [*batch, C] of one step, [K, *batch, C] of K; and how many dimensions the batch has.
        """
        key = tuple([id(e) for _, errors in group for e in errors.values()])
        first = next(iter(group[0][1].values()))
        batch = first.shape[:-1]
        shape = group[0][0].shape
        if shape[: len(batch)] != batch or len(shape) < len(batch):
            raise OutOfStepError(messages.other_steps(name, shape, first.shape, len(batch)))
        if key not in self._errors:
            e = _stacked([self._joined(each) for _, each in group])
            check_finite(e, " and ".join(self._layers.outputs))
            self._errors[key] = e
        return self._errors[key], len(batch)

    def _signal(self, name: str, e: Tensor, calls: Sequence[Call]) -> Tensor:
        """Return what the rule makes of the errors of some calls of a layer."""
        if self._rule is local:
            scores = readout(_spikes(calls), self._feedback.matrix(name, e))
            return self._made(e, calls, scores)
        if id(e) not in self._signals:
            self._signals[id(e)] = self._made(e, calls)
        return self._signals[id(e)]

    def _made(self, e: Tensor, calls: Sequence[Call], scores: Tensor | None = None) -> Tensor:
        """Return what the rule makes of errors and a layer's scores, in the order of the calls."""
        own, steps = [call.targets for call in calls], calls[0].steps
        if self._targets is not None or all(y is own[0] for y in own):
            targets = own[0] if self._targets is None else self._targets
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

    def _take_ways(
        self,
        arrived: Arrivals,
        errors: Sequence[tuple[str, list[Call], Tensor]],
        dims: int,
    ) -> None:
        """Send the mean signal over all steps back by each sample's own way, where it is known."""
        name, calls, e = errors[0]
        batch = calls[0].shape[:dims]
        alike = self._rule is not local and all(each[2] is e for each in errors)
        if not (self._feedback.by_sample and alike and dims):
            messages.refuse_without_ways(self._feedback.needs_ways)
            return
        steps = _in_steps(self._signal(name, e, calls), calls[0].steps)
        mean, courses = steps[:1], dict[str, Tensor]()
        if steps.stride(0) and len(steps) > 1:
            mean, course = steps.mean(0, keepdim=True), course_of(sizes_of(steps))
            by = course.to(steps.dtype).view(-1, 1, 1)
            self._rest = torch.addcmul(steps, by, mean, value=-1)
            courses = dict.fromkeys(self._layers.outputs, course)
        passed: dict[str, dict[Call, None]] = {}  # once, where several outputs are of one step
        for call, _ in sorted(arrived, key=lambda each: each[0].number):
            if call.layer in self._layers.outputs:
                passed.setdefault(call.layer, {})[call] = None
                for below in call.steps_below:
                    for name, each in below.items():
                        if each.shape[:dims] == batch:
                            passed.setdefault(name, {})[each] = None
        found = {name: list(calls) for name, calls in passed.items()}
        ways = self._ways(found, steps.shape[1], dims)
        known = {n: each for n, each in ways.courses.items() if len(each) == len(steps) > 1}
        ways = replace(ways, courses=known | courses)
        rest = None if self._rest is None else self._rest.flatten(0, 1)
        self._by_sample = self._feedback.send(mean[0], rest, ways, steady=self._steady)

    def _projected(self, name: str, signal: Tensor, calls: Sequence[Call]) -> Tensor:
        """Return what a layer is sent for a signal, [..., *S]."""
        if not self._by_sample:
            return project(signal, self._feedback.matrix(name, signal))
        once, matrix, rest, course = self._by_sample[name]
        steps = _in_steps(signal, calls[0].steps)
        if rest is not None:
            sent = _added(rest.reshape(len(steps), *once.shape), once, course)
        elif matrix is not None and self._rest is not None:
            sent = _added(_through(self._rest, matrix, calls[0].spikes), once, course)
        elif course is None:
            sent = once.expand(len(steps), *once.shape)
        else:  # the parts are for scans; hooks and functions in a block see what they know
            sent = InSteps.of(once, course.to(once.dtype))
            parts = name in self._layers.neurons and is_scanned(calls[0].spikes)
            sent = sent if parts and len(calls) == 1 else sent.product()
        shape = (*signal.shape[:-1], *once.shape[1:])
        return sent if sent.shape == shape else sent.reshape(shape)

    def _send(self, name: str, calls: Sequence[Call], e: Tensor) -> Arrivals:
        """Return what the steps of one layer are sent."""
        signal = self._signal(name, e, calls)
        if self._feedback.accumulates:
            self._feedback.accumulate(name, signal, _spikes(calls))
        spikes0 = calls[0].spikes
        dtype = signal.dtype if spikes0 is None else spikes0.dtype
        sent = self._projected(name, signal, calls).to(dtype)
        shape = calls[0].shape if len(calls) == 1 else (len(calls), *calls[0].shape)
        sent = sent if sent.shape == shape else sent.expand(shape)
        self._feedback.notify(name, sent)
        each = [sent] if len(calls) == 1 else sent
        return [(call, (e,)) for call, e in zip(calls, each, strict=True) if call.hears]


def _sum(a: Tensor, b: Tensor, sums: dict[tuple[int, int], tuple[Tensor, ...]]) -> Tensor:
    """Return a sum that is computed once; both parts are kept, since they are known by identity."""
    key = id(a), id(b)
    if key not in sums:
        sums[key] = a, b, a + b
    return sums[key][2]


def is_steady(arrived: Arrivals) -> bool:
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


def _spikes(calls: Sequence[Call]) -> Tensor:
    """Return the spikes of some calls, [*batch, *S] of one, [K, *batch, *S] of K."""
    spikes = [call.spikes.detach() for call in calls if call.spikes is not None]
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
