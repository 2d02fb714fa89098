"""The errors of a network that runs, in words: who, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from snn_dfa.errors import AttachError, FeedbackError

__all__ = [
    "called_late",
    "changed",
    "heads",
    "hooked",
    "other_steps",
    "out_of_step",
    "refuse_repetition",
    "refuse_unled",
    "second_output",
    "unnamed_readout",
]


def out_of_step(hidden: str, output: str | None, calls: Mapping[str, int]) -> str:
    """Say that a hidden layer and the output were not called equally often."""
    return (
        f"hidden layer {hidden!r} was called {calls.get(hidden, 0)} times and the output "
        f"{output!r} {calls.get(output or '', 0)} times in one forward pass; expected as many "
        f"calls of each: if {output!r} is not the output, name the one that is with output=, and "
        f"name the layers that keep step with it with hidden=; a neuron that stands for several "
        f"layers must be a neuron of its own for each, which may share weights; a step that an "
        f"exception has broken off counts, too, until this error"
    )


def called_late(hidden: str, outputs: Sequence[str]) -> str:
    """Say that a layer was called after all outputs of its step."""
    output = " and ".join(map(repr, outputs))
    return (
        f"hidden layer {hidden!r} is called after the output {output} of its step; expected an "
        f"output last: name the layer that is the output with output=; if {hidden!r} lies behind "
        f"the output, name the layers before it with hidden="
    )


def other_steps(hidden: str, spikes: Sequence[int], output: Sequence[int], dims: int) -> str:
    """Say that a layer has another number of steps or samples than the output."""
    return (
        f"hidden layer {hidden!r}: expected spikes of shape {list(output[:dims])} followed by its "
        f"neurons, since the output has shape {list(output)}, got {list(spikes)}"
    )


def second_output(other: str, output: str) -> str:
    """Say that the loss reads a layer whose values go to no other layer."""
    return (
        f"layer {other!r}: expected its spikes to go on to another layer, and they go to the loss "
        f"alone, like those of the output {output!r}; name all outputs, output=[{output!r}, "
        f"{other!r}], or name the layers that learn from the error of {output!r} with hidden="
    )


def unnamed_readout(name: str, output: str) -> str:
    """Say that the loss reads the output through weights."""
    return (
        f"output: expected the last neuron to be the output, got weights behind it: {name!r} is "
        f"called with what {output!r} returned, and the error would come to that through their "
        f"transpose; name the one that is meant, output={name!r} or output={output!r}"
    )


def heads(found: Mapping[str, str], outputs: Sequence[str]) -> str:
    """Say that the loss reads layers through weights that are no output."""
    first, layer = next(iter(found.items()))
    named = ", ".join(map(repr, [*outputs, *found]))
    return (
        f"the loss reads layer {layer!r} through {first!r}, which is no output: its loss goes "
        f"through the true weights of {first!r} into {layer!r} and no further; if {first!r} is an "
        f"output too, name it: output=[{named}]"
    )


def changed(gone: Sequence[str], new: Sequence[str]) -> str:
    """Say that the network has other layers than when DFA was attached to it."""
    if gone:
        return (
            f"layer {gone[0]!r} is no longer a part of the network, and what has taken its place "
            f"would be left to back-propagation; call remove(), and attach DFA to the network as "
            f"it is"
        )
    return (
        f"layer {new[0]!r} has come into the network since DFA was attached, and would be left to "
        f"back-propagation; call remove(), and attach DFA to the network as it is"
    )


def refuse_repetition(name: str, module: nn.Module, *, whole: bool) -> None:
    """Raise an error for a call that activation checkpointing repeats, where it is another call.

    Args:
        name: Of the layer.
        module: The layer.
        whole: Whether the whole network's pass is repeated.

    Raises:
        AttachError: if only some layers are repeated, or the layer's state is hidden in it.
    """
    said = f"layer {name!r} is called in a backward pass, as activation checkpointing does, and "
    if not whole:
        raise AttachError(
            f"{said}its spikes are joined to the output already; checkpoint the whole network, or "
            f"layers without spiking neurons"
        )
    if getattr(module, "init_hidden", False):
        raise AttachError(
            f"{said}its hidden state would go on from another membrane than before; pass states "
            f"explicitly, use over_time, or checkpoint layers without spiking neurons"
        )


def refuse_unled(learns: bool) -> None:
    """Raise an error for feedback that takes its step when a pass begins, where passes repeat.

    Raises:
        FeedbackError: if it is such.
    """
    if learns:
        raise FeedbackError(
            "feedback: expected one that does not learn with the passes of the network, which "
            "activation checkpointing repeats; call dfa.follow(optimizer)"
        )


def nested(name: str, inside: str) -> AttachError:
    """Say that a layer is called inside another one."""
    return AttachError(
        f"layer {name!r} is called inside layer {inside!r}; expected layers one after the other: "
        f"name either {inside!r} or the layers inside it with hidden="
    )


def hooked(layer: str) -> str:
    """Say that a hook changes the gradient of a state that comes back into its layer."""
    return (
        f"layer {layer!r}: a hook (register_hook) changes the gradient of a value of the layer "
        f"that comes back into it; expected a hook that looks and returns None, since the parts "
        f"of that gradient are not in one sum here; put the hook on a value that is made of it, "
        f"such as mem * 1.0, and hand that on"
    )


def functional_weight(layer: str) -> AttachError:
    """Say that a function uses a weight that has feedback."""
    return AttachError(
        f"rule='fa': expected the weight of layer {layer!r} to be used by that layer alone, got a "
        f"function that uses it, and whose error would go through the true weight; call the layer, "
        f"or use another rule"
    )


def shallow_distributed() -> AttachError:
    """Say that hidden parameters would get gradients of zero."""
    return AttachError(
        "rule='shallow': DistributedDataParallel gives the parameters of hidden layers gradients "
        "of zero, by which weight decay would change them; freeze them, requires_grad_(False), and "
        "train the network without DFA, which is the same"
    )
