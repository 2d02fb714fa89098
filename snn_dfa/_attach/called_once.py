"""A readout that is called once, after the loop: the steps that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from snn_dfa._attach import messages
from snn_dfa._attach.between.order import Origin, origin_in_steps
from snn_dfa._attach.layers import Layers

if TYPE_CHECKING:
    from snn_dfa._attach.calls import Call

__all__ = ["find_steps"]


def find_steps(calls: Mapping[str, Sequence[Call]], layers: Layers) -> set[str]:
    """Return the outputs that were called once; each gets the hidden calls that it reads.

    Args:
        calls: Of one forward pass, by layer.
        layers: The layers.

    Raises:
        OutOfStepError: if it is not known which steps one reads, or in which order.
    """
    single = {n for n in layers.outputs if len(calls.get(n, ())) == 1}
    if not single:
        return single
    others = [n for n in layers.names if n in calls and n not in single]
    hidden = {n: calls[n] for n in others if n not in layers.outputs}
    if len({len(calls[n]) for n in others}) != 1 or not hidden:
        return set()
    steps = [dict(zip(hidden, step, strict=True)) for step in zip(*hidden.values(), strict=True)]
    if not any(call.learns for of in hidden.values() for call in of):
        return single  # no error goes to any of them
    once = set()
    for name in single:
        (call,) = calls[name]
        origins = _origins(call, steps)
        of_each = [{i for i, c in enumerate(of) if c in call.sources} for of in hidden.values()]
        if origins:  # of what was picked
            made_of = set[int]().union(*(each.made_of for each in origins))
            of_each = [each & made_of for each in of_each]
        read = max(of_each, key=len)
        if not read or any(not each <= read for each in of_each):
            continue  # it reads layers at other steps than each other
        if len(read) < len(steps) and not all(map(_are_steps, hidden.values())):
            continue
        _place(call, origins, steps, read)
        once.add(name)
    return once


def _origins(call: Call, steps: Sequence[Mapping[str, Call]]) -> list[Origin]:
    """Return what the things were made of that came into a readout."""
    known = {hidden: i for i, step in enumerate(steps) for hidden in step.values()}
    return [origin_in_steps(edge, lambda port: known.get(port.call)) for edge in call.inputs]


def _are_steps(calls: Sequence[Call]) -> bool:
    """Return whether a layer may have been called once a step, and not for several layers.

    One neuron that stands for several layers gets the current of other weights in each call.
    """
    told = [call.leaves for call in calls if call.leaves]
    return not told or bool(set.intersection(*told))


def _place(
    call: Call, origins: Sequence[Origin], steps: Sequence[dict[str, Call]], read: set[int]
) -> None:
    """Give a readout's call the hidden calls of the steps that it reads.

    Args:
        call: The readout's.
        origins: What came in was made of.
        steps: The hidden calls of each step of the pass.
        read: The steps that it reads.

    Raises:
        OutOfStepError: if it may have been given several steps, in an unknown order.
    """
    samples, order = next(iter(steps[0].values())).shape[:1], sorted(read)
    found = [each for each in origins if each.steps is not None]
    picked = [each for each in found if each.of_samples]
    of_each = _parts_along(0, call, found)
    lost = any(each.unsure for each in origins) or len(picked) not in (0, len(found))
    if picked and not lost:
        lost = not samples.numel() == len(of_each) == call.shape[:1].numel()
        call.chosen = [order.index(step) for step in of_each]
    elif (found or not origins) and not lost:
        call.along, of_each = _in_time(call, found, samples.numel())
        lost = call.along is None and _may_be_of_each(
            call, found, {len(read), len(steps)}, samples.numel()
        )
        order = of_each or order
    if lost and len(steps) > 1:
        raise messages.mixed_steps(call.layer or "")
    call.below, *call.later = [steps[i] for i in order]


def _in_time(call: Call, found: Sequence[Origin], samples: int) -> tuple[int | None, list[int]]:
    """Return along which dimension a readout was given steps and has returned each, and which."""
    came_in = call.came_in or call.shape
    for dim in (0, 1):
        if len(came_in) < 3 or came_in[:2] != call.shape[:2] or came_in[1 - dim] != samples:
            continue
        of_each = _parts_along(dim, call, found)
        if of_each and len(set(of_each)) == len(of_each) == call.shape[dim]:
            return dim, of_each
    return None, []


def _parts_along(dim: int, call: Call, found: Sequence[Origin]) -> list[int]:
    """Return the step of each part of what came in; nothing where parts are of several steps."""
    inner = call.came_in[dim + 1 :].numel()
    parts = [(each.steps or {}).get(inner, ()) for each in found]
    of_each = [step for made_of in (parts[0] if parts else ()) for step in made_of]
    return of_each if all(each == [{i} for i in of_each] for each in parts) else []


def _may_be_of_each(call: Call, found: Sequence[Origin], steps: set[int], samples: int) -> bool:
    """Return whether a readout may have been given several steps, and have returned each.

    A mean of the steps [B, F] may have as many samples and numbers, and so its result [B, C].
    """
    came_in, made = call.came_in or call.shape, call.shape
    inner = came_in[1:].numel()
    if came_in[:1] == made[:1] and any(len((o.steps or {}).get(inner, ())) > 1 for o in found):
        return True
    alike = len(came_in) > 2 and came_in[:2] == made[:2]
    return alike and any(came_in[:2] in ((n, samples), (samples, n)) for n in steps)
