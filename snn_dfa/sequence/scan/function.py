"""The scan as one autograd function, on the implementation that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from snn_dfa.sequence.scan import cpu, cuda, reference
from snn_dfa.sequence.scan.dynamics import (
    Beside,
    Dynamics,
    States,
    one_step_if_constant,
)
from snn_dfa.sequence.scan.in_steps import InSteps
from snn_dfa.surrogate import Surrogate

__all__ = ["Dynamics", "credit_at_current", "gate_of", "is_scanned", "leaky_scan"]


_VIEWS = {"PermuteBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "ViewBackward0"}


def leaky_scan(
    current: Tensor,
    dyn: Dynamics,
    want_states: bool = False,
    spikes_dtype: torch.dtype | None = None,
    start: Sequence[Tensor | None] | None = None,
    want_last: bool = False,
    over_resets: bool = False,
) -> tuple[Tensor, ...]:
    """Run a spiking neuron over a sequence.

    Args:
        current: [T, B, ...]; one that is expanded over time (stride zero) is read once. In half
            precision the membrane is in float32, and the spikes, which are exact, stay half.
        dyn: The neuron; its constants broadcast to the feature dimensions, and get gradients.
        want_states: Whether to return the states of all steps.
        spikes_dtype: Of the spikes, ``None`` for that of ``current``.
        start: What to begin with, ``None`` for rest: membranes [B, ...]; for a refractory neuron
            the silent steps that are left, in int32; synaptic currents [B, ...], if any. Membranes
            and currents get a gradient.
        want_last: Whether to return the last states.
        over_resets: Whether the gradient through time is that of the decay alone, which passes
            over resets and held membranes, as eligibility traces do.

    Returns:
        Spikes [T, B, ...]; synaptic currents and membranes [T, B, ...] if wanted; the last
        membranes, of a refractory neuron the silent steps that are left, and the last synaptic
        currents, [B, ...] without a gradient, if wanted.

    Example:
        >>> from snn_dfa.surrogate import fast_sigmoid
        >>> dyn = Dynamics(torch.tensor(0.5), torch.tensor(1.0), fast_sigmoid(10))
        >>> leaky_scan(torch.full((4, 1, 1), 0.9), dyn)[0].flatten()
        tensor([0., 1., 0., 1.])
    """
    mem, wait, syn, inh = (*(start or ()), *(None,) * 4)[:4]
    order = _order(current)
    current = current.permute(order)
    flat = _flat(current)
    if mem is not None and mem.requires_grad and flat.stride(0) == 0:
        flat = flat.contiguous()  # the gradient of the first step alone is asked for
    dtype = torch.promote_types(current.dtype, torch.float32)
    mem, syn, inh = (None if t is None else _of_step(t.to(dtype), order) for t in (mem, syn, inh))
    dyn = _of_flat(dyn, current, order)
    constants = dyn.beta, dyn.threshold, dyn.alpha, dyn.tau
    found = _LeakyScan.apply(
        flat,
        mem,
        syn,
        inh,
        *constants,
        None if wait is None else _of_step(wait, order),
        _detached(dyn),
        want_states,
        want_last,
        over_resets,
        current.dtype if spikes_dtype is None else spikes_dtype,
    )
    back = [order.index(i) for i in range(len(order))]
    series, lasts = ([t for t in part if t is not None] for part in (found[:4], found[4:]))
    result = [t.view(current.shape).permute(back) for t in series]
    result += [t.view(1, *current.shape[1:]).permute(back)[0] for t in lasts]
    return tuple(result)


def credit_at_current(
    at_spikes: Tensor, current: Tensor, threshold: Tensor, surrogate: Surrogate
) -> Tensor:
    """Return the error at the spikes times the surrogate's slope at current - threshold.

    It is the backward pass of a neuron without memory or reset, and done by the same kernels.

    Args:
        at_spikes: [T, B, ...].
        current: [T, B, ...]. For one that is expanded over time the result is each step's share
            of the sum over steps.
        threshold: Broadcasts to the feature dimensions.
        surrogate: Gives the slope.

    Returns:
        [T, B, ...] in the dtype of ``current``.

    Example:
        >>> from snn_dfa.surrogate import fast_sigmoid
        >>> current = torch.tensor([0.9, 1.0, 1.1]).view(3, 1, 1)
        >>> one = torch.tensor(1.0)
        >>> credit_at_current(torch.ones(3, 1, 1), current, one, fast_sigmoid(10)).flatten()
        tensor([0.2500, 1.0000, 0.2500])
    """
    order = _order(current)
    current, at_spikes = current.permute(order), at_spikes.permute(order)
    shape, errors, once = current.shape, _flat(at_spikes), one_step_if_constant(_flat(current))
    if len(once) < len(current):
        errors = one_step_if_constant(errors).mean(0, keepdim=True)
    memoryless = Dynamics(torch.zeros(()), threshold, surrogate, reset="none")
    dyn = _detached(_of_flat(memoryless, current, order))
    margin = once - dyn.threshold
    kernels = _implementation(once, dyn)
    result = kernels.backward(errors, None, margin, dyn, current.dtype, False)
    back = [order.index(i) for i in range(len(order))]
    return result.view(-1, *shape[1:]).expand(shape).permute(back)


def gate_of(spikes: Tensor, current: Any, dims: int) -> tuple[Tensor, Tensor] | None:
    """Return what the summed spikes of a scan gain by a change of its current.

    It is the scan's backward pass, of which the kernels on the CPU write down no step.

    Args:
        spikes: As the scan returned them, or a view: [T, B, ...] or [T * B, ...].
        current: The node of the graph that made the current.
        dims: 2 for [T, B, ...], 1 for [T * B, ...].

    Returns:
        The mean over steps [B, ...], and the sum of the sizes of each step's, [T]; ``None`` where
        the spikes were not made by a scan of that current alone.
    """
    node: Any = _through_views(spikes.grad_fn)
    if type(node) is not _SCAN or node.over_resets:
        return None
    if _through_views(node.next_functions[0][0], current) is not current:
        return None
    (margin, mem, *_), dyn = node.saved_tensors, node.dyn
    steps, batch, neurons = margin.shape
    args = dyn.beta.new_ones(()).expand(margin.shape), None, margin, dyn, dyn.beta.dtype
    if node.kernels is cuda:  # whose kernel writes no sizes
        each = cuda.backward(*args, False)
        found, sizes = each.sum(0), torch.linalg.vector_norm(each, 1, dim=(1, 2))
    else:
        sizes = dyn.beta.new_empty(steps)
        beside = Beside(None if dyn.is_leaky else mem, sizes=sizes)
        found = node.kernels.backward(*args, True, beside)
    strides = neurons, *spikes.stride()[dims:]
    gate = found.div_(steps).as_strided((batch, *spikes.shape[dims:]), strides)  # as spikes lie
    return gate, sizes


def is_scanned(spikes: Tensor | None) -> bool:
    """Return whether a gradient at spikes goes to a scan, and passes views alone on its way.

    Args:
        spikes: [T, B, ...] or [T * B, ...].

    Example:
        >>> from snn_dfa.surrogate import fast_sigmoid
        >>> dyn = Dynamics(torch.tensor(0.5), torch.tensor(1.0), fast_sigmoid(10))
        >>> spikes = leaky_scan(torch.ones(4, 1, 1, requires_grad=True), dyn)[0]
        >>> is_scanned(spikes.flatten(0, 1)), is_scanned(2 * spikes)
        (True, False)
    """
    return spikes is not None and type(_through_views(spikes.grad_fn)) is _SCAN


def _through_views(node: Any, end: Any = None) -> Any:
    """Return the first node that is no view, or the end."""
    while node is not None and node is not end and type(node).__name__ in _VIEWS:
        node = node.next_functions[0][0]
    return node


def _order(sequence: Tensor) -> list[int]:
    """Return the dimensions of [T, B, ...], those of a sample as they lie in memory.

    A neuron knows no place, so that a scan runs over any dense sample, such as one with its
    channels last, and a copy is spared.
    """
    strides = sequence.stride()
    return [0, 1, *sorted(range(2, sequence.dim()), key=lambda i: (-strides[i], i))]


def _of_step(state: Tensor, order: list[int]) -> Tensor:
    """Return a state [B, ...] as [B, N], in the order of the sequence."""
    return state.unsqueeze(0).permute(order)[0].flatten(1)


def _flat(sequence: Tensor) -> Tensor:
    """[T, B, ...] as [T, B, N]; a sequence that is expanded over time stays so."""
    return sequence if sequence.dim() == 3 else sequence.flatten(2)


def _of_flat(dyn: Dynamics, current: Tensor, order: list[int]) -> Dynamics:
    """Return the neuron with constants [] or [N], in the dtype and on the device of membranes.

    Args:
        dyn: The neuron, its constants in the order of its features.
        current: [T, B, ...], its dimensions in ``order``.
        order: Of the dimensions.
    """
    dtype = torch.promote_types(current.dtype, torch.float32)

    def row(value: Tensor) -> Tensor:
        value = value.to(current.device, dtype)
        if not value.dim():
            return value
        value = value[(None,) * (current.dim() - value.dim())]
        return value.permute(order)[0, 0].expand(current.shape[2:]).flatten()

    return _with_constants(dyn, row)


def _with_constants(dyn: Dynamics, change: Callable[[Tensor], Tensor]) -> Dynamics:
    """Return the neuron with its constants changed, those that it has."""
    alpha, tau = (None if c is None else change(c) for c in (dyn.alpha, dyn.tau))
    return dataclasses.replace(
        dyn, beta=change(dyn.beta), threshold=change(dyn.threshold), alpha=alpha, tau=tau
    )


def _detached(dyn: Dynamics) -> Dynamics:
    return _with_constants(dyn, Tensor.detach)


def _implementation(current: Tensor, dyn: Dynamics, learns: bool = False) -> ModuleType:
    """Return the kernels that fit; those on CUDA know neurons whose one state is the membrane."""
    if dyn.is_leaky and not learns and cuda.available(current, dyn):
        return cuda
    return cpu if cpu.available(current, dyn) else reference


class _LeakyScan(torch.autograd.Function):
    """Spikes, states and last states of a scan; keeps the margins (membrane minus threshold).

    Of a neuron whose constants learn it keeps the states, too, that the margins do not tell.
    """

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, mem: Tensor | None, syn: Tensor | None, inh: Tensor | None,
        beta: Tensor, threshold: Tensor, alpha: Tensor | None, tau: Tensor | None,
        wait: Tensor | None, dyn: Dynamics,
        want_states: bool, want_last: bool, over_resets: bool, spikes_dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        once = one_step_if_constant(current)
        ctx.constant = len(once) < len(current)
        learns = any(ctx.needs_input_grad[4:8])
        keeps_mems = learns and dyn.immediate_reset
        keeps_syns = ctx.needs_input_grad[6]
        kernels = _implementation(current, dyn, learns)
        wanted = any(ctx.needs_input_grad)
        last_mem, last_wait, last_syn, last_inh = _places(current, dyn, want_last)
        series = [
            dyn.beta.new_empty(current.shape) if want_states or (keeps_syns and not i) else None
            for i in range(dyn.currents)
        ]
        syns, inhs = (*series, None, None)[:2]
        firsts = (None if t is None else t.detach() for t in (mem, syn, inh))
        first_mem, first_syn, first_inh = firsts
        states = States(first_mem, wait, last_mem, last_wait, first_syn, first_inh,
                        last_syn, last_inh, syns, inhs)  # fmt: skip
        spikes, margin, mems = kernels.forward(
            once, dyn, len(current), spikes_dtype, want_states or keeps_mems, wanted, states
        )
        if wanted:
            of_start = ctx.needs_input_grad[1] or learns or not dyn.is_leaky
            first = (mem, wait) if of_start else (None, None)
            ctx.save_for_backward(
                margin, *first, syn if keeps_syns else None,
                mems if keeps_mems else None, syns if keeps_syns else None,
            )  # fmt: skip
        ctx.dyn, ctx.kernels, ctx.learns = dyn, kernels, learns
        ctx.dtype, ctx.shape, ctx.over_resets = current.dtype, current.shape, over_resets
        ctx.set_materialize_grads(False)
        lasts = last_mem, last_wait, last_syn, last_inh
        ctx.mark_non_differentiable(*(t for t in lasts if t is not None))
        if not want_states:
            mems = syns = inhs = None
        return spikes, syns, inhs, mems, *lasts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, at_spikes: Tensor | None, at_syns: Tensor | None, at_inhs: Tensor | None,
        at_mems: Tensor | None, *_: Any,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        grads = at_spikes, at_syns, at_inhs, at_mems
        if all(grad is None for grad in grads):
            return (None,) * 14
        margin, mem, wait, syn, mems, syns = ctx.saved_tensors
        at_start = ctx.needs_input_grad[1:4]
        dtype, dyn = ctx.dyn.beta.dtype if any(at_start) else ctx.dtype, ctx.dyn
        apart = ctx.kernels is not cuda and not ctx.over_resets  # both need the product
        at_spikes, factors = _in_steps(at_spikes, apart=apart)
        if ctx.over_resets:
            if at_mems is not None and (dyn.immediate_reset or dyn.clamp):
                # What a reset or a held membrane does in its own step, and then the decay.
                step = dataclasses.replace(dyn, beta=torch.zeros_like(dyn.beta), gain=1.0)
                of_step = at_spikes, at_mems, margin, step, dyn.beta.dtype, False
                at_spikes, at_mems = None, ctx.kernels.backward(*of_step)
            dyn = dataclasses.replace(dyn, reset="none", immediate_reset=False, clamp=False)
        args = (at_spikes, at_mems, margin, dyn, dtype, ctx.constant)
        if dyn.is_leaky and not ctx.learns:
            found = Beside(factors=factors)
        else:
            sums = _sums(ctx, margin)
            found = Beside(mem, at_syns, at_inhs, mems, syns, syn, *sums)._replace(factors=factors)
        beside = () if ctx.kernels is cuda else (found,)  # those on CUDA know nothing beside
        result = ctx.kernels.backward(*args, *beside)
        at_mem = found.at_mem
        if at_start[0] and at_mem is None:
            at_mem = _at_start(result[0], mem, wait, dyn)
        result = result.to(ctx.dtype)
        if ctx.constant:
            # Each step's share of the sum: expanding it costs nothing, and the sum over steps
            # that follows gives the whole back.
            result = (result / ctx.shape[0]).expand(ctx.shape)
        of_neurons = (found.at_beta, found.at_threshold, found.at_alpha)
        constants = (_of_constant(*each) for each in zip(of_neurons, _learned(dyn), strict=True))
        return (result, at_mem, found.at_syn, found.at_inh, *constants, *(None,) * 7)


_SCAN: Any = _LeakyScan._backward_cls


def _in_steps(at_spikes: Tensor | None, *, apart: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return gradients at spikes, and the factor of each step; ``apart`` is whether it may stay."""
    if not isinstance(at_spikes, InSteps):
        return at_spikes, None
    if not apart:
        return at_spikes.product(), None
    return at_spikes.once.expand(at_spikes.shape), at_spikes.factors


def _places(current: Tensor, dyn: Dynamics, want_last: bool) -> tuple[Tensor | None, ...]:
    """Return where the last membranes, silent steps and synaptic currents are to be written."""
    if not want_last:
        return (None,) * 4
    shape = current.shape[1:]
    wait = current.new_empty(shape, dtype=torch.int32) if dyn.refractory_steps else None
    currents = [dyn.beta.new_empty(shape) for _ in range(dyn.currents)]
    return (dyn.beta.new_empty(shape), wait, *currents, None, None)[:4]


def _sums(ctx: Any, margin: Tensor) -> list[Tensor | None]:
    """Return where the gradients at first states, beta, threshold and alpha are to be written."""
    of_start = [not ctx.dyn.is_leaky and need for need in ctx.needs_input_grad[1:4]]
    needed = [*of_start, *ctx.needs_input_grad[4:7]]
    return [ctx.dyn.beta.new_empty(margin.shape[1:]) if need else None for need in needed]


def _learned(dyn: Dynamics) -> tuple[Tensor, Tensor, Tensor | None]:
    return dyn.beta, dyn.threshold, dyn.alpha


def _of_constant(of_neurons: Tensor | None, constant: Tensor | None) -> Tensor | None:
    """Return the gradient at a constant, of one for all or for each, from that of [B, N]."""
    if of_neurons is None or constant is None:
        return None
    return of_neurons.sum(0) if constant.dim() else of_neurons.sum()


def _at_start(at_current: Tensor, mem: Tensor, wait: Tensor | None, dyn: Dynamics) -> Tensor:
    """Return the gradient at the membrane before the first step, from that at its current."""
    result = dyn.beta * at_current / dyn.gain
    if dyn.reset == "zero" and not dyn.immediate_reset:
        if not dyn.refractory_steps:
            return result * (mem <= dyn.threshold)
        return result if wait is None else result * (wait != dyn.refractory_steps)
    return result
