"""Which layers with weights lie between two layers: read off autograd's graph."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snn_dfa._attach.calls import Layers
from snn_dfa._attach.graph import kept_weights, sources_of
from snn_dfa._attach.inflows import NotLinearError, Signature, Structure, inflow_of
from snn_dfa._attach.weights import (
    SYNAPSES,
    computes_as,
    gradient_to_mirror,
    own_step,
    synapse,
    synapses,
    weight_in_use,
)
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.base import Shapes
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["Paths"]


def _own_step(x: Inflow, name: str, module: Any, shape: tuple[int, ...]) -> Inflow:
    if isinstance(module, nn.Linear) and shape[-1] != module.in_features:
        raise NotLinearError(f"the transpose of {name!r}")  # weights that are tied
    return own_step(x, name, module, shape)


def _takes_its_parameter(module: Any) -> bool:
    return "weight" in module._parameters and computes_as(module, SYNAPSES)


#: A linear function, and the functions below it that have a derivative for each sample.
_Read: TypeAlias = tuple[Inflow, Signature]


def _covers(one: Inflow, other: Inflow) -> bool:
    """Return whether all that flows into another inflow flows into one."""
    more, less = ({*each.sources, *each.weights} for each in (one, other))
    return less < more or (less == more and len(other.needs) <= len(one.needs))


class Paths:
    """From each layer the paths to others, by the names of the layers with weights on them.

    The product of the weights from a hidden layer to the output is the matrix that a gradient is
    multiplied by on its way back, but for the neurons' slopes and a normalisation's factors.
    Paths are traced in the passes up to the first backward pass, and again when a layer learns for
    the first time.

    Args:
        net: The network; it is not kept alive.
        layers: Its layers.
    """

    def __init__(self, net: nn.Module, layers: Layers) -> None:
        self.tracing = False
        self._net = weakref.ref(net)
        self._layers = layers
        self._found: dict[str, set[tuple[tuple[str, ...], str]]] = {}
        self._looked_for: set[str] = set()
        #: First layer with weights after a layer, by which the loss reads it -> that layer.
        self.heads: dict[str, str] = {}
        self._inflows: dict[str, Inflow] = {}
        #: Layer without an inflow -> why it has none, and the layers that it was made of.
        self._unknown: dict[str, tuple[str, list[str]]] = {}
        # Of each layer, what came in since the last backward pass, and in the round before: the
        # linear function of each structure, ``None`` where there is none. Beside it those that
        # count.
        self._of_round: dict[str, dict[Structure, _Read | None]] = {}
        self._last_round: dict[str, dict[Structure, _Read | None]] = {}
        self._chosen: dict[str, list[_Read]] = {}
        #: Of the functions into each layer that have a derivative for each sample.
        self.signatures: dict[str, Signature] = {}

    def look_for(self, layer: str) -> None:
        """See that the paths from a layer that learns are traced once."""
        if layer not in self._looked_for:
            self._looked_for.add(layer)
            self.tracing = True

    def note(
        self, layer: str, value: Tensor, mine: Callable[[Any], bool], *, by_sample: bool
    ) -> None:
        """Note where a value that comes into a layer was made."""
        for source, weights in self.sources(value, mine):
            if source != layer:
                if layer in self._synapses():  # a readout
                    weights = (*weights[:1], layer)
                self._found.setdefault(source, set()).add((weights, layer))
        if layer in self._of_round:
            return  # it has been seen
        made = self._read(layer, value, mine, by_sample=by_sample)
        if made is not None:
            known = self._inflows.get(layer)
            if known is None or (_covers(made[0], known) and not _covers(known, made[0])):
                self._inflows[layer], self.signatures[layer] = made

    def see(
        self, layer: str, structure: Structure, value: Tensor, mine: Callable[[Any], bool]
    ) -> None:
        """Read anew what comes into a layer where it is made in another way than before.

        So it is where a program fades a branch in, leaves layers out by chance, or has a layer for
        each task or step. Of a round's ways into a layer one counts into which all others flow, and
        of several the mean.
        """
        of_round = self._of_round.setdefault(layer, {})
        if structure in of_round:
            return
        chosen = self._chosen[layer] if of_round else []
        known = self._last_round.get(layer, {})
        if structure in known:
            found = known[structure]
        else:
            found = self._read(layer, value, mine, by_sample=True)
        of_round[structure], self._chosen[layer] = found, chosen
        if found is None or any(_covers(each[0], found[0]) for each in chosen):
            return
        chosen[:] = [each for each in chosen if not _covers(found[0], each[0])] + [found]
        if len(chosen) > 1 and not any(each.needs for each, _ in chosen):
            mean = stand_in.multiply(stand_in.total([each for each, _ in chosen]), 1 / len(chosen))
            found = mean, ()
        self._inflows[layer], self.signatures[layer] = found

    def next_round(self) -> None:
        """Begin anew to see what comes into layers: a backward pass has read the last round."""
        self._last_round |= self._of_round
        self._of_round = {}

    def _read(
        self, layer: str, value: Tensor, mine: Callable[[Any], bool], *, by_sample: bool
    ) -> _Read | None:
        """Return what comes into a layer as a linear function, ``None`` if there is none."""
        names, modules = self._names(), self._synapses()
        try:
            if layer not in modules:
                self._see_that_it_is_linear(layer)
            made, signature = inflow_of(
                value,
                mine,
                names,
                lambda node: kept_weights(node, names),
                lambda x, weight, shape: _own_step(x, weight, modules[weight], shape),
                layer,
                own={n: m.weight for n, m in modules.items() if _takes_its_parameter(m)},
                by_sample=by_sample,
            )
            if made is not None and layer in modules:  # a readout
                made = own_step(made, layer, modules[layer], tuple(value.shape))
            return None if made is None else (made, signature)
        except NotLinearError as error:
            of = {source for source, _ in self.sources(value, mine)} - {layer}
            if of:
                self._unknown[layer] = str(error), sorted(of)
            return None

    def _see_that_it_is_linear(self, layer: str) -> None:
        """Raise an error for a layer that does more to what comes in than a neuron does."""
        net = self._net()
        module = None if net is None else dict(net.named_modules()).get(layer)
        if module is None or layer not in self._layers.neurons:
            raise NotLinearError(type(module).__name__)
        inside = (n for n, p in module.named_parameters() if is_lazy(p) or p.dim() > 1)
        if any(not name.startswith(("recurrent", "neuron.recurrent")) for name in inside):
            raise NotLinearError(type(module).__name__)

    def note_read(self, value: Tensor, mine: Callable[[Any], bool]) -> None:
        """Note where a value was made that the network returned and the loss reads."""
        for source, weights in self.sources(value, mine):
            if weights:
                self.heads[weights[0]] = source

    def sources(
        self, value: Tensor, mine: Callable[[Any], bool]
    ) -> frozenset[tuple[str, tuple[str, ...]]]:
        """Return the layers that a value was made of, with the weights after each."""
        return sources_of(value, mine, self._names())

    def _names(self) -> dict[Any, str]:
        """Return identity, memory or, in shards, shape of each weight with its layer."""
        names: dict[Any, str] = {}
        for name, module in self._synapses().items():
            for parameter in module.parameters():
                if is_lazy(parameter) or parameter.dim() < 2:
                    continue
                if hasattr(parameter, "full_tensor"):  # in shards: the whole one has come and gone
                    shape = parameter.shape
                    names[shape] = "" if shape in names else name
                    continue
                names.setdefault(id(parameter), name)
                if parameter.data_ptr():
                    names.setdefault(parameter.data_ptr(), name)
        return names

    def _synapses(self) -> dict[str, Any]:
        net = self._net()
        return {} if net is None else dict(synapses(net))

    def _synapse(self, layer: str) -> Any:
        net = self._net()
        return None if net is None else synapse(net, layer)

    def weight(self, layer: str) -> Tensor:
        """Return a layer's weight.

        Raises:
            FeedbackError: if the layer is gone.
        """
        known = self._synapse(layer)
        if known is None:
            raise FeedbackError(
                f"feedback: layer {layer!r} had weights and has none now; call remove() and attach "
                f"DFA to the network as it is"
            )
        return weight_in_use(known, layer)

    def mirror(self, layer: str, factor: Tensor, noise: Callable[..., Tensor]) -> Tensor:
        """Return the step that makes a factor answer noise more as the layer does."""
        return gradient_to_mirror(self._synapse(layer), self.weight(layer), factor, noise)

    def inflows(self) -> dict[str, Inflow]:
        """Return what comes into each layer, and into each output, as a linear function."""
        return {name: each for name, each in self._inflows.items() if name not in self._unknown}

    def unknown(self) -> dict[str, tuple[str, list[str]]]:
        """Return the layers of which :meth:`inflows` knows nothing, why, and their sources."""
        return dict(self._unknown)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._layers.outputs

    def names(self, name: str, path: Shapes) -> list[str]:
        """Return the layers with weights from a hidden layer to the output, first to last.

        Args:
            name: Of the hidden layer.
            path: All hidden layers with shapes.

        Raises:
            FeedbackError: if there is no path, or more than one, or another than by one dense layer
                between any two.
        """
        known, found, passed = self._synapses(), [], [name]
        while passed[-1] not in self._layers.outputs:
            at = passed[-1]
            neurons = math.prod(path[at][1:])
            paths = sorted(self._found.get(at, ()))
            weights, to = paths[0] if len(paths) == 1 else ((), at)
            after = math.prod(path[to][1:]) if to in path else path[name][0]
            dense = len(weights) == 1 and isinstance(known.get(weights[0]), nn.Linear)
            if not dense or to in passed or known[weights[0]].weight.shape != (after, neurons):
                seen = [f"{' and '.join(map(repr, w)) or 'no weights'} to {t!r}" for w, t in paths]
                raise FeedbackError(
                    f"feedback: a product of weights or factors needs one nn.Linear from the "
                    f"{neurons} neurons of layer {at!r} to one next layer, found "
                    f"{', '.join(seen) or 'none'}; use another kind"
                )
            found.append(weights[0])
            passed.append(to)
        return found
