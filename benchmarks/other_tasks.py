"""How well one line learns tasks and networks that are not those of the other benchmarks.

    python benchmarks/other_tasks.py
    python benchmarks/other_tasks.py --tasks text,attention --rules bptt,dfa --seeds 3

``regression``: a membrane follows a sine whose height is the input; explicit states, decays that
learn. ``delays``: two membranes follow products of inputs of two to six steps before; three hidden
layers. ``autoencoder``: convolutions, and transposed ones back to an image of 64 pixels.
``text``: which of four lists a fifth of twenty words comes from; an embedding and `snn.Synaptic`.
``segmentation``: the class of each of 256 pixels; two paths that are joined.
``attention``: spikes of queries, keys and values over the patches of a digit.
``population``: ten output neurons for each class. ``labels``: five labels a sample; `snn.Alpha`.
Samples are drawn, or scikit-learn's digits. Adam, batches of 64; nothing is chosen: the score is
that after the last epoch, the share of right answers in percent or the squared error times 1,000.
Rules are those of ``learning.py``. A run takes half a minute to three minutes of one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import seeds
import snntorch as snn
import torch
from learning import attach
from sklearn.datasets import load_digits
from snntorch import functional as SF
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import reset
from snn_dfa.surrogate import fast_sigmoid

#: Input and targets, to learn from and to test with. Samples are the second dimension of a
#: sequence, and the first of all else.
Data = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def leaky(beta: float = 0.8, **options: Any) -> nn.Module:
    """Return a neuron with a hidden state."""
    return snn.Leaky(beta=beta, init_hidden=True, spike_grad=fast_sigmoid(25), **options)


# -- networks: from a step, or for sequences from all steps, to what the loss reads ----------------


class Sequence(nn.Module):
    """A network that returns the membranes of all steps, [T, B, C], of an output that never fires.

    Subclasses have ``weights``, ``neurons``, ``last`` and ``out``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [T, B, C]."""
        states = [neuron.init_leaky() for neuron in (*self.neurons, self.out)]
        membranes = []
        for spk in x:
            for i, (weight, neuron) in enumerate(zip(self.weights, self.neurons, strict=True)):
                spk, states[i] = neuron(weight(spk), states[i])
            _, states[-1] = self.out(self.last(spk), states[-1])
            membranes.append(states[-1])
        return torch.stack(membranes)


class Regression(Sequence):
    """Explicit states, decays that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(*sizes) for sizes in ((1, 128), (128, 128)))
        self.neurons = nn.ModuleList(
            snn.Leaky(beta=torch.rand(128), threshold=torch.rand(128), learn_beta=True)
            for _ in self.weights
        )
        self.last = nn.Linear(128, 1)
        self.out = snn.Leaky(beta=torch.rand(1), learn_beta=True, reset_mechanism="none")


class Delays(Sequence):
    """Three hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, 100, 100, 100)
        self.weights = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.neurons = nn.ModuleList(
            snn.Leaky(beta=0.9, spike_grad=fast_sigmoid(25)) for _ in self.weights
        )
        self.last, self.out = nn.Linear(100, 2), snn.Leaky(beta=0.8, reset_mechanism="none")


class Autoencoder(nn.Module):
    """Down to 24 neurons and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), leaky(), nn.Conv2d(16, 32, 3, 2, 1), leaky(), nn.Flatten(),
            nn.Linear(128, 24), leaky(),
        )  # fmt: skip
        self.up = nn.Sequential(
            nn.Linear(24, 128), leaky(), nn.Unflatten(1, (32, 2, 2)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), leaky(), nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )  # fmt: skip
        self.out = leaky(threshold=1e4, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 1, 8, 8]."""
        return self.out(self.up(self.down(x)))[1]


class Text(nn.Module):
    """An embedding before the first neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc1 = nn.Embedding(200, 32), nn.Linear(32, 64)
        self.lif1 = snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True, spike_grad=fast_sigmoid(25))
        self.fc2, self.lif2 = nn.Linear(64, 4), leaky(0.95, output=True)

    def forward(self, words: Tensor) -> Tensor:
        """Return membranes [B, 4]."""
        return self.lif2(self.fc2(self.lif1(self.fc1(self.words(words)))))[1]


class Segmentation(nn.Module):
    """A path at half the size, joined to one at the full size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 16, 3, padding=1), leaky(0.7)
        self.conv2, self.lif2 = nn.Conv2d(16, 32, 3, 2, 1), leaky(0.7)
        self.conv3, self.lif3 = nn.Conv2d(48, 16, 3, padding=1), leaky(0.7)
        self.last, self.out = nn.Conv2d(16, 3, 1), leaky(0.7, output=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return membranes [B, 3, 16, 16]."""
        full = self.lif1(self.conv1(x))
        half = functional.interpolate(self.lif2(self.conv2(full)), scale_factor=2)
        return self.out(self.last(self.lif3(self.conv3(torch.cat([full, half], 1)))))[1]


class Attention(nn.Module):
    """One block of a spiking transformer over 16 patches, each layer normalised."""

    def __init__(self, size: int = 48) -> None:
        super().__init__()
        sizes = {"embed": (4, size), "wide": (size, 2 * size), "narrow": (2 * size, size)}
        sizes |= {name: (size, size) for name in ("query", "key", "value", "join")}
        self.layers = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Linear(*s), nn.LayerNorm(s[1]), leaky(0.7))
                for n, s in sizes.items()
            }
        )
        self.place = nn.Parameter(0.2 * torch.randn(16 * size))
        self.fc3 = nn.Linear(size, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, 10]."""
        layers = self.layers
        patches = x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        embed = layers["embed"]
        h = embed[2](embed[1](embed[0](patches) + self.place.view(16, -1)))
        query, key, value = (layers[name](h) for name in ("query", "key", "value"))
        h = h + layers["join"](0.1 * query @ key.transpose(1, 2) @ value)
        h = h + layers["narrow"](layers["wide"](h))
        return self.fc3(h.mean(1))


class Labels(nn.Module):
    """`snn.Alpha`, dropout, and a plain readout."""

    def __init__(self) -> None:
        super().__init__()
        alpha = snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True, spike_grad=fast_sigmoid(25))
        self.body = nn.Sequential(
            nn.Linear(64, 128), alpha, nn.Dropout(0.2), nn.Linear(128, 64), leaky(0.9)
        )
        self.fc3 = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores [B, 5]."""
        return self.fc3(self.body(x))


def population() -> nn.Module:
    """Return a network of 100 output neurons."""
    lapicque = snn.Lapicque(beta=0.9, init_hidden=True, spike_grad=fast_sigmoid(25))
    return nn.Sequential(nn.Linear(64, 150), lapicque, nn.Linear(150, 100), leaky(0.9))


# -- data ------------------------------------------------------------------------------------------


def digits(targets: Callable[[Tensor, Tensor], Tensor], *shape: int) -> Data:
    """Return the digits, the last quarter to test with, with targets made of images and classes."""
    x, y = map(torch.as_tensor, load_digits(return_X_y=True))
    x = x.float().div(16).view(-1, *(shape or (64,)))
    y = targets(x, y)
    return (x[:1350], y[:1350]), (x[1350:], y[1350:])


def sines() -> Data:
    """Return heights [T, B, 1] and what is to follow."""
    height = torch.rand(512, 1)
    time = torch.linspace(0, 1, 40)[:, None, None]
    x, y = height.expand(40, 512, 1), (3 * time).sin() * height + 0.3 * height**2
    return (x[:, :384], y[:, :384]), (x[:, 384:], y[:, 384:])


def waves() -> Data:
    """Return four sines [T, B, 4] and two sums of products of what they were before."""
    time = torch.arange(40.0)[:, None, None]
    x = ((0.1 + 0.3 * torch.rand(768, 4)) * time + 2 * torch.pi * torch.rand(768, 4)).sin()
    first, second, third, fourth = (
        torch.cat([torch.zeros(delay, 768), x[:-delay, :, i]])
        for i, delay in enumerate((2, 4, 3, 6))
    )
    y = torch.stack([first * second, third + fourth**2 / 2 - 0.25], 2)
    return (2 * x[:, :512], y[:, :512]), (2 * x[:, 512:], y[:, 512:])


def words() -> Data:
    """Return words [T, B] and lists [B]."""
    y, x = torch.randint(4, (1600,)), torch.randint(200, (20, 1600))
    x = torch.where(torch.rand(20, 1600) < 0.2, 12 * y + torch.randint(12, (20, 1600)), x)
    return (x[:, :1200], y[:1200]), (x[:, 1200:], y[1200:])


def shapes() -> Data:
    """Return noisy images [B, 1, 16, 16] of a disc and a square, and the class of each pixel."""
    at = torch.arange(16.0)
    middle, radius = torch.randint(3, 13, (2, 2, 640, 1, 1)), torch.randint(2, 5, (2, 640, 1, 1))
    down, across = at[:, None] - middle[0], at - middle[1]
    disc = (down**2 + across**2 <= radius**2)[0]
    square = torch.maximum(down.abs(), across.abs())[1] <= radius[1]
    y = torch.where(square, 2, disc.long())
    x = (0.7 * (y > 0) + 0.2 * torch.randn(y.shape)).unsqueeze(1)
    return (x[:512], y[:512]), (x[512:], y[512:])


# -- tasks -----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What is trained, and how.

    Args:
        network: Makes it.
        data: Makes samples.
        loss: Of what all steps return, [T, B, ...], and targets.
        score: The same.
        steps: ``None`` where the input has steps of its own.
        epochs: So many.
        rate: Of Adam.
    """

    network: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    steps: int | None
    epochs: int = 15
    rate: float = 2e-3


def _error(out: Tensor, y: Tensor) -> float:
    return 1000 * functional.mse_loss(out, y).item()


def _right(out: Tensor, y: Tensor) -> float:
    return 100 * (out.mean(0).argmax(1) == y).float().mean().item()


def _mean_entropy(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out.mean(0), y)


def _labels_of(_: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y % 2 == 0, y > 4, y % 3 == 0, y % 3 == 1, y < 3], 1).float()


def _class_of(_: Tensor, y: Tensor) -> Tensor:
    return y


_COUNTS: Mapping[str, Any] = {"population_code": True, "num_classes": 10}
TASKS: Mapping[str, Task] = {
    "regression": Task(Regression, sines, functional.mse_loss, _error, None, 30, 5e-3),
    "delays": Task(Delays, waves, functional.mse_loss, _error, None, 25),
    "autoencoder": Task(
        Autoencoder, lambda: digits(lambda x, _: x, 1, 8, 8),
        lambda out, y: functional.mse_loss(out[-1], y), lambda out, y: _error(out[-1], y), 8,
    ),
    "text": Task(Text, words, _mean_entropy, _right, None),
    "segmentation": Task(Segmentation, shapes, _mean_entropy, _right, 6, 12),
    "attention": Task(Attention, lambda: digits(_class_of), _mean_entropy, _right, 5),
    "population": Task(
        population, lambda: digits(_class_of), SF.ce_count_loss(**_COUNTS),
        lambda out, y: float(100 * SF.accuracy_rate(out, y, **_COUNTS)), 12,
    ),
    "labels": Task(
        Labels, lambda: digits(_labels_of),
        lambda out, y: functional.binary_cross_entropy_with_logits(out.mean(0), y),
        lambda out, y: 100 * ((out.mean(0) > 0) == (y > 0)).float().mean().item(), 10,
    ),
}  # fmt: skip


def run_steps(task: Task, net: nn.Module, x: Tensor) -> Tensor:
    """Return what the network returns at all steps, [T, B, ...]."""
    reset(net)
    if isinstance(net, Sequence):
        return net(x)
    return torch.stack([net(step) for step in (x if task.steps is None else [x] * task.steps)])


def run(name: str, rule: str, seed: int) -> float:
    """Train; return the score on the test samples after the last epoch."""
    task = TASKS[name]
    torch.manual_seed(seed)
    (x, y), test = task.data()
    net = task.network()
    optimizer = torch.optim.Adam(net.parameters(), lr=task.rate)
    attached = attach(rule, net, optimizer)
    dims = [1 if task.steps is None else 0, int(isinstance(net, Sequence))]  # of samples
    for _ in range(task.epochs):
        net.train()
        for rows in torch.randperm(x.shape[dims[0]]).split(64):
            out = run_steps(task, net, x.index_select(dims[0], rows))
            optimizer.zero_grad()
            task.loss(out, y.index_select(dims[1], rows)).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        score = task.score(run_steps(task, net, test[0]), test[1])
    if attached is not None:
        attached.remove()
    return score


if __name__ == "__main__":
    seeds.over_names(__doc__, "--tasks", TASKS, "bptt,dfa,fixed,shallow", run)
