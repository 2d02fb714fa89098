"""snnTorch's seventh tutorial on N-MNIST with one line more: ``DFA(net, optimizer=optimizer)``.

    python benchmarks/tutorial7.py --data-root DIR
    python benchmarks/tutorial7.py --data-root DIR --steps 340 --rules dfa --seeds 1

Network, neurons, optimiser and loss are the tutorial's: 12C5-MP2-32C5-MP2-10, Adam at 0.02, the
mean square of spike counts, batches of 128. Not its own are the recordings (``DIR`` has the extract
of 1,100; events are not filtered, a pixel that sees several in a frame gives one spike), the frames
of 10 ms in place of 1 ms (``--steps 340``), and 48 batches in place of 50. All steps run in one
call, `over_time(net)`, whose gradients are those of the loop. Nothing is chosen on the 100 test
recordings. ``dfa`` is the one line, ``fixed`` is ``DFA(net)``, ``bptt`` attaches nothing, and
``shallow`` trains the output layer alone.
"""

from __future__ import annotations

from pathlib import Path

import seeds
import snntorch as snn
import torch
from learning import attach
from snntorch import functional, surrogate
from torch import Tensor, nn

from snn_dfa import over_time
from snn_dfa.experiments.data.recordings import Recordings, nmnist

RULES = ("dfa", "fixed", "bptt", "shallow")
BATCH = 128


def network() -> nn.Module:
    """Return the tutorial's network: from frames [T, B, 2, 34, 34] to spikes and membranes."""
    lif = {"beta": 0.5, "spike_grad": surrogate.atan(), "init_hidden": True}
    return over_time(
        nn.Sequential(
            nn.Conv2d(2, 12, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
            nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
            nn.Flatten(), nn.Linear(32 * 5 * 5, 10), snn.Leaky(**lif, output=True),
        )
    )  # fmt: skip


def accuracy_on(net: nn.Module, recordings: Recordings) -> float:
    """Return the percentage of recordings whose class has most spikes."""
    x, y = recordings
    with torch.no_grad():
        counts = [net(part.transpose(0, 1).float())[0].sum(0) for part in x.split(50)]
    return 100 * (torch.cat(counts).argmax(1) == y).float().mean().item()


def run(rule: str, seed: int, epochs: int, data: tuple[Recordings, Recordings]) -> float:
    """Train with one rule; return the accuracy on the test recordings in percent."""
    torch.manual_seed(seed)
    (x, y), test = data
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.9, 0.999))
    loss_of: nn.Module = functional.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    attach(rule, net, optimizer)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(BATCH):
            spk, _ = net(x[rows].transpose(0, 1).float())
            loss: Tensor = loss_of(spk, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return accuracy_on(net, test)


def main() -> None:
    """Print each run, and the mean and the worst of the seeds."""
    parser = seeds.parser(__doc__, RULES, seeds=3, epochs=6)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=34, help="frames; default 34, of 10 ms")
    args = parser.parse_args()
    data = nmnist(args.data_root, args.steps)
    seeds.over_seeds(args, lambda rule, seed: run(rule, seed, args.epochs, data))


if __name__ == "__main__":
    main()
