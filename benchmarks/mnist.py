"""snnTorch's fifth tutorial on MNIST with one line more: ``DFA(net, optimizer=optimizer)``.

    python benchmarks/mnist.py --data-root DIR
    python benchmarks/mnist.py --data-root DIR --rules dfa --seeds 1 --epochs 3

Network, loss and optimiser are the tutorial's: 784-1000-10, `snn.Leaky` of beta 0.95, 25 steps of
a constant current, the sum of the cross entropies of the output's membrane, Adam at 5e-4, batches
of 128, one epoch. All steps run in one call, `over_time(net)`, whose gradients are those of the
loop. Nothing is chosen on the test images. ``dfa`` is the one line, ``fixed`` is ``DFA(net)``,
``bptt`` attaches nothing, and ``shallow`` trains the output layer alone. MNIST is downloaded if DIR
does not have it. A run takes about a minute on one core.
"""

from __future__ import annotations

from pathlib import Path

import seeds
import snntorch as snn
import torch
from learning import attach
from torch import Tensor, nn
from torch.nn import functional
from torchvision import datasets

from snn_dfa import over_time

RULES = ("dfa", "fixed", "bptt", "shallow")
STEPS, BATCH = 25, 128


def images(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Return MNIST's pixels [S, 784] in [0, 1] and its classes [S]."""
    data = datasets.MNIST(root, train=train, download=True)
    return data.data.flatten(1) / 255, data.targets


def network() -> nn.Module:
    """Return the tutorial's network: from all steps [T, B, 784] to spikes and membranes."""
    return over_time(
        nn.Sequential(
            nn.Linear(784, 1000), snn.Leaky(beta=0.95, init_hidden=True),
            nn.Linear(1000, 10), snn.Leaky(beta=0.95, init_hidden=True, output=True),
        )
    )  # fmt: skip


def accuracy_on(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the percentage of images whose class has most spikes."""
    with torch.no_grad():
        counts = [net(part.expand(STEPS, -1, -1))[0].sum(0) for part in x.split(1000)]
    return 100 * (torch.cat(counts).argmax(1) == y).float().mean().item()


def run(rule: str, seed: int, epochs: int, root: Path) -> float:
    """Train with one rule; return the accuracy on the test images in percent."""
    torch.manual_seed(seed)
    x, y = images(root, train=True)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    attach(rule, net, optimizer)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            _, mem = net(x[rows].expand(STEPS, -1, -1))
            loss = STEPS * functional.cross_entropy(mem.flatten(0, 1), y[rows].repeat(STEPS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return accuracy_on(net, *images(root, train=False))


def main() -> None:
    """Print each run, and the mean and the worst of the seeds."""
    parser = seeds.parser(__doc__, RULES, seeds=3, epochs=1)
    parser.add_argument("--data-root", type=Path, required=True)
    args = parser.parse_args()
    seeds.over_seeds(args, lambda rule, seed: run(rule, seed, args.epochs, args.data_root))


if __name__ == "__main__":
    main()
