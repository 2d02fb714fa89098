"""Where the gradients of direct feedback point, beside those of back-propagation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from snn_dfa._attach.weights import synapses
from snn_dfa.dfa import DFA
from snn_dfa.errors import FeedbackError, InputError

__all__ = [
    "GradientReport", "angle", "feedback_angles", "gradient_angles", "gradient_report",
    "projected_errors",
]  # fmt: skip

#: So many roundings may a direction be off by before it counts as rounding itself.
_ROUNDINGS = 100

#: Layer name to the sum of squares of what was sent to it, and of how many numbers it is one.
Sums: TypeAlias = dict[str, tuple[Tensor, int]]


def angle(a: Tensor, b: Tensor) -> float:
    """Return the angle between two tensors of as many numbers, in degrees; NaN if one is zero.

    Args:
        a: Any shape.
        b: As many numbers.

    Example:
        >>> angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        90.0
    """
    a, b = a.double().flatten(), b.double().flatten()
    norms = (a.norm() * b.norm()).item()
    if norms == 0:
        return math.nan
    return math.degrees(math.acos(max(-1.0, min(1.0, (a @ b).item() / norms))))


def gradient_angles(
    dfa: DFA, loss: Callable[[nn.Module], Tensor], targets: Tensor | None = None
) -> dict[str, float]:
    """Return the angle between the attached rule's gradient and back-propagation's.

    Below 90 degrees a small step along the rule's gradient lowers the loss. Both gradients are made
    on a copy of the network, in one forward and one backward pass each: weights, gradients,
    statistics, states and generators stay as they are.

    Args:
        dfa: Attached.
        loss: From a network, the copy, to the loss of a batch; it runs the network over the whole
            sequence, from rest.
        targets: For ``rule="target"``, those of the batch.

    Returns:
        Name of each layer with weights, in the order of the network, to degrees; NaN where a
        gradient is zero or none.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(8, 2)
        ... )
        >>> dfa = DFA(net, output="2", feedback={"1": -net[2].weight})
        >>> gradient_angles(dfa, lambda net: net(torch.ones(3, 4)).square().mean())
        {'0': 180.0, '2': 0.0}
    """
    of_rule, of_bptt = _gradients(dfa, loss, targets)
    return {name: _rounded(angle(of_rule[name], of_bptt[name])) for name in of_rule}


@dataclass(frozen=True)
class GradientReport:
    """How a layer's gradient by a rule stands to back-propagation's, over several batches.

    Args:
        angle: Degrees between both, mean over batches. NaN where back-propagation's gradient is so
            small that its direction is rounding, or where a gradient is zero.
        norm_ratio: Norm of the rule's gradient over that of back-propagation's, mean over batches.
            An angle says nothing of the length of the step.
        bptt_norm: Norm of back-propagation's gradient, mean over batches.
        agreement: Mean cosine between the rule's gradients of different batches. Near 0 each batch
            points elsewhere, and the direction is noise.
        bptt_agreement: The same of back-propagation, to compare with.

    Example:
        >>> GradientReport(60.0, 0.5, 0.1, 0.8, 0.9).angle
        60.0
    """

    angle: float
    norm_ratio: float
    bptt_norm: float
    agreement: float
    bptt_agreement: float


def gradient_report(
    dfa: DFA,
    losses: Sequence[Callable[[nn.Module], Tensor]],
    targets: Sequence[Tensor] | None = None,
    floor: float | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, GradientReport]:
    """Return for each layer angle, norm and agreement over batches, beside back-propagation's.

    An angle alone says little: where back-propagation's gradient is near the rounding of floating
    point numbers, it is an angle to noise; and a layer whose gradients of two batches have nothing
    in common learns nothing, whatever the angle of each. What no such number says is whether what a
    layer learns is of use: compare the accuracy with that of ``rule="shallow"``, whose hidden
    layers are frozen, and with that of networks in which :func:`snn_dfa.compare` freezes one block
    at a time (``freeze_blocks=True``).

    Args:
        dfa: Attached.
        losses: One for each batch, as for :func:`gradient_angles`; two or more for the agreement.
        targets: For ``rule="target"`` and ``"local"``, those of each batch.
        floor: Share of the largest norm among the layers below which a layer's gradient by
            back-propagation counts as rounding. ``None`` for a hundred times the rounding of
            ``dtype``: 1.2e-5 in float32, 2.2e-14 in float64.
        dtype: In which gradients are made, such as ``torch.float64``: the copies and the floating
            point inputs of their modules are converted. A spike at the edge of a threshold may then
            be another. ``None`` for the network's own.

    Returns:
        Name of each layer with weights to :class:`GradientReport`.

    Source: the protocol of Hao, Wan and Zhai 2026, arXiv 2606.21126, by its abstract: scale and
    norm of the reference gradient beside the angle, its validity, stability of the direction, and
    networks with frozen blocks as a floor of the accuracy.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(8, 2)
        ... )
        >>> dfa = DFA(net, output="2", feedback={"1": 2 * net[2].weight})
        >>> x = torch.ones(3, 4)
        >>> found = gradient_report(dfa, [lambda net: net(x).square().mean()] * 2)
        >>> round(found["0"].angle, 3), round(found["0"].norm_ratio, 3), found["2"].agreement
        (0.0, 2.0, 1.0)
    """
    given: Sequence[Tensor | None] = [None] * len(losses) if targets is None else targets
    pairs = [_gradients(dfa, loss, y, dtype) for loss, y in zip(losses, given, strict=True)]
    if floor is None:
        parameters = (p.dtype for p in dfa.net.parameters())
        floor = _ROUNDINGS * torch.finfo(dtype or next(parameters, torch.float32)).eps
    largest = [max(g.norm().item() for g in bptt.values()) for _, bptt in pairs]
    found = {}
    for name in pairs[0][0]:
        of_rule, of_bptt = ([pair[which][name] for pair in pairs] for which in (0, 1))
        norms = [g.norm().item() for g in of_bptt]
        meant = all(norm > floor * most for norm, most in zip(norms, largest, strict=True))
        degrees = [
            angle(a, b) if meant else math.nan for a, b in zip(of_rule, of_bptt, strict=True)
        ]
        ratios = [
            a.norm().item() / n if n else math.nan for a, n in zip(of_rule, norms, strict=True)
        ]
        found[name] = GradientReport(
            _rounded(fmean(degrees)), fmean(ratios), fmean(norms),
            _agreement(of_rule), _agreement(of_bptt),
        )  # fmt: skip
    return found


def _agreement(gradients: Sequence[Tensor]) -> float:
    """Return the mean cosine between different ones; NaN for one alone."""
    cosines = [math.cos(math.radians(angle(a, b))) for a, b in combinations(gradients, 2)]
    return round(fmean(cosines), 6) if cosines else math.nan


def _gradients(
    dfa: DFA,
    loss: Callable[[nn.Module], Tensor],
    targets: Tensor | None,
    dtype: torch.dtype | None = None,
) -> list[dict[str, Tensor]]:
    """Return each layer's gradient by the rule and by back-propagation, made on copies."""
    if not dfa._attached:
        raise InputError(
            "dfa: expected a DFA that is attached to its network, got one that was removed, whose "
            "gradients are those of back-propagation; call DFA(net, ...) again"
        )
    cuda = [p.device for p in dfa.net.parameters() if p.device.type == "cuda"][:1]
    grads = []
    for paused in (False, True):
        twin = copy.deepcopy(dfa, _without_graphs(dfa.net))
        twin.net.zero_grad()
        if dtype is not None:
            _convert(twin.net, dtype)
        twin._feedback.measure_like(dfa._feedback)
        given = nullcontext() if targets is None else twin.targets(targets)
        with torch.random.fork_rng(devices=cuda), twin.paused() if paused else nullcontext(), given:
            torch.autograd.backward(loss(twin.net))
        grads.append({name: _gradient(module) for name, module in synapses(twin.net).items()})
    return grads


def _convert(net: nn.Module, dtype: torch.dtype) -> None:
    """Convert a network, and from now on what its modules are called with.

    snnTorch's own surrogates return spikes in float32, whatever the membrane is in.
    """

    def converted(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(converted, args)), {k: converted(v) for k, v in kwargs.items()}

    net.to(dtype)
    for module in net.modules():
        module.register_forward_pre_hook(before, with_kwargs=True)


def _without_graphs(net: nn.Module) -> dict[int, Tensor]:
    """Return what makes ``deepcopy`` take the values of states that have a graph.

    A program may keep states, or lists of them, on any of its modules.
    """
    kept = (t for module in net.modules() for t in tree_leaves(vars(module)))
    states = (t for t in kept if isinstance(t, Tensor) and not t.is_leaf)
    return {id(t): t.detach().clone() for t in states}


def _gradient(module: nn.Module) -> Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([part.flatten() for part in parts])


def _rounded(degrees: float) -> float:
    """Drop what the arc cosine makes of the last bits of a cosine: some 1e-6 near zero and 180."""
    return round(degrees, 4)


def feedback_angles(dfa: DFA) -> dict[str, float]:
    """Return the angle between each layer's B and the product of the weights after it, in degrees.

    Layers that are not followed by ``nn.Linear`` alone, such as convolutions before others, are
    left out. With ``rule="fa"`` it is the angle between B and the weight.

    Args:
        dfa: Attached, after a forward pass.

    Returns:
        Layer name to degrees.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
        ... )
        >>> dfa = DFA(net, output="3", feedback={"1": net[2].weight})
        >>> net(torch.rand(3, 4)).sum().backward()
        >>> feedback_angles(dfa)
        {'1': 0.0}
    """
    found = {}
    for name, matrix in dfa.feedback.items():
        try:
            wanted = dfa._feedback.target_weights(name)
        except FeedbackError:
            continue
        found[name] = _rounded(angle(matrix.expand(wanted.shape), wanted))
    return found


@contextmanager
def projected_errors(dfa: DFA, sums: Sums | None = None) -> Iterator[dict[str, float]]:
    """Measure what the backward passes in the block send to each layer.

    Args:
        dfa: Attached.
        sums: Where to add up, going on from what is there; for a measurement that is interrupted
            and saved.

    Yields:
        A dict that is filled at the end of the block: layer name to the root mean square of what
        was sent, over neurons, samples, steps and passes.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
        ... )
        >>> dfa = DFA(net, output="3", feedback={"1": torch.ones(2, 8)})
        >>> with projected_errors(dfa) as sent:
        ...     net(torch.rand(3, 4)).sum().backward()
        >>> sent
        {'1': 2.0}
    """
    sent: dict[str, float] = {}
    so_far: Sums = {} if sums is None else sums

    def note(name: str, error: Tensor) -> None:
        square, count = so_far.get(name, (torch.zeros((), device=error.device), 0))
        so_far[name] = (square + error.float().square().sum(), count + error.numel())

    dfa._feedback.observer = note
    try:
        yield sent
    finally:
        dfa._feedback.observer = None
    sent.update({name: math.sqrt(s.item() / count) for name, (s, count) in so_far.items()})
