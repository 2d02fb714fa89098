"""Five normalised convolutions on coloured images, at half the width and a quarter of the pixels.

    python benchmarks/deep_convolutions.py cifar15k.npz --seeds 3
    python benchmarks/deep_convolutions.py cifar15k.npz --rules dfa --width 64 --whole
    python benchmarks/deep_convolutions.py cifar15k.npz --seeds 3 --width 64 --whole --device cuda

The file is what ``numpy.savez`` wrote: ``x_train`` and ``x_test`` [S, 3, 32, 32] as bytes,
``y_train`` and ``y_test`` [S]. This makes it of torchvision's CIFAR-10::

    train, test = (torchvision.datasets.CIFAR10("data", part, download=True) for part in (1, 0))
    np.savez("cifar15k.npz",
             x_train=train.data[:15_000].transpose(0, 3, 1, 2), y_train=train.targets[:15_000],
             x_test=test.data.transpose(0, 3, 1, 2), y_test=test.targets)

Network: 32c3-32c3-mp2-64c3-64c3-mp2-64c3-mp2-10 (``--width`` is the
first number) with batch normalisation before each hidden neuron, `snn.Leaky` of beta 0.6 and a
surrogate of slope 5, 4 steps, the cross entropy of spike counts, AdamW at 3e-3 in one cycle, decay
0.2, batches of 128, 6 epochs. Means of 2 x 2 pixels are learned from unless ``--whole``. Nothing is
chosen: the accuracy is that after the last epoch. ``dfa`` has a weight mirror, ``linear`` the same
without each sample's way, ``fixed`` has fixed Gaussian matrices, ``fa`` goes from layer to layer by
factors that mirror the weights, ``bptt`` attaches nothing, ``shallow`` trains the output layer
alone. A run takes seven minutes of one core, 95 with ``--width 64 --whole``. ``--keep FOLDER``
saves each run after each epoch, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seeds
import snntorch as snn
import torch
from learning import attach
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import over_time
from snn_dfa.surrogate import fast_sigmoid

RULES = ("dfa", "linear", "fixed", "fa", "bptt", "shallow")
STEPS, BATCH, RATE, DECAY = 4, 128, 3e-3, 0.2


def images(path: Path, *, whole: bool) -> dict[str, Tensor]:
    """Return normalised images and classes of both parts."""
    with np.load(path) as file:
        found = {key: torch.as_tensor(file[key]) for key in file}
    for key in ("x_train", "x_test"):
        x = found[key].float() / 255
        found[key] = x if whole else functional.avg_pool2d(x, 2)
    train = found["x_train"]
    mean, std = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return found | {key: (found[key] - mean) / std for key in ("x_train", "x_test")}


def network(width: int, side: int) -> nn.Module:
    """Return the network, from all steps [T, B, 3, side, side] to spikes [T, B, 10]."""

    def neuron() -> nn.Module:
        return snn.Leaky(beta=0.6, init_hidden=True, spike_grad=fast_sigmoid(5))

    layers: list[nn.Module] = []
    channels = 3
    for maps, pools in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 1)):
        wide = maps * width
        layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)]
        layers += [nn.MaxPool2d(2)] * pools
        layers.append(neuron())
        channels = wide
    last = nn.Linear(channels * (side // 8) ** 2, 10)
    return over_time(nn.Sequential(*layers, nn.Flatten(), last, neuron()))


def accuracy_on(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the percentage of images whose class has most spikes."""
    net.eval()
    with torch.no_grad():
        counts = [net(part.expand(STEPS, *part.shape)).sum(0) for part in x.split(250)]
    net.train()
    return 100 * (torch.cat(counts).argmax(1) == y).float().mean().item()


def load(saved: Path | None, parts: Sequence[Any]) -> list[float]:
    """Return the accuracies of the epochs that are done, and set all parts to the last one."""
    if saved is None or not saved.exists():
        return []
    state = torch.load(saved, weights_only=True)
    for part, values in zip(parts, state["parts"], strict=True):
        part.load_state_dict(values)
    torch.set_rng_state(state["random"])
    return state["course"]


def save(saved: Path | None, parts: Sequence[Any], course: list[float]) -> None:
    """Write all parts, the generator and the accuracies; an interrupted write loses nothing."""
    if saved is None:
        return
    saved.parent.mkdir(parents=True, exist_ok=True)
    state = {"parts": [part.state_dict() for part in parts], "random": torch.get_rng_state()}
    torch.save(state | {"course": course}, saved.with_suffix(".part"))
    saved.with_suffix(".part").replace(saved)


def run(
    rule: str, seed: int, epochs: int, width: int, data: dict[str, Tensor], keep: Path | None
) -> float:
    """Train with one rule; return the accuracy on the test images in percent."""
    torch.manual_seed(seed)
    x, y = data["x_train"], data["y_train"]
    net = network(width, x.shape[-1]).to(x.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * -(-len(x) // BATCH))
    dfa = attach(rule, net, optimizer)
    parts = [net, optimizer, schedule] + ([dfa] if dfa is not None else [])
    saved = keep / f"{rule}-{seed}-{width}-{x.shape[-1]}-{epochs}.pt" if keep is not None else None
    course = load(saved, parts)
    for epoch in range(len(course), epochs):
        losses = []
        for rows in torch.randperm(len(x)).to(x.device).split(BATCH):
            spikes = net(x[rows].expand(STEPS, *x[rows].shape))
            loss = functional.cross_entropy(spikes.sum(0) / 0.7, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        found = accuracy_on(net, data["x_test"], data["y_test"])
        course.append(found)
        save(saved, parts, course)
        mean = torch.stack(losses).mean().item()
        line = f"{rule}, seed {seed}, epoch {epoch + 1}: loss {mean:.3f}, {found:.1f} %"
        print(line, flush=True)
    return course[-1]


def main() -> None:
    """Print accuracies on the test images, and write them where ``--json`` says."""
    parser = seeds.parser(__doc__, RULES, seeds=1, epochs=6)
    parser.add_argument("file", type=Path)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--whole", action="store_true", help="all pixels")
    parser.add_argument("--keep", type=Path, help="folder in which runs are saved, and go on")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = {k: v.to(args.device) for k, v in images(args.file, whole=args.whole).items()}
    seeds.over_seeds(
        args, lambda rule, seed: run(rule, seed, args.epochs, args.width, data, args.keep)
    )


if __name__ == "__main__":
    main()
