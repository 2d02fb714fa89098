"""Cut at every hidden layer's spikes, join at the output.

Cut: :class:`snn_dfa._fences.Fences` lets no other layer see where a hidden layer's spikes came
from, and these are kept. Join: the output goes through :class:`snn_dfa._autograd.Join` together
with the kept spikes, first in, first out, so that in the backward pass they get the projected
error.

While it is not known which neuron is called last, each one is kept, as if it were hidden, and
joined to the others, as if it were the output. Which it is is settled by the end of the first
forward pass, before any of these joins runs backward, and the joins of the hidden ones then pass
on nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from snn_dfa import _refusals
from snn_dfa._autograd import AtCurrent, CurrentCredit, Join, in_backward
from snn_dfa._broadcast import broadcast_signal, check_finite
from snn_dfa._discover import Layers, batch_dims
from snn_dfa._distributed import States
from snn_dfa._fences import Fences
from snn_dfa._hooks import place
from snn_dfa._nested import like_spikes, map_tensors
from snn_dfa._ways import Ways
from snn_dfa.errors import OutOfStepError
from snn_dfa.feedback import project
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.rules import Rule

__all__ = ["Wiring"]

Sinks: TypeAlias = dict[str, tuple[torch.Size, torch.dtype]]


class Wiring:
    """The hooks on one network and what they hold between a hidden layer's call and the output's.

    Args:
        net: The network.
        layers: Who takes part; ``layers.output`` is filled in when it is seen.
        feedback: The feedback matrices.
        rule: What is broadcast, ``None`` for nothing.
        fences: What cuts hidden spikes; ``None`` where they are neither cut nor joined.
        ways: What finds out which weights lie between layers.
        at_current: For ``credit="current"``: layer name to its map from the error at the spikes to
            a gradient at the current. Empty otherwise.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Layers,
        feedback: FeedbackWeights,
        rule: Rule | None,
        at_current: dict[str, AtCurrent],
        *,
        fences: Fences | None,
        ways: Ways,
    ) -> None:
        self.active = True
        self.targets: Tensor | None = None
        self._repeated = False  # the pass is one that activation checkpointing does again
        self.layers = layers
        self.feedback = feedback
        self._rule = rule
        self._at_current = at_current
        self._fences = fences
        self._ways = ways
        self._net, self._output_given = net, layers.output is not None
        self._last_called: str | None = None
        self._kept: dict[str, deque[Tensor | None]] = {name: deque() for name in layers.modules}
        self._calls: Counter[str] = Counter()
        self._shapes: dict[str, torch.Size] = {}  # of what was called, spikes
        self._learn: set[str] = set()  # layers that have something to learn
        self._currents: dict[str, Tensor] = {}
        self._states = States()
        # What a layer handed out -> what its module returned: a state that the user passes back in
        # is exchanged for the latter, so that an edge inside a layer is never cut nor joined.
        self._own = {name: WeakTensorKeyDictionary() for name in layers.modules}
        self._handles = place(net, self._before_pass, self._after_pass, always=True)
        for name, module in layers.modules.items():
            before = partial(self._before_layer, name)
            self._handles += place(module, before, partial(self._after_layer, name, module))

    def remove(self) -> None:
        """Take every hook off and forget what is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._states.clear()
        self._clear()

    # -- one forward pass of the network ----------------------------------------------------------

    def _clear(self) -> None:
        for kept in self._kept.values():
            kept.clear()
        self._calls.clear()
        self._currents.clear()

    def _before_pass(self, args: Any, kwargs: Any) -> None:
        if not self.active:
            return
        self._clear()
        self._repeated = in_backward()
        if self._repeated:
            _refusals.refuse_unled(self.feedback.accumulates and not self.feedback.has_optimizer)
            return
        self._states.begin()
        if (
            self.feedback.accumulates
            and not self.feedback.has_optimizer
            and torch.is_grad_enabled()
        ):
            self.feedback.learn()

    def _after_pass(self, result: Any) -> None:
        if not self.active:
            return
        if result is None:  # the pass ended in an exception: leave nothing behind
            self._clear()
        else:
            if self._fences is not None and torch.is_grad_enabled():
                _refusals.refuse_gone(self._net, self.layers.modules, self._calls)
            self._end_pass()
            self._check_outputs()

    def _check_outputs(self) -> None:
        """Refuse another output than the one that is known."""
        if self._fences is not None and not self.layers.named:
            _refusals.refuse_second_output(self._learn, self.layers.output, self._fences.taken)

    def _end_pass(self) -> None:
        """Settle which layer is the output; refuse spikes that no call of it has matched."""
        calls = dict(self._calls)
        if self.layers.output is None:
            self.layers.output = out = self._last_called
            left = [name for name, count in calls.items() if count != calls.get(out or "", count)]
        else:
            left = [name for name, kept in self._kept.items() if kept]
        self._clear()
        if left:
            raise OutOfStepError(_refusals.out_of_step(left[0], self.layers.output, calls))

    # -- one call of a layer ----------------------------------------------------------------------

    def _before_layer(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give the layer its own states back with their graph; note and cut its current."""
        module = self.layers.modules[name]
        if self.active and in_backward():
            _refusals.refuse_repetition(name, module, whole=self._repeated)
        elif self.active:
            self._states.check(name, module)
            self._ways.begin()
        if not self.active or not torch.is_grad_enabled():
            return None
        kwargs = dict(kwargs)
        if not args and "input_" in kwargs:  # snnTorch's name for the current
            args = (kwargs.pop("input_"),)
        if name in self._at_current:
            self._currents[name] = args[0]
            args = (args[0].detach(), *args[1:])
        if len(args) == 1 and not kwargs:  # its states are hidden
            return args, kwargs
        own, fences = self._own[name], self._fences

        def state(t: Tensor) -> Tensor:
            if t in own:
                return own[t]
            return t if fences is None else fences.cut(t, owner=name)

        return (*args[:1], *map_tensors(state, args[1:])), map_tensors(state, kwargs)

    def _after_layer(self, name: str, module: nn.Module, output: Any) -> Any:
        """Cut or join what the layer returned."""
        if not self.active:
            return None
        self._last_called = name
        self._states.note(name, module)
        if not torch.is_grad_enabled():
            return None
        returned = like_spikes(output)
        credited = self._credit(name, returned)
        handed = credited if self._fences is None else self._hand_on(name, module, credited)
        exchange: dict[int, Tensor] = {}
        for mine, other in zip(returned, handed, strict=True):
            if other is not mine:
                exchange[id(mine)] = other
                self._own[name][other] = mine

        def given(t: Tensor) -> Tensor:
            t = exchange.get(id(t), t)
            if self._fences is not None:
                self._fences.mark(name, t)
                self._ways.mark(name, t)
            return t

        return map_tensors(given, output)

    def _hand_on(self, name: str, module: nn.Module, credited: list[Tensor]) -> list[Tensor]:
        """Keep hidden spikes, join an output to them; return what others get."""
        is_output = self.layers.output == name
        self._calls[name] += 1
        self._shapes[name] = credited[0].shape
        learns = self._fences is not None and self._fences.learns(credited[0])
        if not is_output:
            sends = learns and self._rule is not None
            self._kept[name].append(credited[0] if sends else None)
            if sends:
                self._ways.look_for(name)
        if learns:
            self._learn.add(name)
        if is_output or self.layers.output is None:
            return self._join(name, module, credited)
        return credited

    def _credit(self, name: str, returned: list[Tensor]) -> list[Tensor]:
        """Replace the layer's own graph by the slope at this step's current, where asked for."""
        current = self._currents.pop(name, None)
        if current is None or not current.requires_grad:
            return returned
        bare = [t.detach() for t in returned]  # the module goes on with its own as they are
        return list(CurrentCredit.apply(self._at_current[name], current, *bare))

    def _join(self, name: str, module: nn.Module, outputs: list[Tensor]) -> list[Tensor]:
        """Tie the hidden spikes of this step to the output, which returns them its error."""
        step = self._calls[name] - 1
        # In the order in which they were called, layers that were not called last.
        order = dict.fromkeys([*self._calls, *self.layers.modules])
        taken = ((h, self._take(h, step)) for h in order if h != name)
        joined = {h: t for h, t in taken if t is not None}
        if not joined and not any(t.requires_grad for t in outputs):
            return outputs
        # The closure lives as long as the graph: it holds shapes and dtypes, not the tensors.
        shape, dims = outputs[0].shape, batch_dims(module, outputs[0])
        sinks = {h: (t.shape, t.dtype) for h, t in joined.items()}
        path = {h: self._shapes[h] for h in self._calls if h != name}
        targets = self.targets
        if self.layers.output is not None:
            self._check_feedback(sinks, path, shape, dims)

        def broadcast(
            errors: Sequence[Tensor | None], spikes: Sequence[Tensor]
        ) -> list[Tensor | None] | None:
            self._end_pass()
            if self.layers.output != name:
                return None
            self._ways.note_backward(None if self._output_given else name)
            present = [e for e in errors if e is not None]
            if not present or self._rule is None:
                return [None] * len(sinks)
            self._check_feedback(sinks, path, shape, dims)
            e = sum(present[1:], present[0]).reshape(*shape[:dims], shape[dims:].numel())
            check_finite(e, name)
            signal = broadcast_signal(self._rule, e, self.targets if targets is None else targets)
            feedback, projected = self.feedback, list[Tensor | None]()
            if feedback.accumulates and spikes:
                for h, spk in zip(sinks, spikes, strict=True):
                    feedback.accumulate(h, signal, spk)
            for h, (where, dtype) in sinks.items():
                error = project(signal, feedback.matrix(h, signal), dtype).expand(where)
                feedback.notify(h, error)
                projected.append(error)
            return projected

        given = (*outputs, *joined.values())
        return list(Join.apply(broadcast, self.feedback.accumulates, len(outputs), *given))

    def _take(self, hidden: str, step: int) -> Tensor | None:
        """Return the spikes that belong to the output's call number ``step`` of this pass."""
        kept = self._kept[hidden]
        if self.layers.output is None:
            return kept[step] if step < len(kept) else None
        if kept:
            return kept.popleft()
        if self._calls[hidden]:
            raise OutOfStepError(_refusals.out_of_step(hidden, self.layers.output, self._calls))
        return None

    def _check_feedback(
        self, sinks: Sinks, path: dict[str, torch.Size], output: torch.Size, dims: int
    ) -> None:
        """See that each joined layer has a feedback matrix that fits; draw the new ones."""
        shapes, outputs = {}, output[dims:].numel()
        for name, (spikes, _) in sinks.items():
            if spikes[:dims] != output[:dims]:
                raise OutOfStepError(_refusals.other_steps(name, spikes, output, dims))
            shapes[name] = (outputs, *spikes[dims:])
        self.feedback.require(shapes, {n: (outputs, *s[dims:]) for n, s in path.items()})
