"""What is broadcast to the hidden layers: functions of the error at the output, and nothing else.

A rule takes the error e = dL/d(output) [..., C] and returns the signal that the feedback matrices
project, of the same shape; ``target`` takes the targets, too, and ``local`` the targets and the
layer's own spikes. ``None`` in place of a rule means that nothing is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from snn_dfa.errors import NonFiniteError, TargetError

__all__ = [
    "RULES",
    "SYNONYMS",
    "Rule",
    "canonical",
    "error",
    "local",
    "sign",
    "target",
]

#: From the error [..., C], and what else the rule takes, to what is sent [..., C].
Rule: TypeAlias = Callable[..., Tensor]


def error(e: Tensor) -> Tensor:
    """Broadcast the error itself: direct feedback alignment.

    Args:
        e: [..., C], the error at the output.

    Returns:
        e.

    Source: Nøkland 2016, arXiv 1609.01596, eq. 9.

    Example:
        >>> error(torch.tensor([0.5, -0.5]))
        tensor([ 0.5000, -0.5000])
    """
    return e


def sign(e: Tensor) -> Tensor:
    """Broadcast the error's sign (sDFA): three values that cost little to send.

    The signal does not shrink with the error, so that the step of the optimiser must.

    Args:
        e: [..., C], the error at the output.

    Returns:
        -1, 0 or 1 in the shape of e.

    Source: Frenkel, Lefebvre and Bol 2021, Front. Neurosci. 15, arXiv 1909.01311, where it is the
    step between DFA and DRTP.

    Example:
        >>> sign(torch.tensor([0.5, 0.0, -0.1]))
        tensor([ 1.,  0., -1.])
    """
    return e.sign()


def target(e: Tensor, y: Tensor) -> Tensor:
    r"""Broadcast the targets (DRTP): hidden layers need no error, and do not wait for the output.

    The signal is -y / B, y one-hot: the part of the error of B averaged samples that is known
    before the output is.

    Args:
        e: [..., B, C], the error; only its shape, dtype and device matter.
        y: Class indices [B], or targets [B, C], or one for each step [..., B, C].

    Returns:
        [..., B, C]; where y has no time, the same at every step (stride zero).

    Raises:
        TargetError: if y has another shape, or a class that is not among the C.

    Source: Frenkel, Lefebvre and Bol 2021, Front. Neurosci. 15, arXiv 1909.01311.

    Example:
        >>> target(torch.zeros(2, 3), torch.tensor([2, 0]))
        tensor([[-0.0000, -0.0000, -0.5000],
                [-0.5000, -0.0000, -0.0000]])
    """
    outputs, batch = e.shape[-1], e.shape[:-1][-1:]
    if not y.is_floating_point() and y.shape == batch:
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < outputs):
            raise TargetError(
                f"targets: expected classes from 0 to {outputs - 1}, got {int(y.min())} to "
                f"{int(y.max())}"
            )
        y = torch.nn.functional.one_hot(y.long(), outputs)
    if y.shape not in (e.shape[-2:], e.shape):
        raise TargetError(
            f"targets: expected class indices of shape {list(batch)} or targets of shape "
            f"{list(e.shape[-2:])}, got {list(y.shape)} of {y.dtype}"
        )
    return (-y.to(e) / max(batch.numel(), 1)).expand(e.shape)


def local(e: Tensor, y: Tensor, scores: Tensor) -> Tensor:
    r"""Send the error of the layer's own fixed readout: hidden layers wait for nobody.

    At each step the layer's matrix B makes class scores of the layer's spikes, s B^T. The gradient
    of their cross entropy goes back through B: (softmax(scores) - y) / batch size, y one-hot. So
    each layer minimises a loss of its own, which no other layer needs.

    Args:
        e: [..., B, C], the error at the output; only its shape, dtype and device matter.
        y: Classes or targets, as for :func:`target`.
        scores: [..., B, C].

    Returns:
        [..., B, C].

    Raises:
        TargetError: as for :func:`target`.

    Source: Kaiser, Mostafa and Neftci 2020, Front. Neurosci. 14, arXiv 1811.10766 (DECOLLE), where
    the loss is a smooth L1 of the readout, and credit is by traces (``credit="trace"``).

    Example:
        >>> local(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(1, 2))
        tensor([[ 0.5000, -0.5000]])
    """
    return target(e, y) + scores.softmax(-1) / max(e.shape[:-1][-1:].numel(), 1)


#: Name to rule. ``shallow`` sends nothing: only the output block learns, the floor under every
#: other rule. ``fa`` is not sent to all layers but passed from layer to layer.
RULES: Mapping[str, Rule | None] = MappingProxyType(
    {
        "error": error,
        "sign": sign,
        "target": target,
        "local": local,
        "shallow": None,
        "fa": None,
    }
)

#: Rules that take the targets.
NEED_TARGETS: tuple[Rule, ...] = (target, local)

#: Other names of a rule or of a credit, such as the literature has, to the name that is used here.
SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "dfa": "error",
        "sdfa": "sign",
        "drtp": "target",
        "decolle": "local",
        "last-layer": "shallow",
        "online": "trace",
    }
)


def canonical(name: str) -> str:
    """Return the name that is used here for a rule or a credit.

    Args:
        name: The name, or one of :data:`SYNONYMS`.

    Returns:
        The name used here; any other text as it is, for the caller to check.

    Example:
        >>> canonical("drtp"), canonical("online"), canonical("sign")
        ('target', 'trace', 'sign')
    """
    return SYNONYMS.get(name, name)


def broadcast_signal(
    rule: Rule,
    e: Tensor,
    targets: Tensor | None,
    steps: int | None = None,
    scores: Tensor | None = None,
) -> Tensor:
    """Return what a rule makes of the error [..., C] and, where it takes them, the targets.

    Args:
        rule: The rule.
        e: The error.
        targets: See :func:`target`.
        steps: T where the samples of e [..., T * B, C] are those of T steps; ``None`` for one step.
        scores: Of the layer's own readout, in the shape of e; for :func:`local`.
    """
    if rule not in NEED_TARGETS:
        return rule(e)
    if targets is None:
        name = next(name for name, each in RULES.items() if each is rule)
        raise TargetError(
            f"rule={name!r} needs the targets, and there are none; write `with "
            f"dfa.targets(y):` around the forward or the backward pass"
        )
    each = [e] if scores is None else [e, scores]
    if steps is not None:
        each = [t.reshape(*t.shape[:-2], steps, -1, t.shape[-1]) for t in each]
    signal = rule(each[0], targets, *each[1:])
    return signal if steps is None else signal.flatten(-3, -2)


def check_finite(e: Tensor, output: str) -> None:
    """Refuse an error that would make every hidden weight useless.

    In float16 an infinite one is left to the gradient scaler, which skips the step. On an
    accelerator looking would make it wait, so that it is done in PyTorch's anomaly mode only.
    """
    if e.device.type != "cpu" and not torch.is_anomaly_enabled():
        return
    if math.isfinite(e.sum().item()):  # of one number that is not, the sum is not
        return
    wrong = e.isnan() if e.dtype == torch.float16 else ~e.isfinite()
    if wrong.any():
        raise NonFiniteError(
            f"layer {output!r}: expected a finite error at the output, got {int(wrong.sum())} of "
            f"{e.numel()} numbers that are infinite or not a number; do not take this step, and "
            f"look at the loss, the input, the surrogate and the learning rate"
        )
