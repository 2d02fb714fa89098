"""How well one line trains eleven networks of other kinds on scikit-learn's digits.

    python benchmarks/other_networks.py
    python benchmarks/other_networks.py --networks gated,mixer --rules bptt,dfa --seeds 3

``transformer``: two blocks, two heads, softmax of queries and keys. ``gated``: a cell in the manner
of an LSTM, which reads rows. ``squeeze``: channels times a function of their means. ``mixer``: GELU
layers over patches and over features. ``unet``: half the size and back, with a joined path.
``separable``: depthwise convolutions. ``populations``: 300 excitatory and 100 inhibitory neurons
that hear each other, and read rows. ``branches``: convolutions of three sizes side by side, group
normalisation. ``highway``: four layers, each with a gate between itself and the one before.
``film``: one population scales and shifts the currents of another. ``multihead``: one block
around `nn.MultiheadAttention`, whose matrices are no layer's.

Adam at 1e-3, batches of 64, 10 epochs, cross entropy of the mean output over the steps; nothing is
chosen. 1,350 images to learn from, 447 to test: right answers in percent after the last epoch.
Rules are those of ``learning.py``. A run takes 10 to 60 seconds of one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import seeds
import torch
from learning import attach
from other_tasks import _class_of, digits, leaky
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import reset

STEPS, EPOCHS, BATCH, RATE = 6, 10, 64, 1e-3


def patches(x: Tensor) -> Tensor:
    """Return 16 patches [B, 16, 4] of images [B, 1, 8, 8]."""
    return x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)


class Block(nn.Module):
    """Attention of spikes with a softmax, then two layers; both beside a path that skips them."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.join = heads, nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.norm1, self.norm2 = nn.LayerNorm(3 * size), nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.spikes, self.joined, self.wide, self.narrow = (leaky(0.7) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes and what came in, [B, 16, size]."""
        found = self.spikes(self.norm1(self.qkv(x))).chunk(3, -1)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in found)
        seen = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value
        x = x + self.joined(self.join(seen.transpose(1, 2).flatten(2)))
        return x + self.narrow(self.norm2(self.down(self.wide(self.up(x)))))


class Transformer(nn.Module):
    """Two blocks over patches."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.embed, self.norm, self.lif = nn.Linear(4, size), nn.LayerNorm(size), leaky(0.7)
        self.place = nn.Parameter(0.2 * torch.randn(16, size))
        self.blocks = nn.Sequential(Block(size, 2), Block(size, 2))
        self.fc3 = nn.Linear(size, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, 10]."""
        return self.fc3(
            self.blocks(self.lif(self.norm(self.embed(patches(x)) + self.place))).mean(1)
        )


class Gated(nn.Module):
    """A state with gates for what comes in, stays and goes out, each made of spikes."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(8, size), leaky(0.7)
        self.gates, self.back = nn.Linear(size, 4 * size), nn.Linear(size, 4 * size)
        self.lif2, self.fc2, self.out = leaky(0.7), nn.Linear(size, 10), leaky(0.9, output=True)

    def forward(self, rows: Tensor) -> Tensor:
        """Return membranes [8, B, 10] of images [B, 1, 8, 8], row by row."""
        cell = spk = torch.zeros(len(rows), self.back.in_features)
        found = []
        for row in rows.unbind(2):
            come, stay, go, new = (
                self.gates(self.lif1(self.fc1(2 * row.flatten(1)))) + self.back(spk)
            ).chunk(4, -1)
            cell = stay.sigmoid() * cell + come.sigmoid() * new.tanh()
            spk = self.lif2(2 * go.sigmoid() * cell.tanh())
            found.append(self.out(self.fc2(spk))[1])
        return torch.stack(found)


class Squeeze(nn.Module):
    """Two convolutions, each with its channels scaled by a function of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(16), nn.BatchNorm2d(32)])
        self.lifs, self.pool = nn.ModuleList([leaky(0.7), leaky(0.7)]), nn.MaxPool2d(2)
        self.scales = nn.ModuleList(
            nn.Sequential(nn.Linear(n, n // 4), nn.ReLU(), nn.Linear(n // 4, n), nn.Sigmoid())
            for n in (16, 32)
        )
        self.fc, self.out = nn.Linear(128, 10), leaky(0.9, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 10]."""
        for conv, norm, lif, scale in zip(
            self.convs, self.norms, self.lifs, self.scales, strict=True
        ):
            x = lif(norm(conv(x)))
            x = self.pool(x * scale(x.mean((2, 3)))[..., None, None])
        return self.out(self.fc(x.flatten(1)))[1]


class Mixer(nn.Module):
    """Layers over patches and over features, with a GELU inside each."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.embed, self.lif = nn.Linear(4, size), leaky(0.7)
        self.over = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
            for n in (16, size, 16, size)
        )
        self.lifs, self.fc3 = nn.ModuleList(leaky(0.7) for _ in self.over), nn.Linear(size, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, 10]."""
        h = self.lif(self.embed(patches(3 * x)))
        for i, (layers, lif) in enumerate(zip(self.over, self.lifs, strict=True)):
            h = h + (lif(layers(h)) if i % 2 else lif(layers(h.mT)).mT)
        return self.fc3(h.mean(1))


class UNet(nn.Module):
    """Two sizes down and up again, each size joined to its own."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 8), (8, 16), (16, 32), (48, 16), (24, 8))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), leaky(0.7))
            for n, m in sizes
        )
        self.fc, self.out = nn.Linear(128, 10), leaky(0.9, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes [B, 10]."""
        one, two, three, up, last = self.convs
        first = one(x)
        second = two(functional.max_pool2d(first, 2))
        third = three(functional.avg_pool2d(second, 2))
        h = up(torch.cat([second, functional.interpolate(third, scale_factor=2)], 1))
        h = last(torch.cat([first, functional.interpolate(h, scale_factor=2)], 1))
        return 5 * self.out(self.fc(functional.avg_pool2d(h, 2).flatten(1)))[0]


def separable() -> nn.Module:
    """Return depthwise convolutions, each with one over channels, to a mean over pixels."""
    layers: list[nn.Module] = []
    for n, m, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [
            nn.Conv2d(n, n, 3, stride, 1, groups=n), nn.BatchNorm2d(n), nn.ReLU(),
            nn.Conv2d(n, m, 1), nn.BatchNorm2d(m), leaky(0.7),
        ]  # fmt: skip
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10), leaky(0.9, output=True)
    )


class Populations(nn.Module):
    """Excitatory and inhibitory neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.to_e, self.ee, self.ei = nn.Linear(8, 300), nn.Linear(300, 300), nn.Linear(100, 300)
        self.to_i, self.ie = nn.Linear(8, 100), nn.Linear(300, 100)
        self.lif_e, self.lif_i = leaky(0.9), leaky(0.7)
        self.fc, self.out = nn.Linear(300, 10), leaky(0.95, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [8, B, 10] of images [B, 1, 8, 8], row by row."""
        e, i, found = torch.zeros(len(x), 300), torch.zeros(len(x), 100), []
        for row in x.unbind(2):
            row = 3 * row.flatten(1)
            e = self.lif_e(self.to_e(row) + self.ee(e) - self.ei(i))
            i = self.lif_i(self.to_i(row) + self.ie(e))
            found.append(self.out(self.fc(e))[1])
        return torch.stack(found)


class Branches(nn.Module):
    """Convolutions of three sizes side by side, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(n, 8, k, padding=k // 2) for k in (1, 3, 5)) for n in (1, 24)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(3, 24) for _ in range(2))
        self.lifs = nn.ModuleList(leaky(0.7) for _ in range(2))
        self.fc, self.out = nn.Linear(96, 10), leaky(0.9, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 10]."""
        for convs, norm, lif in zip(self.convs, self.norms, self.lifs, strict=True):
            x = functional.max_pool2d(lif(norm(torch.cat([conv(x) for conv in convs], 1))), 2)
        return self.out(self.fc(x.flatten(1)))[1]


class Highway(nn.Module):
    """Four layers, each with gates between its currents and the spikes that came in."""

    def __init__(self, size: int = 100) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, size), leaky()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(4))
        self.gates = nn.ModuleList(nn.Linear(size, size) for _ in range(4))
        self.lifs = nn.ModuleList(leaky() for _ in range(4))
        self.fc2, self.out = nn.Linear(size, 10), leaky(0.9, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 10]."""
        x = self.lif1(self.fc1(3 * x.flatten(1)))
        for layer, gate, lif in zip(self.layers, self.gates, self.lifs, strict=True):
            share = torch.sigmoid(gate(x) - 1)
            x = lif(2 * share * layer(x) + 1.5 * (1 - share) * x)
        return self.out(self.fc2(x))[1]


class MultiHead(nn.Module):
    """Attention by PyTorch's own module, then two layers; both beside a path that skips them."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, size), nn.Parameter(0.3 * torch.randn(16, size))
        self.attention = nn.MultiheadAttention(size, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.neurons = nn.ModuleList(leaky(0.7) for _ in range(4))
        self.last, self.out = nn.Linear(size, 10), leaky(0.9, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 10]."""
        lif0, lif1, lif2, lif3 = self.neurons
        h = lif0(self.embed(3 * patches(x)) + self.place)
        h = h + lif1(self.norm1(self.attention(h, h, h, need_weights=False)[0]))
        h = h + lif3(self.norm2(self.down(lif2(self.up(h)))))
        return self.out(self.last(h.mean(1)))[1]


class Film(nn.Module):
    """The left half of an image scales and shifts what is made of the right half."""

    def __init__(self, size: int = 100) -> None:
        super().__init__()
        self.fc1, self.lif1, self.norm = nn.Linear(32, size), leaky(), nn.LayerNorm(size)
        self.fc2, self.lif2 = nn.Linear(32, size), leaky()
        self.fc3a, self.scale, self.shift = (nn.Linear(size, size) for _ in range(3))
        self.lif3, self.last, self.out = leaky(), nn.Linear(size, 10), leaky(0.9, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 10]."""
        left, right = (half.flatten(1) for half in (2 * x).chunk(2, -1))
        context, seen = self.lif1(self.fc1(left)), self.lif2(self.fc2(right))
        h = self.norm(self.fc3a(seen)) * self.scale(context).tanh() + self.shift(context)
        return self.out(self.last(self.lif3(h)))[1]


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "transformer": Transformer, "gated": Gated, "squeeze": Squeeze, "mixer": Mixer, "unet": UNet,
    "separable": separable, "populations": Populations, "branches": Branches, "highway": Highway,
    "film": Film, "multihead": MultiHead,
}  # fmt: skip


def run_steps(net: nn.Module, x: Tensor) -> Tensor:
    """Return the mean output over the steps, [B, 10]."""
    reset(net)
    if isinstance(net, Gated | Populations):
        return net(x).mean(0)
    steps = [net(x) for _ in range(STEPS)]
    return torch.stack([out[1] if isinstance(out, tuple) else out for out in steps]).mean(0)


def run(name: str, rule: str, seed: int) -> float:
    """Train; return the percentage of right answers after the last epoch."""
    torch.manual_seed(seed)
    (x, y), test = digits(_class_of, 1, 8, 8)
    net = NETWORKS[name]()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    attach(rule, net, optimizer)
    for _ in range(EPOCHS):
        net.train()
        for rows in torch.randperm(len(x)).split(BATCH):
            out = run_steps(net, x[rows])
            optimizer.zero_grad()
            functional.cross_entropy(out, y[rows]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        return 100 * (run_steps(net, test[0]).argmax(1) == test[1]).float().mean().item()


if __name__ == "__main__":
    seeds.over_names(__doc__, "--networks", NETWORKS, "bptt,dfa,shallow", run)
