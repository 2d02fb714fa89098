"""Running a program: its batches, its states, its losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from programs.choices import BATCH, CHANNELS, SIDE, WIDTH, Spec
from programs.network import Network


def generator(seed: int) -> torch.Generator:
    """Return a generator on the device on which new tensors are made."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def _seed(seed: int) -> None:
    """Seed the generators that layers draw from."""
    torch.default_generator.manual_seed(seed)  # quicker than torch.manual_seed
    if torch.get_default_device().type == "cuda":  # which may be the first that is asked of it
        torch.cuda.manual_seed(seed)


def build(spec: Spec) -> Network:
    """Return the network of a spec, always with the same weights."""
    _seed(spec.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # snnTorch's own, about features that are tried out
        return Network(spec)


def inputs(spec: Spec, batch: int) -> Tensor:
    """Return a batch [T, B, ...]."""
    g = generator(1000 * spec.seed + batch)
    shape = (CHANNELS, SIDE, SIDE) if spec.conv else (WIDTH,)
    return 2 * torch.rand(spec.steps, BATCH, *shape, generator=g)


def run(
    spec: Spec, net: Network, batch: int, backward: Callable[[list[Tensor]], None] | None = None
) -> tuple[dict[str, list[Tensor]], Any, list[Tensor]]:
    """Run a batch; return the records by name, a value for each step, the last states, the losses.

    Args:
        spec: The program.
        net: Its network.
        batch: Which batch.
        backward: Called with each step's losses where the program goes backward after each step;
            otherwise the caller goes backward.
    """
    _seed(7 * spec.seed + batch)  # dropout
    _begin(spec, net)
    x = inputs(spec, batch).requires_grad_(spec.input_grad)
    if spec.loop != "around":
        values, states = _unpack(net, net(x), {})
        records = _complete(spec, net, {k: list(v) for k, v in values.items()})
        return records, states, losses(spec, records)
    records, states, found = {}, {}, []
    for t, x_t in enumerate(x):
        values, states = _unpack(net, net(x_t, states, t), states)
        for k, v in values.items():
            records.setdefault(k, []).extend(v)
        if spec.backward == "steps":
            step = _complete(spec, net, {k: list(v) for k, v in values.items()})
            now = losses(spec, {k: v[-1:] for k, v in step.items()})
            found += now
            if backward is not None:
                backward(now)
            states = _detached(states)
            _detach_neurons(net)
    records = _complete(spec, net, records)
    return records, states, found or losses(spec, records)


def _complete(
    spec: Spec, net: Network, records: dict[str, list[Tensor]]
) -> dict[str, list[Tensor]]:
    """Return what the network returned, and what it kept on itself instead."""
    return records if spec.recorded == "returned" else {**net.kept, **records}


def _begin(spec: Spec, net: Network) -> None:
    if spec.carry == "detach":
        _detach_neurons(net)
        return
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


def _detach_neurons(net: Network) -> None:
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            for name, state in [*module._buffers.items(), *vars(module).items()]:
                if isinstance(state, Tensor) and state.grad_fn is not None:
                    setattr(module, name, state.detach())


def _detached(states: Any) -> Any:
    if isinstance(states, dict):
        return {k: _detached(v) for k, v in states.items()}
    if isinstance(states, tuple):
        return tuple(_detached(v) for v in states)
    return states.detach() if isinstance(states, Tensor) else states


def _unpack(net: Network, returned: Any, given: Any) -> tuple[dict[str, Any], Any]:
    if net.spec.returns == "written":
        return dict(zip(net.names, returned, strict=True)), given
    if isinstance(returned, dict):
        return returned["values"], returned["states"]
    if isinstance(returned, tuple):
        return dict(zip(net.names, returned[0], strict=True)), returned[1]
    return returned.values, returned.states


def losses(spec: Spec, records: dict[str, list[Tensor]]) -> list[Tensor]:
    """Return the program's loss; in two parts where it goes backward twice."""
    g = generator(spec.seed + 5)
    main: list[Tensor] = []
    other: list[Tensor] = []
    for name, values in sorted(records.items()):
        if name.startswith("out"):
            main += _output_terms(spec, values, g)
        else:
            # A penalty on activity, over the whole sequence.
            rate = torch.stack(values).mean(0)
            other.append((rate - 0.2).pow(2).sum() * 0.3)
            other.append(values[-1].pow(2).mean() * 0.2)
    if spec.backward == "twice" and other and any(term.requires_grad for term in main):
        return [sum(main[1:], main[0]), sum(other[1:], other[0])]
    terms = main + other
    return [sum(terms[1:], terms[0])]


def _output_terms(spec: Spec, values: list[Tensor], g: torch.Generator) -> list[Tensor]:
    target = torch.rand(len(values), *values[0].shape, generator=g)
    if spec.when == "never" and any(layer.penalty for layer in spec.layers):
        return [0.0 * values[0].detach().sum()]
    if spec.when == "sum":
        return [(torch.stack(values).sum(0) - 2 * target[0]).pow(2).sum()]
    some = {"last": values[-1:], "ends": [values[0], values[-1]]}.get(spec.when, values)
    return [
        (0.5 + k) * (v - y).pow(2).mean()
        for k, (v, y) in enumerate(zip(some, target, strict=False))
    ]
