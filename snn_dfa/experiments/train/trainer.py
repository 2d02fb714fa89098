"""Training one rule: epochs, the best one by validation, and a state from which to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa.dfa import DFA
from snn_dfa.diagnostics import Activity, activity, complaints, projected_errors
from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.data.inputs import drop_pixels, encode, random_shift
from snn_dfa.experiments.ranks import all_reduce_gradients, local_slice, ranks, share_sums
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.train.diagnose import diagnose
from snn_dfa.experiments.train.feedback import attach
from snn_dfa.experiments.train.network import build
from snn_dfa.experiments.train.optimization import make_loss, make_optimizer, make_scheduler
from snn_dfa.experiments.train.passes import make_losses
from snn_dfa.experiments.train.progress import Progress, mask_states, own_masks, refuse_another
from snn_dfa.experiments.train.statistics import batch_norms, recalibrate_batch_norm
from snn_dfa.feedback import LEARNED
from snn_dfa.sequence import over_time

__all__ = ["Trainer"]

_EVAL_BATCH = 500
_DIAGNOSED = 500  # training samples on which gradients are compared
_NORMALISED = 6400  # training samples of which normalisation takes its statistics
_PARTS = ("train", "val", "test")
_LISTS = ("history", "step_seconds", "epoch_seconds", "diagnostics")


class Trainer:
    """One network under one rule, trained epoch by epoch.

    Two trainers of the same settings start from the same weights and see the same batches with
    the same input spikes, whatever their rules.
    """

    def __init__(self, settings: Settings, rule: str, data: Splits) -> None:
        if settings.shift >= min(data.image[1:]):
            raise UsageError(
                f"--shift: expected fewer pixels than the {min(data.image[1:])} of a sample's "
                f"height and width, got {settings.shift}"
            )
        self.settings, self.rule = settings, rule
        self.data = Splits(*(getattr(data, part).to(settings.device) for part in _PARTS))
        about_mean = settings.input_dropout > 0 and settings.drop_to == "mean"
        self._pixel_mean = self.data.train.x.mean(0) if about_mean else None
        self.net = build(settings, data.image, data.classes).to(settings.device)
        self.sequence = over_time(self.net)
        # What is trained: online learning needs the network that takes one step a call.
        self.form = self.net if settings.online and rule != "bptt" else self.sequence
        self.dfa = attach(settings, rule, self.form)
        self.optimizer = make_optimizer(settings, self.net)
        if self.dfa is not None and settings.feedback in LEARNED:
            self.dfa.follow(self.optimizer)
        self._full_rate = self.optimizer.param_groups[0]["lr"]
        self.batches = -(-len(data.train) // settings.batch_size)
        self.scheduler = make_scheduler(settings, self.optimizer, self.batches)
        self._follow_schedule()
        self._whole = make_losses(replace(settings, credit="membrane"), make_loss(settings))
        online = self.form is self.net
        self._losses = make_losses(settings, make_loss(settings)) if online else self._whole
        self._order = torch.Generator().manual_seed(settings.seed)
        self._spikes = torch.Generator(settings.device).manual_seed(settings.seed)
        self.history: list[dict[str, float]] = []
        self.step_seconds: list[float] = []
        self.epoch_seconds: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.warnings: dict[str, str] = {}  # of the last epoch: layers silent or saturated
        self.diagnostics: list[dict[str, Any]] = []
        self._under_way: Progress | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are behind."""
        return len(self.history)

    @property
    def behind(self) -> int:
        """Batches that are behind, those of an epoch under way included."""
        return self.epoch * self.batches + (self._under_way.batches if self._under_way else 0)

    # -- training ----------------------------------------------------------------------------------

    def fit(
        self, after_batch: Callable[[], None] = lambda: None, *, diagnosed: bool = False
    ) -> Iterator[dict[str, float]]:
        """Train the epochs that are left; yield each one's line of the history.

        Args:
            after_batch: Called after each.
            diagnosed: Whether to compare gradients after each epoch, in ``self.diagnostics``.
        """
        while self.epoch < self.settings.epochs:
            watched = self.dfa if diagnosed else None
            now = self._under_way or Progress(self._order.get_state(), len(self.step_seconds))
            self._under_way = now
            noted: AbstractContextManager[dict[str, float]] = nullcontext({})
            with noted if watched is None else projected_errors(watched, now.sent) as sent:
                self._train_epoch(now, after_batch)
            started = self._clock()
            self._take_statistics()
            line = {"epoch": float(self.epoch + 1), "train_accuracy": now.right / now.seen}
            line["train_loss"] = now.loss / now.seen
            line["lr"] = self.optimizer.param_groups[0]["lr"]
            with activity(self.sequence) as layers:
                line["val_accuracy"], line["val_loss"], _ = self.evaluate("val")
            line["test_accuracy"], line["test_loss"], _ = self.evaluate("test")
            self.warnings = complaints(layers)
            self.history.append(line)
            self._under_way = None
            if watched is not None:
                self._diagnose(watched, layers, sent)
            self._keep_weights()
            seconds = now.seconds + self._clock() - started
            steps = sum(self.step_seconds[now.first_step :])
            self.epoch_seconds.append({"epoch": seconds, "steps": steps})
            yield line

    def _train_epoch(self, now: Progress, after_batch: Callable[[], None]) -> None:
        """Train on the batches that are left of an epoch."""
        self.net.train()
        part, settings = self.data.train, self.settings
        self._order.set_state(now.order)
        order = torch.randperm(len(part), generator=self._order).to(part.y.device)
        left = torch.split(order, settings.batch_size)[now.batches :]
        with own_masks(settings.seed + 1000 * self.epoch, settings.device, now.masks):
            for batch in left:
                started = self._clock()
                # Batch normalisation has no statistics of a single sample.
                if len(batch) // ranks() > int(settings.normalize):
                    x = random_shift(part.x[batch], settings.shift)
                    x = drop_pixels(x, settings.input_dropout, self._pixel_mean)
                    x = encode(x, settings, self._spikes)
                    now.add(len(batch), *self._train_step(x, part.y[batch]))
                self.scheduler.step()
                self._follow_schedule()
                now.batches, now.masks = now.batches + 1, mask_states(settings.device)
                now.seconds += self._clock() - started
                after_batch()

    def _train_step(self, x: Tensor, y: Tensor) -> tuple[int, float]:
        """Learn from a batch; return how many samples of it were right, and its mean loss."""
        started, total = self._clock(), 0.0
        part = local_slice()
        x, mine = x[:, part], y[part]
        weight = len(mine) * ranks() / len(y)  # parts may differ by a sample
        counts = mine
        self.optimizer.zero_grad()
        with nullcontext() if self.dfa is None else self.dfa.targets(mine):
            for loss, so_far in self._losses(self.form, x, mine):
                torch.autograd.backward(weight * loss)
                total, counts = total + loss.item(), so_far
        right = (counts.argmax(1) == mine).sum().item()
        right, total = share_sums(right, total * len(mine) / len(y), device=y.device)
        if not math.isfinite(total):
            raise UsageError(
                f"{self.rule}: the loss is {total} in epoch {self.epoch + 1}; try a smaller --lr"
            )
        all_reduce_gradients(self.net)
        self.optimizer.step()
        self.step_seconds.append(self._clock() - started)
        return int(right), total

    def _follow_schedule(self) -> None:
        """Let feedback that learns have the share of its rate that the weights have of theirs.

        A weight mirror has the rates of the optimiser by itself.
        """
        own_rate = self.settings.feedback in LEARNED and self.settings.feedback != "weight-mirror"
        if self.dfa is not None and own_rate:
            share = self.optimizer.param_groups[0]["lr"] / self._full_rate
            self.dfa.feedback_lr = self.settings.feedback_lr * share

    def _diagnose(
        self, dfa: DFA, layers: Mapping[str, Activity], sent: Mapping[str, float]
    ) -> None:
        """Compare gradients on a batch of the training part; nothing is changed by it."""
        x, y = self._sample(_DIAGNOSED)

        def loss(net: nn.Module) -> Tensor:
            return torch.stack([each for each, _ in self._losses(net, x, y)]).sum()

        with own_masks(self.settings.seed, self.settings.device):
            entry = diagnose(dfa, loss, y, layers, sent)
        self.diagnostics.append({"epoch": self.epoch, **entry})

    def _clock(self) -> float:
        if self._spikes.device.type == "cuda":
            torch.cuda.synchronize(self._spikes.device)
        return time.perf_counter()

    def _sample(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the first samples of the training part, with the same input spikes each time."""
        self.net.train()
        generator = torch.Generator(self.settings.device).manual_seed(self.settings.seed)
        part = self.data.train
        return encode(part.x[:size], self.settings, generator), part.y[:size]

    def passes(self, size: int) -> Iterator[Tensor]:
        """Yield the losses of so many samples, each to be passed back before the next one."""
        x, y = self._sample(size)
        with nullcontext() if self.dfa is None else self.dfa.targets(y):
            yield from (loss for loss, _ in self._losses(self.form, x, y))

    # -- evaluation --------------------------------------------------------------------------------

    def _take_statistics(self) -> None:
        """Let normalisation know samples as they are when the network is evaluated."""
        settings, norms = self.settings, batch_norms(self.net)
        if not (settings.clean_statistics and norms):
            return
        generator = torch.Generator(settings.device).manual_seed(settings.seed)
        part = self.data.train
        x, y = part.x[:_NORMALISED], part.y[:_NORMALISED]
        count = -(-len(y) // settings.batch_size)  # of equal size, as all count alike
        batches = (torch.tensor_split(t, count) for t in (x, y))
        with torch.no_grad(), recalibrate_batch_norm(self.net, norms):
            for x, y in zip(*batches, strict=True):
                if len(y) > 1:  # there are no statistics of a single sample
                    for _ in self._losses(self.form, encode(x, settings, generator), y):
                        pass

    def evaluate(self, part: str) -> tuple[float, float, list[int]]:
        """Return accuracy, loss and predictions on a part, with the same input spikes each time."""
        data: Part = getattr(self.data, part)
        generator = torch.Generator(self.settings.device).manual_seed(_PARTS.index(part))
        self.net.eval()
        predictions, loss = [], 0.0
        with torch.no_grad():
            for x, y in zip(*(torch.split(t, _EVAL_BATCH) for t in (data.x, data.y)), strict=True):
                ((each, counts),) = self._whole(
                    self.sequence, encode(x, self.settings, generator), y
                )
                loss += each.item() * len(y)
                predictions.append(counts.argmax(1))
        predicted = torch.cat(predictions)
        accuracy = (predicted == data.y).double().mean().item()
        return accuracy, loss / len(data), predicted.tolist()

    def _keep_weights(self) -> None:
        """Keep those of the last epoch, or of the best by validation accuracy, then by loss."""

        def merit(line: dict[str, float]) -> tuple[float, float]:
            return line["val_accuracy"], -line["val_loss"]

        best = max(range(self.epoch), key=lambda i: merit(self.history[i])) + 1
        if self.settings.keep == "last" or best == self.epoch:
            self.best_epoch = self.epoch
            self.best = {k: v.detach().clone() for k, v in self.net.state_dict().items()}

    # -- going on ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, loadable with ``weights_only=True``.

        It may be asked for between any two batches.
        """
        return {
            "settings": self.settings.as_dict(),
            "rule": self.rule,
            "data": self.data.checksum,
            "net": self.net.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "feedback": None if self.dfa is None else self.dfa.state_dict(),
            "order": self._order.get_state(),
            "spikes": self._spikes.get_state(),
            "under_way": None if self._under_way is None else dict(vars(self._under_way)),
            **{name: getattr(self, name) for name in _LISTS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same settings, but for the number of epochs.

        Raises:
            UsageError: if rule, settings or data differ, or the state is of another form.
        """
        refuse_another(self.state_dict(), state)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.dfa is not None:
            self.dfa.load_state_dict(state["feedback"])
        self._order.set_state(state["order"].cpu())
        self._spikes.set_state(state["spikes"].cpu())
        self.best, self.best_epoch = dict(state["best"]), state["best_epoch"]
        for name in _LISTS:
            setattr(self, name, list(state[name]))
        self._under_way = None if state["under_way"] is None else Progress(**state["under_way"])
