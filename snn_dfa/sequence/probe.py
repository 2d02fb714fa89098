"""Whether a network can run once on T * B samples: it is compared with its own loop, on copies."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from snn_dfa.errors import AttachError, DFAError
from snn_dfa.sequence.any_network import TimeAsBatch
from snn_dfa.sequence.neuron import Layout
from snn_dfa.state import reset

__all__ = ["Found", "examine"]

_STEPS = 3
_LOOP = (
    "loop over its input's first dimension, `for t in range(x.size(0))`, and give the sequence "
    "[T, B, ...], such as encoding.constant(x, num_steps)"
)


@dataclass
class Found:
    """What is known of a network.

    Args:
        loops: Whether its loop over time is inside.
        reads: Neuron to the names of the hidden states that the network's code looks at.
        last: Names of the neurons that may be called last.
    """

    loops: bool
    reads: dict[str, set[str]]
    last: set[str]


def examine(
    net: nn.Module, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], *, compare: bool
) -> Found:
    """See where a network's loop is, and that one run on all samples gives what the loop gives.

    Everything runs on copies in evaluation mode, in double precision where the network can, on
    three steps of the input; the state of random generators is restored.

    Args:
        net: The network.
        x: A sequence [T, B, ...].
        args: What else the network takes.
        kwargs: The same, by name.
        compare: Whether to compare; else every hidden state counts as one that is looked at.

    Raises:
        AttachError: if the network cannot run so; the message says why, and what to do.
    """
    three = torch.cat([x] * _STEPS)[:_STEPS]
    with _aside(x):
        loops = _loops(net, three, args, kwargs)
        if not compare:
            form = TimeAsBatch(net)
            return Found(loops, {name: {"mem"} for name in form.scans}, set(form.scans))
        form = _compare(net, three, args, kwargs, loops)
        scans = form.scans.items()
        last = {name for name, scan in scans if scan is form.layout.last_neuron}
        return Found(loops, {name: scan.reads for name, scan in scans}, last)


@contextmanager
def _aside(x: Tensor) -> Iterator[None]:
    """Leave no trace: no gradient, and generators as they were."""
    devices = [x.device] if x.is_cuda else []
    own, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            torch.autocast(x.device.type, enabled=False),
        ):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)  # noqa: NPY002


def _copy(net: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode and at rest."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        for store in (module._buffers, vars(module)):
            for value in store.values():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    memo[id(value)] = value.detach().clone()
    twin = copy.deepcopy(net, memo).eval()
    for m in twin.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is None:
            # Without running statistics it takes those of what it sees, in evaluation, too.
            like = next(net.parameters())
            m.running_mean = torch.zeros(m.num_features, dtype=like.dtype, device=like.device)
            m.running_var = torch.ones_like(m.running_mean)
    reset(twin)
    return twin


# -- where the loop is -----------------------------------------------------------------------------


def _loops(net: nn.Module, three: Tensor, args: Any, kwargs: Any) -> bool:
    """Return whether the network loops over its input's first dimension.

    Raises:
        AttachError: if it neither does, nor takes one step a call.
    """
    calls = [_calls(net, three[:n], args, kwargs) for n in (3, 2)]
    whole = [c for c in calls if isinstance(c, dict) and c]
    if len(whole) == 2:
        per_step = [{k: n / s for k, n in c.items()} for c, s in zip(whole, (3, 2), strict=True)]
        if per_step[0] == per_step[1] and all(n == int(n) for n in per_step[0].values()):
            return True
    step = _calls(net, three[0], args, kwargs)
    if isinstance(step, dict) and step and min(step.values()) == 1:
        return False
    if isinstance(step, dict) and not step:
        raise AttachError("over_time: expected a network of spiking neurons, found none called")
    fixed = next((c for c in (step, *calls) if isinstance(c, dict) and min(c.values()) > 1), None)
    if fixed is not None:
        raise AttachError(
            f"over_time: the network's forward runs its neurons {min(fixed.values())} times, "
            f"whatever its input's first dimension is, expected one step a call or a loop over "
            f"that dimension; {_LOOP}"
        )
    error = step if isinstance(step, Exception) else calls[0]
    raise AttachError(
        f"over_time: the network takes neither a step [B, ...] of the sequence nor the sequence "
        f"[T, B, ...] ({type(error).__name__}: {error}); write forward as one step, or {_LOOP}"
    ) from (error if isinstance(error, Exception) else None)


def _calls(net: nn.Module, x: Tensor, args: Any, kwargs: Any) -> dict[str, int] | Exception:
    """Return how often each neuron is called, or the error that the network raises."""
    twin, counts = _copy(net), dict[str, int]()

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    for name, module in twin.named_modules():
        if isinstance(module, snn.SpikingNeuron):
            module.register_forward_hook(count(name))
    try:
        twin(x, *args, **kwargs)
    except Exception as error:
        return error
    return counts


# -- the comparison --------------------------------------------------------------------------------


def _compare(net: nn.Module, three: Tensor, args: Any, kwargs: Any, loops: bool) -> TimeAsBatch:
    """See that the form gives what the loop gives; return the form, which has run."""
    try:
        wanted, got, form = _both(net, three, args, kwargs, loops, torch.float64)
        tolerance = 1e-9
    except DFAError:
        raise
    except Exception:  # a network that makes tensors of its own in single precision
        wanted, got, form = _both(net, three, args, kwargs, loops, three.dtype)
        tolerance = 1e-3
    _see_equal(wanted, got, tolerance)
    return form


def _both(
    net: nn.Module, three: Tensor, args: Any, kwargs: Any, loops: bool, dtype: torch.dtype
) -> tuple[Any, Any, TimeAsBatch]:
    """Return what the loop gives, what the form gives, and the form."""

    def cast(value: Any) -> Any:
        is_number = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().to(dtype) if is_number else value

    three, (args, kwargs) = cast(three), tree_map(cast, (tuple(args), dict(kwargs)))
    tried, by_steps, at_once = (_smooth(_copy(net).to(dtype)) for _ in "123")
    form = TimeAsBatch(at_once, check=False)
    form.loops, form.layout.probes = loops, True
    if loops:  # twice, since what a call leaves on the network may change the next one
        wanted, got = [], []
        for call in ("first", "second"):
            wanted.append(by_steps(three, *args, **kwargs))
            got.append(_run(form, three, args, kwargs, call))
            reset(by_steps)
    else:
        tried(three[0], *args, **kwargs)  # the network's own errors first
        got = _run(form, three, args, kwargs)
        wanted = _loop(by_steps, three, args, kwargs, _passed_on(form, args, kwargs))
    return wanted, got, form


def _run(form: TimeAsBatch, three: Tensor, args: Any, kwargs: Any, call: str = "first") -> Any:
    try:
        with _NumbersRead(three, form.layout):
            return form.run(three, *args, **kwargs)
    except DFAError:
        raise
    except Exception as error:
        if call == "second":
            raise _differs(f"a {type(error).__name__} in the second call, {error}") from error
        raise AttachError(
            f"over_time: the network takes a step of {three.shape[1]} samples, but not all "
            f"T * B = {_STEPS} * {three.shape[1]} in one call ({type(error).__name__}: {error}); "
            f"take sizes from the input, x.size(0), and steps from its first dimension alone"
        ) from error


class _NumbersRead(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises an error where the network's code, neurons apart, reads a number off the samples.

    An ``if`` on such a number takes one way for all steps and samples.

    Args:
        x: The samples; what is made of them is followed.
        layout: Of the network that runs.
    """

    def __init__(self, x: Tensor, layout: Layout) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layout = layout
        self._made = WeakTensorKeyDictionary([(x, True)])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_samples = any(
            isinstance(t, Tensor) and t in self._made for t in tree_flatten((args, kwargs))[0]
        )
        is_read = func is torch.ops.aten._local_scalar_dense.default
        if is_read and of_samples and not self._layout.in_neuron:
            raise AttachError(
                "over_time: the network's forward reads a number off its samples, in an `if` on a "
                "tensor or by item(), which would be one number for all steps and samples; compute "
                "with tensors, torch.where(...), or, if the number does not change what the "
                "network gives, pass check=False"
            )
        result = func(*args, **(kwargs or {}))
        if of_samples:
            for t in tree_flatten(result)[0]:
                if isinstance(t, Tensor):
                    self._made[t] = True
        return result


def _smooth(net: nn.Module) -> nn.Module:
    """Give the network neurons that are never silent: their spikes are smooth numbers."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.spike_grad = torch.sigmoid
            module.state_quant = False
    return net


def _passed_on(form: TimeAsBatch, args: Any, kwargs: Any) -> dict[int, int]:
    """Return for each state among the arguments where it is in the network's result."""
    layout, places = form.layout, {}
    results, _ = tree_flatten(form.last_result)
    for i, value in enumerate(tree_flatten((args, kwargs))[0]):
        state = layout.taken.get(id(value)) if isinstance(value, Tensor) else None
        out = [j for j, r in enumerate(results) if state and layout.given.get(id(r)) == state]
        if out:
            places[i] = out[0]
    return places


def _loop(net: nn.Module, x: Tensor, args: Any, kwargs: Any, passed_on: Mapping[int, int]) -> Any:
    """Return what the network gives step by step, stacked over T."""
    values, shape = tree_flatten((args, kwargs))
    steps = []
    for step in x:
        args, kwargs = tree_unflatten(values, shape)
        steps.append(net(step, *args, **kwargs))
        results, _ = tree_flatten(steps[-1])
        values = [results[passed_on[i]] if i in passed_on else v for i, v in enumerate(values)]
    flat = [tree_flatten(s)[0] for s in steps]
    return [
        torch.stack(list(each)) if isinstance(each[0], Tensor) else each[0]
        for each in zip(*flat, strict=True)
    ]


def _see_equal(wanted: Any, got: Any, tolerance: float) -> None:
    """Raise an error where numbers differ."""
    pairs = list(zip(tree_flatten(wanted)[0], tree_flatten(got)[0], strict=False))
    if len(tree_flatten(wanted)[0]) != len(tree_flatten(got)[0]):
        raise _differs("results, whose number depends on the number of steps")
    for i, (a, b) in enumerate(pairs):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
                raise _differs(f"result {i}, which is {b!r} instead of {a!r}")
            continue
        if a.shape != b.shape:
            raise _differs(f"result {i}, of shape {list(b.shape)} instead of {list(a.shape)}")
        a, b = a.double(), b.double()
        apart = (a - b).abs() > tolerance * (1 + a.abs())
        apart &= ~(a.isnan() & b.isnan())
        if apart.any():
            raise _differs(f"result {i}, in {100 * apart.double().mean():.0f} % of its numbers")


def _differs(what: str) -> AttachError:
    return AttachError(
        f"over_time: on three steps the network gives other values when it runs once on all "
        f"samples than in the loop over time: {what}. Four kinds of program do this. The network "
        f"keeps a state outside its neurons, or hands a layer's value to an earlier layer's next "
        f"step: keep the state in a neuron, a class derived from snntorch.SpikingNeuron. It "
        f"depends on the number of the step. It mixes the samples of a batch. It draws random "
        f"numbers: draw them outside, or give check=False. Otherwise loop over time around the "
        f"network"
    )
