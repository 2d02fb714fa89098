"""Eyes on a network: what its spiking layers do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from snn_dfa._discover import spiking_layers
from snn_dfa._hooks import place

__all__ = ["firing_rates"]


@contextmanager
def firing_rates(net: nn.Module) -> Iterator[dict[str, float]]:
    """Measure each spiking layer's spikes a neuron and step, over the calls inside the block.

    Yields:
        A dict that is filled at the end of the block: layer name to mean rate, in [0, 1] for
        spikes of size one.

    Example:
        >>> import snntorch as snn, torch
        >>> net = nn.Sequential(snn.Leaky(beta=0.0, init_hidden=True))
        >>> with firing_rates(net) as rates:
        ...     _ = net(torch.tensor([[2.0, 0.5]]))
        >>> rates
        {'0': 0.5}
    """
    rates: dict[str, float] = {}
    sums: dict[str, tuple[Tensor | float, int]] = {}

    def count(name: str, output: Any) -> None:
        spk = output[0] if isinstance(output, (tuple, list)) else output
        total, cells = sums.get(name, (0.0, 0))
        sums[name] = (total + spk.detach().sum(), cells + spk.numel())

    handles = []
    for name, module in spiking_layers(net).items():
        handles += place(module, None, partial(count, name))
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()
        rates.update({n: float(total) / max(cells, 1) for n, (total, cells) in sums.items()})
