"""What an experiment minimises and how: loss, optimiser with rates by layer, schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from snn_dfa.experiments.settings import Settings
from snn_dfa.functional import ce_normalized_rate_loss

__all__ = ["make_loss", "make_optimizer", "make_scheduler"]


def make_optimizer(settings: Settings, net: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser; only weights of layers decay, not biases or normalisations."""
    groups = list(_groups(settings, net))
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def _groups(settings: Settings, net: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield weights and other parameters of each layer, with the layer's own learning rate."""
    lr = settings.lr
    for module in net.children():
        parameters = list(module.parameters())  # of a neuron, those of its recurrent weights
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            lr = settings.lr / (module.weight[0].numel() if settings.per_input else 1)
            yield {"params": parameters[:1], "lr": lr, "weight_decay": settings.weight_decay}
            yield {"params": parameters[1:], "lr": lr, "weight_decay": 0.0}
        elif parameters:  # a normalisation learns like the layer that it follows
            yield {"params": parameters, "lr": lr, "weight_decay": 0.0}


def make_scheduler(
    settings: Settings, optimizer: torch.optim.Optimizer, batches: int
) -> LRScheduler:
    """Return the schedule, to be stepped after each of so many batches an epoch."""
    if settings.schedule == "one-cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = settings.epochs * batches + 1  # the last one is asked for after the last batch
        return OneCycleLR(optimizer, rates, steps, cycle_momentum=False)
    return StepLR(optimizer, settings.decay_every * batches, settings.lr_decay)


def make_loss(settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of output spikes [T, B, C] and class indices [B]."""
    if settings.loss == "share":
        return ce_normalized_rate_loss(settings.temperature)

    def of_counts(spk: Tensor, y: Tensor) -> Tensor:
        logits = spk.sum(0) / settings.temperature
        return functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)

    return of_counts
