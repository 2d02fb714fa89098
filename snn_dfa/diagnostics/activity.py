"""Eyes on a network: what its spiking layers do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa._attach.hooks import place
from snn_dfa._attach.layers import spiking_layers, takes_sequences
from snn_dfa.diagnostics.learning import LearningWarning, learning_complaints

__all__ = ["Activity", "ActivityWarning", "activity", "complaints", "raster", "warn"]

_SATURATED = 0.95  # of the greatest rate, over all that was seen
_TOO_MANY = 0.5  # of a layer's neurons, silent or saturated


@dataclass(frozen=True)
class Activity:
    """What a layer's neurons did.

    Args:
        neurons: N, how many there are.
        rate: Spikes a neuron and step, their mean.
        silent: Share of neurons that never fired.
        saturated: Share of neurons that fired at 95 % or more of the steps at which their
            refractory period lets them, whatever the input.

    Example:
        >>> Activity(neurons=100, rate=0.1, silent=0.02, saturated=0.0).rate
        0.1
    """

    neurons: int
    rate: float
    silent: float
    saturated: float


class ActivityWarning(UserWarning):
    """Most neurons of a layer are silent or saturated: the layer learns little or nothing."""


@contextmanager
def activity(net: nn.Module) -> Iterator[dict[str, Activity]]:
    """Watch each spiking layer over the calls inside the block, steps or whole sequences.

    Args:
        net: A network; what it computes is unchanged.

    Yields:
        A dict that is filled at the end of the block: layer name to :class:`Activity`.

    Example:
        >>> import snntorch as snn, torch
        >>> net = nn.Sequential(snn.Leaky(beta=0.0, init_hidden=True))
        >>> with activity(net) as layers:
        ...     _ = net(torch.tensor([[2.0, 0.5]]))
        >>> layers
        {'0': Activity(neurons=2, rate=0.5, silent=0.5, saturated=0.5)}
    """
    layers: dict[str, Activity] = {}
    counts: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def count(name: str, module: nn.Module, output: Any) -> None:
        spk = (output[0] if isinstance(output, (tuple, list)) else output).detach()
        dims = min(2 if takes_sequences(module) else 1, spk.dim() - 1)
        flat = spk.reshape(spk.shape[:dims].numel(), -1)
        counts[name] = counts.get(name, 0) + flat.ne(0).sum(0)
        rows[name] = rows.get(name, 0) + len(flat)

    handles, modules = [], spiking_layers(net)
    for name, module in modules.items():
        handles += place(module, None, partial(count, name, module))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
        for name, fired in counts.items():
            layers[name] = _summary(fired, max(rows[name], 1), _greatest_rate(modules[name]))


@contextmanager
def raster(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the spikes of the first sample in each spiking layer over the calls inside the block.

    Args:
        net: A network whose values are [B, ...] at each call, or [T, B, ...] where it takes whole
            sequences. What it computes is unchanged.

    Yields:
        A dict that is filled at the end of the block: layer name to spikes [T, ...].

    Example:
        >>> import snntorch as snn, torch
        >>> net = nn.Sequential(snn.Leaky(beta=0.0, init_hidden=True))
        >>> with raster(net) as spikes:
        ...     for _ in range(3):
        ...         _ = net(torch.tensor([[2.0, 0.5]]))
        >>> spikes["0"].shape, spikes["0"].sum(0)
        (torch.Size([3, 2]), tensor([2., 0.]))
    """
    spikes: dict[str, Tensor] = {}
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, module: nn.Module, output: Any) -> None:
        spk = (output[0] if isinstance(output, (tuple, list)) else output).detach()
        seen.setdefault(name, []).append(spk[:, 0] if takes_sequences(module) else spk[:1])

    handles = []
    for name, module in spiking_layers(net).items():
        handles += place(module, None, partial(keep, name, module))
    try:
        yield spikes
    finally:
        for handle in handles:
            handle.remove()
        spikes.update({name: torch.cat(steps) for name, steps in seen.items()})


def _greatest_rate(module: Any) -> float:
    neuron = getattr(module, "neuron", module)  # the one inside a whole sequence's scan
    return 1 / (1 + getattr(neuron, "refractory_steps", 0))


def _summary(fired: Tensor, rows: int, greatest: float) -> Activity:
    rates = fired.double() / rows
    return Activity(
        neurons=rates.numel(),
        rate=rates.mean().item(),
        silent=(fired == 0).double().mean().item(),
        saturated=(rates >= _SATURATED * greatest).double().mean().item(),
    )


def complaints(layers: Mapping[str, Activity], *, first_epoch: bool = False) -> dict[str, str]:
    """Return what to say of each layer of which half the neurons are silent or saturated.

    Args:
        layers: What :func:`activity` gave.
        first_epoch: Whether the network has been trained for one epoch or less. Then nothing is
            said of an output, the last layer, that is silent: small weights need time to grow.

    Returns:
        Layer name to a sentence; empty where all is well.

    Example:
        >>> complaints({"lif1": Activity(100, 0.001, silent=0.9, saturated=0.0)})["lif1"][:50]
        "layer 'lif1': 90 % of its neurons never fire (rate"
    """
    said = {name: text for name, seen in layers.items() if (text := _complaint(name, seen))}
    last = list(layers)[-1:]
    if first_epoch and last and layers[last[0]].silent >= _TOO_MANY:
        del said[last[0]]
    return said


def _complaint(name: str, seen: Activity) -> str:
    if seen.silent >= _TOO_MANY:
        return (
            f"layer {name!r}: {100 * seen.silent:.0f} % of its neurons never fire (rate "
            f"{seen.rate:.3f} a step), so that they pass nothing on; normalise "
            f"the current before them (batch normalisation), or lower their threshold"
        )
    if seen.saturated >= _TOO_MANY:
        return (
            f"layer {name!r}: {100 * seen.saturated:.0f} % of its neurons fire whenever they can "
            f"(rate {seen.rate:.3f} a step), whatever the input is; normalise the current before "
            f"them (batch normalisation), raise their threshold, or lower biases and weights"
        )
    return ""


def warn(
    layers: Mapping[str, Activity],
    *,
    accuracies: Sequence[float] = (),
    shallow: float | None = None,
    angles: Mapping[str, float] | None = None,
) -> None:
    """Issue a warning for each reason why a network learns badly; none where nothing is wrong.

    It is an :class:`ActivityWarning` for each of :func:`complaints`, and a :class:`LearningWarning`
    for each of :func:`learning_complaints`.

    Args:
        layers: What :func:`activity` gave.
        accuracies: After each epoch, on a part that is held out. After the first epoch nothing is
            said of a silent output.
        shallow: Accuracy of the output layer alone, ``rule="shallow"``.
        angles: Of :func:`gradient_angles`.

    Example:
        >>> warn({"lif1": Activity(100, 0.1, silent=0.1, saturated=0.0)})  # nothing to say
    """
    for text in complaints(layers, first_epoch=len(accuracies) == 1).values():
        warnings.warn(text, ActivityWarning, stacklevel=2)
    for text in learning_complaints(accuracies, shallow, angles).values():
        warnings.warn(text, LearningWarning, stacklevel=2)
