"""The stand-in of all layers above the hidden ones: the errors that it sends back, and B.

It is a linear network of learned factors. The errors which it sends back are e B, and B is its
Jacobian.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from graphlib import TopologicalSorter

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.cells import Cell, at_currents, at_rest
from snn_dfa.feedback.sample_ways import Named, Ways, course_of, layer_of
from snn_dfa.feedback.stand_in import Inflow
from snn_dfa.feedback.way_back import Value, added, errors_at, joined, linear

__all__ = ["courses", "errors", "in_order", "jacobians"]


def in_order(layers: Sequence[str], inflows: Mapping[str, Inflow]) -> list[str]:
    """Return layers such that each comes after those whose values come into it.

    Args:
        layers: In order of their calls. It decides where layers flow into each other, as where one
            takes what the other was in the step before.
        inflows: What comes into each layer.

    Example:
        >>> from snn_dfa.feedback.stand_in import source, weigh
        >>> inflows = {"lif2": weigh(source("lif1"), "fc2"), "lif3": weigh(source("lif2"), "fc3")}
        >>> in_order(["lif3", "lif2", "lif1"], inflows)
        ['lif1', 'lif2', 'lif3']
    """
    place = {layer: number for number, layer in enumerate(layers)}
    below = {
        layer: [s for s in inflows[layer].sources if s in place] if layer in inflows else []
        for layer in layers
    }

    def are_below(layer: str) -> set[str]:
        todo, found = [layer], set[str]()
        while todo:
            new = [s for s in below[todo.pop()] if s not in found]
            found.update(new)
            todo += new
        return found

    before = {
        layer: [s for s in sources if place[s] < place[layer] or layer not in are_below(s)]
        for layer, sources in below.items()
    }
    return list(TopologicalSorter(before).static_order())


def jacobians(
    inflows: Mapping[str, Inflow],
    outputs: Mapping[str, int | None],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Named,
    direct: Sequence[str] = (),
    ways: Ways | None = None,
    only: Sequence[str] = (),
    rows: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Return the stand-in's derivative of the outputs with respect to each hidden layer's value.

    It is computed with as many rows as there are outputs, or from other errors.

    Args:
        inflows: What comes into each layer; into outputs, too.
        outputs: Name of each output to how many numbers it has, ``None`` if that is not known.
            Their C numbers are set side by side.
        shapes: Hidden layers with the shape [C, \*S] of their matrix, as :func:`in_order` has them.
        factors: By layer with weights.
        direct: Layers that have a matrix [C, \*S] to the outputs among the factors, too.
        ways: Their means are taken; ``None`` for none.
        only: If given, the only layers into which others flow.
        rows: If given, errors E [R, C].

    Returns:
        Value to B [C, \*S], or to E B; with ``only`` without the layers that flow into none of
        them.

    Example:
        >>> from snn_dfa.feedback.stand_in import source, weigh
        >>> inflows = {"lif2": weigh(source("lif1"), "fc2"), "out": weigh(source("lif2"), "fc3")}
        >>> shapes = {"lif1": (1, 3), "lif2": (1, 2)}
        >>> factors = {"fc2": torch.ones(2, 3), "fc3": torch.tensor([[1.0, -3.0]])}
        >>> jacobians(inflows, {"out": 1}, shapes, factors)["lif1"]
        tensor([[-2., -2., -2.]])
    """
    if only:
        inflows = {name: each for name, each in inflows.items() if name in only}
        last = {source for each in inflows.values() for source in each.sources}
        shapes = {name: shapes[name] for name in shapes if name in last or name in direct}
        if not shapes:
            return {}
    if ways is not None:
        ways = ways.into(inflows).mean()
    if rows is None:
        like = next(iter(factors.values()), torch.zeros(()))
        rows = torch.eye(next(iter(shapes.values()))[0], dtype=like.dtype, device=like.device)
    return errors(inflows, outputs, shapes, factors, direct, rows, ways)


def errors(
    inflows: Mapping[str, Inflow],
    outputs: Mapping[str, int | None],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Named,
    direct: Sequence[str],
    error: Tensor,
    ways: Ways | None = None,
) -> dict[str, Tensor]:
    r"""Return what the stand-in sends back to each hidden layer.

    Args:
        inflows: See :func:`jacobians`, as for all that is not named here.
        outputs: Name to how many numbers.
        shapes: Of hidden layers.
        factors: By layer with weights.
        direct: Layers.
        error: [M, C], at the outputs.
        ways: Of M samples, or the same for all.

    Returns:
        Layer, as its spikes, and each of its other values that others take, to [M, \*S].

    Example:
        >>> from snn_dfa.feedback.stand_in import source, weigh
        >>> inflows = {"lif2": weigh(source("lif1"), "fc2"), "out": weigh(source("lif2"), "fc3")}
        >>> shapes = {"lif1": (1, 3), "lif2": (1, 2)}
        >>> factors = {"fc2": torch.ones(2, 3), "fc3": torch.tensor([[1.0, -3.0]])}
        >>> ways = Ways({"lif2": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
        >>> errors(inflows, {"out": 1}, shapes, factors, [], torch.ones(2, 1), ways)["lif1"]
        tensor([[ 1.,  1.,  1.],
                [-3., -3., -3.]])
    """
    ways, rows, like = ways or Ways(), len(error), error.new_zeros(())
    known = {**factors, **ways.local}
    sizes = {name: (rows, *shape[1:]) for name, shape in shapes.items()}
    handed = {layer: [layer] for layer in shapes}
    for value in dict.fromkeys(v for each in inflows.values() for v in each.values):
        if (layer := layer_of(value)) != value and layer in handed:
            handed[layer].append(value)
    wanted = {
        value: Value(like, sizes[layer], wanted=True)
        for layer, each in handed.items()
        for value in each
    }
    values = dict(wanted)
    for name, size in _sizes(outputs, error.shape[1]).items():
        # What an output hands back to a hidden layer passes no error.
        values[name] = Value(like, (rows, size))
    for name in [name for name in shapes if name in inflows]:
        current, whole = inflows[name].apply(values, known), sizes[name]
        for value in handed[name]:
            made = _of_layer(current, inflows[name].cell, ways.gates.get(value), whole)
            values[value] = added(wanted[value], made)
    parts = {
        n: inflows[n].apply(values, known).reshape(rows, -1) if n in inflows else None
        for n in outputs
    }
    ends = [_side_by_side(parts, outputs, Value(like, error.shape))]
    for name in direct:
        own = factors[name].flatten(1)
        ends.append(linear(partial(torch.matmul, other=own), error.shape, _flat(values[name])))
    found = errors_at(added(*ends), error, list(wanted.values()))
    return {
        name: error.new_zeros(value.shape) if sent is None else sent
        for (name, value), sent in zip(wanted.items(), found, strict=True)
    }


def _flat(value: Value) -> Value:
    return value.reshape(len(value), -1)


def _of_layer(
    current: Value, cell: Cell | None, gate: Tensor | None, size: tuple[int, ...]
) -> Value:
    """Return what a layer makes of its current [M, ...]: a value of a size."""
    if cell is None:
        current = current.reshape(*size)
        return current if gate is None else linear(partial(torch.mul, gate), size, current)
    gates = at_rest(cell, current.like, current.shape, size[1]) if gate is None else gate
    current = current.reshape(len(current), *gates.shape[1:])
    return linear(partial(at_currents, gate=gates), size, current)


def courses(
    inflows: Mapping[str, Inflow],
    outputs: Sequence[str],
    layers: Iterable[str],
    at_currents: Named,
    direct: Sequence[str] = (),
) -> dict[str, Tensor | None]:
    """Return how large the errors at each layer's value are at each step, beside their mean.

    They are as large as at the currents of the layers into which it flows, on average. Of a layer
    that passes nothing at any step all sizes are zero, and it does not count.

    Args:
        inflows: What comes into each layer; into outputs, too.
        outputs: Their names.
        layers: Hidden ones, as :func:`in_order` has them.
        at_currents: Layer, or output, to the same at its current, [T]. A hidden layer of which
            nothing is known passes errors as it gets them.
        direct: Layers that have a matrix to the outputs, too.

    Returns:
        Layer to [T], ``None`` where all steps are alike.

    Example:
        >>> from snn_dfa.feedback.stand_in import source, weigh
        >>> inflows = {"lif2": weigh(source("lif1"), "fc2"), "out": weigh(source("lif2"), "fc3")}
        >>> courses(inflows, ["out"], ["lif1", "lif2"], {"lif2": torch.tensor([1.5, 0.5])})
        {'lif2': None, 'lif1': tensor([1.5000, 0.5000])}
    """
    at_values = dict[str, Tensor | None]()
    like = next(iter(at_currents.values()), None)
    for layer in reversed(list(layers)):
        above = [name for name, inflow in inflows.items() if layer in inflow.sources]
        above += outputs if layer in direct else []
        found = [at_currents.get(name, at_values.get(name)) for name in above]
        if like is None or all(each is None for each in found):
            at_values[layer] = None
        else:
            total = sum(torch.ones_like(like) if each is None else each for each in found)
            at_values[layer] = course_of(torch.as_tensor(total))
    return at_values


def _sizes(outputs: Mapping[str, int | None], total: int) -> dict[str, int]:
    """Return how many numbers each output has; those that are not known share the rest."""
    unknown = sum(size is None for size in outputs.values())
    rest = total - sum(size or 0 for size in outputs.values())
    return {name: rest // unknown if size is None else size for name, size in outputs.items()}


def _side_by_side(
    parts: Mapping[str, Value | None], sizes: Mapping[str, int | None], nothing: Value
) -> Value:
    """Return the outputs [M, C]; of one that reads no layer, or no graph, nothing goes back.

    Raises:
        FeedbackError: if it is not known how many numbers several of these have.
    """
    if all(part is None for part in parts.values()):
        return nothing
    known = {n: sizes[n] if part is None else part.shape[1] for n, part in parts.items()}
    missing = [name for name, size in known.items() if size is None]
    if len(missing) > 1:
        raise FeedbackError(
            f"feedback: no linear function of hidden layers leads into the outputs {missing}, but "
            f"one leads into other outputs; expected at most one output without such a function, "
            f"since it is not known how many of the {nothing.shape[1]} numbers of the error each "
            f"output has. Are these outputs called later in the training? Run one forward pass "
            f"that calls all outputs first. Otherwise use feedback='kolen-pollack'"
        )
    rest = nothing.shape[1] - sum(size for size in known.values() if size is not None)
    sides = (rest if size is None else size for size in known.values())
    return joined(
        *(
            Value(nothing.like, (len(nothing), side)) if part is None else part
            for part, side in zip(parts.values(), sides, strict=True)
        )
    )
