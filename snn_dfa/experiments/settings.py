"""What an experiment is: plain data, written whole into its results."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, TypeAlias

from snn_dfa.feedback import NAMES
from snn_dfa.rules import canonical

__all__ = ["GROUPS", "Block", "Settings", "UsageError", "metavar", "option", "shown"]

Layer: TypeAlias = int | str

#: Title of a group of settings to the first of them.
GROUPS = {
    "data and where to run": "dataset",
    "network": "hidden",
    "neuron": "neuron",
    "input and loss": "encoding",
    "against over-fitting": "shift",
    "learning": "epochs",
    "feedback": "feedback",
}

#: A layer as text: 12c5 is a convolution of 12 channels and 5x5 pixels, mp2 pooling of 2x2.
_LAYER = re.compile(r"(?P<channels>[1-9]\d*)c(?P<kernel>[1-9]\d*)|mp(?P<pool>[1-9]\d*)|[1-9]\d*")


class UsageError(Exception):
    """Something that the person at the keyboard can mend; its text is one line."""


Check: TypeAlias = tuple[str, Callable[[Any], bool]]  # what is expected, and whether it is so

_COUNT: Check = ("one or more", lambda value: value >= 1)
_SEED: Check = ("a whole number from 0 to 2^62", lambda value: 0 <= value <= 2**62)
_ABOVE_ZERO: Check = ("a number above zero", lambda value: 0 < value < math.inf)
_NOT_BELOW_ZERO: Check = ("zero or more", lambda value: 0 <= value < math.inf)
_FINITE: Check = ("finite numbers", lambda value: all(map(math.isfinite, value)))
_SHARE: Check = ("a number in [0, 1]", lambda value: 0 <= value <= 1)
_FOLDS: Check = ("0, or two or more", lambda value: value == 0 or value >= 2)
_HELD: Check = ("a number in (0, 1)", lambda value: 0 < value < 1)
_PART: Check = ("a number in [0, 1)", lambda value: 0 <= value < 1)
_LAYERS: Check = (
    "layers such as 256,128,64 or 12c5,mp2,64c5,mp2",
    lambda value: bool(value) and all(_LAYER.fullmatch(str(layer)) for layer in value),
)
_THRESHOLDS: Check = (
    "numbers above zero, one for all layers or one for each",
    lambda value: bool(value) and all(0 < each < math.inf for each in value),
)


def _one_of(*names: str) -> Check:
    return f"one of {', '.join(names)}", lambda value: value in names


def _say(default: Any, text: str, check: Check | None = None) -> Any:
    return field(default=default, metadata={"help": text, "check": check})


@dataclass(frozen=True)
class Block:
    """A layer with weights, what may pool its current, and then its neurons."""

    width: int
    kernel: int | None = None
    pool: int | None = None


def _blocks(hidden: tuple[Layer, ...]) -> list[Block]:
    blocks: list[Block] = []
    for layer in map(str, hidden):
        found = _LAYER.fullmatch(layer)
        if found is None:  # _LAYERS has refused it
            raise ValueError(layer)
        if found["channels"]:
            if blocks and blocks[-1].kernel is None:
                raise UsageError(f"--hidden: expected {layer} before the dense layers")
            blocks.append(Block(int(found["channels"]), int(found["kernel"])))
        elif found["pool"]:
            if not blocks or blocks[-1].kernel is None or blocks[-1].pool:
                raise UsageError(f"--hidden: expected {layer} straight after a convolution")
            blocks[-1] = Block(blocks[-1].width, blocks[-1].kernel, int(found["pool"]))
        else:
            blocks.append(Block(int(layer)))
    return blocks


@dataclass(frozen=True)
class Settings:
    """One experiment but for its rule. The text beside a field is its help on the command line."""

    # -- where -------------------------------------------------------------------------------------
    dataset: str = _say("digits", "name of the data set")
    data_root: str = _say("data", "folder in which torchvision keeps or puts the data set")
    folds: int = _say(
        0,
        "number of folds of all samples, of which --seed chooses the one to test on; "
        "0: test on the test part of the data set",
        _FOLDS,
    )
    validation: float = _say(
        0.05, "share of the training part that is held back to choose the epoch", _HELD
    )
    seed: int = _say(
        0, "seed of weights, feedback, order, spikes, dropout and validation part", _SEED
    )
    device: str = _say("cpu", "torch device, such as cpu or cuda")
    # -- network -----------------------------------------------------------------------------------
    hidden: tuple[Layer, ...] = _say(
        (1000, 250, 100),
        "hidden layers: 256 is dense, 12c5 a convolution (12 channels, 5x5), mp2 max pooling (2x2)",
        _LAYERS,
    )
    normalize: bool = _say(True, "normalise the current of each hidden layer over the batch")
    weights: str = _say(
        "default",
        "initial weights: PyTorch's default, xavier, or zhang (Zhang et al., A.6)",
        _one_of("default", "xavier", "zhang"),
    )
    biases: tuple[float, ...] = _say(
        (), "initial biases: one for all layers, or one for each", _FINITE
    )
    # -- neuron ------------------------------------------------------------------------------------
    neuron: str = _say(
        "leaky",
        "leaky (snnTorch's), refractory, or recurrent (snnTorch's RLeaky, dense)",
        _one_of("leaky", "refractory", "recurrent"),
    )
    threshold: tuple[float, ...] = _say(
        (1.0,), "firing threshold: one for all layers, or one for each", _THRESHOLDS
    )
    beta: float = _say(
        0.6, "decay of the membrane in each step, of leaky and recurrent neurons", _SHARE
    )
    tau: float = _say(20.0, "time constant of the membrane, of refractory neurons, ms", _ABOVE_ZERO)
    dt: float = _say(0.25, "length of a time step, of refractory neurons, ms", _ABOVE_ZERO)
    t_ref: float = _say(1.0, "refractory period, of refractory neurons, ms", _ABOVE_ZERO)
    spike_size: float = _say(1.0, "size of a hidden neuron's spike", _ABOVE_ZERO)
    surrogate: str = _say(
        "fast-sigmoid",
        "surrogate derivative of a spike: fast-sigmoid or exact",
        _one_of("fast-sigmoid", "exact"),
    )
    slope: float = _say(5.0, "slope of the fast-sigmoid surrogate", _ABOVE_ZERO)
    # -- input and loss ----------------------------------------------------------------------------
    encoding: str = _say(
        "constant",
        "input: poisson (random spikes), constant (current) or events (of a recording)",
        _one_of("poisson", "constant", "events"),
    )
    steps: int = _say(10, "number of time steps T", _COUNT)
    downsample: int = _say(1, "merge N by N pixels of a recording into one", _COUNT)
    run_in: int = _say(0, "time steps at the start that the loss ignores", _NOT_BELOW_ZERO)
    max_rate: float = _say(
        1.0, "input of a white pixel: spikes in each step, or current", _ABOVE_ZERO
    )
    readout: str = _say(
        "spikes",
        "what the network returns at each step: spikes of output neurons, or the current of the "
        "last weights, without neurons",
        _one_of("spikes", "current"),
    )
    loss: str = _say(
        "count",
        "cross entropy of the output's spike counts, or summed currents (count), or of the "
        "counts' shares of all spikes (share)",
        _one_of("count", "share"),
    )
    temperature: float = _say(
        0.7, "divide counts or shares by this before the softmax", _ABOVE_ZERO
    )
    # -- against over-fitting ----------------------------------------------------------------------
    shift: int = _say(
        0, "in training, move each sample at random by at most so many pixels", _NOT_BELOW_ZERO
    )
    flip: bool = _say(False, "in training, mirror half of the samples left to right, at random")
    input_dropout: float = _say(
        0.4, "share of pixels that are dropped; the others are scaled up", _PART
    )
    drop_to: str = _say(
        "mean",
        "value of a dropped pixel: its mean over the training part, or zero",
        _one_of("mean", "zero"),
    )
    dropout: float = _say(
        0.0, "share of hidden neurons that are dropped, drawn for each sample", _PART
    )
    clean_statistics: bool = _say(
        True,
        "before each evaluation, recompute the statistics of batch normalisation without dropout",
    )
    weight_decay: float = _say(0.3, "weight decay of the optimiser", _NOT_BELOW_ZERO)
    label_smoothing: float = _say(
        0.0, "share of each target that is spread over all classes", _PART
    )
    # -- learning ----------------------------------------------------------------------------------
    epochs: int = _say(40, "number of passes over the training part", _COUNT)
    start: str = _say(
        "",
        "begin with the weights that an earlier run of the same network tested, and with its "
        "feedback: its checkpoint.pt",
    )
    keep: str = _say(
        "best",
        "test the weights of the epoch that is best on the validation part, or of the last epoch",
        _one_of("best", "last"),
    )
    batch_size: int = _say(128, "number of samples in a training step", _COUNT)
    optimizer: str = _say("adam", "optimiser: adam (AdamW) or sgd", _one_of("adam", "sgd"))
    momentum: float = _say(0.0, "momentum of sgd", _PART)
    lr: float = _say(3e-3, "learning rate", _ABOVE_ZERO)
    per_input: bool = _say(False, "divide the learning rate of each layer by its number of inputs")
    schedule: str = _say(
        "one-cycle",
        "schedule of the learning rate: step or one-cycle",
        _one_of("step", "one-cycle"),
    )
    lr_decay: float = _say(
        0.93,
        "of schedule step: factor on the learning rate, after every --decay-every epochs",
        _ABOVE_ZERO,
    )
    decay_every: int = _say(1, "of schedule step: number of epochs between two factors", _COUNT)
    feedback: str = _say(
        "weight-mirror",
        "how the feedback matrices are drawn, or how they learn",
        _one_of(*NAMES),
    )
    feedback_std: float = _say(
        0.0, "standard deviation of gaussian feedback; 0: 1/sqrt(neurons of the layer)",
        _NOT_BELOW_ZERO,
    )  # fmt: skip
    feedback_scale: float = _say(
        1.0, "scale of the initial feedback matrices, or of each factor of a product", _ABOVE_ZERO
    )
    feedback_lr: float = _say(3e-3, "learning rate of the feedback, if it learns", _ABOVE_ZERO)
    feedback_decay: float = _say(0.3, "weight decay of the feedback, if it learns", _NOT_BELOW_ZERO)
    credit: str = _say(
        "membrane",
        "how a layer turns the error at its spikes into a gradient: membrane (through time), "
        "current (same step), or trace (online)",
        _one_of("membrane", "current", "trace"),
    )  # fmt: skip
    error_at: str = _say(
        "current", "where the error of the output is taken: at its spikes or at its current",
        _one_of("spikes", "current"),
    )  # fmt: skip
    amp: bool = _say(False, "train in bfloat16 autocast, with membranes in float32")

    def __post_init__(self) -> None:
        object.__setattr__(self, "credit", canonical(self.credit))
        for each in fields(self):
            check, value = each.metadata["check"], getattr(self, each.name)
            if check is not None and not check[1](value):
                raise UsageError(f"{option(each)}: expected {check[0]}, got {_said(value)}")
        layers = len(self.blocks) + 1
        for name in ("threshold", "biases"):
            given = getattr(self, name)
            if len(given) not in ({0, 1, layers} if name == "biases" else {1, layers}):
                raise UsageError(
                    f"--{name}: expected one number for all layers or one for each of the "
                    f"{layers}, got {_said(given)}"
                )
        for refused, name, expected in self._combinations():
            if refused:
                got = _said(getattr(self, name))
                raise UsageError(f"--{name.replace('_', '-')}: expected {expected}, got {got}")

    def _combinations(self) -> Iterator[tuple[bool, str, str]]:
        """Yield whether settings do not go together, which one to name, and what was expected."""
        poisson, convolves = self.encoding == "poisson", self.is_convolutional
        yield self.run_in >= self.steps, "run_in", f"fewer than the {self.steps} --steps"
        yield poisson and self.max_rate > 1, "max_rate", "a number in [0, 1] with Poisson spikes"
        most = 1 - self.max_rate
        yield (
            poisson and self.input_dropout > most + 1e-9, "input_dropout",
            f"at most 1 - --max-rate = {most:g} with Poisson spikes, since the other pixels are "
            f"scaled up",
        )  # fmt: skip
        yield (
            self.drop_to == "mean" and self.input_dropout > 0 and self.encoding != "constant",
            "drop_to",
            f"zero with --encoding {self.encoding}, since spikes cannot be scaled about a mean",
        )  # fmt: skip
        yield (
            self.feedback_std > 0 and self.feedback != "gaussian", "feedback_std",
            "0 with another feedback than gaussian",
        )  # fmt: skip
        yield (
            self.neuron == "recurrent" and convolves, "neuron",
            "leaky or refractory with convolutions",
        )  # fmt: skip
        yield (
            self.neuron == "recurrent" and self.spike_size != 1, "spike_size",
            "1 with --neuron recurrent",
        )  # fmt: skip
        yield (
            self.downsample > 1 and self.encoding != "events", "downsample",
            "1 with other --encoding than events",
        )  # fmt: skip
        yield self.dt > self.tau, "dt", f"at most the {self.tau:g} ms of --tau"
        shares = self.loss == "share"
        yield shares and self.readout != "spikes", "readout", "spikes with --loss share"
        yield shares and self.label_smoothing > 0, "label_smoothing", "0 with --loss share"
        yield self.momentum > 0 and self.optimizer != "sgd", "momentum", "0 without --optimizer sgd"
        yield self.normalize and self.batch_size == 1, "batch_size", "two or more with --normalize"

    @property
    def blocks(self) -> list[Block]:
        """The hidden layers."""
        return _blocks(self.hidden)

    @property
    def is_convolutional(self) -> bool:
        """Whether the network takes images [B, C, H, W], and not [B, F]."""
        return self.blocks[0].kernel is not None

    @property
    def online(self) -> bool:
        """Whether each step has a backward pass of its own."""
        return self.credit == "trace"

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def option(of: Field[Any], value: Any = None) -> str:
    """Return a field's name on the command line, in the form that says ``False`` if it is that."""
    return ("--no-" if value is False else "--") + of.name.replace("_", "-")


_METAVARS = {
    "dataset": "NAME", "data_root": "DIR", "device": "DEVICE", "seed": "SEED", "hidden": "LAYERS",
    "biases": "B,...", "threshold": "THETA,...", "tau": "MS", "dt": "MS", "t_ref": "MS",
    "start": "FILE", "steps": "T", "run_in": "STEPS", "shift": "PIXELS", "max_rate": "RATE",
    "batch_size": "B",
}  # fmt: skip


def metavar(of: Field[Any]) -> str:
    """Return what stands for a field's value in the help: its choices, its unit or its kind."""
    check = of.metadata["check"]
    if check is not None and check[0].startswith("one of "):
        return "{" + check[0].removeprefix("one of ").replace(" ", "") + "}"
    if of.name in _METAVARS:
        return _METAVARS[of.name]
    if check in (_SHARE, _HELD, _PART):
        return "SHARE"
    return "N" if isinstance(of.default, int) else "X"


def shown(value: Any) -> str:
    """Return a value as it is written on the command line, where a flag has none."""
    if isinstance(value, bool):
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _said(value: Any) -> str:
    return repr(shown(value)) if isinstance(value, (str, tuple)) else str(value)
