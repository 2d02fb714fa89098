"""All parts of one attachment, in the order in which they must be placed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from snn_dfa._attach.between.paths import Paths
from snn_dfa._attach.core import Core
from snn_dfa._attach.credits.credit_forward import CreditForward
from snn_dfa._attach.credits.feedback_alignment import AlignedForward, Alignment
from snn_dfa._attach.credits.local_gradient import LocalGradient
from snn_dfa._attach.credits.trace import traces_of
from snn_dfa._attach.hooks import sweep
from snn_dfa._attach.layer_forward import LayerForward
from snn_dfa._attach.layers import Layers, Structure
from snn_dfa._attach.network_forward import NetworkForward, parameters_of
from snn_dfa._attach.steps.known_neurons import known_class
from snn_dfa._attach.weights import added_parameters
from snn_dfa._distributed import States
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.rules import RULES
from snn_dfa.sequence import TimeAsBatch

__all__ = ["Part", "assemble"]


class Part(Protocol):
    """What can be taken off."""

    def remove(self) -> None:
        """Take it off."""


def assemble(
    net: nn.Module,
    layers: Layers,
    modules: Mapping[str, nn.Module],
    feedback: FeedbackWeights,
    paths: Paths,
    weights: Mapping[str, Any],
    *,
    rule: str,
    credit: str,
    derivative: Callable[[Tensor], Tensor] | None,
    at_current: bool = False,
) -> tuple[Core, list[Part]]:
    """Attach to a network that has been found fit; return the core, and all that can be removed.

    Args:
        net: The network.
        layers: Its layers.
        modules: Their modules by name.
        feedback: The feedback.
        paths: Finds which weights lie between layers.
        weights: For ``rule="fa"`` the modules whose transposes are replaced; else empty.
        rule: Name of the rule.
        credit: Name of the credit.
        derivative: Slope for ``credit="current"``.
        at_current: Whether the error of a spiking output is taken at its current.

    Raises:
        AttachError: if a layer cannot have the credit; nothing is changed then.
    """
    sweep(net)
    closed = {name: _is_closed(module) for name, module in modules.items()}
    local = LocalGradient(modules, layers.outputs, derivative) if credit == "current" else None
    core = Core(
        layers, RULES[rule], feedback, paths, Structure(net, layers, modules),
        parameters_of(net)(), aligned=bool(weights), traced=credit == "trace",
        at_current=at_current,
        layouts=[m.layout for m in net.modules() if isinstance(m, TimeAsBatch)],
    )  # fmt: skip
    parts: list[Part] = []
    states = States()
    layer: Callable[..., Part] = LayerForward
    if weights:
        parts.append(Alignment(dict(weights), core, whole=bool(added_parameters(net))))
    if local is not None:
        layer = partial(CreditForward, credit=local)
    elif credit == "trace":
        traces = traces_of(net, modules, core)
        parts.append(traces)
        layer = partial(CreditForward, credit=traces)
    parts += [layer(n, m, core, closed=closed[n], states=states) for n, m in modules.items()]
    if weights:
        parts.append(AlignedForward(net, core, states, dict(weights)))
    else:
        parts.append(NetworkForward(net, core, states))
    return core, parts[::-1]


def _is_closed(module: nn.Module) -> bool:
    """Return whether values come out of a module by its result and its own attributes alone.

    So it is with snnTorch's neurons and this library's, and with subclasses that compute as they
    do, if what they hold is such a neuron or a layer of torch; of others it is not known.
    """
    origin = type(module).__module__.partition(".")[0]
    plain = "forward" not in vars(module)
    known = origin in ("snntorch", "snn_dfa") or known_class(module) is not None
    known = known and all(_is_closed(child) for child in module.children())
    return plain and (known or _is_torch_leaf(module))


def _is_torch_leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") and not module._modules
