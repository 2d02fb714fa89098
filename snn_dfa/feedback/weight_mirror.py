"""The weight mirror: factors learn to answer noise as the layers do for which they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from snn_dfa._distributed import whole
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward, Shapes
from snn_dfa.feedback.cells import in_steps
from snn_dfa.feedback.draw import gaussian, generator_for
from snn_dfa.feedback.jacobians import courses, errors, jacobians
from snn_dfa.feedback.kolen_pollack_product import KolenPollackProductFeedback, leading
from snn_dfa.feedback.learning import LearningOptions, Twin
from snn_dfa.feedback.sample_ways import Named, Ways, layer_of
from snn_dfa.feedback.sent import Sent

__all__ = ["SELDOM", "WeightMirror", "WeightMirrorFeedback"]

#: So many times noise drives a layer after the first step: a tenth or more of the difference of W
#: and V goes each time, so that a few hundredths are left.
_FIRST = 30
#: Noise comes at every such step if a factor takes the weight's own steps: little is to correct.
SELDOM = 8
#: A factor whose step by noise is more than this share of it is far from the weight.
_FAR = 0.05


@dataclass(frozen=True)
class WeightMirror(LearningOptions):
    r"""Feedback matrices made of factors that mirror the weights; ``DFA(net, optimizer=...)``.

    As with :class:`KolenPollackProduct`, each weight W on the way from a hidden layer to the output
    has a factor V of the same shape, and a layer's B is the derivative of a linear network of
    factors. Each sample has its own way through that network:

    - The value of a neuron is multiplied by a gate: the derivative of the neuron's summed spikes
      with respect to its current, as a mean over the steps. It comes from the layer's own graph. A
      layer with recurrent weights has no gate; nor is there any under activation checkpointing.
    - Maximum pooling takes the pixels that it took in the forward pass, as shares of the steps.
    - Batch normalisation multiplies by its gains, and takes the batch's mean error away.
    - A product of two layers' values (attention, gates) is linear in each of them, given the values
      of the other one. A softmax, a layer normalisation or an activation function has its
      derivative of the forward pass.

    Errors pass a gated cell, such as :class:`snntorch.SLSTM`, by a factor of its input weights and
    by the gates of each step, from its own graph.

    An error goes to the values of a layer that others take: to the membrane, if a program hands on
    membranes in place of spikes. Each of these values has its own way back.

    The mean error over the steps goes this way once. A layer's error at each step is this mean
    times one number: the size of the gates at this step, in the layer into which the error flows,
    beside the mean of this size over the steps. Each step's error also has a difference from the
    mean error (times the size of that step's errors). These differences go through the matrix B
    of the mean gates. If the loss gives the same error at all steps, they go only to the layers
    before the last weights.

    V learns in two ways, at each step of the optimiser that is followed:

    1. V gets the gradient of W, and takes the step of an optimiser of the same class and with the
       same options: rate, momentum and decay are those of the weights.
    2. Noise drives the layer and the factor. V takes a step of the delta rule, so that it answers
       the noise as the layer does. The difference of W and V shrinks by a tenth or more each time.
       After the first step noise comes 30 times, so that V stands for the weight, whatever W was
       at first. Then noise comes at every eighth step. It comes 30 times again if it finds V far
       from W, as where a program has drawn, loaded or clipped weights.

    V is zero in the first step: hidden layers get no error before V resembles W. No weight
    is used backwards: the layer answers the noise forwards, as it does in use.

    ``dfa.feedback`` has the B of the linear network, without the ways of samples; in this B nothing
    passes a product. A matrix of the program's own, a parameter or a buffer, has a factor as a
    layer has: ``x @ net.matrix``, ``functional.linear(x, net.matrix)``. So has a matrix that the
    program makes of parameters, as by a mask; noise alone teaches its factor. A function without a
    way back (a product with weights from the left) passes nothing. A layer from which no other way
    leads to the output has a matrix of its own. This starts like a fixed random matrix, and learns
    as with :class:`KolenPollack`.

    Args:
        lr: Not used; the rate is that of the followed optimiser.
        weight_decay: Not used.
        initial: Factor on the standard deviation of the first factors, 1 / sqrt(N_in).
        by_sample: Share of a neuron's own gate, from 0 to 1. The rest of the gate is an average:
            the neuron's mean over samples, times the sample's mean over the layer's neurons,
            divided by the mean over both. So neurons that are far from their threshold still send
            errors back. 1: with one step, and V = W, the gradient is that of back-propagation. 0:
            the linear network alone, without gates, pixels and gains.

    Raises:
        FeedbackError: if a number is out of its range.

    Sources: Akrout et al. 2019, arXiv 1904.05391 (weight mirrors, with a Hebbian rule in place of
    the delta rule, and errors from layer to layer); Kolen and Pollack 1994.

    Example:
        >>> import snntorch as snn
        >>> from torch import nn
        >>> from snn_dfa import DFA, reset
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
        ... )
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> dfa = DFA(net, optimizer=optimizer)
        >>> for _ in range(2):
        ...     reset(net)
        ...     net(torch.rand(16, 4)).sum().backward()
        ...     optimizer.step()
        >>> B, W = dfa.feedback["1"].flatten(), net[2].weight.flatten()
        >>> torch.cosine_similarity(B, W, dim=0) > 0.95
        tensor(True)
    """

    initial: float = 0.0
    by_sample: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.by_sample <= 1:
            raise FeedbackError(
                f"WeightMirror: by_sample: expected a number from 0 to 1, got {self.by_sample}"
            )


class WeightMirrorFeedback(KolenPollackProductFeedback):
    """Matrices made of factors that mirror the weights."""

    options = WeightMirror

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward, given)
        self.twin = Twin()
        self._steps = 0
        self._met: set[str] = set()  # factors that noise has driven
        self._no_way: dict[str, str] = {}

    def _require(self, shapes: Shapes) -> None:
        super()._require(shapes)
        for name in self._direct:
            if name in self.path and name not in self.matrices:
                self._check_memory(name, self.path[name])
                # From zero all its neurons would be sent the same error, and learn the same.
                shape = self.path[name]
                drawn = gaussian(shape, generator_for(self.seed, name, shape))
                self.matrices[name] = self.scale * drawn

    def _note_unknown(self, unknown: Mapping[str, tuple[str, list[str]]]) -> None:
        sources = dict.fromkeys(name for _, each in unknown.values() for name in each)
        with_way: set[str] = set()
        if sources:
            # One with a way beside is sent errors by that alone: its own matrix points elsewhere.
            known = leading(self.forward.inflows() or {}, self.forward.outputs)
            with_way = {source for inflow in known.values() for source in inflow.sources}
        self._direct = tuple(n for n in sources if n in self.path and n not in with_way)
        self._own |= dict.fromkeys(self._direct)
        self._no_way = {name: why for name, (why, _) in unknown.items()}

    def _see_that_it_fits(self, layer: str, weight: Tensor, shape: torch.Size | None) -> None:
        # One that is computed from parameters, as by weight normalisation, is mirrored alone.
        if isinstance(weight, Parameter):
            super()._see_that_it_fits(layer, weight, shape)

    def _check_saved(self, name: str, matrix: Tensor, current: FeedbackWeights) -> None:
        self.forward.stand_for(name, matrix)
        super()._check_saved(name, matrix, current)

    @property
    def by_sample(self) -> bool:
        """Whether errors take each sample's own way back."""
        return self._share > 0

    @property
    def _share(self) -> float:
        options = self.feedback_optimizer.options
        return options.by_sample if isinstance(options, WeightMirror) else 0.0

    @property
    def needs_ways(self) -> list[str]:
        """Layers into which a function leads that has a derivative for each sample alone."""
        return [name for name, each in (self._inflows or {}).items() if each.needs]

    @property
    def cells(self) -> dict[str, str]:
        """Gated cells, with the names of their input weights."""
        cells = {name: each.cell for name, each in (self._inflows or {}).items()}
        return {name: cell.weight for name, cell in cells.items() if cell is not None}

    def send(
        self, error: Tensor, rest: Tensor | None, ways: Ways, *, steady: bool
    ) -> dict[str, Sent]:
        """Send the errors back by the factors, as the base says."""
        self._see_that_all_are_known(ways)
        dtype = torch.promote_types(error.dtype, torch.float32)
        factors = {n: f.to(dtype) for n, f in self._factors(error.device).items()}
        ways = ways.mixed(self._share)
        sent = self._through(errors, factors, error.to(dtype), ways)
        only = (*self.forward.outputs, *self._direct) if steady else ()
        matrices, found = dict[str, Tensor](), dict[str, Tensor]()
        if rest is not None and len(rest) < rest.shape[1]:  # errors are fewer than outputs
            found = self._through(jacobians, factors, ways, only, rest.to(dtype))
        elif rest is not None:
            matrices = self._through(jacobians, factors, ways, only)
        layers = dict.fromkeys(map(layer_of, sent))
        at = courses(self._inflows or {}, self.forward.outputs, layers, ways.courses, self._direct)
        each = {
            value: Sent(mean, matrices.get(value), found.get(value), at[layer_of(value)])
            for value, mean in sent.items()
        }
        return each | self._in_steps(each, rest, factors, ways)

    def _in_steps(
        self, sent: Mapping[str, Sent], rest: Tensor | None, factors: Named, ways: Ways
    ) -> dict[str, Sent]:
        """Return what layers are sent that flow into gated cells alone: by each step's gates."""
        inflows = self._inflows or {}
        if not ways.steps:
            return {}

        def error_of(value: str, steps: int) -> Tensor:
            return sent[value].in_steps(steps, rest)

        def through(cell: str, error: Tensor) -> dict[str, Tensor]:
            inflow = {cell: inflows[cell]}
            shapes = {name: self.path[name] for name in inflows[cell].sources if name in self.path}
            own = ways.into(inflow)
            # Functions on the way have a derivative for each sample: then step by step.
            batch = len(next(iter(sent.values())).mean) if own.local else len(error)
            parts = [
                errors(inflow, {cell: None}, shapes, factors, (), part, own)
                for part in torch.split(error.flatten(1), batch)
            ]
            return {value: torch.cat([part[value] for part in parts]) for value in parts[0]}

        above = {
            layer: {name for name, each in inflows.items() if layer in each.sources}
            for layer in self.path
        }
        found = in_steps(self.path, above, ways.steps, self.values_of, error_of, through)
        return {
            value: Sent(torch.zeros_like(sent[value].mean), None, error, None)
            for value, error in found.items()
        }

    def values_of(self, layer: str) -> list[str]:
        """Return the values that others take, as the base says; the spikes where none do."""
        taken = dict.fromkeys(v for i in (self._inflows or {}).values() for v in i.values)
        return [value for value in taken if layer_of(value) == layer] or [layer]

    def _see_that_all_are_known(self, ways: Ways) -> None:
        for layer, each in (self._inflows or {}).items():
            if not all(name in ways.local for name in each.needs):
                raise FeedbackError(
                    f"feedback: what comes into layer {layer!r} was a product of values in the "
                    f"first batch, and is now made in another way, or under activation "
                    f"checkpointing; make the layer's input in the same way in each pass, or use "
                    f"feedback='kolen-pollack'"
                )

    @property
    def without_way(self) -> dict[str, str]:
        """Layers into which a function leads that has no way back."""
        return dict(self._no_way)

    @property
    def with_own_matrix(self) -> tuple[str, ...]:
        """Layers before such functions alone."""
        return self._direct

    @property
    def accumulates(self) -> bool:
        """Whether a layer has a matrix of its own, which learns from the layer's spikes."""
        return bool(self._direct)

    def accumulate(self, name: str, signal: Tensor, spikes: Tensor) -> None:
        """Add to the gradient of a layer's own matrix, if it has one."""
        if name in self._direct:
            super().accumulate(name, signal, spikes)

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Take the weights' step, and one to answer noise as they do."""
        changed, found = {id(parameter) for parameter in stepped}, {}
        factors = [name for name in self.matrices if name not in self._own]
        for layer in factors:
            weight = self._weight(layer, self.matrices[layer].shape)
            if id(weight) in changed and weight.grad is not None:
                found[layer] = weight, whole(weight.grad)
        self._step(found)
        self._steps += 1
        self._missed, self._versions = 0, []
        for layer in factors:
            if layer not in self._met:
                self._met.add(layer)
                self._mirror(layer, range(_FIRST))
            elif layer not in found:  # it is another one at each step, or another optimiser's
                self._mirror(layer, range(1))
            elif self._steps % SELDOM == 0:
                step = self._mirror(layer, range(1))
                if step.norm() > _FAR * self.matrices[layer].norm():
                    self._mirror(layer, range(1, 1 + _FIRST))
        self._cache.clear()

    def _mirror(self, layer: str, times: Sequence[int]) -> Tensor:
        """Let noise drive a layer some times; return the factor's last step."""
        factor = self.matrices[layer]
        for time in times:
            noise = _Noise(self.seed, f"{layer} {self._steps} {time}", factor)
            step = self.forward.mirror(layer, factor, noise)
            factor += step
        return step

    def state_dict(self) -> dict[str, Any]:
        """Return factors, layers' own matrices, state and the number of steps."""
        state = super().state_dict()
        own = {name: state["matrices"].pop(name) for name in self._own}
        state["learner"] |= {"steps": self._steps, "met": sorted(self._met), "own": own}
        return state

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        learner = state["learner"]
        self._steps, self._direct = learner["steps"], tuple(learner["own"])
        self._own = dict.fromkeys(self._direct)
        self._met = set(learner.get("met", state["matrices"]))  # all, in a state of before
        self.matrices |= {name: matrix.detach().clone() for name, matrix in learner["own"].items()}


class _Noise:
    """Numbers of mean 0 and variance 1, which depend on seed and name alone."""

    def __init__(self, seed: int, name: str, like: Tensor) -> None:
        self._seed, self._name, self._like = seed, name, like

    def __call__(self, *shape: int) -> Tensor:
        seed = generator_for(self._seed, self._name, shape).initial_seed()
        device, dtype = self._like.device, self._like.dtype
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)
