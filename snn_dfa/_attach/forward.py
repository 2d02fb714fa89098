"""What stands in place of a module's ``forward``: ``docs/design.md`` says why hooks do not do."""

from __future__ import annotations

import copy
import inspect
import types
from functools import partial
from typing import Any

import torch
from torch import nn

from snn_dfa._attach import messages
from snn_dfa._attach.core import Core
from snn_dfa._attach.functions import is_transformed
from snn_dfa._attach.hooks import After, Before, eager
from snn_dfa._attach.layers import spiking_layers, takes_sequences
from snn_dfa._attach.tensors import tensors_in
from snn_dfa.errors import ExportError
from snn_dfa.sequence.attached import Attached

__all__ = ["Around", "Forward", "Series"]


class _NoCodeError(ExportError, AttributeError):
    """What ``torch.export`` and ``torch.jit.script`` look for in a method is not there."""


class Forward(Attached):
    """An object in place of a module's ``forward``; in a copy of the module it is the plain one."""

    def __init__(self, module: nn.Module, core: Core) -> None:
        self.module, self.core = module, core
        self._had = "forward" in vars(module)
        self.plain = module.forward
        module.forward = self  # type: ignore[assignment]

    @property
    def __signature__(self) -> inspect.Signature:
        """The arguments of the plain ``forward``: some trainers pick a batch's columns by them."""
        return inspect.signature(self.plain)

    @property
    def at_work(self) -> bool:
        """Whether a call would learn by the rule."""
        return self.core.active and torch.is_grad_enabled()

    def remove(self) -> None:
        """Put the plain ``forward`` back."""
        if vars(self.module).get("forward") is self:
            del self.module.forward
            if self._had:
                self.module.forward = self.plain

    def __getattr__(self, name: str) -> Any:
        raise _NoCodeError(f"forward has no {name!r}: {messages.exported()}")

    def __reduce__(self) -> Any:
        return _plain, (self.module,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _plain(copy.deepcopy(self.module, memo))


class Around(Forward):
    """Functions around what a module computes, inside of all hooks on the module.

    Args:
        module: The module.
        core: The attachment.
        before: Called before it.
        after: Called after it.
    """

    def __init__(self, module: nn.Module, core: Core, before: Before, after: After) -> None:
        super().__init__(module, core)
        self._before, self._after = before, after

    @partial(eager, recursive=False)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = self._come_in(args, kwargs)
        return self._go_out(self.plain(*args, **kwargs))

    @eager
    def _come_in(self, args: Any, kwargs: Any) -> Any:
        if self.at_work and is_transformed():  # of a part of the network alone
            raise messages.transformed_part(type(self.module).__name__)
        changed = self._before(args, kwargs)
        return (args, kwargs) if changed is None else changed

    @eager
    def _go_out(self, result: Any) -> Any:
        changed = self._after(result)
        return result if changed is None else changed


class Series:
    """Whether a block with neurons inside returns a step [B, ...] or a whole sequence [T, B, ...].

    A block that loops over time calls each of them T times, with B samples, and returns
    [T, B, ...]. One that returns [B, T, ...] has T times as many neurons; where T and B are equal,
    it is taken for what it was in an earlier call.

    Args:
        block: The block.
        core: The attachment.
    """

    def __init__(self, block: nn.Module, core: Core) -> None:
        #: T and B of the calls of each neuron since :meth:`begin`, and the dimensions of a step.
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._was: bool | None = None
        self._around = [
            Around(
                neuron, core, lambda *_: None, partial(self._note, name, takes_sequences(neuron))
            )
            for name, neuron in spiking_layers(block).items()
            if neuron is not block
        ]

    def remove(self) -> None:
        """Take everything off."""
        for each in self._around:
            each.remove()

    def begin(self) -> None:
        """Begin a call of the block."""
        self._seen.clear()

    def is_returned(self, shape: torch.Size) -> bool:
        """Return whether the call has returned a whole sequence, given the shape of its result."""
        is_one = any(
            shape[:2] == (steps, samples) and len(shape) > 2 and (steps > 1 or len(shape) > dims)
            for steps, samples, dims in self._seen.values()
        )
        if self._was is None or not is_one or shape[0] != shape[1]:
            self._was = is_one
        return self._was

    def _note(self, name: str, whole: bool, result: Any) -> None:
        values = tensors_in(result)
        if not values or values[0].dim() < 1 + whole:
            return
        shape = values[0].shape
        before = self._seen.get(name, (0, 0, 0))[0]
        steps, samples = shape[:2] if whole else (before + 1, shape[0])
        self._seen[name] = steps, samples, len(shape) - whole


def _plain(module: nn.Module) -> Any:
    return types.MethodType(type(module).forward, module)
