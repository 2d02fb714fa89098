"""Whether a network can run once on T * B samples: where its loop is, found on copies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.errors import AttachError
from snn_dfa.sequence.any_network import TimeAsBatch
from snn_dfa.sequence.comparison import compare_with_loop
from snn_dfa.sequence.copies import copy_of

__all__ = ["Found", "examine"]

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

    Everything runs on copies, in double precision where the network can; the state of random
    generators and snnTorch's list of neurons are restored.

    Args:
        net: The network.
        x: A sequence [T, B, ...].
        args: What else the network takes.
        kwargs: The same, by name.
        compare: Whether to compare; else every hidden state counts as one that is looked at.

    Raises:
        AttachError: if the network cannot run so; the message says why, and what to do.
    """
    with _aside(x):
        loops = _loops(net, torch.cat([x] * 3)[:3], args, kwargs)
        if not compare:
            form = TimeAsBatch(net)
            return Found(loops, {name: {"mem"} for name in form.scans}, set(form.scans))
        form = compare_with_loop(net, x, args, kwargs, loops=loops)
        scans = form.scans.items()
        last = {name for name, scan in scans if scan is form.layout.last_neuron}
        return Found(loops, {name: scan.reads for name, scan in scans}, last)


@contextmanager
def _aside(x: Tensor) -> Iterator[None]:
    """Leave no trace: no gradient, and generators as they were."""
    devices = [x.device] if x.is_cuda else []
    own, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    neurons = snn.SpikingNeuron.instances
    all_neurons = list(neurons)
    neurons.clear()  # a network may reset or detach the states of all there are
    try:
        with (
            torch.inference_mode(False),  # in which gradients are not compared
            torch.no_grad(),
            torch.random.fork_rng(devices=devices),
            torch.autocast(x.device.type, enabled=False),
            # Activation checkpointing keeps nothing of this, and does none of it again.
            torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is),
        ):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)  # noqa: NPY002
        neurons[:] = all_neurons


def _as_it_is(kept: Tensor) -> Tensor:
    return kept


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
    twin, counts = copy_of(net), dict[str, int]()

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
