"""Networks of ``unseen.py``, as users of snnTorch write them.

Each takes a sequence [T, B, ...] and returns spikes and membranes of its output, [T, B, C].
"""

from __future__ import annotations

import itertools
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from snn_dfa import reset


def hidden(beta: float = 0.8, **options: Any) -> nn.Module:
    """Return a neuron that keeps its state, with snnTorch's default surrogate."""
    return snn.Leaky(beta=beta, init_hidden=True, **options)


class Loop(nn.Module):
    """A network of one step, called in a loop over time."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes."""
        reset(self)
        found = [self.net(step) for step in x]
        return torch.stack([out[0] for out in found]), torch.stack([out[-1] for out in found])


class Autoencoder(nn.Module):
    """Down to 16 neurons and up again, with explicit states; the output does not fire."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, 100, 16, 100, 64)
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.lifs = nn.ModuleList(snn.Leaky(beta=0.9) for _ in self.layers)
        self.lifs[-1] = snn.Leaky(beta=0.9, reset_mechanism="none")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes."""
        mems = [lif.init_leaky() for lif in self.lifs]
        found = []
        for spk in x:
            for i, (layer, lif) in enumerate(zip(self.layers, self.lifs, strict=True)):
                spk, mems[i] = lif(layer(spk), mems[i])
            found.append((spk, mems[-1]))
        return torch.stack([s for s, _ in found]), torch.stack([m for _, m in found])


def averages() -> nn.Module:
    """Return two convolutions with batch normalisation and average pooling, 28x28 pixels."""
    return Loop(
        nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.AvgPool2d(2), hidden(),
        nn.Conv2d(8, 16, 5), nn.BatchNorm2d(16), nn.AvgPool2d(2), hidden(),
        nn.Flatten(), nn.Linear(256, 10), hidden(output=True),
    )  # fmt: skip


class Inverted(nn.Module):
    """Wider, by pixel within each channel, narrower again; beside a path that skips all three."""

    def __init__(self, size: int) -> None:
        super().__init__()
        wide = 2 * size
        self.lif = hidden(0.5)
        self.up, self.lif1 = nn.Sequential(nn.Conv2d(size, wide, 1, bias=False),
                                           nn.BatchNorm2d(wide)), hidden(0.5)  # fmt: skip
        self.each = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norm, self.lif2 = nn.BatchNorm2d(wide), hidden(0.5)
        self.down = nn.Sequential(nn.Conv2d(wide, size, 1, bias=False), nn.BatchNorm2d(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return currents."""
        h = self.lif2(self.norm(self.each(self.lif1(self.up(self.lif(x))))))
        return x + self.down(h)


def inverted() -> nn.Module:
    """Return inverted residual blocks with spikes, in the manner of MobileNet; three colours."""
    return Loop(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16),
        Inverted(16), nn.Conv2d(16, 32, 1), nn.AvgPool2d(2), Inverted(32), nn.BatchNorm2d(32),
        hidden(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
        hidden(0.9, output=True),
    )  # fmt: skip


def waves() -> nn.Module:
    """Return convolutions over a signal, with an arc tangent for a surrogate."""
    atan = {"spike_grad": surrogate.atan(alpha=2.0)}
    return Loop(
        nn.Conv1d(1, 16, 7, padding=3), nn.BatchNorm1d(16), hidden(**atan), nn.MaxPool1d(4),
        nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), hidden(**atan), nn.MaxPool1d(4),
        nn.Conv1d(32, 32, 3, padding=1), nn.BatchNorm1d(32), hidden(**atan),
        nn.Flatten(), nn.Linear(128, 5), hidden(0.9, output=True),
    )  # fmt: skip


class Spoken(nn.Module):
    """Two `snn.SLSTM` over a sequence, and a readout of membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.slstm1, self.slstm2 = (snn.SLSTM(n, 48, threshold=0.1) for n in (8, 48))
        self.fc, self.lif = nn.Linear(48, 5), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes."""
        syn1, mem1 = self.slstm1.init_slstm()
        syn2, mem2 = self.slstm2.init_slstm()
        mem = self.lif.init_leaky()
        found = []
        for step in x:
            spk1, syn1, mem1 = self.slstm1(step, syn1, mem1)
            spk2, syn2, mem2 = self.slstm2(spk1, syn2, mem2)
            spk, mem = self.lif(self.fc(spk2), mem)
            found.append((spk, mem))
        return torch.stack([s for s, _ in found]), torch.stack([m for _, m in found])


def learnt() -> nn.Module:
    """Return neurons whose decays and thresholds learn."""

    def neuron(size: int, **options: Any) -> nn.Module:
        return snn.Leaky(
            beta=torch.rand(size), threshold=0.5 + torch.rand(size), learn_beta=True,
            learn_threshold=True, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=10),
            **options,
        )  # fmt: skip

    return Loop(
        nn.Linear(2, 64), neuron(64), nn.Linear(64, 64), neuron(64), nn.Linear(64, 2),
        neuron(2, output=True),
    )  # fmt: skip


class Rows(nn.Module):
    """Two layers of `snn.RSynaptic`, which read an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        options = {"alpha": 0.5, "beta": 0.8, "spike_grad": surrogate.spike_rate_escape(slope=5)}
        self.fc1 = nn.Linear(8, 80)
        self.lif1 = snn.RSynaptic(linear_features=80, **options)
        self.fc2 = nn.Linear(80, 80)
        self.lif2 = snn.RSynaptic(all_to_all=False, V=0.5, **options)
        self.last, self.lif3 = nn.Linear(80, 10), snn.Synaptic(**options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes."""
        spk1, syn1, mem1 = self.lif1.init_rsynaptic()
        spk2, syn2, mem2 = self.lif2.init_rsynaptic()
        syn3, mem3 = self.lif3.init_synaptic()
        found = []
        for row in x:
            spk1, syn1, mem1 = self.lif1(self.fc1(row), spk1, syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), spk2, syn2, mem2)
            spk3, syn3, mem3 = self.lif3(self.last(spk2), syn3, mem3)
            found.append((spk3, mem3))
        return torch.stack([s for s, _ in found]), torch.stack([m for _, m in found])


def zero() -> nn.Module:
    """Return `snn.Synaptic` with a reset to zero, and dropout between them."""

    def neuron(**options: Any) -> nn.Module:
        return snn.Synaptic(
            alpha=0.6, beta=0.8, reset_mechanism="zero", init_hidden=True,
            spike_grad=surrogate.atan(), **options,
        )  # fmt: skip

    return Loop(
        nn.Flatten(), nn.Linear(784, 200), neuron(), nn.Dropout(0.2),
        nn.Linear(200, 100), neuron(), nn.Dropout(0.2), nn.Linear(100, 10), neuron(output=True),
    )  # fmt: skip


class Before(nn.Module):
    """A layer normalisation, then two layers, beside a path that skips them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(size), nn.Linear(size, 96), nn.Linear(96, size)
        self.lif1, self.lif2 = hidden(), hidden()

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers that are no spikes."""
        return x + self.fc2(self.lif2(self.fc1(self.lif1(self.norm(x)))))


def before() -> nn.Module:
    """Return four residual blocks with the normalisation first, on thirty measurements."""
    return Loop(
        nn.Linear(30, 48), Before(48), Before(48), Before(48), Before(48), nn.LayerNorm(48),
        hidden(), nn.Linear(48, 2), hidden(0.9, output=True),
    )  # fmt: skip


class Attention(nn.Module):
    """Products of spikes with no softmax, as in Spikformer: batch normalisation, two heads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv1d(size, size, 1, bias=False) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for _ in self.maps)
        self.lifs = nn.ModuleList(hidden(0.5) for _ in self.maps)
        self.joined = hidden(0.5, threshold=0.5)

    def _layer(self, i: int, x: Tensor) -> Tensor:
        return self.lifs[i](self.norms[i](self.maps[i](x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return sums of spikes [B, size, places]."""
        query, key, value = (self._layer(i, x).unflatten(1, (2, -1)).mT for i in range(3))
        seen = (0.25 * query @ (key.mT @ value)).mT.flatten(1, 2)
        x = x + self._layer(3, self.joined(seen))
        return x + self._layer(5, self._layer(4, x))


class Places(nn.Module):
    """A convolution that makes 49 places of 14x14 pixels, a block of attention, a mean."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, size, 3, 2, 1, bias=False), nn.BatchNorm2d(size), hidden(0.5)
        )
        self.block = Attention(size)
        self.fc3 = nn.Linear(size, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores twice, as they are no spikes."""
        reset(self)
        found = [self.fc3(self.block(self.stem(step).flatten(2)).mean(2)) for step in x]
        return torch.stack(found), torch.stack(found)


class Series(nn.Module):
    """A recurrent layer that follows a series, a dense one, and a membrane that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 64), snn.RLeaky(beta=0.9, linear_features=64)
        self.fc2, self.lif2 = nn.Linear(64, 64), snn.Leaky(beta=0.7)
        self.last, self.lif3 = nn.Linear(64, 1), snn.Leaky(beta=0.5, reset_mechanism="none")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return spikes and membranes."""
        spk1, mem1 = self.lif1.init_rleaky()
        mem2, mem3 = self.lif2.init_leaky(), self.lif3.init_leaky()
        found = []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.last(spk2), mem3)
            found.append((spk3, mem3))
        return torch.stack([s for s, _ in found]), torch.stack([m for _, m in found])


def groups() -> nn.Module:
    """Return convolutions with group normalisation, of steps 2, on events of 17x17 pixels."""
    neuron = {"spike_grad": surrogate.triangular()}
    return Loop(
        nn.Conv2d(2, 16, 3, 2, 1), nn.GroupNorm(4, 16), hidden(0.7, **neuron),
        nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), hidden(0.7, **neuron),
        nn.Conv2d(32, 32, 3, 2, 1), nn.GroupNorm(4, 32), hidden(0.7, **neuron),
        nn.Flatten(), nn.Linear(32 * 9, 10), hidden(0.9, output=True, **neuron),
    )  # fmt: skip


def dense(*sizes: int, beta: float = 0.9, **options: Any) -> nn.Module:
    """Return dense layers with nothing between them and their neurons."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (before, size) in enumerate(itertools.pairwise(sizes)):
        last = {"output": True} if i == len(sizes) - 2 else {}
        layers += [nn.Linear(before, size), hidden(beta, **options, **last)]
    return Loop(*layers)
