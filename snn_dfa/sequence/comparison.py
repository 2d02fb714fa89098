"""Whether a network gives, run once on T * B samples, what its loop gives: tried on copies.

Neurons have smooth spikes there, so that nothing is silent and nothing is on an edge where rounding
makes a spike. Half of the samples are random numbers and the parameters are shaken, so that zeros
and equal numbers hide nothing. Values and the parameters' gradients are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from snn_dfa.errors import AttachError, DFAError
from snn_dfa.sequence.any_network import LONGEST, TimeAsBatch, is_the_users
from snn_dfa.sequence.copies import copy_of
from snn_dfa.sequence.fixed_draws import DrawsError, FixedDraws
from snn_dfa.sequence.flat_scan import Layout
from snn_dfa.sequence.handed_on import HandedOn
from snn_dfa.sequence.left_behind import see_same_left
from snn_dfa.state import reset

__all__ = ["compare_with_loop"]

#: So many steps, at least, and so many samples are compared.
_LEAST, _SAMPLES = 3, 4
_SHAKE = 0.2  # of a parameter


def compare_with_loop(
    net: nn.Module, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], *, loops: bool
) -> TimeAsBatch:
    """See that a network's form gives the values and gradients of its loop; return the form.

    Args:
        net: The network.
        x: A sequence [T, B, ...].
        args: What else the network takes.
        kwargs: The same, by name.
        loops: Whether the network loops over its input's first dimension.

    Raises:
        AttachError: where they differ, or the network reads a number off its samples.
    """
    torch.manual_seed(0)  # the same comparison each time; the generator's state is restored
    x = torch.cat([x] * _LEAST)[: min(max(len(x), _LEAST), LONGEST)]
    has_more = any(isinstance(t, Tensor) for t in tree_flatten((args, kwargs))[0])
    few = [] if has_more or x.shape[1] <= _SAMPLES else [x[:, :_SAMPLES]]
    modes = (True, False) if _trains(net) else (False,)
    tries = product((torch.float64, x.dtype), (*few, x), modes)
    error: Exception | None = None
    for dtype, samples, training in tries:
        trial = _Trial(net, samples, args, kwargs, loops=loops, dtype=dtype, training=training)
        try:
            form = trial.compare(1e-9 if dtype == torch.float64 else 1e-3)
        except DFAError:
            raise
        except DrawsError:
            continue
        except Exception as raised:  # of a network with a batch of its own, or in single precision
            error = error or raised
            continue
        if not trial.drew:  # in training alone, or the next comparison says so
            return form
    assert error is not None
    raise error


def _trains(net: nn.Module) -> bool:
    return any(m.training for m in net.modules() if is_the_users(m))


class _Trial:
    """One comparison; see :func:`compare_with_loop`.

    Args:
        net: The network.
        x: A sequence of few samples.
        args: What else the network takes.
        kwargs: The same, by name.
        loops: Whether the network loops over its input's first dimension.
        dtype: Of the copies.
        training: Whether the user's own modules are in training mode. What they draw is constant.
    """

    def __init__(
        self, net: nn.Module, x: Tensor, args: Any, kwargs: Any, *,
        loops: bool, dtype: torch.dtype, training: bool,
    ) -> None:  # fmt: skip
        def cast(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_inference():
                value = value.clone()
            is_number = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().to(dtype) if is_number else value

        def shaken(value: Any) -> Any:
            value = cast(value)
            varies = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
            if not varies:
                return value
            noise = torch.empty_like(value).uniform_(0, _SHAKE)  # steps are alike at a first call
            return torch.where(value == 0, noise, value * (1 - noise))

        self._net, self._loops, self._training = net, loops, training
        self._x = _half_random(cast(x))
        self._args, self._kwargs = tree_map(shaken, (tuple(args), dict(kwargs)))
        self._dtype = dtype
        self._fixed = FixedDraws() if training else None  # type: ignore[no-untyped-call]

    @property
    def drew(self) -> bool:
        """Whether constants have stood for random numbers."""
        return self._fixed is not None and self._fixed.drew

    def compare(self, tolerance: float) -> TimeAsBatch:
        """Return the form, if it gives what the loop gives."""
        net = self._shaken()
        by_steps, at_once = copy_of(net), copy_of(net)
        for twin in (by_steps, at_once):
            twin.train(False)
            for module in twin.modules() if self._training else ():
                module.training = is_the_users(module)
        neurons = [m for twin in (by_steps, at_once) for m in twin.modules()]
        snn.SpikingNeuron.instances[:] = [m for m in neurons if isinstance(m, snn.SpikingNeuron)]
        form = TimeAsBatch(at_once, check=False)
        form.loops, form.layout.probes = self._loops, True
        with torch.enable_grad(), self._fixed or nullcontext():
            wanted, got = self._results(by_steps, form)
            _see_equal(wanted, got, tolerance)
            _see_equal_gradients(wanted, got, by_steps, at_once, 10 * tolerance)
            see_same_left(by_steps, at_once, 10 * tolerance)
        return form

    def _shaken(self) -> nn.Module:
        """Return a copy whose parameters are all there and, where it bears it, none is zero."""
        first = self._fresh()
        self._result(first)  # the network's own errors; lazy modules are made

        def at_rest() -> nn.Module:
            return copy_of(first) if self._is_lazy else self._fresh()

        for low, high in ((-2 * _SHAKE, 2 * _SHAKE), (-_SHAKE, 0.0)):
            net = at_rest()
            for p in net.parameters():
                if p.is_floating_point():
                    noise = torch.empty_like(p.detach()).uniform_(low, high)
                    p.data = torch.where(p == 0, max(high, 0) * noise, p * (1 + noise))
            try:
                results = tree_flatten(self._result(copy_of(net)))[0]
            except Exception:  # of a parameter that has a range
                continue
            if not any(isinstance(t, Tensor) and t.isnan().any() for t in results):
                return net
        return at_rest()

    @property
    def _is_lazy(self) -> bool:
        return any(is_lazy(p) for p in self._net.parameters())

    def _fresh(self) -> nn.Module:
        return _smooth(copy_of(self._net).to(self._dtype))

    def _result(self, net: nn.Module) -> Any:
        return net(self._x if self._loops else self._x[0], *self._args, **self._kwargs)

    def _results(self, by_steps: nn.Module, form: TimeAsBatch) -> tuple[Any, Any]:
        """Return what the loop gives, and what the form gives."""
        x, args, kwargs = self._x, self._args, self._kwargs
        handed_on = HandedOn(by_steps)
        if self._loops:  # twice, since what a call leaves on the network may change the next one
            wanted, got = [], []
            for call in ("first", "second"):
                wanted.append(by_steps(x, *args, **kwargs))
                handed_on.see(len(x))
                got.append(self._run(form, call))
                reset(by_steps)
            return wanted, got
        once = self._run(form)
        wanted = _loop(by_steps, x, args, kwargs, _passed_on(form, args, kwargs))
        handed_on.see(len(x))
        return wanted, once

    def _run(self, form: TimeAsBatch, call: str = "first") -> Any:
        x = self._x
        try:
            with _Followed(x, form.layout, self._training) as followed, _Converted(followed):
                return form.run(x, *self._args, **self._kwargs)
        except (DFAError, DrawsError):
            raise
        except Exception as error:
            if call == "second":
                raise _differs(f"a {type(error).__name__} in the second call, {error}") from error
            raise AttachError(
                f"over_time: the network takes a step of {x.shape[1]} samples, but not all "
                f"T * B = {len(x)} * {x.shape[1]} in one call ({type(error).__name__}: {error}); "
                f"take sizes from the input, x.size(0), and steps from its first dimension alone"
            ) from error


def _half_random(x: Tensor) -> Tensor:
    """Return the sequence with random numbers in its range at every other place."""
    low, high = (float(v) for v in x.aminmax())
    if not low < high:
        low, high = 0.0, 2.0
    steps, samples = (torch.arange(n, device=x.device) for n in x.shape[:2])
    given = ((steps[:, None] + samples) % 2 == 0).view(*x.shape[:2], *[1] * (x.dim() - 2))
    return torch.where(given, x, torch.empty_like(x).uniform_(low, high))


class _Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the samples; raises an error where the network's code reads a number off them.

    An ``if`` on such a number takes one way for all steps and samples.

    Args:
        x: The samples; what is made of them is followed.
        layout: Of the network that runs.
        training: Whether statistics of a batch end the trial.
    """

    def __init__(self, x: Tensor, layout: Layout, training: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layout, self._training = layout, training
        self._made = WeakTensorKeyDictionary([(x, True)])

    def see_that_none_is_read(self, values: Any) -> bool:
        """Return whether a value was made of the samples; raise an error outside of neurons."""
        of_samples = self._are_of_samples(values)
        if of_samples and not self._layout.in_neuron:
            raise AttachError(
                "over_time: the network's forward reads a number off its samples, in an `if` on a "
                "tensor or by item(), which would be one number for all steps and samples; compute "
                "with tensors, torch.where(...), or, if the number does not change what the "
                "network gives, pass check=False"
            )
        return of_samples

    def _are_of_samples(self, values: Any) -> bool:
        return any(isinstance(t, Tensor) and t in self._made for t in tree_flatten(values)[0])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            self.see_that_none_is_read((args, kwargs))
        if self._training and _normalises(func, args) and not self._layout.in_neuron:
            raise DrawsError
        result = func(*args, **(kwargs or {}))
        if self._are_of_samples((args, kwargs)):
            for t in tree_flatten(result)[0]:
                if isinstance(t, Tensor):
                    self._made[t] = True
        return result


def _normalises(func: Any, args: Sequence[Any]) -> bool:
    """Return whether an operation takes the statistics of a batch."""
    return "batch_norm" in func.name() and len(args) > 5 and args[5] is True


class _Converted(TorchFunctionMode):
    """Sees conversions to numbers that no operation shows: ``numpy()`` and ``tolist()``."""

    def __init__(self, followed: _Followed) -> None:
        super().__init__()
        self._followed = followed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.numpy, Tensor.tolist, Tensor.__array__):
            self._followed.see_that_none_is_read(args)
        return func(*args, **(kwargs or {}))


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
            if any(isinstance(v, Tensor) for v in getattr(a, "__dict__", {}).values()):
                raise AttachError(
                    f"over_time: the network returns an object of type {type(a).__name__}, "
                    f"expected tensors, or tuples, lists and dictionaries of them; return a "
                    f"NamedTuple or a dictionary"
                )
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
        f"over_time: the network gives other values with all time steps in one call than in the "
        f"loop over time: {what}. Four kinds of network do this: "
        f"(a) it keeps a state outside its neurons, or passes a value to the next step of an "
        f"earlier layer: keep the state in a class derived from snntorch.SpikingNeuron; "
        f"(b) it draws random numbers: draw them outside, or pass check=False; "
        f"(c) it depends on the number of the step; (d) it mixes the samples of a batch: for (c) "
        f"and (d) leave over_time out, and loop over time"
    )


def _see_equal_gradients(
    wanted: Any, got: Any, by_steps: nn.Module, at_once: nn.Module, tolerance: float
) -> None:
    """Raise an error where the parameters' gradients of some loss differ."""
    names = [n for n, p in by_steps.named_parameters() if p.requires_grad]
    try:
        expected = _gradients(wanted, by_steps, names)
    except RuntimeError:
        return  # the loop cannot be trained either
    found = _gradients(got, at_once, names)
    for name, a, b in zip(names, expected, found, strict=True):
        if (a - b).abs().max() > tolerance * (1 + a.abs().max()):
            raise AttachError(
                f"over_time: the network gives the values of its loop, and other gradients, such "
                f"as that of {name!r}: it detaches a state in the loop, or computes without "
                f"gradients there. Train chunks of the sequence with stateful=True, which cuts the "
                f"gradient between chunks, or loop over time around the network"
            )


def _gradients(values: Any, net: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Return the gradients of a sum of the values with fixed factors, without a pattern."""
    parts = []
    for value in tree_flatten(values)[0]:
        if isinstance(value, Tensor) and value.is_floating_point():
            factors = torch.arange(1, value.numel() + 1, device=value.device).mul(12.9898).sin()
            parts.append((factors.to(value).view(value.shape) * value.nan_to_num()).sum())
    parameters = dict(net.named_parameters())
    at = [parameters[name] for name in names]
    total = sum(parts[1:], parts[0]) if parts else torch.zeros(())
    if not total.requires_grad or not at:
        return [torch.zeros_like(p) for p in at]
    found = torch.autograd.grad(total, at, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(at, found, strict=True)]
