"""Training one rule: epochs, the best one by validation, and a state from which to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa.dfa import DFA
from snn_dfa.diagnostics import Activity, activity, complaints, projected_errors
from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.diagnose import diagnose
from snn_dfa.experiments.feedback import feedback_of
from snn_dfa.experiments.inputs import encode, some_pixels
from snn_dfa.experiments.network import build
from snn_dfa.experiments.optimization import make_loss, make_optimizer, make_scheduler
from snn_dfa.experiments.passes import make_losses
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.sequence import over_time

__all__ = ["RULES", "Trainer"]

#: Name on the command line to the rule of :class:`DFA`; back-propagation attaches nothing.
RULES: dict[str, str | None] = {
    "bptt": None,
    "dfa": "error",
    "sign": "sign",
    "target": "target",
    "fa": "fa",
    "shallow": "shallow",
}
_EVAL_BATCH = 500
_DIAGNOSED = 500  # training samples on which gradients are compared
_PARTS = ("train", "val", "test")


class Trainer:
    """One network under one rule, trained epoch by epoch.

    Two trainers of the same settings start from the same weights and see the same batches with
    the same input spikes, whatever their rules.
    """

    def __init__(self, settings: Settings, rule: str, data: Splits) -> None:
        self.settings, self.rule = settings, rule
        self.data = Splits(*(getattr(data, part).to(settings.device) for part in _PARTS))
        self.net = build(settings, data.image, data.classes).to(settings.device)
        self.sequence = over_time(self.net)
        # What is trained: online learning needs the network that takes one step a call.
        self.form = self.net if settings.online and rule != "bptt" else self.sequence
        self.dfa = self._attach()
        self.optimizer = make_optimizer(settings, self.net)
        if self.dfa is not None and settings.feedback == "kolen-pollack":
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

    def _attach(self) -> DFA | None:
        broadcast, settings = RULES[self.rule], self.settings
        if broadcast is None:
            return None
        *hidden, last = (n for n in self.net._modules if n.startswith("neuron"))
        at_current = settings.error_at == "current"
        return DFA(
            self.form,
            output=last.replace("neuron", "linear") if at_current else last,
            hidden=hidden,
            rule=broadcast,
            feedback=feedback_of(settings),
            scale=settings.feedback_scale,
            credit=settings.credit,
            seed=settings.seed,
        )

    @property
    def epoch(self) -> int:
        """Epochs that are behind."""
        return len(self.history)

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
            started, steps_before = self._clock(), sum(self.step_seconds)
            eyes = self.dfa if diagnosed else None
            with _projected_errors(eyes) as sent:
                line = {"epoch": float(self.epoch + 1), **self._train_epoch(after_batch)}
            line["lr"] = self.optimizer.param_groups[0]["lr"]
            with activity(self.sequence) as layers:
                line["val_accuracy"], line["val_loss"], _ = self.evaluate("val")
            line["test_accuracy"], line["test_loss"], _ = self.evaluate("test")
            self.warnings = complaints(layers)
            self.history.append(line)
            if eyes is not None:
                self._diagnose(eyes, layers, sent)
            self._keep_weights()
            self.epoch_seconds.append(
                {
                    "epoch": self._clock() - started,
                    "steps": sum(self.step_seconds) - steps_before,
                }
            )
            yield line

    def _train_epoch(self, after_batch: Callable[[], None]) -> dict[str, float]:
        """Train on all batches; return accuracy and loss over them, each before its update."""
        self.net.train()
        seen, right, total = 0, 0, 0.0
        part, settings = self.data.train, self.settings
        order = torch.randperm(len(part), generator=self._order).to(part.y.device)
        with _own_masks(settings.seed + 1000 * self.epoch, settings.device):
            for batch in torch.split(order, settings.batch_size):
                # Batch normalisation has no statistics of a single sample.
                if len(batch) > 1 or not settings.normalize:
                    y = part.y[batch]
                    x = some_pixels(part.x[batch], settings.input_dropout)
                    loss, counts = self._train_step(encode(x, settings, self._spikes), y)
                    seen, total = seen + len(y), total + loss * len(y)
                    right += int((counts.argmax(1) == y).sum())
                self.scheduler.step()
                self._follow_schedule()
                after_batch()
        return {"train_accuracy": right / seen, "train_loss": total / seen}

    def _train_step(self, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        """Learn from a batch; return its loss and the output spikes counted in it."""
        started, total = self._clock(), 0.0
        spk = y
        self.optimizer.zero_grad()
        with nullcontext() if self.dfa is None else self.dfa.targets(y):
            for loss, counts in self._losses(self.form, x, y):
                torch.autograd.backward(loss)
                total, spk = total + loss.item(), counts
        if not math.isfinite(total):
            raise UsageError(
                f"{self.rule}: the loss is {total} in epoch {self.epoch + 1}; try a smaller --lr"
            )
        self.optimizer.step()
        self.step_seconds.append(self._clock() - started)
        return total, spk

    def _follow_schedule(self) -> None:
        """Let feedback that learns have the share of its rate that the weights have of theirs."""
        if self.dfa is not None and self.settings.feedback == "kolen-pollack":
            share = self.optimizer.param_groups[0]["lr"] / self._full_rate
            self.dfa.feedback_lr = self.settings.feedback_lr * share

    def _diagnose(
        self, dfa: DFA, layers: Mapping[str, Activity], sent: Mapping[str, float]
    ) -> None:
        """Compare gradients on a batch of the training part; nothing is changed by it."""
        x, y = self._sample(_DIAGNOSED)

        def loss(net: nn.Module) -> Tensor:
            return torch.stack([each for each, _ in self._losses(net, x, y)]).sum()

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
        """Return all that the rest of the run depends on, loadable with ``weights_only=True``."""
        return {
            "settings": self.settings.as_dict(),
            "rule": self.rule,
            "net": self.net.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "feedback": None if self.dfa is None else self.dfa.state_dict(),
            "order": self._order.get_state(),
            "spikes": self._spikes.get_state(),
            "history": self.history,
            "step_seconds": self.step_seconds,
            "epoch_seconds": self.epoch_seconds,
            "diagnostics": self.diagnostics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same settings, but for the number of epochs.

        Raises:
            UsageError: if rule or settings differ.
        """
        free = {"data_root": "", "device": ""}
        if self.settings.schedule != "one-cycle":  # whose rates depend on where it ends
            free["epochs"] = ""
        mine, theirs = ({**s, "rule": r, **free}
                        for s, r in ((self.settings.as_dict(), self.rule),
                                     (state["settings"], state["rule"])))  # fmt: skip
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise UsageError(
                    f"--resume: the checkpoint was made with {name}={theirs.get(name)!r}, expected "
                    f"{value!r}; give the same options or another --out"
                )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.dfa is not None:
            self.dfa.load_state_dict(state["feedback"])
        self._order.set_state(state["order"].cpu())
        self._spikes.set_state(state["spikes"].cpu())
        self.best, self.best_epoch = dict(state["best"]), state["best_epoch"]
        for name in ("history", "step_seconds", "epoch_seconds", "diagnostics"):
            setattr(self, name, list(state[name]))


@contextmanager
def _projected_errors(dfa: DFA | None) -> Iterator[dict[str, float]]:
    if dfa is None:
        yield {}
        return
    with projected_errors(dfa) as sent:
        yield sent


@contextmanager
def _own_masks(seed: int, device: str) -> Iterator[None]:
    """Let dropout draw from a seed of its own; the global generator is left as it was."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield
