"""A comparison of rules on a network and data of one's own: :func:`snn_dfa.compare`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from snn_dfa.diagnostics import TrainingCost
from snn_dfa.errors import InputError
from snn_dfa.experiments.data.batches import Batches
from snn_dfa.experiments.files import file_name
from snn_dfa.experiments.logs import OnEpoch
from snn_dfa.experiments.ranks import ranks
from snn_dfa.experiments.report.description import Description, Setting
from snn_dfa.experiments.report.results import aligned, cost_rows, summary, table
from snn_dfa.experiments.settings import UsageError
from snn_dfa.experiments.studies.engine import Folder, Plan, carry_out, with_frozen_blocks
from snn_dfa.experiments.train.own import (
    Options,
    OwnTask,
    OwnTraining,
    count_loss,
    default_optimizer,
    rule_options,
    run,
    said,
    scores_of,
)
from snn_dfa.rules import canonical

__all__ = ["Comparison", "compare"]

_DEFAULTS: dict[str, Any] = {"batch_size": 64, "epochs": 10, "device": "cpu"}


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        results: Rule to a dict for each seed, with the keys of ``metrics.json``:
            ``"test_accuracy"``, ``"history"``, ``"confusion"`` and so on.
        costs: Rule to what a training step costs, computed
            (:func:`snn_dfa.diagnostics.training_cost`).
        files: Paths of what was written, ``report.html`` first; empty without ``out``.

    Example:
        >>> run = {"seed": 0, "test_accuracy": 0.9, "test_samples": 100}
        >>> Comparison({"dfa": [run]}, {}, []).accuracy("dfa")
        0.9
    """

    results: Mapping[str, Sequence[Mapping[str, Any]]]
    costs: Mapping[str, TrainingCost]
    files: Sequence[Path]

    @property
    def cost_table(self) -> str:
        """What a training step of the first batch costs by each rule, computed."""
        return aligned(cost_rows(self.costs))

    @property
    def table(self) -> str:
        """A line for each rule, aligned, as the command line prints it."""
        return table({rule: list(map(dict, runs)) for rule, runs in self.results.items()})

    def accuracy(self, rule: str) -> float:
        """Return the rule's mean test accuracy over seeds, in [0, 1]."""
        runs = self.results[rule]
        return float(sum(run["test_accuracy"] for run in runs) / len(runs))

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return for each rule mean, standard deviation and worst over seeds, and its times."""
        return {rule: summary(list(map(dict, runs))) for rule, runs in self.results.items()}


def compare(
    make_network: Callable[[], nn.Module],
    data: Sequence[Any],
    *,
    rules: Iterable[str] | Mapping[str, Options] = ("bptt", "dfa", "shallow"),
    seeds: int | Sequence[int] = 1,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = default_optimizer,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    loss: Callable[[Any, Tensor], Tensor] = count_loss,
    forward: Callable[[nn.Module, Any], Any] = run,
    scores: Callable[[Any], Tensor] = scores_of,
    dfa: Mapping[str, Any] | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    diagnose: bool = False,
    freeze_blocks: bool = False,
    on_epoch: OnEpoch | Sequence[OnEpoch] = (),
    silent: bool = False,
) -> Comparison:
    r"""Train a network of one's own by several rules, from the same weights on the same batches.

    For each seed all rules start from the same weights and see the same batches with the same
    random numbers. Before the clock starts, each rule takes a step on a network that is thrown
    away. The neurons' states are cleared before each batch.

    Args:
        make_network: Returns a new network, which is then plain snnTorch. It is called several
            times, each time after ``torch.manual_seed(seed)``.
        data: ``(train, test)`` or ``(train, val, test)``. A part is a ``DataLoader`` or another
            iterable of pairs (x, y), a ``Dataset`` of such pairs, or a pair of tensors. y [B] are
            class indices. With a validation part the weights of the epoch that was best on it are
            tested, otherwise those of the last epoch.
        rules: Names: ``"bptt"``, ``"dfa"``, ``"sign"``, ``"target"``, ``"local"``, ``"fa"``,
            ``"shallow"``. Or a mapping of names of your own to arguments of :class:`DFA`; ``None``
            is back-propagation through time.
        seeds: How many, from 0 on, or which ones. Of weights, feedback, batches and dropout.
        epochs: Passes over the training part.
        batch_size: Of the batches of a ``Dataset`` and of tensors.
        optimizer: From the network's parameters to their optimiser. The default is Adam with a
            learning rate of 0.001.
        scheduler: From the optimiser to a schedule, which takes a step after each epoch.
        loss: From the network's output and y to a number, such as snnTorch's ``ce_rate_loss()``.
            The default is the cross entropy of spike counts.
        forward: From network and x to the output. The default is ``net(x)``; a network that takes
            one time step a call needs its loop here.
        scores: From output to scores [B, C]. The default takes spikes [T, B, C], summed over T, or
            scores [B, C], or the first value of a tuple.
        dfa: Arguments of :class:`DFA` for every rule, such as ``{"output": "fc3"}``.
        device: Where network and batches go.
        out: Folder for ``report.html``, ``metrics.json``, ``log.csv``, figures, and a checkpoint
            for each rule and seed; ``None``: nothing is written.
        resume: Go on from the checkpoints in ``out``, with the same arguments. The first values of
            weights, and code that a network or a loss calls elsewhere, are not compared.
        overwrite: Replace the results that are in ``out``.
        diagnose: After each epoch measure angles to back-propagation, rates and errors sent.
        freeze_blocks: Train each rule once more for each hidden block, with that block's parameters
            as they were at first (:func:`snn_dfa.diagnostics.blocks`). A block whose freezing costs
            nothing has learned nothing of use.
        on_epoch: Called after each epoch of each rule with a dict: ``rule``, ``seed``, ``epoch``,
            ``train_accuracy``, ``test_loss``, ``seconds`` and so on, with ``diagnose`` also
            ``gradient_angles/LAYER``. Or several such functions.
        silent: Show no progress.

    Returns:
        A :class:`Comparison`: table, results, files.

    Raises:
        InputError: if data, network or an argument cannot be used, a loss is not finite, rules
            would see different batches, or ``out`` holds other results.
        AttachError: if a rule cannot be attached to the network.

    Example:
        >>> import snntorch as snn, torch
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 2)
        ...         self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)
        ...     def forward(self, x):
        ...         mem1, mem2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        ...         for _ in range(5):
        ...             spk1, mem1 = self.lif1(self.fc1(x), mem1)
        ...             spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        ...             spikes.append(spk2)
        ...         return torch.stack(spikes)
        >>> x, y = torch.rand(64, 4), torch.randint(2, (64,))
        >>> found = compare(Net, [(x, y), (x, y)], rules=["bptt", "dfa"], epochs=1, silent=True)
        >>> list(found.results)
        ['bptt', 'dfa']
    """
    _check(epochs, batch_size, device, out, resume)
    chosen, numbers = rule_options(rules), _seeds(seeds)
    names = {file_name(name) for name in chosen}
    if len(names) < len(chosen):
        raise InputError(f"rules: expected names that differ as file names, got {list(chosen)}")
    batches = Batches(data, batch_size, device)
    settings: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "seeds": numbers, "optimizer": _name(optimizer),
        "loss": _name(loss), "forward": _name(forward), "scores": _name(scores),
        "schedule": "none" if scheduler is None else _name(scheduler), "device": device,
        "dataset": ", ".join(f"{k} {_length(v)}" for k, v in batches.parts.items()),
        "dfa": said(dfa or {}),
    }  # fmt: skip
    task = OwnTask(
        make_network, batches, epochs, forward, loss, scores, optimizer, scheduler, dfa or {},
        {name: value for name, value in settings.items() if name != "seeds"},
    )  # fmt: skip

    def blocks_of(name: str) -> dict[str, tuple[str, ...]]:
        options = chosen[name]
        learns = options is None or canonical(options.get("rule", "error")) != "shallow"
        made = OwnTraining(task, name, options, numbers[0]) if learns and freeze_blocks else None
        return {} if made is None else made.blocks()

    named = with_frozen_blocks(chosen, blocks_of)
    settings |= {f"rule {name}": "BPTT" if o is None else said(o) for name, o in chosen.items()}
    plan = Plan(
        list(named),
        numbers,
        lambda name, seed: OwnTraining(task, name, chosen[named[name][0]], seed, named[name][1]),
        _described(_name(make_network), settings, keep="best" if len(data) == 3 else "last"),
    )
    folder = Folder(None if out is None else Path(out), resume, overwrite)
    loggers = (on_epoch,) if callable(on_epoch) else on_epoch
    with _as_arguments():
        found = carry_out(plan, folder, diagnosed=diagnose, silent=silent, loggers=loggers)
    return Comparison(*found)


def _check(epochs: int, batch_size: int, device: str, out: str | Path | None, resume: bool) -> None:
    for name, value in {"epochs": epochs, "batch_size": batch_size}.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected one or more, got {value!r}")
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device: expected a device of this machine, got {device!r} ({reason})"
        ) from error
    if resume and out is None:
        raise InputError("resume: expected a folder out= with checkpoints, got out=None")
    if ranks() > 1:
        raise InputError(
            "compare: expected one process, got a process group of several; start one process, or "
            "use snn-dfa under torchrun"
        )


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or not all(isinstance(n, int) and 0 <= n <= 2**62 for n in numbers):
        raise InputError(f"seeds: expected one or more, or whole numbers from 0 on, got {seeds!r}")
    return list(dict.fromkeys(numbers))


def _described(network: str, settings: Mapping[str, Any], keep: str) -> Description:
    usual = {**_DEFAULTS, "optimizer": _name(default_optimizer), "loss": _name(count_loss),
             "forward": _name(run), "scores": _name(scores_of), "schedule": "none", "dfa": "-",
             "seeds": [0]}  # fmt: skip
    listed = [
        Setting(name, str(value), str(usual.get(name, value)))
        for name, value in settings.items()
        if name not in ("device", "dataset")
    ]
    return Description(
        title=f"Rules on {network}",
        name=f"Network {network}",
        about=f"samples {settings['dataset']}",
        device=settings["device"],
        keep=keep,
        settings={"recipe": network, "settings": dict(settings)},
        listed=listed,
        usual="default",
        command=f"snn_dfa.compare({network}, ...)",
    )


def _name(of: Any) -> str:
    return getattr(of, "__qualname__", None) or type(of).__qualname__


def _length(part: Any) -> str:
    data = getattr(part, "dataset", part)
    return str(len(data)) if hasattr(data, "__len__") else "of unknown number"


@contextmanager
def _as_arguments() -> Any:
    """Turn what names options of the command line into what names arguments."""
    try:
        yield
    except UsageError as error:
        said = re.sub(r"--([a-z][a-z-]*)", lambda m: m[1].replace("-", "_"), str(error))
        raise InputError(said) from error
