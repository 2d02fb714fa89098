"""How a batch goes through the network: all steps at once, or one at a time and online."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from snn_dfa.experiments.settings import Settings
from snn_dfa.state import reset

__all__ = ["Losses", "forward", "make_losses"]

#: From network, input [T, B, ...] and classes [B] to a loss for each backward pass, with the output
#: spikes [B, C] counted up to then. A pass comes before the next loss is asked for.
Losses: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Iterator[tuple[Tensor, Tensor]]]


def make_losses(settings: Settings, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Losses:
    """Return how a batch is passed, as ``settings.online`` says."""

    def whole(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        spk = forward(net, x, settings)[settings.run_in :]
        yield loss_of(spk, y), spk.detach().sum(0)

    def step_by_step(net: nn.Module, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """At each step, the loss of the counts that those so far lead one to expect at the end.

        Of them only the spikes of the step itself learn.
        """
        reset(net)
        counts, all_steps = torch.zeros(()), len(x) - settings.run_in
        for t, step in enumerate(x):
            spk = forward(net, step, settings)
            if t >= settings.run_in:
                counts = counts.to(spk) + spk.detach()
                expected = counts * (all_steps / (t + 1 - settings.run_in))
                yield loss_of((expected + spk - spk.detach())[None], y) / all_steps, counts

    return step_by_step if settings.online else whole


def forward(net: nn.Module, x: Tensor, settings: Settings) -> Tensor:
    """Return the output spikes, in single precision."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=settings.amp):
        spk: Tensor = net(x)
    return spk.float()
