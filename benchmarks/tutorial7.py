"""The network and the loop of snnTorch's seventh tutorial with one line more, on N-MNIST.

    python benchmarks/tutorial7.py --data-root DIR --rule dfa --seeds 3

As there: 12C5-MP2-32C5-MP2-10 with Adam at 0.02 and the mean square of spike counts, frames of
1 ms, 50 batches of 128. A pixel that sees events in a frame gives one spike, and images are not
turned at random. With ``dfa`` the line is ``DFA(net)``, with its defaults; ``bptt`` leaves it out.
A run takes 10 minutes on one core and 8 GB.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from snn_dfa import DFA
from snn_dfa.experiments.recordings import Recordings, nmnist

_STEPS = 340  # of a millisecond


def network() -> nn.Sequential:
    """Return the tutorial's network."""
    lif = {"beta": 0.5, "spike_grad": surrogate.atan(), "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(2, 12, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
        nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.Leaky(**lif),
        nn.Flatten(), nn.Linear(32 * 5 * 5, 10), snn.Leaky(**lif, output=True),
    )  # fmt: skip


def forward_pass(net: nn.Module, data: Tensor) -> Tensor:
    """Return the output's spikes [T, B, 10] for frames [T, B, 2, 34, 34]."""
    utils.reset(net)
    return torch.stack([net(step)[0] for step in data])


def batch(recordings: Recordings, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return frames [T, B, 2, 34, 34] and classes of some recordings."""
    x, y = recordings
    return x[rows].transpose(0, 1).float(), y[rows]


def accuracy_on(net: nn.Module, recordings: Recordings) -> float:
    """Return the share of recordings whose class has most spikes."""
    right = 0.0
    with torch.no_grad():
        for rows in torch.arange(len(recordings[1])).split(50):
            x, y = batch(recordings, rows)
            right += SF.accuracy_rate(forward_pass(net, x), y) * len(rows)
    return right / len(recordings[1])


def run(seed: int, rule: str, data: tuple[Recordings, Recordings], batches: int) -> float:
    """Train; print every tenth batch; return accuracy on the test recordings."""
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.9, 0.999))
    loss_fn = SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
    if rule == "dfa":
        DFA(net)
    started = time.perf_counter()
    for i in range(batches):
        x, targets = batch(data[0], torch.randperm(len(data[0][1]))[:128])
        spk_rec = forward_pass(net, x)
        loss = loss_fn(spk_rec, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (i + 1) % 10 == 0:
            right = SF.accuracy_rate(spk_rec.detach(), targets)
            print(f"  batch {i + 1}: loss {loss.item():.2f}, accuracy {right:.1%}", flush=True)
    found = accuracy_on(net, data[1])
    minutes = (time.perf_counter() - started) / 60
    print(f"{rule}, seed {seed}: test accuracy {found:.1%}, {minutes:.0f} minutes", flush=True)
    return found


def main() -> None:
    """Print the course of each run, and the mean and the worst of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--rule", choices=("dfa", "bptt"), default="dfa")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batches", type=int, default=50, help="default 50, as in the tutorial")
    args = parser.parse_args()
    data = nmnist(args.data_root, _STEPS)
    found = [run(seed, args.rule, data, args.batches) for seed in range(args.seeds)]
    print(f"mean {fmean(found):.1%}, worst {min(found):.1%} of {len(found)}")


if __name__ == "__main__":
    main()
