"""What is reported of a trained network."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from snn_dfa.diagnostics import activity, complaints, cost
from snn_dfa.experiments.train.trainer import Trainer

__all__ = ["metrics", "seconds_to"]


def metrics(trainer: Trainer) -> dict[str, Any]:
    """Return what is reported of the best epoch's network, and of the way to it."""
    now = {k: v.detach().clone() for k, v in trainer.net.state_dict().items()}
    trainer.net.load_state_dict(trainer.best)
    with activity(trainer.sequence) as layers:
        accuracy, loss, predicted = trainer.evaluate("test")
    with cost(trainer.sequence) as spent:
        trainer.evaluate("test")
    trainer.net.load_state_dict(now)
    neurons, samples = sum(seen.neurons for seen in layers.values()), len(predicted)
    return {
        "seed": trainer.settings.seed,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "val_accuracy": trainer.history[trainer.best_epoch - 1]["val_accuracy"],
        "best_epoch": trainer.best_epoch,
        "seconds_to_97": seconds_to(trainer, 0.97),
        "seconds_per_step": statistics.median(trainer.step_seconds),
        "epoch_seconds": trainer.epoch_seconds,
        "spikes_per_neuron_and_step": sum(s.rate * s.neurons for s in layers.values()) / neurons,
        "spikes_per_sample": spent.spikes / samples,
        "synaptic_operations_per_sample": spent.synaptic_operations / samples,
        "multiplications_per_sample": spent.multiplications / samples,
        "firing_rates": {name: seen.rate for name, seen in layers.items()},
        "silent": {name: seen.silent for name, seen in layers.items()},
        "saturated": {name: seen.saturated for name, seen in layers.items()},
        "warnings": complaints(layers),
        "confusion": _confusion(trainer, predicted),
        "history": trainer.history,
        "diagnostics": trainer.diagnostics,
    }


def seconds_to(trainer: Trainer, accuracy: float) -> float | None:
    """Return the time until the validation accuracy was first this high; ``None``: never."""
    passed = 0.0
    for line, seconds in zip(trainer.history, trainer.epoch_seconds, strict=True):
        passed += seconds["epoch"]
        if line["val_accuracy"] >= accuracy:
            return passed
    return None


def _confusion(trainer: Trainer, predicted: list[int]) -> list[list[int]]:
    """Rows are true classes, columns predictions."""
    classes = trainer.data.classes
    table: Tensor = torch.zeros(classes, classes, dtype=torch.long)
    pairs = (trainer.data.test.y.cpu(), torch.tensor(predicted))
    return table.index_put_(pairs, torch.tensor(1), accumulate=True).tolist()
