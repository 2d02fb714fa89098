"""Networks of every neuron and shape, ready to be run: a name, and what makes one with its input."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import kinds
import shapes
import torch
from torch import nn

from snn_dfa import reset


def _made(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    net, x = make(), torch.rand(shape) * 3
    net(x)  # what is lazy takes shape
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.dim() > 1 else p.add_(0.5 * (p.numel() > 1))
    reset(net)
    return net, x


class Alone(nn.Module):
    """A network of ``shapes`` that returns its output spikes alone."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.net = kind()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.net.t = 0
        return self.net(x)[0]


class Around(nn.Sequential):
    """Hidden states, and the loop over time around the network."""

    def __init__(self) -> None:
        super().__init__(*(
            layer
            for n, m in ((4, 4), (4, 4), (4, 4))
            for layer in (nn.Linear(n, m), shapes.lif(init_hidden=True))
        ))  # fmt: skip


def _around() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    net = Around()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.dim() > 1 else p.add_(0.2)
    return net, torch.rand(5, 4, 4) * 2


def _networks() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, torch.Tensor]]]]:
    yield "Leaky in nn.Sequential", _around
    for name, block in kinds.STEPS.items():
        shape = (8, 4, 1, 4, 4) if name == "SConv2dLSTM" else (8, 4, 4)
        for hidden in (True, False):
            said = f"{name}, {'hidden' if hidden else 'explicit'} states"
            yield said, lambda b=block, h=hidden, s=shape: _made(lambda: kinds.Net(b, h, False), s)
    for name, block in kinds.SEQUENCES.items():
        yield name, lambda b=block: _made(lambda: kinds.Net(b, False, True), (5, 4, 4))
    said = {
        "Residual": "residual connections", "Functions": "functions between layers",
        "Membranes": "membranes between layers", "Branches": "two branches that meet",
        "Shared": "one weight for two layers", "Normalised": "BatchNormTT1d, batch normalisation",
        "Lazy": "lazy modules",
    }  # fmt: skip
    for kind in shapes.SHAPES:
        if kind.__name__ in said:
            yield said[kind.__name__], lambda k=kind: _made(lambda: Alone(k), (5, 4, 6))


NETWORKS = dict(_networks())
