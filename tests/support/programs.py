"""Random user programs: a small description, the network that it stands for, and its loss.

A program is a :class:`Spec`, a frozen dataclass of choices. The first value of each choice in
``CHOICES`` and ``LAYER_CHOICES`` is its plain one: a spec of plain values is a network of ``Leaky``
neurons like those of snnTorch's tutorials, and a failure is shrunk by making choices plain.
:func:`draw` draws a spec from a seed. ``Network(spec)`` is the program's network and
``loss(spec, network, records, ...)`` its loss.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import RefractoryLeaky
from snn_dfa.surrogate import ATan, fast_sigmoid

BATCH, WIDTH, CLASSES = 3, 5, 3
CHANNELS, SIDE = 2, 4

# Each neuron's states, in the order in which it takes and returns them; returned after the spikes.
STATES = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "RefractoryLeaky": ("mem",),
    "Synaptic": ("syn", "mem"),
    "Alpha": ("syn_exc", "syn_inh", "mem"),
    "RLeaky": ("mem",),
    "RSynaptic": ("syn", "mem"),
    "SLSTM": ("syn", "mem"),
    "SConv2dLSTM": ("syn", "mem"),
    "DeltaLeaky": ("mem",),
    "Tanh": (),  # no neuron, but a module that is named in hidden=
    # They take a whole sequence in one call.
    "StateLeaky": (),
    "LinearLeaky": (),
    "LeakyParallel": (),
}
SEQUENCE = ("StateLeaky", "LinearLeaky", "LeakyParallel")
RECURRENT = ("RLeaky", "RSynaptic")

LAYER_CHOICES: dict[str, tuple[Any, ...]] = {
    "neuron": tuple(name for name in STATES if name not in ("Tanh", *SEQUENCE)),
    # hidden: inside the neuron. returned: inside, and returned with the spikes (output=True).
    # explicit: handed in and out. keyword: handed in by name. kept: inside, without init_hidden.
    "states": ("hidden", "returned", "explicit", "keyword", "kept"),
    "reset": ("subtract", "zero", "none"),
    "reset_delay": (True, False),
    "learns": ("", "beta", "threshold", "both", "graded"),
    "inhibition": (False, True),
    "surrogate": ("fast_sigmoid", "atan"),
    # What makes the current: a module, F.linear with a parameter, times a learned scalar, with
    # normalisation behind it, or a module that takes an object that carries the spikes.
    "synapse": ("module", "functional", "scaled", "normalised", "object"),
    # What the program does to the membrane between two steps.
    "state_change": (
        "", "mask", "mask_", "where", "masked_fill_", "clone", "detach", "detach_", "gate", "slice_",
        "from_below",
    ),
    # What is added to the current, or to the spikes, from the layer's input.
    "residual": ("", "spikes", "spikes_", "current", "current_", "leaf_current"),
    # What is done to the spikes on their way to the next layer.
    "between": (
        "", "relu_", "dropout", "view", "slice_", "scale", "mask_", "tanh", "chunks", "function",
    ),
    "call": ("module", "forward"),
    "recurrent": ("", "own", "own_gated", "top_down"),
    # What else enters the layer: the membrane of the layer below, as it was returned or kept.
    "membrane_below": ("", "add", "cat"),
    "penalty": ("", "spikes", "membranes", "both"),
}  # fmt: skip

CHOICES: dict[str, tuple[Any, ...]] = {
    "conv": (False, True),
    # nested: neurons in modules of their own. blocks: hidden= names modules with weights and neuron.
    # tanh: the first hidden layer is no neuron.
    "hidden_kind": ("neurons", "nested", "blocks", "tanh"),
    "pool": ("", "avg", "max"),  # between a convolutional layer and the readout
    "steps": (2, 3, 4),
    "batches": (2, 3),
    # sequence: no loop, and neurons that take [T, B, ...] in one call.
    "loop": ("inside", "around", "sequence"),
    # What is the output: a neuron, or a plain module that is named as output.
    # linear_neuron: a linear layer, with a neuron behind it that is no layer. block: one module with
    # linear layer and neuron. two: two plain heads. two_neurons: a neuron each.
    "readout": (
        "neuron", "linear", "scalar", "conv", "linear_neuron", "block", "two", "two_neurons",
    ),
    # Which of a spiking output's values the loss sees; attribute: lif.mem.
    "sees": ("spikes", "membrane", "both", "attribute"),
    "when": ("all", "sum", "last", "ends", "never"),
    # How the loss comes by what is neither spikes nor membrane of the output.
    # reduced: a number for each step, kept on the network.
    "recorded": ("returned", "self", "hooks", "reduced"),
    "returns": ("tuple", "dict", "object"),
    "branch": ("", "add", "cat", "add_"),
    "between_value": ("", "returned"),  # the last hidden layer's current goes to the loss, too
    "plain_head": ("", "spikes", "membrane"),  # a linear head that is not named
    "skip_to_readout": ("", "input", "first"),
    "shared_weights": (False, True),
    "frozen": ("", "first", "synapses", "output"),
    "hooks": ("", "look", "full_backward", "tensor", "before"),
    "listed": (False, True),
    "named": (False, True),  # output= and hidden= are given where they need not be
    "feedback": ("drawn", "given"),
    "carry": ("reset", "detach"),
    "initial": ("zeros", "learned"),  # first membranes of explicit states
    # twice: loss and penalties apart. steps: after each step, and then states are detached.
    "backward": ("once", "twice", "steps"),
    "without_grad": (False, True),  # a pass under no_grad between the batches
    "burn_in": (False, True),  # the first step under no_grad
    "input_grad": (False, True),  # the input asks for a gradient, too
}  # fmt: skip

# Drawn only where a choice is asked for by name: what the library may say no to.
EXTRA: dict[str, tuple[Any, ...]] = {"backward": ("grad", "inputs")}


@dataclass(frozen=True)
class Layer:
    """A hidden layer, or the output's neuron."""

    neuron: str = "Leaky"
    states: str = "hidden"
    reset: str = "subtract"
    reset_delay: bool = True
    learns: str = ""
    inhibition: bool = False
    surrogate: str = "fast_sigmoid"
    synapse: str = "module"
    state_change: str = ""
    residual: str = ""
    between: str = ""
    call: str = "module"
    recurrent: str = ""
    membrane_below: str = ""
    penalty: str = ""

    def __repr__(self) -> str:
        return _short(self, LAYER_CHOICES)


@dataclass(frozen=True)
class Spec:
    """A program."""

    seed: int = 0
    layers: tuple[Layer, ...] = (Layer(),)
    output: Layer = Layer()
    conv: bool = False
    hidden_kind: str = "neurons"
    pool: str = ""
    steps: int = 2
    batches: int = 2
    loop: str = "inside"
    readout: str = "neuron"
    sees: str = "spikes"
    when: str = "all"
    recorded: str = "returned"
    returns: str = "tuple"
    branch: str = ""
    between_value: str = ""
    plain_head: str = ""
    skip_to_readout: str = ""
    shared_weights: bool = False
    frozen: str = ""
    hooks: str = ""
    listed: bool = False
    named: bool = False
    feedback: str = "drawn"
    carry: str = "reset"
    initial: str = "zeros"
    backward: str = "once"
    without_grad: bool = False
    burn_in: bool = False
    input_grad: bool = False

    def __repr__(self) -> str:
        return _short(self, CHOICES)

    def features(self) -> set[str]:
        """Return the choices that are not plain, as ``name=value``."""
        found = {f"layers={len(self.layers)}"}
        found |= {f"{k}={getattr(self, k)}" for k, v in CHOICES.items() if getattr(self, k) != v[0]}
        for layer, at in [*((each, "") for each in self.layers), (self.output, "output.")]:
            if at and not spiking_output(self):
                continue
            for k, v in LAYER_CHOICES.items():
                if getattr(layer, k) != v[0]:
                    found.add(f"{at}{k}={getattr(layer, k)}")
        return found


def _short(spec: Any, choices: dict[str, tuple[Any, ...]]) -> str:
    """Print what is not plain, in a form that evaluates to the spec."""
    said = [
        f"{f.name}={getattr(spec, f.name)!r}"
        for f in fields(spec)
        if f.name not in choices or getattr(spec, f.name) != choices[f.name][0]
    ]
    return f"{type(spec).__name__}({', '.join(said)})"


def spiking_output(spec: Spec) -> bool:
    """Whether the output's last module is a neuron."""
    return spec.readout in ("neuron", "linear_neuron", "block", "two_neurons")


# -- drawing ---------------------------------------------------------------------------------------


def draw(seed: int, plain: float = 0.6, only: frozenset[str] = frozenset()) -> Spec:
    """Return the program of a seed.

    Args:
        seed: Any whole number; the same program for the same number.
        plain: The chance that a choice keeps its plain value.
        only: Names of choices that may differ from plain; empty for all.
    """
    rng = random.Random(seed)

    def choose(choices: dict[str, tuple[Any, ...]], keep: float) -> dict[str, Any]:
        chosen = {}
        for name, values in choices.items():
            if name in only:
                values = values + EXTRA.get(name, ())
            value = values[0] if rng.random() < keep else rng.choice(values)
            chosen[name] = value if not only or name in only else values[0]
        return chosen

    def layer() -> Layer:
        return Layer(**choose(LAYER_CHOICES, plain + 0.15))

    keep = plain + 0.2
    spec = Spec(
        seed=seed,
        layers=tuple(layer() for _ in range(rng.choice((1, 2, 2, 3)))),
        output=layer(),
        **choose(CHOICES, keep),
    )
    if not only and rng.random() < 0.15:  # what only convolutional networks have
        readout = rng.choice((spec.readout, "conv"))
        spec = replace(spec, conv=True, pool=rng.choice(CHOICES["pool"]), readout=readout)
    # Neurons and states vary more than the rest: they meet all other choices.
    if not only or "neuron" in only:
        vary = [_with_neuron(each, rng) for each in (*spec.layers, spec.output)]
        spec = replace(spec, layers=tuple(vary[:-1]), output=vary[-1])
    return valid(spec)


def _with_neuron(layer: Layer, rng: random.Random) -> Layer:
    neuron = rng.choice(LAYER_CHOICES["neuron"]) if rng.random() < 0.6 else layer.neuron
    return replace(layer, neuron=neuron, states=rng.choice(LAYER_CHOICES["states"]))


def valid(spec: Spec) -> Spec:
    """Return the nearest program that plain torch and snnTorch run."""
    spec = _valid_network(spec)
    if spec.hidden_kind == "tanh":
        first = replace(spec.layers[0], neuron="Tanh")
        spec = replace(spec, layers=(first, *spec.layers[1:]))
    if spec.loop == "sequence":
        return _valid_sequence(spec)
    layers = tuple(_valid_layer(spec, each, i) for i, each in enumerate(spec.layers))
    return replace(spec, layers=layers, output=_valid_output(spec))


def _valid_network(spec: Spec) -> Spec:
    change: dict[str, Any] = {}
    if not spec.conv:
        change["pool"] = ""
    if spec.conv or spec.hidden_kind == "blocks":
        change["shared_weights"] = False
    if not spec.conv and spec.readout == "conv":
        change["readout"] = "linear"
    if not spiking_output(spec) or spec.readout == "block":
        change["sees"] = "spikes"
    if len(spec.layers) == 1:
        change |= {"branch": "", "shared_weights": False}
    if spec.hooks == "full_backward" and (spec.conv or spec.recorded == "hooks"):
        change["hooks"] = "look"
    # torch lets nobody change in place what a module with such a hook returned.
    if spec.hooks == "full_backward" and any(e.residual == "current_" for e in spec.layers):
        change["hooks"] = "look"
    # The last step of a program has a graph.
    if spec.burn_in or spec.output.state_change in ("detach", "detach_"):
        change["steps"] = max(spec.steps, 3)
    if spec.backward == "steps" and spec.loop == "sequence":
        change["backward"] = "once"
    elif spec.backward == "steps":
        change["loop"] = "around"
        change["initial"] = "zeros"  # a learned one's graph would be gone after the first step
    return replace(spec, **change)


def _valid_sequence(spec: Spec) -> Spec:
    """Leave what networks of whole sequences have: weights, neurons without states, functions."""
    readout = spec.readout if spec.readout in ("neuron", "linear", "scalar", "two") else "linear"
    layers = tuple(
        replace(
            _sequence_layer(each),
            membrane_below=each.membrane_below if i and not spec.branch else "",
            synapse="functional" if spec.shared_weights and i < 2 else each.synapse,
        )
        for i, each in enumerate(
            replace(e, **_SEQUENCE_SYNAPSE.get(e.synapse, {})) for e in spec.layers
        )
    )
    if spec.shared_weights:
        layers = tuple(replace(e, membrane_below="") for e in layers)
    output = replace(
        _sequence_layer(spec.output), residual="", between="", synapse="module", penalty="",
        membrane_below="",
    )  # fmt: skip
    if output.neuron == "LeakyParallel":  # it returns its spikes alone
        output = replace(output, neuron="StateLeaky")
    return replace(
        spec, layers=layers, output=output, readout=readout, conv=False, pool="", carry="reset",
        hidden_kind="nested" if spec.hidden_kind == "nested" else "neurons", burn_in=False,
        initial="zeros", sees="spikes" if spec.sees == "attribute" or readout != "neuron" else spec.sees,
        recorded="self" if spec.recorded == "hooks" else spec.recorded,
    )  # fmt: skip


_SEQUENCE_SYNAPSE: dict[str, dict[str, Any]] = {"normalised": {"synapse": "module"}}


def _sequence_layer(layer: Layer) -> Layer:
    neuron = layer.neuron
    if neuron not in SEQUENCE:
        neuron = SEQUENCE[list(STATES).index(neuron) % len(SEQUENCE)]
    return replace(
        Layer(), neuron=neuron, learns="both" if layer.learns == "graded" else layer.learns,
        surrogate=layer.surrogate, synapse=layer.synapse, residual=layer.residual,
        between=layer.between, call=layer.call, membrane_below=layer.membrane_below,
        penalty=layer.penalty,
    )  # fmt: skip


def _valid_layer(spec: Spec, layer: Layer, i: int) -> Layer:
    change: dict[str, Any] = {}
    layer = _valid_neuron(spec, layer)
    if (layer.synapse == "functional" and spec.conv) or spec.hidden_kind == "blocks":
        change["synapse"] = "module"
    if spec.hidden_kind == "blocks":
        if layer.states in ("explicit", "keyword"):
            change["states"] = "returned"
        if layer.residual == "current_":  # what enters the block is another layer's own value
            change["residual"] = "current"
    if spec.shared_weights and i < 2:
        change["synapse"] = "functional"
    if i == 0 or (spec.branch and i == len(spec.layers) - 1):
        change["membrane_below"] = ""
        if layer.state_change == "from_below":
            change["state_change"] = "clone"
    elif layer.membrane_below == "cat" and (
        spec.conv or spec.shared_weights or spec.hidden_kind == "blocks"
    ):
        change["membrane_below"] = "add"
    if spec.conv and layer.recurrent:
        change["recurrent"] = ""
    elif spec.readout not in ("neuron", "linear") and layer.recurrent == "top_down":
        change["recurrent"] = "own"
    # A formula's saved result is not to be changed in place.
    saved = layer.neuron == "Tanh" or (layer.learns == "graded" and not layer.reset_delay)
    if layer.residual == "spikes_" and (saved or layer.between == "relu_"):
        change["residual"] = "spikes"
    if saved and layer.between in ("relu_", "slice_", "mask_"):
        change["between"] = "chunks"
    return replace(layer, **change)


def _valid_neuron(spec: Spec, layer: Layer) -> Layer:
    change: dict[str, Any] = {}
    neuron = layer.neuron
    if neuron == "Tanh":
        if spec.hidden_kind == "tanh":
            return replace(
                Layer(), neuron="Tanh", synapse=layer.synapse, residual=layer.residual,
                between=layer.between, recurrent=layer.recurrent, membrane_below=layer.membrane_below,
                penalty="spikes" if layer.penalty else "",
            )  # fmt: skip
        neuron = "Leaky"
    if neuron in SEQUENCE:
        neuron = "Leaky"
    if spec.conv and neuron in ("SLSTM", *RECURRENT):
        neuron = "SConv2dLSTM"
    if not spec.conv and neuron == "SConv2dLSTM":
        neuron = "SLSTM"
    change["neuron"] = neuron
    if neuron not in ("Leaky", "RefractoryLeaky", "RLeaky"):
        change["reset_delay"] = True
    # Lapicque makes its resistance from a learned beta once, with a graph that one pass frees.
    if neuron in ("SLSTM", "SConv2dLSTM", "Lapicque") and layer.learns:
        change["learns"] = "threshold"
    elif layer.learns == "graded" and neuron not in ("Leaky", "RefractoryLeaky"):
        change["learns"] = "both"
    if spec.conv or neuron in ("SLSTM", "DeltaLeaky"):
        change["inhibition"] = False
    if neuron == "Alpha":
        change["reset"] = "zero" if layer.reset == "subtract" else layer.reset
    if neuron == "DeltaLeaky":
        change |= {
            "states": "hidden" if layer.states == "hidden" else "explicit",
            "reset": "subtract",
        }
        change["learns"] = "beta" if layer.learns else ""
        if layer.state_change in ("mask_", "masked_fill_", "slice_", "detach_"):
            change["state_change"] = "mask"
    if layer.call == "forward" and spec.hooks in ("look", "full_backward", "before"):
        change["call"] = "module"
    return replace(layer, **change)


def _valid_output(spec: Spec) -> Layer:
    """The output's neuron has a linear current, and nothing behind it but the loss."""
    layer = _valid_neuron(spec, replace(spec.output, residual="", between="", synapse="module"))
    if layer.neuron == "SConv2dLSTM":
        layer = replace(layer, neuron="Leaky")
    layer = replace(layer, recurrent="", membrane_below="", penalty="")
    if layer.state_change == "from_below":
        layer = replace(layer, state_change="clone")
    if spec.readout == "block":
        layer = replace(layer, call="module", state_change="")
        if layer.states in ("explicit", "keyword"):
            layer = replace(layer, states="hidden")
    return layer


# -- networks --------------------------------------------------------------------------------------


def _surrogate(name: str) -> Any:
    return fast_sigmoid(2.0) if name == "fast_sigmoid" else ATan(alpha=2.0)


def neuron(layer: Layer, width: int, conv: bool) -> nn.Module:
    """Return the snnTorch neuron of a layer."""
    inside = layer.states in ("hidden", "returned")
    options: dict[str, Any] = {
        "spike_grad": _surrogate(layer.surrogate),
        "init_hidden": inside,
        "output": inside and layer.states == "returned",
        "inhibition": layer.inhibition,
        "reset_mechanism": layer.reset,
        "threshold": 0.6,
        "learn_threshold": layer.learns in ("threshold", "both"),
    }
    kind = layer.neuron
    learned = {"learn_beta": layer.learns in ("beta", "both")}
    if kind == "Tanh":
        return nn.Tanh()
    if kind in SEQUENCE:
        return _sequence_neuron(layer, width)
    if layer.learns == "graded":
        options["learn_graded_spikes_factor"] = True
    if kind == "SConv2dLSTM":
        return snn.SConv2dLSTM(CHANNELS, CHANNELS, 3, **{**options, "threshold": 0.1})
    if kind == "SLSTM":
        return snn.SLSTM(width, width, **{**options, "threshold": 0.1})
    if kind == "Alpha":
        return snn.Alpha(alpha=0.9, beta=0.7, **{**options, **learned, "threshold": 0.3})
    if kind == "DeltaLeaky":
        return snn.DeltaLeaky(0.5, beta=0.8, **{**options, **learned, "output": False})
    if kind == "Synaptic":
        return snn.Synaptic(alpha=0.6, beta=0.8, **options, **learned)
    if kind == "RSynaptic":
        return snn.RSynaptic(alpha=0.6, beta=0.8, linear_features=width, **options, **learned)
    if kind in ("Leaky", "RLeaky", "RefractoryLeaky"):
        options["reset_delay"] = layer.reset_delay
    if kind == "RLeaky":
        return snn.RLeaky(beta=0.8, linear_features=width, **options, **learned)
    if kind == "RefractoryLeaky":
        return RefractoryLeaky(beta=0.8, refractory_steps=1, **options, **learned)
    return getattr(snn, kind)(beta=0.8, **options, **learned)


def _sequence_neuron(layer: Layer, width: int) -> nn.Module:
    options: dict[str, Any] = {
        "spike_grad": _surrogate(layer.surrogate),
        "threshold": 0.6,
        "learn_threshold": layer.learns in ("threshold", "both"),
        "learn_beta": layer.learns in ("beta", "both"),
    }
    if layer.neuron == "StateLeaky":
        return snn.StateLeaky(0.8, width, **options)
    if layer.neuron == "LinearLeaky":
        return snn.LinearLeaky(0.8, width, width, **options)
    return snn.LeakyParallel(width, width, beta=0.8, **options)


@dataclass
class Packet:
    """An object that carries spikes from one module to the next."""

    spikes: Tensor
    note: str = ""


class FromPacket(nn.Module):
    """A synapse that takes its spikes out of an object."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, packet: Packet) -> Tensor:
        return self.weights(packet.spikes)


class Squeezed(nn.Linear):
    """A readout of one number, without a dimension of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


class Block(nn.Module):
    """Weights and their neuron as one module, or a neuron in a module of its own."""

    def __init__(self, weights: nn.Module | None, lif: nn.Module) -> None:
        super().__init__()
        self.fc, self.lif = weights, lif

    def forward(self, x: Tensor) -> Any:
        return self.lif(x if self.fc is None else self.fc(x))


class Softened(torch.autograd.Function):
    """A function of the user's own, with an argument that is no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.sign() * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grads[0], None


class Network(nn.Module):
    """The network of a spec; ``forward`` takes [T, B, ...], or one step where the loop is around it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        for i, layer in enumerate(spec.layers):
            self._add_hidden(i, layer)
        side = SIDE // 2 if spec.pool else SIDE
        self.features = 1 if spec.conv else -1
        self.n_features = CHANNELS * side * side if spec.conv else WIDTH
        n_in = self.n_features * (2 if spec.branch == "cat" else 1)
        self._add_readout(n_in)
        if spec.plain_head:
            self.head = nn.Linear(self.n_features, 2)
        if spec.listed:  # a plain list, beside the names by which they are registered
            self.order = [self.layer(name) for name in self.hidden_names()]
        self.kept: dict[str, list[Tensor]] = {}
        self._make_spike()
        self._freeze()
        self._hang_hooks()

    # -- parts

    def _weights(self, n_in: int, n_out: int) -> nn.Module:
        if self.spec.conv:
            return nn.Conv2d(n_in, n_out, 3, padding=1)
        return nn.Linear(n_in, n_out)

    def _add_hidden(self, i: int, layer: Layer) -> None:
        n = CHANNELS if self.spec.conv else WIDTH
        weights = self._weights(2 * n if layer.membrane_below == "cat" else n, n)
        if layer.synapse == "functional":
            weight = nn.Parameter(weights.weight.detach().clone())
            if not (self.spec.shared_weights and i == 1):
                self.register_parameter(f"weight{i}", weight)
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(n)))
        elif self.spec.hidden_kind == "blocks":
            setattr(self, f"block{i}", Block(weights, neuron(layer, WIDTH, self.spec.conv)))
        elif layer.synapse == "object":
            setattr(self, f"fc{i}", FromPacket(weights))
        else:
            setattr(self, f"fc{i}", weights)
        if layer.synapse == "scaled":
            self.register_parameter(f"scale{i}", nn.Parameter(torch.tensor(1.2)))
        if layer.synapse == "normalised":
            kind = nn.BatchNorm2d if self.spec.conv else nn.BatchNorm1d
            setattr(self, f"norm{i}", kind(n))
        if layer.state_change == "gate":
            self.register_parameter(f"gate{i}", nn.Parameter(torch.tensor(0.9)))
        if layer.between == "scale":
            self.register_parameter(f"gain{i}", nn.Parameter(torch.tensor(1.1)))
        if layer.residual == "leaf_current":
            self.register_parameter(f"offset{i}", nn.Parameter(torch.full((n,), 0.1)))
        if layer.recurrent in ("own", "own_gated"):
            setattr(self, f"rec{i}", nn.Linear(n, n, bias=False))
        if layer.recurrent == "top_down":
            setattr(self, f"down{i}", nn.Linear(CLASSES, n, bias=False))
        self._add_initial(f"init{i}", layer, (n, SIDE, SIDE) if self.spec.conv else (n,))
        if self.spec.hidden_kind == "nested":
            setattr(self, f"stage{i}", Block(None, neuron(layer, WIDTH, self.spec.conv)))
        elif self.spec.hidden_kind != "blocks":
            setattr(self, f"lif{i}", neuron(layer, WIDTH, self.spec.conv))

    def _add_initial(self, name: str, layer: Layer, shape: tuple[int, ...]) -> None:
        explicit = layer.states in ("explicit", "keyword") and layer.neuron != "DeltaLeaky"
        if self.spec.initial == "learned" and explicit:
            self.register_parameter(name, nn.Parameter(torch.full(shape, 0.2)))

    def _add_readout(self, n_in: int) -> None:
        spec = self.spec
        if spec.skip_to_readout == "first":
            self.skip = nn.Linear(self.n_features, n_in, bias=False)
        if spec.skip_to_readout == "input":
            self.skip = nn.Linear(self.n_features, n_in)
        if spec.readout == "conv":
            channels = CHANNELS * (2 if spec.branch == "cat" else 1)
            self.readout = nn.Conv2d(channels, 2, 2, stride=2)
        elif spec.readout == "scalar":
            self.readout = Squeezed(n_in, 1)
        elif spec.readout == "block":
            self.readout = Block(nn.Linear(n_in, CLASSES), neuron(spec.output, CLASSES, False))
        elif spec.readout in ("two", "two_neurons"):
            self.policy_fc, self.value_fc = nn.Linear(n_in, CLASSES), nn.Linear(n_in, 1)
            if spec.readout == "two_neurons":
                self.policy, self.value = (neuron(spec.output, n, False) for n in (CLASSES, 1))
                self._add_initial("init_policy", spec.output, (CLASSES,))
                self._add_initial("init_value", spec.output, (1,))
        else:
            self.readout = nn.Linear(n_in, CLASSES)
            if spec.readout in ("neuron", "linear_neuron"):
                self.lif_out = neuron(spec.output, CLASSES, False)
                self._add_initial("init_out", spec.output, (CLASSES,))

    @torch.no_grad()
    def _make_spike(self) -> None:
        """Scale weights up, and biases too, so that neurons fire now and then."""
        for name, p in self.named_parameters():
            if name.endswith(("beta", "threshold", "factor")):
                continue
            if p.dim() > 1:
                p.mul_(2.5)
            elif p.dim() == 1 and p.numel() > 1 and "norm" not in name:
                p.add_(0.25)

    def _freeze(self) -> None:
        frozen = {
            "": (), "first": ("fc0", "weight0", "bias0"), "synapses": ("fc", "weight", "bias"),
            "output": ("readout", "policy", "value"),
        }[self.spec.frozen]  # fmt: skip
        for name, p in self.named_parameters():
            if frozen and name.startswith(tuple(frozen)):
                p.requires_grad_(False)

    def _hang_hooks(self) -> None:
        for name, module in self.named_modules():
            neuron_or_weights = isinstance(module, (snn.SpikingNeuron, nn.Linear, nn.Conv2d))
            if not neuron_or_weights:
                continue
            if self.spec.hooks == "look":
                module.register_forward_hook(lambda m, i, o: None)
            elif self.spec.hooks == "before":
                module.register_forward_pre_hook(lambda m, i: None)
            elif self.spec.hooks == "full_backward" and not isinstance(module, snn.SpikingNeuron):
                module.register_full_backward_hook(lambda m, i, o: None)
            elif self.spec.hooks == "tensor":
                module.register_forward_hook(_look_at_gradient)
            if self.spec.recorded == "hooks" and isinstance(module, snn.SpikingNeuron):
                module.register_forward_hook(self._recorder(name.replace(".", "_")))

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: Any, result: Any) -> None:
            spikes = result if isinstance(result, Tensor) else result[0]
            self.kept.setdefault(f"{name}.spikes", []).append(spikes)

        return record

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        raise TypeError("build the network twice")

    # -- what DFA is told

    def output_names(self) -> list[str]:
        """Return the names of the outputs, in order."""
        return {
            "neuron": ["lif_out"], "two": ["policy_fc", "value_fc"], "two_neurons": ["policy", "value"],
        }.get(self.spec.readout, ["readout"])  # fmt: skip

    def hidden_names(self) -> list[str]:
        """Return the names of the hidden layers."""
        form = {"nested": "stage{}.lif", "blocks": "block{}"}.get(self.spec.hidden_kind, "lif{}")
        return [form.format(i) for i in range(len(self.spec.layers))]

    def layer(self, name: str) -> Any:
        """Return a layer by its qualified name."""
        return self.get_submodule(name)

    def arguments(self) -> dict[str, Any]:
        """Return what ``DFA`` has to be told, and no more unless the spec says so."""
        spec, outputs = self.spec, self.output_names()
        given: dict[str, Any] = {}
        if spec.readout != "neuron" or spec.named or spec.hidden_kind == "blocks":
            given["output"] = outputs[0] if len(outputs) == 1 else outputs
        other = spec.hidden_kind in ("blocks", "tanh")
        if spec.readout in ("linear_neuron", "block") or spec.named or other:
            given["hidden"] = self.hidden_names()
        return given

    # -- a step

    def _synapse(self, i: int, x: Tensor) -> Tensor:
        kind = self.spec.layers[i].synapse
        if self.spec.hidden_kind == "blocks":
            return x
        if kind == "functional":
            weight = getattr(
                self, "weight0" if self.spec.shared_weights and i == 1 else f"weight{i}"
            )
            return functional.linear(x, weight, getattr(self, f"bias{i}"))
        if kind == "object":
            return getattr(self, f"fc{i}")(Packet(x))
        current = getattr(self, f"fc{i}")(x)
        if kind == "scaled":
            return current * getattr(self, f"scale{i}")
        if kind == "normalised":
            return getattr(self, f"norm{i}")(current)
        return current

    def _fire(
        self, name: str, at: str, layer: Layer, current: Tensor, states: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Call a neuron with its states; return spikes and membrane."""
        module = self.layer(name)
        call = module.forward if layer.call == "forward" else module
        if layer.neuron == "Tanh":
            spikes = call(current)
            return spikes, spikes
        if layer.neuron in SEQUENCE:
            result = call(current)
            return result if isinstance(result, tuple) else (result, result)
        if layer.states in ("hidden", "returned", "kept"):
            result = call(current)
            spikes = result if isinstance(result, Tensor) else result[0]
            return spikes, self._change_kept(getattr(module, "lif", module), at, layer)
        names = (("spk",) if layer.neuron in RECURRENT else ()) + STATES[layer.neuron]
        if name not in states:
            states[name] = self._first(layer, names, at, current)
        now = states[name]
        if layer.neuron == "DeltaLeaky":
            spikes, now = call(current, now)
            mem = self._changed(now[0], at, layer)
            states[name] = (mem, now[1])
            return spikes, mem
        if layer.states == "keyword":
            result = call(current, **dict(zip(names, now, strict=True)))
        else:
            result = call(current, *now)
        spikes = result[0]
        kept = list(result if layer.neuron in RECURRENT else result[1:])
        kept[-1] = self._changed(kept[-1], at, layer)
        states[name] = tuple(kept)
        return spikes, kept[-1]

    def _first(
        self, layer: Layer, names: tuple[str, ...], at: str, current: Tensor
    ) -> tuple[Any, ...]:
        if layer.neuron == "DeltaLeaky":
            return None, None
        shape = current.shape
        first = [current.new_zeros(shape) for _ in names]
        if hasattr(self, f"init{at}"):
            first[-1] = getattr(self, f"init{at}").expand(shape)
        return tuple(first)

    def _change_kept(self, lif: Any, at: str, layer: Layer) -> Tensor:
        if layer.state_change:
            lif.mem = self._changed(lif.mem, at, layer)
        return lif.mem

    def _changed(self, mem: Tensor, at: str, layer: Layer) -> Tensor:
        """Return the membrane as the program changes it before the next step."""
        change = layer.state_change
        mask = (torch.arange(mem.shape[1]) % 3 != 0).view(-1, *[1] * (mem.dim() - 2)).to(mem)
        halfway = self.t == self.spec.steps // 2
        if change == "mask":
            return mem * mask
        if change == "mask_":
            return mem.mul_(mask)
        if change == "where":
            return torch.where(mask > 0, mem, 0.3 * mem)
        if change == "masked_fill_":
            return mem.masked_fill_((mask == 0).expand_as(mem), 0.1)
        if change == "clone":
            return mem.clone()
        if change == "detach" and halfway:
            return mem.detach()
        if change == "detach_" and halfway:
            return mem.detach_()
        if change == "gate":
            return mem * getattr(self, f"gate{at}", 0.9)
        if change == "from_below":
            return mem + 0.2 * self.below
        if change == "slice_":
            mem[:, :2].mul_(0.5)
        return mem

    def _between(self, i: int, spikes: Tensor) -> Tensor:
        kind = self.spec.layers[i].between
        if kind == "relu_":
            return spikes.relu_()
        if kind == "dropout":
            return functional.dropout(spikes, 0.3)
        if kind == "view":
            return spikes.view(spikes.shape[0], -1).reshape(spikes.shape)
        if kind == "slice_":
            spikes[:, :2].mul_(0.5)
        if kind == "scale":
            return spikes * getattr(self, f"gain{i}")
        if kind == "mask_":
            return spikes.mul_((torch.arange(spikes.shape[-1]) % 3 != 1).to(spikes))
        if kind == "tanh":
            return torch.tanh(2 * spikes)
        if kind == "function":
            return Softened.apply(spikes, 0.8)
        if kind == "chunks":
            first, second = spikes.split([1, spikes.shape[1] - 1], 1)
            return torch.cat([0.5 * first, second], 1)
        return spikes

    def _hidden(self, i: int, x: Tensor, below: Tensor | None, states: dict[str, Any]) -> Tensor:
        """Return a hidden layer's spikes, as they go on."""
        layer, name = self.spec.layers[i], self.hidden_names()[i]
        enters, self.below = x, below
        if layer.membrane_below == "add":
            enters = x + 0.5 * below
        elif layer.membrane_below == "cat":
            enters = torch.cat([x, below], self.features)
        current = self._synapse(i, enters)
        current = self._with_recurrence(i, current, states)
        if layer.residual == "current":
            current = current + 0.5 * x
        elif layer.residual == "current_":
            current += 0.5 * x
        elif layer.residual == "leaf_current":
            offset = getattr(self, f"offset{i}")
            current = current + (offset.view(-1, 1, 1) if self.spec.conv else offset)
        if self.spec.between_value and i == len(self.spec.layers) - 1:
            self._keep("between", current)
        spikes, mem = self._fire(name, str(i), layer, current, states)
        self.membrane = mem
        if layer.residual == "spikes":
            spikes = spikes + x
        elif layer.residual == "spikes_":
            spikes += x
        spikes = self._between(i, spikes)
        states[f"{name}.last"] = spikes
        if layer.penalty in ("spikes", "both") and self.spec.recorded != "hooks":
            self._keep(f"{name}.spikes", spikes)
        if layer.penalty in ("membranes", "both"):
            self._keep(f"{name}.membrane", mem)
        return spikes

    def _with_recurrence(self, i: int, current: Tensor, states: dict[str, Any]) -> Tensor:
        layer = self.spec.layers[i]
        last = states.get(
            "out.last" if layer.recurrent == "top_down" else f"{self.hidden_names()[i]}.last"
        )
        if not layer.recurrent or last is None:
            return current
        if layer.recurrent == "top_down":
            return current + getattr(self, f"down{i}")(last)
        back = getattr(self, f"rec{i}")(last)
        return current + (torch.sigmoid(back) * 0.5 if layer.recurrent == "own_gated" else back)

    def _keep(self, name: str, value: Tensor) -> None:
        if self.spec.recorded == "reduced" and not name.startswith("out"):
            value = (value - 0.1).pow(2).sum()
        self.kept.setdefault(name, []).append(value)

    def _step(self, x: Tensor, states: dict[str, Any]) -> None:
        spec, first = self.spec, x
        below: Tensor | None = None
        n = len(spec.layers)
        for i in range(n - 1 if spec.branch else n):
            x = self._hidden(i, x, below, states)
            below = self.membrane
            if i == 0:
                after_first = x
        if spec.branch:
            other = self._hidden(n - 1, first, None, states)
            if spec.branch == "cat":
                x = torch.cat([x, other], self.features)
            elif spec.branch == "add":
                x = x + other
            else:
                x = x * 1.0
                x += other
        if spec.plain_head:
            at = other if spec.branch else x
            at = at if spec.plain_head == "spikes" else self.membrane
            at = functional.avg_pool2d(at, 2) if spec.pool else at
            self._keep("head", self.head(self._flat(at)))
        self._read(x, first, after_first, states)

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.spec.conv else x

    def _read(self, x: Tensor, first: Tensor, after_first: Tensor, states: dict[str, Any]) -> None:
        spec = self.spec
        if spec.pool:
            pool = functional.avg_pool2d if spec.pool == "avg" else functional.max_pool2d
            x, first, after_first = (pool(each, 2) for each in (x, first, after_first))
        if spec.readout != "conv":
            x = self._flat(x)
            if spec.skip_to_readout:
                x = x + self.skip(
                    self._flat(first if spec.skip_to_readout == "input" else after_first)
                )
        if spec.readout in ("two", "two_neurons"):
            for name in ("policy", "value"):
                current = getattr(self, f"{name}_fc")(x)
                if spec.readout == "two":
                    self._keep(f"out.{name}", current)
                else:
                    self._keep_output(name, f"_{name}", current, states, f"{name}.")
            return
        out = self.readout(x)
        if spec.readout in ("neuron", "linear_neuron"):
            out = self._keep_output("lif_out", "_out", out, states, "")
        elif spec.readout == "block":
            for k, value in enumerate(out if isinstance(out, tuple) else (out,)):
                if isinstance(value, Tensor) and (k == 0 or spec.sees != "spikes"):
                    self._keep(f"out.{k}", value)
        else:
            self._keep("out", out)
        states["out.last"] = out

    def _keep_output(
        self, name: str, at: str, current: Tensor, states: dict[str, Any], prefix: str
    ) -> Tensor:
        spikes, mem = self._fire(name, at, self.spec.output, current, states)
        if self.spec.sees in ("spikes", "both"):
            self._keep(f"out.{prefix}spikes", spikes)
        if self.spec.sees in ("membrane", "both"):
            self._keep(f"out.{prefix}membrane", mem)
        if self.spec.sees == "attribute":
            self._keep(f"out.{prefix}attribute", self.layer(name).mem)
        return spikes

    def forward(self, x: Tensor, states: dict[str, Any] | None = None, t: int | None = None) -> Any:
        """Take a sequence, or a step and the states; return the records by name, and the states."""
        if t in (None, 0):
            self.kept = {}
        states = {} if states is None else dict(states)
        steps = list(enumerate(x)) if t is None else [(t, x)]
        if self.spec.loop == "sequence":
            steps = [(0, x)]
        for self.t, x_t in steps:
            grad = torch.is_grad_enabled() and not (self.spec.burn_in and self.t == 0)
            with torch.set_grad_enabled(grad):
                self._step(x_t, states)
        mine = {k: v for k, v in self.kept.items() if k.startswith("out")}
        rest = {k: v for k, v in self.kept.items() if not k.startswith("out")}
        if t is not None:
            mine, rest = ({k: [v[-1]] for k, v in each.items()} for each in (mine, rest))
        values = mine if self.spec.recorded != "returned" else {**mine, **rest}
        return self._returned(
            {k: v if t is not None else tuple(v) for k, v in values.items()}, states
        )

    def _returned(self, values: dict[str, Any], states: dict[str, Any]) -> Any:
        self.names = list(values)
        if self.spec.returns == "dict":
            return {"values": values, "states": states}
        if self.spec.returns == "object":
            return SimpleNamespace(values=values, states=states)
        return tuple(values.values()), states


def _look_at_gradient(module: nn.Module, args: Any, result: Any) -> None:
    value = result if isinstance(result, Tensor) else result[0]
    if value.requires_grad:
        value.register_hook(lambda g: None)


# -- running ---------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    """Return a generator on the device on which new tensors are made."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def _seed(seed: int) -> None:
    """Seed the generators that layers draw from."""
    torch.default_generator.manual_seed(seed)  # quicker than torch.manual_seed
    if torch.get_default_device().type == "cuda":  # which may be the first that is asked of it
        torch.cuda.manual_seed(seed)


def build(spec: Spec) -> Network:
    """Return the network of a spec, always with the same weights."""
    _seed(spec.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # snnTorch's own, about features that are tried out
        return Network(spec)


def inputs(spec: Spec, batch: int) -> Tensor:
    """Return a batch [T, B, ...]."""
    g = generator(1000 * spec.seed + batch)
    shape = (CHANNELS, SIDE, SIDE) if spec.conv else (WIDTH,)
    return 2 * torch.rand(spec.steps, BATCH, *shape, generator=g)


def run(
    spec: Spec, net: Network, batch: int, backward: Callable[[list[Tensor]], None] | None = None
) -> tuple[dict[str, list[Tensor]], Any, list[Tensor]]:
    """Run a batch; return the records by name, a value for each step, the last states, the losses.

    Args:
        spec: The program.
        net: Its network.
        batch: Which batch.
        backward: Called with each step's losses where the program goes backward after each step;
            otherwise the caller goes backward.
    """
    _seed(7 * spec.seed + batch)  # dropout
    _begin(spec, net)
    x = inputs(spec, batch).requires_grad_(spec.input_grad)
    if spec.loop != "around":
        values, states = _unpack(net, net(x))
        records = _complete(spec, net, {k: list(v) for k, v in values.items()})
        return records, states, losses(spec, records)
    records, states, found = {}, {}, []
    for t, x_t in enumerate(x):
        values, states = _unpack(net, net(x_t, states, t))
        for k, v in values.items():
            records.setdefault(k, []).extend(v)
        if spec.backward == "steps":
            step = _complete(spec, net, {k: list(v) for k, v in values.items()})
            now = losses(spec, {k: v[-1:] for k, v in step.items()})
            found += now
            if backward is not None:
                backward(now)
            states = _detached(states)
            _detach_neurons(net)
    records = _complete(spec, net, records)
    return records, states, found or losses(spec, records)


def _complete(
    spec: Spec, net: Network, records: dict[str, list[Tensor]]
) -> dict[str, list[Tensor]]:
    """Return what the network returned, and what it kept on itself instead."""
    return records if spec.recorded == "returned" else {**net.kept, **records}


def _begin(spec: Spec, net: Network) -> None:
    if spec.carry == "detach":
        _detach_neurons(net)
        return
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


def _detach_neurons(net: Network) -> None:
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            for name, state in [*module._buffers.items(), *vars(module).items()]:
                if isinstance(state, Tensor) and state.grad_fn is not None:
                    setattr(module, name, state.detach())


def _detached(states: Any) -> Any:
    if isinstance(states, dict):
        return {k: _detached(v) for k, v in states.items()}
    if isinstance(states, tuple):
        return tuple(_detached(v) for v in states)
    return states.detach() if isinstance(states, Tensor) else states


def _unpack(net: Network, returned: Any) -> tuple[dict[str, Any], Any]:
    if isinstance(returned, dict):
        return returned["values"], returned["states"]
    if isinstance(returned, tuple):
        return dict(zip(net.names, returned[0], strict=True)), returned[1]
    return returned.values, returned.states


def losses(spec: Spec, records: dict[str, list[Tensor]]) -> list[Tensor]:
    """Return the program's loss; in two parts where it goes backward twice."""
    g = generator(spec.seed + 5)
    main: list[Tensor] = []
    other: list[Tensor] = []
    for name, values in sorted(records.items()):
        if name.startswith("out"):
            main += _output_terms(spec, values, g)
        else:
            # A penalty on activity, over the whole sequence.
            rate = torch.stack(values).mean(0)
            other.append((rate - 0.2).pow(2).sum() * 0.3)
            other.append(values[-1].pow(2).mean() * 0.2)
    if spec.backward == "twice" and other and any(term.requires_grad for term in main):
        return [sum(main[1:], main[0]), sum(other[1:], other[0])]
    terms = main + other
    return [sum(terms[1:], terms[0])]


def _output_terms(spec: Spec, values: list[Tensor], g: torch.Generator) -> list[Tensor]:
    target = torch.rand(len(values), *values[0].shape, generator=g)
    if spec.when == "never" and any(layer.penalty for layer in spec.layers):
        return [0.0 * values[0].detach().sum()]
    if spec.when == "sum":
        return [(torch.stack(values).sum(0) - 2 * target[0]).pow(2).sum()]
    some = {"last": values[-1:], "ends": [values[0], values[-1]]}.get(spec.when, values)
    return [
        (0.5 + k) * (v - y).pow(2).mean()
        for k, (v, y) in enumerate(zip(some, target, strict=False))
    ]
