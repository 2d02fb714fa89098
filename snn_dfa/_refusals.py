"""What is refused while a network runs, in words: who, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from torch import nn

from snn_dfa.errors import AttachError, FeedbackError

__all__ = [
    "other_steps",
    "out_of_step",
    "refuse_gone",
    "refuse_repetition",
    "refuse_second_output",
    "refuse_unled",
]


def out_of_step(hidden: str, output: str | None, calls: Mapping[str, int]) -> str:
    """Say that a hidden layer and the output were not called equally often."""
    return (
        f"hidden layer {hidden!r} was called {calls.get(hidden, 0)} times and the output "
        f"{output!r} {calls.get(output or '', 0)} times in one forward pass; expected as many "
        f"calls of each: if {output!r} is not the output, name the one that is with output=, and "
        f"name the layers that keep step with it with hidden=; a neuron that stands for several "
        f"layers must be a neuron of its own for each, which may share weights"
    )


def other_steps(hidden: str, spikes: Sequence[int], output: Sequence[int], dims: int) -> str:
    """Say that a layer has another number of steps or samples than the output."""
    return (
        f"hidden layer {hidden!r}: expected spikes of shape {list(output[:dims])} followed by its "
        f"neurons, since the output has shape {list(output)}, got {list(spikes)}"
    )


def refuse_second_output(learns: Iterable[str], output: str | None, taken: Container[str]) -> None:
    """Refuse a second output, which would get the error of the first through a matrix.

    Args:
        learns: The layers that have something to learn.
        output: The output among them.
        taken: Those whose spikes others were given.

    Raises:
        AttachError: naming it.
    """
    other = next((name for name in learns if name != output and name not in taken), None)
    if other is not None:
        raise AttachError(
            f"layer {other!r}: expected its spikes to go on to another layer, and they go to none, "
            f"like those of the output {output!r}; one output is known to DFA: name the layers "
            f"that learn from its error with hidden=, and {other!r} is left to its own loss"
        )


def refuse_gone(net: nn.Module, layers: Mapping[str, nn.Module], called: Container[str]) -> None:
    """Refuse layers that another module has taken the place of, which DFA would not see.

    Args:
        net: The network.
        layers: Its layers as they were.
        called: Those that were called.

    Raises:
        AttachError: if one of the others is no longer there.
    """
    missing = [name for name in layers if name not in called]
    there = set(net.modules()) if missing else set()
    for name in missing:
        if layers[name] not in there:
            raise AttachError(
                f"layer {name!r} is no longer a part of the network, and what has taken its place "
                f"would be left to back-propagation; call remove(), and attach DFA to the network "
                f"as it is"
            )


def refuse_repetition(name: str, module: nn.Module, *, whole: bool) -> None:
    """Refuse a call that activation checkpointing repeats, where it would be another call.

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
    """Refuse feedback that takes its step when a pass begins, where passes are repeated.

    Raises:
        FeedbackError: if it is such.
    """
    if learns:
        raise FeedbackError(
            "feedback: expected one that does not learn with the passes of the network, which "
            "activation checkpointing repeats; call dfa.follow(optimizer)"
        )
