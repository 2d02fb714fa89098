"""What a program may choose, and the spec of its choices."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

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
    # Whether the output is called at each step, or once, after the loop: on the last step, or on all
    # steps side by side, whose dimension is the first or the second one.
    "reads": ("each", "last", "all"),
    # Which of a spiking output's values the loss sees; attribute: lif.mem.
    "sees": ("spikes", "membrane", "both", "attribute"),
    "when": ("all", "sum", "last", "ends", "never"),
    # How the loss comes by what is neither spikes nor membrane of the output.
    # reduced: a number for each step, kept on the network.
    "recorded": ("returned", "self", "hooks", "reduced"),
    # written: the states are written into the dictionary that the network was given.
    "returns": ("tuple", "dict", "object", "written"),
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
    reads: str = "each"
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
