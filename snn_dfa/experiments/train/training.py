"""Training a network by one rule: epochs, the best one, and a state from which to go on."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from snn_dfa.dfa import DFA
from snn_dfa.diagnostics import (
    Activity,
    TrainingCost,
    activity,
    complaints,
    projected_errors,
    raster,
    training_cost,
)
from snn_dfa.errors import InputError
from snn_dfa.experiments.ranks import all_reduce_gradients, ranks, share_sums
from snn_dfa.experiments.settings import UsageError
from snn_dfa.experiments.train.diagnose import diagnose
from snn_dfa.experiments.train.progress import Progress, mask_states, own_masks, refuse_another

__all__ = ["DIAGNOSED", "Evaluation", "Training"]

DIAGNOSED = 500  # training samples on which gradients are compared
_BATCHES = 4  # into which they are parted
_TOP = 5
_LISTS = ("history", "step_seconds", "epoch_seconds", "diagnostics")

#: Input and classes [B] of a batch.
Batch = tuple[Any, Tensor]


class Evaluation(NamedTuple):
    """What a network said of a part of the data.

    Args:
        accuracy: Share of the samples whose class it named.
        loss: Mean over samples.
        predicted: A class for each sample.
        targets: The right one.
        classes: How many classes there are scores for.
        top5: Share of the samples whose class has one of the five highest scores.
    """

    accuracy: float
    loss: float
    predicted: list[int]
    targets: list[int]
    classes: int
    top5: float


class Training(ABC):
    """One network under one rule, trained epoch by epoch.

    A subclass sets what is named here. It says where batches come from, and how one of them goes
    through network and loss.
    """

    rule: str
    seed: int
    device: str
    epochs: int
    #: Which weights are tested: of the ``"best"`` epoch or of the ``"last"``.
    keep: str
    #: The network whose weights are kept; what is trained; what is evaluated.
    net: nn.Module
    form: nn.Module
    sequence: nn.Module
    dfa: DFA | None
    #: Names of the parameters that do not learn.
    frozen: tuple[str, ...] = ()
    optimizer: Optimizer
    scheduler: LRScheduler | None
    #: Parts that are evaluated after each epoch: ``val``, where there is one, and ``test``.
    parts: tuple[str, ...] = ("val", "test")

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.step_seconds: list[float] = []
        self.epoch_seconds: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.warnings: dict[str, str] = {}  # of the last epoch: layers silent or saturated
        self.diagnostics: list[dict[str, Any]] = []
        self._under_way: Progress | None = None

    # -- of a subclass -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def batches(self) -> int:
        """Batches of an epoch; zero where that is not known yet."""

    @property
    @abstractmethod
    def checksum(self) -> int:
        """Of the data, so that other data is noticed."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return the settings, as JSON has them."""

    @abstractmethod
    def _epoch_batches(self, now: Progress) -> Iterator[Batch | None]:
        """Yield what is left of an epoch; ``None`` for a batch that nothing can be learnt from."""

    @abstractmethod
    def _part_batches(self, part: str) -> Generator[Batch, None, None]:
        """Yield all of a part, in the same order each time, as it is evaluated."""

    @abstractmethod
    def _passes(self, form: nn.Module, x: Any, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the losses of a batch, and scores [B, C]; each is to be passed back at once."""

    @abstractmethod
    def _evaluated(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and scores [B, C] of a batch, from the network that is evaluated."""

    @abstractmethod
    def _sample(self, size: int) -> Batch:
        """Return about so many samples of the training part, the same ones each time."""

    @abstractmethod
    def _method(self) -> tuple[str, str, str]:
        """Return rule, credit and feedback by the library's names."""

    @abstractmethod
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Return the parameters of each hidden block of the network; nothing is changed by it."""

    def _freeze(self, net: nn.Module) -> None:
        for name, parameter in net.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)

    def _own_part(self, x: Any, y: Tensor) -> Batch:
        """Return this process's samples of a batch."""
        return x, y

    def _start_epoch(self) -> Progress:
        return Progress(torch.zeros(0), len(self.step_seconds))

    def _after_step(self) -> None:  # noqa: B027
        """Follow the schedule, where it goes by steps."""

    def _after_epoch(self) -> None:  # noqa: B027
        """Take what evaluation needs, and follow the schedule, where it goes by epochs."""

    def _generators(self) -> dict[str, Tensor]:
        """Return the states of the generators that outlive an epoch."""
        return {}

    def _set_generators(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over what :meth:`_generators` gave."""

    # -- training ----------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs that are behind."""
        return len(self.history)

    @property
    def behind(self) -> int:
        """Batches that are behind, those of an epoch under way included."""
        return self.epoch * self.batches + (self._under_way.batches if self._under_way else 0)

    def fit(
        self, after_batch: Callable[[], None] = lambda: None, *, diagnosed: bool = False
    ) -> Iterator[dict[str, float]]:
        """Train the epochs that are left; yield each one's line of the history.

        Args:
            after_batch: Called after each.
            diagnosed: Whether to compare gradients after each epoch, in ``self.diagnostics``.
        """
        while self.epoch < self.epochs:
            watched = self.dfa if diagnosed else None
            now = self._under_way or self._start_epoch()
            self._under_way = now
            noted: AbstractContextManager[dict[str, float]] = nullcontext({})
            with noted if watched is None else projected_errors(watched, now.sent) as sent:
                self._train_epoch(now, after_batch)
            started = self._clock()
            line = {"epoch": float(self.epoch + 1), "train_accuracy": now.right / now.seen}
            line["train_loss"] = now.loss / now.seen
            line["lr"] = self.optimizer.param_groups[0]["lr"]
            self._after_epoch()
            layers = self._evaluate_parts(line)
            self.warnings = complaints(layers, first_epoch=not self.history)
            self.history.append(line)
            self._under_way = None
            if watched is not None:
                self._diagnose(watched, layers, sent)
            self._keep_weights()
            seconds = now.seconds + self._clock() - started
            steps = sum(self.step_seconds[now.first_step :])
            self.epoch_seconds.append({"epoch": seconds, "steps": steps, "samples": now.seen})
            yield line

    def _train_epoch(self, now: Progress, after_batch: Callable[[], None]) -> None:
        """Train on the batches that are left of an epoch."""
        self.net.train()
        self.form.train()
        with own_masks(self.seed + 1000 * self.epoch, self.device, now.masks):
            started = self._clock()
            for batch in self._epoch_batches(now):
                if batch is not None:
                    now.add(len(batch[1]), *self._train_step(*batch))
                self._after_step()
                now.batches, now.masks = now.batches + 1, mask_states(self.device)
                now.seconds += self._clock() - started
                after_batch()
                started = self._clock()

    def _train_step(self, x: Any, y: Tensor) -> tuple[int, float]:
        """Learn from a batch; return how many samples of it were right, and its mean loss."""
        started, total = self._clock(), 0.0
        x, mine = self._own_part(x, y)
        weight = len(mine) * ranks() / len(y)  # parts may differ by a sample
        scores = mine
        self.optimizer.zero_grad()
        with nullcontext() if self.dfa is None else self.dfa.targets(mine):
            for loss, so_far in self._passes(self.form, x, mine):
                torch.autograd.backward(weight * loss)
                total, scores = total + loss.item(), so_far
        right = (scores.argmax(1) == mine).sum().item()
        right, total = share_sums(right, total * len(mine) / len(y), device=y.device)
        if not math.isfinite(total):
            raise UsageError(
                f"{self.rule}: the loss is {total} in epoch {self.epoch + 1}; try a smaller --lr"
            )
        all_reduce_gradients(self.net)
        self.optimizer.step()
        self.step_seconds.append(self._clock() - started)
        return int(right), total

    def passes(self, size: int) -> Iterator[Tensor]:
        """Yield the losses of so many samples, each to be passed back before the next one."""
        x, y = self._sample(size)
        with nullcontext() if self.dfa is None else self.dfa.targets(y):
            yield from (loss for loss, _ in self._passes(self.form, x, y))

    def warm_up(self, size: int) -> None:
        """Take a step whose only effect is that kernels are compiled and memory is there.

        The weights change by it. Give it a training that is thrown away. The generators are left as
        they were.
        """
        with own_masks(self.seed, self.device):
            for loss in self.passes(size):
                if not math.isfinite(loss.item()):
                    return  # training says so
                torch.autograd.backward(loss)
            self.optimizer.step()
            x, y = self._sample(size)
            self.net.eval()
            with torch.no_grad():
                self._evaluated(x, y)

    def cost(self, size: int) -> TrainingCost | None:
        """Return what a step on so many samples costs; ``None`` if that is not known.

        The rule is taken off by it. Give it a training that is thrown away.
        """
        if self.frozen:
            return None
        x, y = self._sample(size)
        if self.dfa is not None:
            self.dfa.remove()
        rule, credit, feedback = self._method()

        def run(net: nn.Module) -> None:
            for _ in self._passes(net, x, y):
                pass

        try:
            with own_masks(self.seed, self.device):
                return training_cost(self.form, run, [rule], credit, feedback)[rule]
        except InputError:  # no layers that are known
            return None

    def _diagnose(
        self, dfa: DFA, layers: Mapping[str, Activity], sent: Mapping[str, float]
    ) -> None:
        """Compare gradients on batches of the training part; nothing is changed by it."""
        batches = _parted(*self._sample(DIAGNOSED))

        def loss_of(x: Any, y: Tensor) -> Callable[[nn.Module], Tensor]:
            return lambda net: torch.stack([each for each, _ in self._passes(net, x, y)]).sum()

        with own_masks(self.seed, self.device):
            losses = [loss_of(x, y) for x, y in batches]
            entry = diagnose(dfa, losses, [y for _, y in batches], layers, sent)
        self.diagnostics.append({"epoch": self.epoch, **entry})

    def _clock(self) -> float:
        on = torch.device(self.device)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        return time.perf_counter()

    # -- evaluation --------------------------------------------------------------------------------

    def _evaluate_parts(self, line: dict[str, float]) -> Mapping[str, Activity]:
        """Add accuracy and loss of each part; return what layers did on the first of them."""
        first, *others = self.parts
        with activity(self.sequence) as layers:
            line[f"{first}_accuracy"], line[f"{first}_loss"], *_ = self.evaluate(first)
        for part in others:
            line[f"{part}_accuracy"], line[f"{part}_loss"], *_ = self.evaluate(part)
        return layers

    def evaluate(self, part: str) -> Evaluation:
        """Return what the network says of a part, of the same input each time."""
        self.net.eval()
        self.sequence.eval()
        predicted, targets, loss, close, classes = [], [], 0.0, 0, 0
        with torch.no_grad():
            for x, y in self._part_batches(part):
                each, scores = self._evaluated(x, y)
                loss += each.item() * len(y)
                classes = scores.shape[1]
                predicted.append(scores.argmax(1))
                targets.append(y)
                near = scores.topk(min(_TOP, classes), 1).indices == y[:, None]
                close += int(near.sum())
        told, right = torch.cat(predicted), torch.cat(targets)
        accuracy = (told == right).double().mean().item()
        return Evaluation(
            accuracy, loss / len(right), told.tolist(), right.tolist(), classes, close / len(right)
        )

    def spikes(self) -> tuple[dict[str, Tensor], int]:
        """Return the spikes of the first test sample in each layer [T, ...], and its class."""
        self.net.eval()
        self.sequence.eval()
        with closing(self._part_batches("test")) as batches, torch.no_grad():
            x, y = next(batches)
            with raster(self.sequence) as layers:
                self._evaluated(x, y)
        return layers, int(y[0])

    def _keep_weights(self) -> None:
        """Keep those of the last epoch, or of the best by validation accuracy, then by loss."""

        def merit(line: dict[str, float]) -> tuple[float, float]:
            return line["val_accuracy"], -line["val_loss"]

        last = self.keep == "last"
        if last or max(range(self.epoch), key=lambda i: merit(self.history[i])) + 1 == self.epoch:
            self.best_epoch = self.epoch
            self.best = {k: v.detach().clone() for k, v in self.net.state_dict().items()}

    # -- going on ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, loadable with ``weights_only=True``.

        It may be asked for between any two batches.
        """
        return {
            "settings": {**self.described(), "frozen": list(self.frozen)},
            "rule": self.rule,
            "data": self.checksum,
            "net": self.net.state_dict(),
            "best": self.best,
            "best_epoch": self.best_epoch,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "feedback": None if self.dfa is None else self.dfa.state_dict(),
            "under_way": None if self._under_way is None else dict(vars(self._under_way)),
            **self._generators(),
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
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if self.dfa is not None:
            self.dfa.load_state_dict(state["feedback"])
        self._set_generators(state)
        self.best, self.best_epoch = dict(state["best"]), state["best_epoch"]
        for name in _LISTS:
            setattr(self, name, list(state[name]))
        self._under_way = None if state["under_way"] is None else Progress(**state["under_way"])


def _parted(x: Any, y: Tensor) -> list[Batch]:
    """Return batches of the samples of one, or that one where it cannot be parted."""
    parts = min(_BATCHES, len(y) // 2)
    if parts < 2 or not isinstance(x, Tensor) or len(y) not in x.shape[:2]:
        return [(x, y)]
    dim = 0 if len(x) == len(y) else 1  # [B, ...], or [T, B, ...]
    return list(zip(x.tensor_split(parts, dim), y.tensor_split(parts), strict=True))
