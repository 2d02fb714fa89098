"""The hooks of this library on modules and optimisers; what they do is for others to say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["After", "Before", "after_steps", "eager", "place", "sweep"]

#: ``before(args, kwargs)`` returns the new ones or ``None``; ``after(output)`` likewise.
Before: TypeAlias = Callable[[Any, Any], Any]
After: TypeAlias = Callable[[Any], Any]


def eager(call: Callable[..., Any], *, recursive: bool = True) -> Callable[..., Any]:
    """Return a method that a compiler does not look into, and that costs little without one.

    Args:
        call: The method.
        recursive: Whether what it calls is not looked into either.
    """
    # As torch.optim does it: torch.compiler.disable would import the compiler at once, for seconds.
    disabled = _disable_dynamo(call, recursive)

    @functools.wraps(call)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (disabled if torch.compiler.is_compiling() else call)(*args, **kwargs)

    return chosen


def _inert(*_: Any, **__: Any) -> None:
    """What a hook becomes in a copied or unpickled network: nothing."""


def _make_inert() -> Callable[..., None]:
    return _inert


class _Hook:
    """A bound hook that does not follow its module into copies and pickles.

    A compiler does not look into it: what hooks keep between calls is not for it to trace, and
    ``fullgraph=True`` is refused by it.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    @eager
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _make_inert, ()


def sweep(net: nn.Module) -> None:
    """Take out what an attached network left behind in this copy of it."""
    for module in net.modules():
        plain = vars(module).get("forward")
        if isinstance(plain, MethodType) and plain.__func__ is type(module).forward:
            del module.forward
        for hooks in ("_forward_pre_hooks", "_forward_hooks"):
            for key in [k for k, hook in getattr(module, hooks).items() if hook is _inert]:
                del getattr(module, hooks)[key]
                getattr(module, f"{hooks}_with_kwargs").pop(key, None)


def place(
    module: nn.Module, before: Before | None, after: After | None = None, *, first: bool = False
) -> list[RemovableHandle]:
    """Put functions around the calls of a module.

    Args:
        module: The module.
        before: Called before it.
        after: Called after it.
        first: Whether to come before the hooks that are there.
    """
    handles = []
    if before is not None:
        hook = _Hook(lambda _, args, kwargs: before(args, kwargs))
        handles.append(module.register_forward_pre_hook(hook, prepend=first, with_kwargs=True))
    if after is not None:
        hook = _Hook(lambda _, args, output: after(output))
        handles.append(module.register_forward_hook(hook, prepend=first))
    return handles


def after_steps(
    optimizer: Optimizer, call: Callable[[Iterable[Tensor]], None]
) -> Callable[[], None]:
    """Call with an optimiser's parameters after each step that it has taken; return what ends it.

    A fused optimiser is called, too, where a scaler has found its gradients not finite; it changes
    nothing then. Where a subclass calls the step of its base, hooks run around both: one step.
    """
    begun = False

    def begin(*_: Any) -> None:
        nonlocal begun
        begun = True

    def end(optimizer: Optimizer, *_: Any) -> None:
        nonlocal begun
        if begun and not bool(getattr(optimizer, "found_inf", False)):
            call(p for group in optimizer.param_groups for p in group["params"])
        begun = False

    placed = ExitStack()
    placed.callback(optimizer.register_step_pre_hook(begin).remove)
    placed.callback(optimizer.register_step_post_hook(end).remove)
    return placed.close
