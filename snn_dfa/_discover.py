"""Finding a network's spiking layers and its output; every refusal happens here, before a hook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import snntorch as snn
from torch import Tensor, nn

from snn_dfa._hooks import is_attached
from snn_dfa.errors import AttachError
from snn_dfa.sequence import Scan

__all__ = ["Layers", "batch_dims", "find_layers", "is_spiking", "spiking_layers"]

# They take a whole sequence [T, B, ...] in one call, where the other neurons take a step [B, ...].
_SEQUENCE_NEURONS = (snn.StateLeaky, snn.AssociativeLeaky, snn.LeakyParallel, Scan)


@dataclass
class Layers:
    """The layers that take part, by qualified name, in the order in which they are registered.

    ``output`` is ``None`` while it is not known which of them is called last. ``named`` says that
    the user said which are hidden, ``looking`` that it is being found out what leads where.
    """

    modules: dict[str, nn.Module]
    output: str | None
    named: bool = False
    looking: bool = False

    @property
    def cut(self) -> bool:
        """Whether hidden layers are cut off at once, and not only in the backward pass."""
        return self.output is not None and not self.looking

    @property
    def hidden(self) -> list[str]:
        """Names of all but the output; empty while the output is not known."""
        return [n for n in self.modules if n != self.output] if self.output is not None else []

    @property
    def may_be_hidden(self) -> list[str]:
        """Names of all that are not known to be the output."""
        return [n for n in self.modules if n != self.output]


def is_spiking(module: nn.Module) -> bool:
    """Whether the module is one of snnTorch's neurons, or over a sequence made of one."""
    return isinstance(module, (snn.SpikingNeuron, snn.LeakyParallel, Scan))


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return the spiking layers by name; the neuron inside a :class:`Scan` is not one more."""
    inside = {m.neuron for m in net.modules() if isinstance(m, Scan)}
    return {n: m for n, m in net.named_modules() if is_spiking(m) and m not in inside}


def batch_dims(module: nn.Module, output: Tensor) -> int:
    """Return how many leading dimensions of an output layer's result are not features.

    One for a step [B, C], two for a sequence [T, B, C], none for a lone sample [C]. A neuron may
    have several feature dimensions, a plain readout has one.
    """
    if not is_spiking(module):
        return output.dim() - 1
    return min(2 if isinstance(module, _SEQUENCE_NEURONS) else 1, output.dim() - 1)


def _resolve(
    names: Mapping[nn.Module, str], reference: str | nn.Module, argument: str
) -> tuple[str, nn.Module]:
    """Return name and module of a reference that is either."""
    if isinstance(reference, nn.Module):
        if reference not in names:
            raise AttachError(
                f"{argument}: expected a module of the network, got a "
                f"{type(reference).__name__} that is not part of it"
            )
        return names[reference], reference
    for module, name in names.items():
        if name == reference and name:
            return name, module
    raise AttachError(
        f"{argument}: expected the name of a module of the network, one of "
        f"{[n for n in names.values() if n]}, got {reference!r}"
    )


def _refuse_wrapped(net: nn.Module) -> None:
    """Refuse what is no module, or a wrapper of one, in which hooks would not be seen."""
    if not isinstance(net, nn.Module):
        raise AttachError(f"net: expected a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise AttachError(
            f"net: expected the network itself, got it wrapped in {type(net).__name__}; give "
            f"net.module, before or after wrapping"
        )
    for name, module in net.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise AttachError(
                f"net: expected a network that is not compiled yet, got "
                f"{repr(name) if name else 'it'} compiled, whose code would pass over the hooks; "
                f"attach first and compile then"
            )


def find_layers(
    net: nn.Module,
    output: str | nn.Module | None,
    hidden: Iterable[str | nn.Module] | None,
) -> Layers:
    """Find who is hidden and who is the output.

    Args:
        net: The network.
        output: Name or module; ``None`` for the spiking neuron that is called last.
        hidden: Names or modules; ``None`` for every spiking neuron but the output.

    Raises:
        AttachError: if a reference is not in the network or nothing is left to be trained.
    """
    _refuse_wrapped(net)
    if is_attached(net):
        raise AttachError(
            "net: expected a network without DFA, got one that has it; call remove() on the "
            "DFA that is attached"
        )
    names = {module: name for name, module in net.named_modules()}
    neurons = spiking_layers(net)
    if isinstance(hidden, (str, nn.Module)):
        hidden = [hidden]
    chosen = None if hidden is None else dict(_resolve(names, h, "hidden") for h in hidden)
    if not neurons and chosen is None:
        raise AttachError(
            "net: expected at least one snntorch.SpikingNeuron, found none; name the layers with "
            "hidden= and output="
        )
    out = None if output is None else _resolve(names, output, "output")
    if out is None and chosen is not None:
        out = _only_neuron_left(neurons, chosen)
    modules = dict(neurons if chosen is None else chosen)
    if out is not None:
        if chosen is not None and out[0] in chosen:
            raise AttachError(f"hidden: {out[0]!r} is the output too; name it once")
        modules.pop(out[0], None)
        modules[out[0]] = out[1]
    if len(modules) < 2:
        raise AttachError(
            f"net: expected an output and at least one hidden spiking layer, found only "
            f"{next(iter(modules))!r}; name others with hidden= and output="
        )
    return Layers(modules, None if out is None else out[0], named=chosen is not None)


def _only_neuron_left(
    neurons: Mapping[str, nn.Module], hidden: Mapping[str, nn.Module]
) -> tuple[str, nn.Module]:
    """Return the one neuron that is not hidden: with hidden= given it must be the output."""
    left = [name for name in neurons if name not in hidden]
    if len(left) != 1:
        raise AttachError(
            f"output: with hidden= given, expected one spiking neuron to be left as the output, "
            f"found {left}; name it with output="
        )
    return left[0], neurons[left[0]]
