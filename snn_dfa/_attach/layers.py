"""Finding a network's layers and its outputs; the errors about arguments are raised here."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType, ModuleType
from typing import Any, TypeAlias
from weakref import ProxyTypes

import snntorch as snn
from torch import Tensor, nn

from snn_dfa._attach import messages
from snn_dfa._attach.graph import PORT, origin_of
from snn_dfa._attach.weights import computes_as, synapses
from snn_dfa.errors import AttachError
from snn_dfa.sequence import NeuronOverTime, Scan
from snn_dfa.sequence.attached import Attached

__all__ = [
    "Layers", "Structure", "children_of", "find_layers", "has_hidden_state", "is_attached",
    "is_spiking", "spiking_layers", "takes_sequences",
]  # fmt: skip

# They take a whole sequence [T, B, ...] in one call, where the other neurons take a step [B, ...].
_SEQUENCE_NEURONS = (snn.StateLeaky, snn.AssociativeLeaky, snn.LeakyParallel, Scan)


_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
#: What holds no neuron that DFA could not see.
_HOLD_NONE: tuple[Any, ...] = (
    int, float, str, bytes, type(None), Tensor, type, ModuleType, *ProxyTypes,
)  # fmt: skip
#: How far it is looked for neurons that are no modules of the network.
_DEEPEST, _MOST_LOOKED_AT = 5, 10_000


@dataclass
class Layers:
    """The layers that take part, by name alone, in the order in which they are registered.

    Args:
        names: All of them.
        neurons: Those that are spiking neurons.
        sequences: Those that take a whole sequence [T, B, ...] in one call.
        outputs: The outputs; empty while no forward pass has shown which neuron is called last.
        named: Whether the user said which are hidden.
        given: Whether the user said which are the outputs.
        sizes: How many numbers those outputs have of which it is known before they are called.
    """

    names: list[str]
    neurons: set[str]
    sequences: set[str]
    outputs: tuple[str, ...] = ()
    named: bool = False
    given: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def hidden(self) -> list[str]:
        """Names of all but the outputs; empty while these are not known."""
        return [n for n in self.names if n not in self.outputs] if self.outputs else []

    def may_be_output(self, name: str) -> bool:
        """Return whether a layer is an output, or may turn out to be one."""
        return name in self.outputs if self.outputs else name in self.neurons


def is_spiking(module: nn.Module) -> bool:
    """Whether the module is one of snnTorch's neurons, or over a sequence made of one."""
    return isinstance(module, (snn.SpikingNeuron, snn.LeakyParallel, NeuronOverTime))


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Return the spiking layers by name; the neuron inside a scan is not one more."""
    inside = {m.neuron for m in net.modules() if isinstance(m, NeuronOverTime)}
    return {n: m for n, m in net.named_modules() if is_spiking(m) and m not in inside}


def takes_sequences(module: nn.Module) -> bool:
    """Return whether a layer takes a whole sequence [T, B, ...] in one call."""
    return isinstance(module, _SEQUENCE_NEURONS)


def has_hidden_state(module: nn.Module) -> bool:
    """Return whether a call of a layer begins with what the last one has left in it."""
    if isinstance(module, NeuronOverTime):
        return module.stateful
    return bool(getattr(module, "init_hidden", False))


def is_attached(net: nn.Module) -> bool:
    """Return whether a module of the network has a ``forward`` of this library."""
    return any(isinstance(vars(m).get("forward"), Attached) for m in net.modules())


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
        got = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
        raise AttachError(f"net: expected a torch.nn.Module, such as Net(), got {got}")
    if isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise AttachError(
            f"net: expected the network itself, got it wrapped in {type(net).__name__}; give "
            f"net.module, before or after wrapping"
        )
    for name, module in net.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise AttachError(
                f"net: expected a network that is not compiled yet, got "
                f"{repr(name) if name else 'it'} compiled, and compiled code does not run the "
                f"hooks of DFA; call DFA(net) first, then torch.compile(net)"
            )


def _refuse_unregistered(net: nn.Module) -> None:
    """Refuse neurons that are no modules of the network, and would not be seen."""
    known, own = {id(m) for m in net.modules()}, {id(p) for p in net.parameters()}
    for module in net.modules():
        for attribute, value in vars(module).items():
            if any(
                isinstance(each, snn.SpikingNeuron) or (listed and _learns_unseen(each, own))
                for each, listed in _modules_in(value)
                if id(each) not in known
            ):
                raise AttachError(
                    f"net: expected each neuron to be a module of the network, got one in the "
                    f"plain {type(value).__name__} {attribute!r} of a {type(module).__name__}; put "
                    f"neurons in an nn.ModuleList or nn.ModuleDict, and make the optimiser anew"
                )


def _modules_in(value: Any) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the modules in an attribute, and whether nothing but containers holds them.

    It looks into containers and plain objects inside each other, but not into those of libraries,
    which may hold other networks, nor into what a program has very many of, as samples.
    """
    seen, found = set[int](), 0
    todo: list[tuple[Any, bool, int]] = []
    if not isinstance(value, _HOLD_NONE):
        todo.append((value, False, 0))
    while todo and found < _MOST_LOOKED_AT:
        each, listed, depth = todo.pop()
        if isinstance(each, nn.Module):
            yield each, listed
        elif depth < _DEEPEST and id(each) not in seen:
            seen.add(id(each))
            is_container = isinstance(each, _CONTAINERS)
            parts = [part for part in _parts_of(each) if not isinstance(part, _HOLD_NONE)]
            found += len(parts)
            todo += [(part, is_container and (listed or not depth), depth + 1) for part in parts]


def _parts_of(value: Any) -> Iterable[Any]:
    """Return what a container or a plain object holds."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, _CONTAINERS):
        return value
    origin = type(value).__module__.partition(".")[0]
    if callable(value) or origin in ("torch", "snntorch", "snn_dfa"):
        return ()
    return getattr(value, "__dict__", {}).values()


def _learns_unseen(module: nn.Module, known: set[int]) -> bool:
    """Return whether a module is a neuron, or holds some and has parameters that learn of its own.

    A frozen teacher has none, nor has what shares the parameters of the network.
    """
    if isinstance(module, snn.SpikingNeuron):
        return True
    learns = any(p.requires_grad and id(p) not in known for p in module.parameters())
    return learns and any(isinstance(m, snn.SpikingNeuron) for m in module.modules())


#: What names a layer: its name or itself.
Reference: TypeAlias = str | nn.Module


def _listed(references: Reference | Iterable[Reference] | None) -> list[Reference] | None:
    if references is None:
        return None
    return [references] if isinstance(references, (str, nn.Module)) else list(references)


def find_layers(
    net: nn.Module,
    output: Reference | Sequence[Reference] | None,
    hidden: Reference | Iterable[Reference] | None,
) -> tuple[Layers, dict[str, nn.Module]]:
    """Find who is hidden and who is an output.

    Args:
        net: The network.
        output: Name or module, or several; ``None`` for the spiking neuron that is called last.
        hidden: Names or modules; ``None`` for every spiking neuron but the outputs.

    Returns:
        The layers, and their modules by name.

    Raises:
        AttachError: if a reference is not in the network or nothing is left to be trained.
    """
    _refuse_wrapped(net)
    if is_attached(net):
        raise AttachError(
            "net: expected a network without DFA, got one that has it; call remove() on the "
            "DFA that is attached"
        )
    _refuse_unregistered(net)
    names = {module: name for name, module in net.named_modules()}
    neurons = spiking_layers(net)
    listed, outputs = _listed(hidden), _listed(output)
    chosen = None if listed is None else dict(_resolve(names, h, "hidden") for h in listed)
    if not neurons and chosen is None:
        raise AttachError(
            "net: expected at least one spiking neuron of snnTorch, found none. Are the neurons in "
            "a plain list? Put them into an nn.ModuleList. Does the network have no neurons? Name "
            "its layers with hidden=[...] and output="
        )
    outs: dict[str, Any] = (
        {} if outputs is None else dict(_resolve(names, o, "output") for o in outputs)
    )
    if outputs is None and chosen is not None:
        outs = dict([_only_neuron_left(neurons, chosen)])
    modules = dict(neurons if chosen is None else chosen)
    for name, module in outs.items():
        if chosen is not None and name in chosen:
            raise AttachError(f"hidden: {name!r} is the output too; name it once")
        modules.pop(name, None)
        modules[name] = module
    if len(modules) < 2 or len(modules) == len(outs):
        last = [repr(name) for name in synapses(net) if name not in modules][-1:]
        raise AttachError(
            f"net: expected an output and at least one hidden spiking layer, found only "
            f"{next(iter(modules))!r}; if the last layer is not a spiking neuron, name it with "
            f"output={''.join(last)}"
        )
    layers = Layers(
        names=list(modules),
        neurons={n for n, m in modules.items() if is_spiking(m)},
        sequences={n for n, m in modules.items() if takes_sequences(m)},
        outputs=tuple(outs),
        named=chosen is not None,
        given=bool(outs),
        sizes={n: m.out_features for n, m in outs.items() if computes_as(m, [nn.Linear])},
    )
    return layers, modules


def children_of(net: nn.Module) -> list[tuple[Mapping[str, Any], tuple[Any, ...]]]:
    """Return where each module of a network keeps its children, and which these are now."""
    return [(m._modules, tuple(m._modules.values())) for m in net.modules()]


class Structure:
    """The modules of a network, as they were when DFA was attached. It does not hold the network.

    Args:
        net: The network.
        layers: Its layers.
        modules: Their modules by name.
    """

    def __init__(self, net: nn.Module, layers: Layers, modules: Mapping[str, nn.Module]) -> None:
        self._net, self._layers = weakref.ref(net), layers
        self._modules = weakref.WeakValueDictionary(modules)
        self._seen = children_of(net)

    def check(self) -> None:
        """See that the layers are those that DFA was attached to.

        Raises:
            AttachError: naming one that is new or gone.
        """
        net = self._net()
        if net is None or all([now == tuple(store.values()) for store, now in self._seen]):
            return
        known = dict(self._modules)
        there = set(net.modules())
        gone = [name for name in self._layers.names if known.get(name) not in there]
        neurons = {} if self._layers.named else spiking_layers(net)
        new = [name for name, module in neurons.items() if module not in known.values()]
        if gone or new:
            raise messages.changed(gone, new)
        self._seen = children_of(net)

    def see_unseen(self, called: Collection[str], since: int) -> None:
        """See that no layer has run in a forward pass without being called.

        Such a layer has a state that this pass has made of other layers' values or of parameters.

        Args:
            called: The layers that were called.
            since: The number of the first node of the pass.

        Raises:
            AttachError: naming one that has, or whose plain ``forward`` is back in its place.
        """
        for name in self._layers.names:
            module = None if name in called else self._modules.get(name)
            if module is None:
                continue
            if _is_plain(module):
                raise AttachError(
                    f"layer {name!r}: the program has deleted its forward, or set it again, after "
                    f"DFA(net), so that DFA does not see its calls; expected the forward that "
                    f"DFA(net) has set. Call dfa.remove() before, and DFA(net) again after it"
                )
            states = (
                t for m in module.modules() for t in (*m._buffers.values(), *vars(m).values())
            )
            if any(isinstance(t, Tensor) and _is_made(t, name, since) for t in states):
                raise AttachError(
                    f"layer {name!r} was not called in this forward pass, but its state is a new "
                    f"one, made of other layers' values or of parameters: it has run unseen, and "
                    f"would let back-propagation through; expected calls of the module itself. "
                    f"Write lif(x, mem) in place of snn.Leaky.forward(lif, x, mem). Does the "
                    f"program set a state of a layer that it does not call? Set it where the layer "
                    f"is called"
                )

    def hooked(self) -> list[str]:
        """Return the hidden layers with a hook that an error at their spikes would go past."""
        modules = ((name, self._modules.get(name)) for name in self._layers.hidden)
        return [
            name
            for name, module in modules
            if module is not None
            and (module._backward_hooks or module._backward_pre_hooks)
            and getattr(module, "_is_full_backward_hook", True) is not False
        ]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module's own ``forward`` is in the place of what ``DFA(net)`` set there."""
    own = vars(module).get("forward")
    return own is None or (isinstance(own, MethodType) and own.__func__ is type(module).forward)


def _is_made(state: Tensor, layer: str, since: int) -> bool:
    """Return whether a layer's state was made since, and not of the layer's own values alone."""
    node: Any = state.grad_fn
    if node is None or type(node) is PORT or node._sequence_nr() < since:
        return False
    origin = origin_of([state], lambda _: True)
    made_of = {port.call.layer for port, _ in origin.ports}
    return bool(made_of - {layer}) or (bool(origin.leaves) and not made_of)


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
