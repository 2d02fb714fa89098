"""Which layers with weights lie between two layers: read off autograd's graph."""

from __future__ import annotations

import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snn_dfa._attach.between.cells import cell_of, into_cell
from snn_dfa._attach.between.inflows import NotLinearError, inflow_of
from snn_dfa._attach.between.made_matrices import MadeMatrices
from snn_dfa._attach.between.reads import (
    NOTHING,
    Lost,
    Parts,
    Read,
    covers,
    mean_of,
    parts_of,
    stopped,
)
from snn_dfa._attach.between.sources import sources_of
from snn_dfa._attach.between.walk import Product, Signature, Structure
from snn_dfa._attach.graph import are_packed
from snn_dfa._attach.layers import Layers
from snn_dfa._attach.weights import (
    SYNAPSES,
    computes_as,
    gradient_to_mirror,
    matrices,
    matrix,
    matrix_parameters,
    own_step,
    synapse,
    synapses,
    weight_in_use,
    weight_of,
)
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import Shapes
from snn_dfa.feedback.stand_in import Inflow

__all__ = ["Paths"]


def _own_step(x: Inflow, name: str, module: Any, shape: tuple[int, ...]) -> Inflow:
    if isinstance(module, nn.Linear) and shape[-1] != module.in_features:
        raise NotLinearError(f"the transpose of {name!r}")  # weights that are tied
    return own_step(x, name, module, shape)


def _takes_its_parameter(module: Any) -> bool:
    return "weight" in module._parameters and computes_as(module, SYNAPSES)


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
        #: First layer with weights after layers, by which the loss reads them -> these layers.
        self.heads: dict[str, set[str]] = {}
        self._inflows: dict[str, Inflow] = {}
        self._unknown: dict[str, Lost] = {}  # layers without an inflow
        # Of each layer the structures of what came in since the last backward pass, and of what
        # did in the round before.
        self._of_round: dict[str, dict[Structure, Read]] = defaultdict(dict)
        self._before: dict[str, dict[Structure, Read]] = defaultdict(dict)
        self._chosen: dict[str, Parts] = {}  # what the inflows were made of
        #: Of the functions into each layer that have a derivative for each sample.
        self.signatures: dict[str, Signature] = {}
        self._made = MadeMatrices()

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
        made, signature, lost = self._read(
            layer, value, mine, by_sample=by_sample, is_current=False
        )
        if made is not None:
            known = self._inflows.get(layer)
            if known is None or covers(made, known):
                self._inflows[layer], self.signatures[layer] = made, signature
        elif lost is not None:
            self._unknown[layer] = lost

    def see(
        self,
        layer: str,
        structure: Structure | None,
        value: Tensor,
        mine: Callable[[Any], bool],
        *,
        products: Sequence[Product] = (),
        by_sample: bool,
    ) -> Read:
        """Return what comes into a call of a layer: one object for all calls that are alike.

        A program may make it in another way than in the first batch, where a branch is faded in,
        layers are left out by chance, or each task or step has a layer of its own.

        Args:
            layer: Its name.
            structure: ``None`` if no other layer flows in.
            value: What comes in.
            mine: Whether a port belongs to this network.
            products: See :class:`~snn_dfa._attach.between.walk.Walk`.
            by_sample: See :func:`inflow_of`.
        """
        if structure is None:
            return NOTHING
        names = self._made.names(layer, products)
        known = self._of_round[layer].get(structure) or self._before[layer].get(structure)
        read = known or Read()
        taken = names if known is None else () if read.inflow is None else read.inflow.weights
        unfit = self._made.note(names, products, taken)
        if known is None or unfit:
            at_hand = [self._made.known(name) for name in names]
            read.inflow, read.signature, read.lost = self._read(
                layer, value, mine, at_hand, by_sample=by_sample
            )
            self._made.keep(names, () if read.inflow is None else read.inflow.weights)
        self._of_round[layer][structure] = read
        return read

    def next_round(self) -> None:
        """Forget what has come into no call since the last backward pass."""
        for layer, known in self._of_round.items():
            if layer not in self._inflows and layer not in self._unknown:  # no loss has read it
                self._choose(layer, Counter(known.values()), {})
        self._before |= self._of_round
        self._of_round.clear()
        self._made.next_round()

    def choose(
        self, reads: Mapping[str, Sequence[Read | None]], hearing: Mapping[str, int]
    ) -> None:
        """Take what has come into some calls.

        Args:
            reads: Of each layer, one for each call.
            hearing: How many calls of each layer may be sent an error.
        """
        for layer, each in reads.items():
            self._choose(layer, Counter(each), hearing)

    def _choose(self, layer: str, counts: Counter[Read | None], hearing: Mapping[str, int]) -> None:
        """Let the mean over calls of a layer count, if most of them have a linear function."""
        signature, parts = parts_of(counts, hearing)
        if parts:
            self._unknown.pop(layer, None)
            if parts != self._chosen.get(layer):
                self._inflows[layer], self.signatures[layer] = mean_of(parts), signature
                self._chosen[layer] = parts
            return
        lost = [each.lost for each in counts if each is not None and each.lost is not None]
        if lost:
            self._unknown[layer] = lost[-1]
        elif set(counts) == {NOTHING} and layer in self._chosen:
            del self._chosen[layer]
            inflow = self._inflows.pop(layer)
            if layer in self._layers.outputs:  # it tells the output's size
                self._inflows[layer] = stopped(inflow)

    def _read(
        self,
        layer: str,
        value: Tensor,
        mine: Callable[[Any], bool],
        products: Sequence[str | None] = (),
        *,
        by_sample: bool,
        is_current: bool = True,
    ) -> tuple[Inflow | None, Signature, Lost | None]:
        """Return what :class:`Read` holds of a value."""
        net, modules = self._net(), self._synapses()
        free = {} if net is None else matrices(net)
        names = self._names()
        for name, held in free.items():
            names.setdefault(id(held), name)
            names.setdefault(held.data_ptr(), name)
        try:
            module = None if net is None or layer in modules else self._hidden(layer)
            by_step = by_sample and value.dim() > 1 and not are_packed()
            cell = cell_of(module) if by_step and is_current else ""  # not what comes in as a state
            if layer not in modules and not cell:
                self._see_that_it_is_linear(layer)
            made, signature = inflow_of(
                value,
                layer,
                mine,
                names,
                lambda x, weight, shape: _own_step(x, weight, self._synapse(weight), shape),
                own={n: m.weight for n, m in modules.items() if _takes_its_parameter(m)},
                free=free,
                products=products,
                by_sample=by_sample,
            )
            if made is not None and layer in modules:  # a readout
                made = own_step(made, layer, modules[layer], tuple(value.shape))
            if made is not None and cell:
                made = into_cell(made, layer, module, cell, tuple(value.shape))
            return made, signature, None
        except NotLinearError as error:
            of = {source for source, _ in self.sources(value, mine)} - {layer}
            return None, (), (str(error), sorted(of)) if of else None

    def _hidden(self, layer: str) -> Any:
        net = self._net()
        return None if net is None else dict(net.named_modules()).get(layer)

    def _see_that_it_is_linear(self, layer: str) -> None:
        """Raise an error for a layer that does more to what comes in than a neuron does."""
        module = self._hidden(layer)
        if module is None or layer not in self._layers.neurons:
            raise NotLinearError(type(module).__name__)
        inside = matrix_parameters(module)
        if any(not name.startswith(("recurrent", "neuron.recurrent")) for name in inside):
            raise NotLinearError(type(module).__name__)

    def note_read(self, value: Tensor, mine: Callable[[Any], bool]) -> None:
        """Note where a value was made that the network returned and the loss reads."""
        other = sources_of(value, mine, self._matrices(), by_product=True)
        for source, weights in (*other, *self.sources(value, mine)):
            if weights:
                self.heads.setdefault(weights[0], set()).add(source)

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

    def _matrices(self) -> dict[Any, str]:
        """Return identity of each matrix that is no layer's, with the name of its module.

        One of a module that holds neurons, too, as of the network, has its own name.
        """
        net, known, names = self._net(), self._names(), dict[Any, str]()
        for path, parameter in [] if net is None else net.named_parameters():
            if not is_lazy(parameter) and parameter.dim() > 1 and id(parameter) not in known:
                holder = path.rpartition(".")[0]
                alone = holder and not any(n.startswith(f"{holder}.") for n in self._layers.neurons)
                names[id(parameter)] = holder if alone else path
        return names

    def _synapses(self) -> dict[str, Any]:
        net = self._net()
        return {} if net is None else dict(synapses(net))

    def _synapse(self, layer: str) -> Any:
        net = self._net()
        if net is None or self._made.weight(layer) is not None:
            return self._made.module(layer)
        return synapse(net, layer) or matrix(net, layer)

    def stand_for(self, layer: str, factor: Tensor) -> None:
        """Let a saved factor stand for a matrix that the program makes, until it is made."""
        if self._synapse(layer) is None:
            self._made.restore(layer, factor)

    def weight(self, layer: str) -> Tensor:
        """Return a layer's weight.

        Raises:
            FeedbackError: if the layer is gone.
        """
        made, known = self._made.weight(layer), self._synapse(layer)
        if made is not None:
            return made
        if known is None:
            raise FeedbackError(
                f"feedback: layer {layer!r} had weights and has none now; call remove() and attach "
                f"DFA to the network as it is"
            )
        return weight_in_use(known, layer)

    def mirror(self, layer: str, factor: Tensor, noise: Callable[..., Tensor]) -> Tensor:
        """Return the step that makes a factor answer noise more as the layer does."""
        return gradient_to_mirror(self._synapse(layer), self.weight(layer), factor, noise)

    def inflows(self) -> Mapping[str, Inflow] | None:
        """Return what comes into each layer, and into each output, as a linear function."""
        lost = {**self._unknown, **self._cells_at_the_end()}
        return {name: each for name, each in self._inflows.items() if name not in lost}

    def _cells_at_the_end(self) -> dict[str, Lost]:
        """Return outputs that are gated cells: their errors are not those of their gates."""
        found = {name: self._inflows.get(name) for name in self._layers.outputs}
        return {
            name: (type(self._hidden(name)).__name__, list(each.sources))
            for name, each in found.items()
            if each is not None and each.cell is not None
        }

    def unknown(self) -> dict[str, Lost]:
        """Return the layers of which :meth:`inflows` does not know all, why, and what it lacks."""
        partly = {n: each.lost for n, each in self._inflows.items() if each.lost is not None}
        found = {n: (why, list(of)) for n, (why, of) in partly.items()} | self._unknown
        return found | self._cells_at_the_end()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._layers.outputs

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many numbers those outputs have of which it is known before they are called."""
        return self._layers.sizes

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
            if not dense or to in passed or weight_of(known[weights[0]]).shape != (after, neurons):
                seen = [f"{' and '.join(map(repr, w)) or 'no weights'} to {t!r}" for w, t in paths]
                raise FeedbackError(
                    f"feedback: a product of weights or factors needs one nn.Linear from the "
                    f"{neurons} neurons of layer {at!r} to one next layer, found "
                    f"{', '.join(seen) or 'none'}; use another kind"
                )
            found.append(weights[0])
            passed.append(to)
        return found
