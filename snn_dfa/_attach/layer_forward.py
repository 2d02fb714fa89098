"""What stands in place of a layer's ``forward``: what comes in, the call, and what goes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from snn_dfa._attach import messages
from snn_dfa._attach.core import Core
from snn_dfa._attach.forward import Forward, Series
from snn_dfa._attach.functions import give_back, in_backward
from snn_dfa._attach.hooks import eager
from snn_dfa._attach.layers import children_of, has_hidden_state
from snn_dfa._attach.steps.known_neurons import step_of
from snn_dfa._attach.steps.step import Inputs, Step
from snn_dfa._attach.tensors import Lent, map_tensors, tensors_in
from snn_dfa._attach.weights import matrix_parameters
from snn_dfa._distributed import States

__all__ = ["LayerForward", "State"]

_CURRENT = "input_"  # snnTorch's name for it
#: An attribute of a module: where it is kept, its name and its value.
State: TypeAlias = tuple[dict[str, Any], str, Tensor]


class _AreTensors(dict[type, bool]):
    """Whether values of a class are tensors; each class is asked once."""

    def __missing__(self, kind: type) -> bool:
        found = self[kind] = issubclass(kind, Tensor)
        return found


class LayerForward(Forward):
    """In place of a layer's ``forward``.

    Args:
        name: Of the layer.
        module: The layer.
        core: The attachment.
        closed: Whether values come out by the result and the module's own attributes alone.
        states: Sees that no membrane is one of another process.
    """

    def __init__(
        self, name: str, module: nn.Module, core: Core, *, closed: bool, states: States
    ) -> None:
        self._series = Series(module, core)
        super().__init__(module, core)
        self._name, self._states = name, states
        self._is_plain = core.aligned  # errors go from layer to layer
        self._are_tensors = _AreTensors()
        self._is_neuron = name in core.layers.neurons
        self._look(closed=closed)

    def _look(self, *, closed: bool) -> None:
        """Look at what the module is made of."""
        module = self.module
        self._closed = closed
        self._own = [m._parameters for m in module.modules()]
        self._inside = children_of(module)
        self._is_block = not closed and bool(module._modules)
        self._step = step_of(module) if closed else None
        self._size, self._keys = -1, list[tuple[dict[str, Any], str]]()
        # A change of one neuron's current then changes its own spikes alone.
        self._is_gate = self._is_neuron and not matrix_parameters(module)
        holders = [module] if closed else list(module.modules())
        self._stores: list[dict[str, Any]] = [s for m in holders for s in (m._buffers, vars(m))]

    def remove(self) -> None:
        """Put the plain ``forward`` back."""
        super().remove()
        self._series.remove()

    # A compiler does not look inside: what is kept between calls is not for it to trace.
    @eager
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        core = self.core
        if not core.active:
            return self.plain(*args, **kwargs)
        if self._is_neuron and not args and _CURRENT in kwargs:
            args = (kwargs.pop(_CURRENT),)
        if any([now != tuple(store.values()) for store, now in self._inside]):
            self._look(closed=False)  # a parametrisation, say, has come in since
        if self._is_neuron:
            core.now.last = self._name
        if in_backward():
            goes_on = has_hidden_state(self.module)
            messages.refuse_repetition(self._name, whole=core.now.repeats, goes_on=goes_on)
        several = self._states.several
        if several:
            self._states.check(self._name, self.module)
        if not torch.is_grad_enabled() or self._is_plain:
            result = self.plain(*args, **kwargs)
        else:
            core.entry.begin(
                self._name, learns=self._learns(), closed=self._closed, block=self._is_block
            )
            step = self._step
            inputs = None if step is None or kwargs else step.inputs(args)
            if step is None or inputs is None:
                result = self._call(args, kwargs)
            else:
                result = self._call_step(step, inputs)
        if several:
            self._states.note(self._name, self.module)
        return result

    def _call(self, args: Any, kwargs: Any) -> Any:
        """Run the module between what comes in and what goes out."""
        lent = self._come_in(args, kwargs)
        args, kwargs = self._tapped(lent.args, lent.kwargs)
        result = self._run(args, kwargs, lent, self.plain)
        for old in lent.overwritten():
            self.core.entry.see_not_read(old)
        left = [state for state in self._graphs() if state[2].grad_fn is not None]
        if left and lent.held:
            known = {id(old) for _, _, old, _ in lent.held}
            left = [state for state in left if id(state[2]) not in known]
        return self._hand_out(result, left, lent)

    def _come_in(self, args: Any, kwargs: Any) -> Lent:
        """Return the arguments, and the states that the module holds, as they come in."""
        entry = self.core.entry
        held = [(store, key, old, entry.enter(old)) for store, key, old in self._graphs()]
        if args and self.core.follows_ways:
            entry.look_at(args[0], alone=self._is_gate)
        return Lent(entry.enter, args, kwargs, held)

    def _asks(self) -> bool:
        """Return whether the gradient at this call's current may be asked for."""
        core, call = self.core, self.core.entry.call
        if core.at_current and self._is_neuron and call.linked:
            return True
        passage = call.passage
        return passage is not None and passage.alone and self._name not in core.layers.outputs

    def _tapped(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments, of which the first is the current, whose gradient may be asked."""
        key, current = next(iter((*enumerate(args), *kwargs.items())), (0, None))
        if not (isinstance(current, Tensor) and current.is_floating_point() and self._asks()):
            return args, kwargs
        current = self.core.entry.tapped(current)
        return ((current, *args[1:]), kwargs) if args else (args, {**kwargs, key: current})

    def _run(self, args: Any, kwargs: Any, lent: Lent, plain: Callable[..., Any]) -> Any:
        """Run the module; note what it learns from inside; put back states that it left alone."""
        core, looks = self.core, not self._closed or self._has_own_surrogate()
        came_in = [*tensors_in(args), *tensors_in(kwargs)] if looks else []
        if looks:
            came_in += [new for *_, new in lent.held]
        # Those that they have now: a change in place gives a tensor another one.
        ends = {t.grad_fn for t in came_in if t.grad_fn is not None}
        since = 0 if self._closed else torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        core.inside, done = self._name, False
        self._series.begin()
        try:
            result, done = plain(*args, **kwargs), True
        finally:
            core.inside = None
            lent.put_back(all_held=not done)
        self._note_series(args, result)
        if looks:
            changed = [new for _, new in lent.changed()]
            core.entry.note_leaves([*tensors_in(result), *lent.written(), *changed], ends)
            if not self._closed:
                core.entry.insides.note(self._name, since)
        return result

    def _note_series(self, args: Any, result: Any) -> None:
        """Note what came into a module, and whether it has returned a whole sequence."""
        if not self._is_neuron and (values := tensors_in(result)):
            core = self.core
            core.entry.call.came_in = next((t.shape for t in tensors_in(args)), values[0].shape)
            is_one = self._series.is_returned(values[0].shape)
            sequences = core.layers.sequences
            (sequences.add if is_one else sequences.discard)(self._name)

    def _learns(self) -> bool:
        return any(
            [p.requires_grad for own in self._own if own for p in own.values() if p is not None]
        )

    def _has_own_surrogate(self) -> bool:
        """Return whether the neuron has a surrogate of the user's, which may hold what learns."""
        surrogate = getattr(self.module, "spike_grad", None)
        function = getattr(surrogate, "__self__", surrogate)  # of a `Function.apply` the class
        home = getattr(function, "__module__", None) or ""  # a function's, or an object's class's
        return surrogate is not None and home.partition(".")[0] not in ("snntorch", "snn_dfa")

    def _call_step(self, step: Step, inputs: Inputs) -> Any:
        """Run a step whose inputs and states are known, as :meth:`_call` runs a module."""
        core, entry, made = self.core, self.core.entry, None
        if core.follows_ways:
            entry.look_at(inputs.current, alone=self._is_gate)
        asks = self._asks()
        if inputs.gains:
            inputs.current = entry.enter(inputs.current)
        else:
            inputs.current, made = entry.enter_current(inputs.current)
        for i, state in enumerate(inputs.states):
            inputs.states[i], inputs.before[i] = entry.enter_state(state)
        if inputs.recurrent is not None:
            inputs.recurrent = entry.enter(inputs.recurrent)
        may_record = inputs.may_record
        if asks and not may_record:
            inputs.current = entry.tapped(inputs.current)
        spk, states, links, record = step.compute(inputs, made, may_record=may_record)
        if made is None and not (asks or any(inputs.before)):
            record = None  # nothing is learned by it
        if not (record is not None or spk.requires_grad or entry.call.linked):
            core.leave((), spk, 0)
            return step.result(spk, states)
        returned = 1 if step.hides_states else 1 + len(states)
        shown, *states = core.leave((spk, *links), spk, returned, (spk, *states), record)
        return step.result(shown, states)

    def _graphs(self) -> list[State]:
        """Return the module's attributes that have a graph or ask for one: store, key and value."""
        if not self._closed:
            are_tensors = self._are_tensors
            return [
                (store, key, value)
                for store in self._stores
                for key, value in store.items()
                if are_tensors[type(value)] and value.requires_grad
            ]
        # Such a module's attributes are numbers for good, or never; it is asked at each step.
        size = sum([len(store) for store in self._stores])
        if size != self._size:
            self._size = size
            self._keys = [
                (store, key)
                for store in self._stores
                for key, value in store.items()
                if value is None or isinstance(value, Tensor)
            ]
        return [
            (store, key, value)
            for store, key in self._keys
            if isinstance(value := store.get(key), Tensor) and value.requires_grad
        ]

    def _ported(
        self, tensors: Sequence[Tensor], left: list[State], lent: Lent, *, linked: bool
    ) -> tuple[dict[int, Tensor], int]:
        """Return what gets a port, by identity of what the call made, and how many are returned."""
        found = {
            id(t): t for t in tensors if t.grad_fn is not None or (linked and t.is_floating_point())
        }
        returned = len(found)
        found |= {id(value): value for *_, value in left}
        found |= {id(t): t for t in lent.written() if t.grad_fn is not None}
        for old, new in lent.changed():
            if new.grad_fn is not None or lent.without_graph:
                found[id(new)] = self.core.entry.apart(new) if new is old else new
        return found, returned

    def _hand_out(self, result: Any, left: list[State], lent: Lent) -> Any:
        """Give out the result, and the states that the call has left, by a port."""
        core, tensors = self.core, tensors_in(result)
        found, returned = self._ported(tensors, left, lent, linked=core.entry.call.linked)
        values = list(found.values())
        spikes = tensors[0] if tensors else None
        if values and next(iter(found)) == id(spikes):
            spikes = values[0]
        if self._is_block:
            core.entry.insides.watch(self._name, values, linked=core.entry.call.linked)
        given, changed = core.leave(values, spikes, returned), lent.changed()
        if not (given or changed):
            return result
        ports = dict(zip(found, given, strict=True)) if given else {}
        give_back(changed, ports)
        for store, key, value in left:
            store[key] = ports.get(id(value), value)
        lent.exchange(ports)
        if type(result) is Tensor:
            return ports.get(id(result), result)
        return map_tensors(lambda t: ports.get(id(t), t), result)
