"""Training a network of the recipes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa.diagnostics import blocks
from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.data.inputs import drop_pixels, encode, random_flip, random_shift
from snn_dfa.experiments.files import load_checkpoint, on_one_line
from snn_dfa.experiments.ranks import local_slice, ranks
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.train.feedback import RULES, attach, last_of
from snn_dfa.experiments.train.network import build
from snn_dfa.experiments.train.optimization import make_loss, make_optimizer, make_scheduler
from snn_dfa.experiments.train.passes import make_losses
from snn_dfa.experiments.train.progress import Progress
from snn_dfa.experiments.train.statistics import batch_norms, recalibrate_batch_norm
from snn_dfa.experiments.train.training import Batch, Training
from snn_dfa.feedback import LEARNED
from snn_dfa.sequence import over_time

__all__ = ["Trainer"]

_EVAL_BATCH = 500
_NORMALISED = 6400  # training samples of which normalisation takes its statistics
_PARTS = ("train", "val", "test")


class Trainer(Training):
    """A network that settings describe, under one rule.

    Two trainers of the same settings start from the same weights and see the same batches with
    the same input spikes, whatever their rules.
    """

    def __init__(
        self, settings: Settings, rule: str, data: Splits, frozen: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        if settings.shift >= min(data.image[1:]):
            raise UsageError(
                f"--shift: expected fewer pixels than the {min(data.image[1:])} of a sample's "
                f"height and width, got {settings.shift}"
            )
        self.settings, self.rule = settings, rule
        self.seed, self.device = settings.seed, settings.device
        self.epochs, self.keep = settings.epochs, settings.keep
        self.data = Splits(*(getattr(data, part).to(settings.device) for part in _PARTS))
        about_mean = settings.input_dropout > 0 and settings.drop_to == "mean"
        self._pixel_mean = self.data.train.x.mean(0) if about_mean else None
        self.net = build(settings, data.image, data.classes).to(settings.device)
        self.frozen = frozen
        self._freeze(self.net)
        self.sequence = over_time(self.net)
        # What is trained: online learning needs the network that takes one step a call.
        self.form = self.net if settings.online and rule != "bptt" else self.sequence
        self.dfa = attach(settings, rule, self.form)
        if settings.start:
            self._begin_with(load_checkpoint(Path(settings.start), "--start"))
        self.optimizer = make_optimizer(settings, self.net)
        if self.dfa is not None and settings.feedback in LEARNED:
            self.dfa.follow(self.optimizer)
        self._full_rate = self.optimizer.param_groups[0]["lr"]
        self._schedule = make_scheduler(settings, self.optimizer, self.batches)
        self.scheduler = self._schedule
        self._follow_schedule()
        self._whole = make_losses(replace(settings, credit="membrane"), make_loss(settings))
        online = self.form is self.net
        self._losses = make_losses(settings, make_loss(settings)) if online else self._whole
        self._order = torch.Generator().manual_seed(settings.seed)
        self._spikes = torch.Generator(settings.device).manual_seed(settings.seed)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.data.train) // self.settings.batch_size)

    @property
    def checksum(self) -> int:
        """Of the data."""
        return self.data.checksum

    def described(self) -> dict[str, Any]:
        """Return the settings, as JSON has them."""
        return self.settings.as_dict()

    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Return the parameters of each hidden block of the network; nothing is changed by it."""
        x, _ = self._sample(2)
        return blocks(self.net, lambda net: net(x[0].float()), last_of(self.net))

    def _method(self) -> tuple[str, str, str]:
        return RULES[self.rule] or "bptt", self.settings.credit, self.settings.feedback

    def _begin_with(self, state: Mapping[str, Any]) -> None:
        """Take over the weights that an earlier run tested, and its feedback under the same rule.

        Optimiser and schedule begin anew.
        """
        settings, theirs = self.settings, state["settings"]
        if theirs["dataset"] == settings.dataset and state["data"] != self.checksum:
            raise UsageError(
                f"--start: expected a checkpoint whose run held back the same validation part, got "
                f"{settings.start}; give the same --seed, --validation and --folds"
            )
        try:
            self.net.load_state_dict(state["best"] or state["net"])
        except RuntimeError as error:
            raise UsageError(
                f"--start: expected a checkpoint of the same network, got {settings.start} "
                f"({on_one_line(error, 300)}); give the same --hidden, --neuron and --normalize"
            ) from error
        same = (state["rule"], theirs["feedback"]) == (self.rule, settings.feedback)
        if self.dfa is not None and same:
            self.dfa.load_state_dict(state["feedback"])

    # -- training ----------------------------------------------------------------------------------

    def _start_epoch(self) -> Progress:
        return Progress(self._order.get_state(), len(self.step_seconds))

    def _epoch_batches(self, now: Progress) -> Iterator[Batch | None]:
        part, settings = self.data.train, self.settings
        self._order.set_state(now.order)
        order = torch.randperm(len(part), generator=self._order).to(part.y.device)
        for batch in torch.split(order, settings.batch_size)[now.batches :]:
            # Batch normalisation has no statistics of a single sample.
            if len(batch) // ranks() <= int(settings.normalize):
                yield None
                continue
            x = random_shift(part.x[batch], settings.shift)
            x = random_flip(x) if settings.flip else x
            x = drop_pixels(x, settings.input_dropout, self._pixel_mean)
            yield encode(x, settings, self._spikes), part.y[batch]

    def _own_part(self, x: Any, y: Tensor) -> Batch:
        return x[:, local_slice()], y[local_slice()]

    def _passes(self, form: nn.Module, x: Any, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return self._losses(form, x, y)

    def _after_step(self) -> None:
        self._schedule.step()
        self._follow_schedule()

    def _follow_schedule(self) -> None:
        """Let feedback that learns have the share of its rate that the weights have of theirs.

        A weight mirror has the rates of the optimiser by itself.
        """
        own_rate = self.settings.feedback in LEARNED and self.settings.feedback != "weight-mirror"
        if self.dfa is not None and own_rate:
            share = self.optimizer.param_groups[0]["lr"] / self._full_rate
            self.dfa.feedback_lr = self.settings.feedback_lr * share

    def _sample(self, size: int) -> Batch:
        """Return the first samples of the training part, with the same input spikes each time."""
        self.net.train()
        generator = torch.Generator(self.device).manual_seed(self.seed)
        part = self.data.train
        return encode(part.x[:size], self.settings, generator), part.y[:size]

    # -- evaluation --------------------------------------------------------------------------------

    def _after_epoch(self) -> None:
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

    def _part_batches(self, part: str) -> Generator[Batch, None, None]:
        data: Part = getattr(self.data, part)
        generator = torch.Generator(self.device).manual_seed(_PARTS.index(part))
        for x, y in zip(*(torch.split(t, _EVAL_BATCH) for t in (data.x, data.y)), strict=True):
            yield encode(x, self.settings, generator), y

    def _evaluated(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        ((loss, counts),) = self._whole(self.sequence, x, y)
        return loss, counts

    # -- going on ----------------------------------------------------------------------------------

    def _generators(self) -> dict[str, Tensor]:
        return {"order": self._order.get_state(), "spikes": self._spikes.get_state()}

    def _set_generators(self, state: Mapping[str, Any]) -> None:
        self._order.set_state(state["order"].cpu())
        self._spikes.set_state(state["spikes"].cpu())
