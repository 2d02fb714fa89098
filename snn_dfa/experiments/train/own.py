"""Training a network that the user brings."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader

from snn_dfa.dfa import DFA
from snn_dfa.diagnostics import blocks
from snn_dfa.errors import InputError
from snn_dfa.experiments.data.batches import Batches, add_checksum
from snn_dfa.experiments.train import identity
from snn_dfa.experiments.train.feedback import RULES, rule_called
from snn_dfa.experiments.train.progress import Progress, own_masks
from snn_dfa.experiments.train.training import Batch, Training
from snn_dfa.feedback import LEARNED
from snn_dfa.state import reset

__all__ = [
    "OwnTask",
    "OwnTraining",
    "count_loss",
    "default_optimizer",
    "rule_options",
    "run",
    "said",
    "scores_of",
]

#: Arguments of :class:`snn_dfa.DFA`; ``None``: back-propagation.
Options: TypeAlias = Mapping[str, Any] | None

#: Keys of ``metrics.json`` beside the rules.
_TAKEN = ("over_seeds", "recipe", "settings", "costs", "versions")


def run(net: nn.Module, x: Any) -> Any:
    """Call the network on a batch, as it is."""
    return net(x)


def count_loss(output: Any, y: Tensor) -> Tensor:
    """Return the cross entropy of spike counts, or of scores.

    Args:
        output: Spikes [T, B, C], or scores [B, C]; of several values the first is meant.
        y: Classes [B].
    """
    return functional.cross_entropy(scores_of(output), y)


def default_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return Adam with a learning rate of 0.001."""
    return torch.optim.Adam(parameters, lr=1e-3)


def scores_of(output: Any) -> Tensor:
    """Return scores [B, C]: spikes [T, B, C] added up over time, or what is there.

    Raises:
        InputError: if the network gave something else.
    """
    first = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(first, Tensor) or first.dim() not in (2, 3):
        got = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise InputError(
            f"forward: expected spikes [T, B, C] or scores [B, C] from the network, or a tuple "
            f"that begins with them, got {got}; give scores=, a function of what it returns"
        )
    return first.sum(0) if first.dim() == 3 else first


def said(options: Mapping[str, Any]) -> str:
    """Return arguments as a line of text, of objects the name of their class."""
    plain = (str, int, float, bool)
    return ", ".join(
        f"{k}={v!r}" if isinstance(v, plain) else f"{k}={type(v).__name__}"
        for k, v in options.items()
    )


def rule_options(rules: Iterable[str] | Mapping[str, Options]) -> dict[str, Options]:
    """Return each rule's arguments of :class:`snn_dfa.DFA`.

    Raises:
        InputError: if there is no such rule, or its name cannot be one.
    """
    if isinstance(rules, str):
        rules = [rules]
    if not isinstance(rules, Mapping):
        found = {name: rule_called(name) for name in rules}
        unknown = [name for name, rule in found.items() if rule is None]
        if unknown:
            raise InputError(
                f"rules: expected some of {', '.join(RULES)}, or a mapping of a name to arguments "
                f"of DFA, got {unknown[0]!r}"
            )
        known = (rule for rule in found.values() if rule is not None)
        rules = {r: None if RULES[r] is None else {"rule": RULES[r]} for r in known}
    if not rules:
        raise InputError("rules: expected one or more, got none")
    taken = next((name for name in rules if name in _TAKEN), None)
    if taken:
        raise InputError(f"rules: expected another name than {', '.join(_TAKEN)}, got {taken!r}")
    return dict(rules)


@dataclass(frozen=True)
class OwnTask:
    """What is the same for every rule.

    Args:
        make_network: Returns a new network.
        data: The parts of the data.
        epochs: Passes over the training part.
        forward: From network and input of a batch to the network's output.
        loss: From output and classes [B] to a number.
        scores: From output to scores [B, C].
        make_optimizer: From parameters to their optimiser.
        make_scheduler: From an optimiser to a schedule that goes by epochs; ``None``: none.
        options: Arguments of :class:`snn_dfa.DFA` for every rule.
        described: The settings as JSON has them.
    """

    make_network: Callable[[], nn.Module]
    data: Batches
    epochs: int
    forward: Callable[[nn.Module, Any], Any] = run
    loss: Callable[[Any, Tensor], Tensor] = count_loss
    scores: Callable[[Any], Tensor] = scores_of
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = default_optimizer
    make_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)
    #: By seed: the first network and its first values, which all rules start from.
    _firsts: dict[int, tuple[ref[nn.Module], dict[str, Tensor]]] = field(default_factory=dict)
    #: What a script's loss and the like are at first; they may count their calls.
    _functions: dict[str, str] = field(default_factory=dict)
    _made_of: dict[int, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {"forward": self.forward, "loss": self.loss, "scores": self.scores,
                 "scheduler": self.make_scheduler}  # fmt: skip
        self._functions.update({name: identity.of_object(of) for name, of in named.items()})

    def made_of(self, seed: int) -> dict[str, str]:
        """Return what tells this task from another one; the same in every run of a script."""
        if seed not in self._made_of:
            parts = self.data.parts.items()
            found = {f"{name} part": identity.of_data(part) for name, part in parts}
            first, again = (self._first_training_batch(seed) for _ in range(2))
            if first == again:  # else they are drawn anew each time
                found["first training batch"] = f"{first:08x}"
            self._made_of[seed] = {**self._functions, **found}
        return self._made_of[seed]

    def _first_training_batch(self, seed: int) -> int:
        with own_masks(seed, self.data.device), self.data.drawn("train", seed) as batches:
            x, y = next(iter(batches))
        return add_checksum(add_checksum(0, y), x)

    def network(self, seed: int) -> nn.Module:
        """Return a new network with the first values that every rule of this seed gets.

        Raises:
            InputError: if ``make_network`` gives no module, or one that was there before.
        """
        device = self.data.device
        with own_masks(seed, device):
            net = self.make_network()
        if not isinstance(net, nn.Module):
            raise InputError(
                f"make_network: expected a function that returns a module, got one that returns "
                f"{type(net).__name__}"
            )
        if any(_is_ours(vars(module).get("forward")) for module in net.modules()):
            raise InputError(
                "make_network: expected a plain network, got one with a DFA attached; rules= says "
                "what is attached"
            )
        if any(net is first() for first, _ in self._firsts.values()):
            raise InputError(
                "make_network: expected a new network in every call, got the same one twice; make "
                "it inside the function"
            )
        self._give_sizes(net, seed)
        if seed not in self._firsts:
            self._firsts[seed] = ref(net), {k: v.clone() for k, v in net.state_dict().items()}
        net.load_state_dict(self._firsts[seed][1])
        return net.to(device)

    def _give_sizes(self, net: nn.Module, seed: int) -> None:
        """Run a batch through a network with layers such as ``nn.LazyLinear``."""
        if not any(is_lazy(each) for each in (*net.parameters(), *net.buffers())):
            return
        net.to(self.data.device).eval()
        with own_masks(seed, self.data.device), self.data.drawn("train", seed) as batches:
            x, _ = next(iter(batches))
            with torch.no_grad():
                self.forward(net, x)
        net.train()
        reset(net)


def _is_ours(forward: Any) -> bool:
    """Whether this stands in a module in place of its method."""
    return type(forward).__module__.startswith("snn_dfa.")


class OwnTraining(Training):
    """A network of the user's own under one rule.

    Two trainings of the same task and seed start from the same weights and see the same batches.

    Raises:
        InputError: if the network cannot be made.
        AttachError: if the rule cannot be attached to it.
    """

    def __init__(
        self,
        task: OwnTask,
        rule: str,
        options: Options,
        seed: int,
        frozen: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.task, self.rule, self.seed, self._options = task, rule, seed, options
        self.device, self.epochs = task.data.device, task.epochs
        self.parts = tuple(name for name in task.data.parts if name != "train")
        self.keep = "best" if "val" in self.parts else "last"
        self.net = self.form = self.sequence = task.network(seed)
        self.frozen = frozen
        self._freeze(self.net)
        self._made_of = {f"network {k}": v for k, v in identity.of_network(self.net).items()}
        self.optimizer = task.make_optimizer(self.net.parameters())
        made = identity.of_optimizer(self.optimizer)
        self._made_of |= {f"optimizer {k}": v for k, v in made.items()}
        self.dfa = None
        if options is not None:
            every = {"seed": seed, **task.options, **options}
            feedback = every.get("feedback")
            by_name = isinstance(feedback, str) and feedback in LEARNED
            if by_name and "rule" not in every:
                every["optimizer"] = self.optimizer  # as in `DFA(net, optimizer=optimizer)`
            self.dfa = DFA(self.net, **every)
            learns = by_name or isinstance(feedback, tuple(LEARNED.values()))
            if learns and "optimizer" not in every:
                self.dfa.follow(self.optimizer)
        make = task.make_scheduler
        self.scheduler = None if make is None else make(self.optimizer)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            raise InputError(
                "scheduler: expected a schedule that goes by the number of epochs, such as StepLR, "
                "got ReduceLROnPlateau, which goes by a loss; give another one"
            )
        if self.scheduler is not None:
            state = self.scheduler.state_dict()
            self._made_of |= {f"scheduler {k}": identity.of_object(v) for k, v in state.items()}
        self._seen = 0  # batches of an epoch, once one is over

    @property
    def batches(self) -> int:
        """Batches of an epoch; zero until it is known."""
        loader: Any = self.task.data.parts["train"]
        return len(loader) if hasattr(loader, "__len__") else self._seen

    @property
    def checksum(self) -> int:
        """Of the first batch that is tested on."""
        with own_masks(0, self.device):
            return self.task.data.checksum

    def described(self) -> dict[str, Any]:
        """Return the settings, as JSON has them."""
        return {**self.task.described, "seed": self.seed, "options": said(self._options or {})}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, and what the training is made of."""
        options = {"options": identity.of_object({**self.task.options, **(self._options or {})})}
        made_of = {**self._made_of, **options, **self.task.made_of(self.seed)}
        return {**super().state_dict(), "made_of": made_of}

    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Return the parameters of each hidden block of the network; nothing is changed by it."""
        x, _ = self._sample(2)
        every = {**self.task.options, **(self._options or {})}

        def run(net: nn.Module) -> None:
            reset(net)
            self.task.forward(net, x)

        with own_masks(self.seed, self.device):
            plain = self.task.network(self.seed)
            return blocks(plain, run, every.get("output"), every.get("hidden"))

    def _method(self) -> tuple[str, str, str]:
        if self._options is None:
            return "bptt", "membrane", ""
        every = {"rule": "error", "credit": "membrane", "feedback": "gaussian",
                 **self.task.options, **self._options}  # fmt: skip
        given = every["feedback"]
        learned = (name for name, options in LEARNED.items() if isinstance(given, options))
        return every["rule"], every["credit"], next(learned, str(given))

    def _epoch_batches(self, now: Progress) -> Iterator[Batch | None]:
        checksum, count = 0, 0
        with self.task.data.drawn("train", self.seed + 1000 * self.epoch) as batches:
            for x, y in batches:
                checksum = add_checksum(add_checksum(checksum, y), x)
                count += 1
                yield x, y
        self._seen = count
        self.task.data.same_for_every_rule(self.seed, self.epoch + 1, checksum)

    def _passes(self, form: nn.Module, x: Any, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        reset(form)
        try:
            output = self.task.forward(form, x)
        except ValueError as error:
            if len(y) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                "data: expected two samples or more in each batch of the train part, since the "
                "network has batch normalisation, got one alone; give another batch_size, or a "
                "DataLoader with drop_last=True"
            ) from error
        scores = self._scores(output, y)
        yield self.task.loss(output, y), scores

    def warm_up(self, size: int) -> None:
        """Take a step, and see whether a last batch of one sample can be trained on."""
        super().warm_up(size)
        part: Any = self.task.data.parts["train"]
        if isinstance(part, DataLoader) and part.batch_size and not part.drop_last:
            samples = len(part.dataset) if hasattr(part.dataset, "__len__") else 0
            if samples % part.batch_size == 1:
                with own_masks(self.seed, self.device), torch.no_grad():
                    list(self._passes(self.net, *self._sample(1)))

    def _evaluated(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        ((loss, scores),) = self._passes(self.sequence, x, y)
        return loss, scores

    def _scores(self, output: Any, y: Tensor) -> Tensor:
        scores = self.task.scores(output).detach()
        if scores.dim() != 2 or len(scores) != len(y) or int(y.max()) >= scores.shape[1]:
            raise InputError(
                f"scores: expected [B, C] for the {len(y)} samples of a batch and more than "
                f"{int(y.max())} classes, got {list(scores.shape)}"
            )
        return scores

    def _after_epoch(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()

    def _part_batches(self, part: str) -> Generator[Batch, None, None]:
        with ExitStack() as stack:
            stack.enter_context(own_masks(0, self.device))
            yield from stack.enter_context(self.task.data.drawn(part, 0))

    def _sample(self, size: int) -> Batch:
        """Return the first batch of the training part, of so many samples at most."""
        self.net.train()
        with own_masks(self.seed, self.device), self.task.data.drawn("train", self.seed) as all_:
            x, y = next(iter(all_))
        # Of an input whose first dimension is no batch, such as [T, B, ...], the whole is taken.
        short = isinstance(x, Tensor) and len(x) == len(y) > size
        return (x[:size], y[:size]) if short else (x, y)
