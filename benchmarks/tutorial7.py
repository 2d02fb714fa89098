"""snnTorch's seventh tutorial with one line more, on N-MNIST.

    python benchmarks/tutorial7.py --data-root DIR --seeds 3
    python benchmarks/tutorial7.py --data-root DIR --rule bptt

Network, neurons, optimiser, loss and loop are the tutorial's: 12C5-MP2-32C5-MP2-10, Adam at 0.02,
the mean square of spike counts, frames of 1 ms, 50 batches of 128. Not its own are the recordings:
events are not filtered, a pixel that sees several in a frame gives one spike, images are not
turned, and ``DIR`` has the extract of 1,100 (all frames are in memory; 11 GB). With ``dfa`` the
line is ``DFA(net)``; ``bptt`` leaves it out. A run takes 8 to 14 minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from snn_dfa import DFA
from snn_dfa.experiments.data.recordings import Recordings, nmnist


def rows_of_batches(size: int, batch_size: int) -> Iterator[Tensor]:
    """Yield row numbers without end, each pass over all in an order of its own."""
    while True:
        yield from torch.randperm(size).split(batch_size)


def network() -> nn.Sequential:
    """Return the tutorial's network."""
    lif = {"beta": 0.5, "spike_grad": surrogate.atan(), "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(2, 12, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
        nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
        nn.Flatten(), nn.Linear(32 * 5 * 5, 10), snn.Leaky(**lif, output=True),
    )  # fmt: skip


def forward_pass(net: nn.Module, data: Tensor) -> Tensor:
    """Return the output's spikes [T, B, 10] for frames [T, B, 2, 34, 34] of bytes."""
    utils.reset(net)
    return torch.stack([net(step.float())[0] for step in data])


def batch(recordings: Recordings, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return frames [T, B, 2, 34, 34] and classes of some recordings."""
    x, y = recordings
    return x[rows].transpose(0, 1), y[rows]


def accuracy_on(net: nn.Module, recordings: Recordings) -> float:
    """Return the share of recordings whose class has most spikes."""
    right = 0.0
    net.eval()
    with torch.no_grad():
        for rows in torch.arange(len(recordings[1])).split(50):
            x, y = batch(recordings, rows)
            right += SF.accuracy_rate(forward_pass(net, x), y) * len(rows)
    return right / len(recordings[1])


def run(seed: int, data: tuple[Recordings, Recordings], args: argparse.Namespace) -> float:
    """Train; print every tenth batch; return accuracy on the test recordings."""
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.9, 0.999))
    loss_fn = SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    if args.rule == "dfa":
        DFA(net, feedback=args.feedback)
    started = time.perf_counter()
    numbers = rows_of_batches(len(data[0][1]), args.batch_size)
    for i, rows in enumerate(itertools.islice(numbers, args.batches), 1):
        x, targets = batch(data[0], rows)
        net.train()
        spk_rec = forward_pass(net, x)
        loss = loss_fn(spk_rec, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i % 10 == 0:
            right = SF.accuracy_rate(spk_rec.detach(), targets)
            print(f"  batch {i}: loss {loss.item():.2f}, accuracy {right:.1%}", flush=True)
    found = accuracy_on(net, data[1])
    minutes = (time.perf_counter() - started) / 60
    print(f"{args.rule}, seed {seed}: test accuracy {found:.1%}, {minutes:.0f} min", flush=True)
    return found


def main() -> None:
    """Print the course of each run, and the mean and the worst of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rule", choices=("dfa", "bptt"), default="dfa")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--feedback", default="gaussian", help="of dfa; default gaussian")
    parser.add_argument("--steps", type=int, default=340, help="frames; default 340, of 1 ms")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=50, help="default 50, as in the tutorial")
    args = parser.parse_args()
    data = nmnist(args.data_root, args.steps)
    found = [run(seed, data, args) for seed in range(args.seeds)]
    print(f"mean {fmean(found):.1%}, worst {min(found):.1%} of {len(found)}")


if __name__ == "__main__":
    main()
