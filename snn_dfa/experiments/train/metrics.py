"""What is reported of a trained network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snn_dfa.diagnostics import activity, complaints, cost
from snn_dfa.experiments.train.training import Evaluation, Training

__all__ = ["epochs_to", "interval", "metrics", "seconds_to"]

#: Two-sided, of 95 %: this quantile of the normal distribution.
_QUANTILE = 1.959964
_DRAWN = 60  # neurons of a layer whose spikes are kept for the picture


def metrics(trainer: Training) -> dict[str, Any]:
    """Return what is reported of the best epoch's network, and of the way to it."""
    now = {k: v.detach().clone() for k, v in trainer.net.state_dict().items()}
    trainer.net.load_state_dict(trainer.best)
    with activity(trainer.sequence) as layers:
        seen = trainer.evaluate("test")
    with cost(trainer.sequence) as spent:
        trainer.evaluate("test")
    fired = trainer.spikes()
    trainer.net.load_state_dict(now)
    neurons, samples = sum(each.neurons for each in layers.values()), len(seen.predicted)
    speeds = (each["samples"] / each["steps"] for each in trainer.epoch_seconds)
    return {
        "seed": trainer.seed,
        "test_accuracy": seen.accuracy,
        "test_interval": interval(seen.accuracy, samples),
        "test_samples": samples,
        "test_top5": seen.top5,
        "test_loss": seen.loss,
        "val_accuracy": trainer.history[trainer.best_epoch - 1].get("val_accuracy"),
        "best_epoch": trainer.best_epoch,
        "seconds_to_97": seconds_to(trainer, 0.97),
        "epochs_to_97": epochs_to(trainer, 0.97),
        "seconds_per_step": statistics.median(trainer.step_seconds),
        "samples_per_second": statistics.median(speeds),
        "epoch_seconds": trainer.epoch_seconds,
        "spikes_per_neuron_and_step": sum(s.rate * s.neurons for s in layers.values())
        / max(neurons, 1),
        "spikes_per_sample": spent.spikes / samples,
        "synaptic_operations_per_sample": spent.synaptic_operations / samples,
        "multiplications_per_sample": spent.multiplications / samples,
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "neurons": {name: seen.neurons for name, seen in layers.items()},
        "raster": _raster(*fired),
        "firing_rates": {name: seen.rate for name, seen in layers.items()},
        "silent": {name: seen.silent for name, seen in layers.items()},
        "saturated": {name: seen.saturated for name, seen in layers.items()},
        "warnings": complaints(layers),
        "confusion": _confusion(seen),
        "history": trainer.history,
        "diagnostics": trainer.diagnostics,
    }


def interval(share: float, samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was seen on so many samples.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209, the score interval. It says how far other test
    samples may lead to another share. It says nothing of other weights: that is what seeds are for.

    Example:
        >>> low, high = interval(352 / 360, 360)
        >>> round(low, 3), round(high, 3)
        (0.957, 0.989)
    """
    square = _QUANTILE**2 / samples
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def epochs_to(trainer: Training, accuracy: float) -> int | None:
    """Return after how many epochs the accuracy was first this high; ``None``: never.

    It is the validation part's, or the test part's where there is no validation part.
    """
    part = f"{trainer.parts[0]}_accuracy"
    reached = (i for i, line in enumerate(trainer.history, 1) if line[part] >= accuracy)
    return next(reached, None)


def seconds_to(trainer: Training, accuracy: float) -> float | None:
    """Return the time that :func:`epochs_to` took; ``None``: never."""
    epochs = epochs_to(trainer, accuracy)
    return None if epochs is None else sum(s["epoch"] for s in trainer.epoch_seconds[:epochs])


def _raster(layers: Mapping[str, Tensor], target: int) -> dict[str, Any]:
    """Return which neurons fired at which step, for a picture; of many neurons some, evenly."""
    found = {}
    for name, spikes in layers.items():
        flat = spikes.flatten(1)
        neurons = flat.shape[1]
        chosen = torch.linspace(0, neurons - 1, min(neurons, _DRAWN)).round().long()
        fired = flat[:, chosen.to(flat.device)].ne(0).cpu()
        found[name] = {
            "neurons": neurons,
            "shown": len(chosen),
            "fired": [" ".join(map(str, step.nonzero()[:, 0].tolist())) for step in fired],
        }
    steps = max((len(spikes) for spikes in layers.values()), default=0)
    return {"class": target, "steps": steps, "layers": found}


def _confusion(seen: Evaluation) -> list[list[int]]:
    """Rows are true classes, columns predictions."""
    table: Tensor = torch.zeros(seen.classes, seen.classes, dtype=torch.long)
    pairs = (torch.tensor(seen.targets), torch.tensor(seen.predicted))
    return table.index_put_(pairs, torch.tensor(1), accumulate=True).tolist()
