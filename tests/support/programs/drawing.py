"""Drawing a spec from a seed, and what of it goes together."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from programs.choices import (
    CHOICES,
    EXTRA,
    LAYER_CHOICES,
    RECURRENT,
    SEQUENCE,
    STATES,
    Layer,
    Spec,
    spiking_output,
)


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
        **choose({name: values for name, values in CHOICES.items() if name != "reads"}, keep),
    )
    # From a generator of its own: the other choices of a seed are as they were without this one.
    once = random.Random(f"reads {seed}")
    if once.random() < 0.15 if not only else "reads" in only:
        spec = replace(spec, reads=once.choice(("last", "all")))
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
    if spec.reads != "each":
        if spec.loop != "inside" or spec.backward == "steps":
            change["reads"] = "each"
        else:
            change["named"] = True
    if spec.reads == "all":
        readout = spec.readout if spec.readout in ("linear", "scalar", "two") else "linear"
        change |= {
            "burn_in": False,
            "readout": readout,
            "sees": "spikes",
        }  # of a step without a graph none is known
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
    elif layer.recurrent == "top_down" and (
        spec.readout not in ("neuron", "linear") or spec.reads != "each"
    ):
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
