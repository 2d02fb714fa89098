"""A linear layer on spikes: only the weights of inputs that fired are read and added.

A product with a matrix of zeros and ones is a sum of rows, and most inputs of a spiking layer are
zero. Forward, an output is the sum of the weights of the inputs that fired; backward, the gradient
of an input's weights is the sum of the errors at the steps in which it fired. Both are the same
kernel, compiled by numba; torch's dense product does what is not sparse, or not spikes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from snn_dfa.sequence import spike_kernels as kernels
from snn_dfa.sequence.numba_tools import as_array, has_numba
from snn_dfa.sequence.products import fast_product, products_dtype

__all__ = ["Events", "events_of", "linear", "spike_sum"]

_CHUNK = 1024  # rows of the source that are summed from before the next ones are fetched
_SMALL = 1 << 22  # multiplications below which the dense product is as good
# Share of ones up to which adding beats torch's product, by measurement (benchmarks/README.md).
_SPARSE: dict[torch.dtype | None, float] = {
    torch.float64: 0.25,
    torch.float32: 0.25,
    torch.bfloat16: 0.05,
}


class Events(NamedTuple):
    """The ones of a matrix [R, F], row by row, in the columns' order.

    ``starts`` [R + 1]: row r has the events from ``starts[r]`` on. ``columns``: of each event.
    """

    starts: Tensor
    columns: Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``torch.nn.functional.linear(x, weight, bias)``, faster where x is few spikes.

    Args:
        x: [..., F].
        weight: [N, F].
        bias: [N] or ``None``.

    Returns:
        [..., N]. Values and gradients are those of the dense product but for rounding; in half
        precision the sums are taken in single precision.

    Example:
        >>> linear(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
        tensor([[1.5000],
                [2.5000]])
    """
    dtype = _compute_dtype(x, weight)
    most = _SPARSE.get(dtype if dtype is None else products_dtype(dtype))
    dense = functools.partial(functional.linear, weight=weight, bias=bias)
    if most is None or not _worth_a_look(x, weight):
        return fast_product(dense, x, weight)
    events = events_of(x.detach().flatten(0, -2), most)
    if events is None:
        return fast_product(dense, x, weight)
    out: Tensor = _SpikeLinear.apply(x, weight, bias, events, dtype)
    return out


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype that torch's product has, which leaves doubles alone under autocast."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype(kind)
    return x.dtype if x.dtype == weight.dtype else None


def _worth_a_look(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in _SPARSE
        and weight.dtype in (torch.float32, torch.float64)
        and x.numel() * len(weight) >= _SMALL
        and has_numba()
    )


def events_of(x: Tensor, most: float) -> Events | None:
    """Return the ones of x [R, F]; ``None`` if there is another value or a larger share of ones."""
    array = as_array(x.contiguous())
    one = np.uint16(0x3F80) if x.dtype == torch.bfloat16 else array.dtype.type(1)
    counts = torch.empty(len(x), dtype=torch.int64)
    others = kernels.count()(array, one, counts.numpy())
    if others or int(counts.sum()) > most * x.numel():
        return None
    starts = torch.zeros(len(x) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    columns = torch.empty(int(starts[-1]), dtype=torch.int32)
    kernels.fill()(array, starts.numpy(), columns.numpy())
    return Events(starts, columns)


class _SpikeLinear(torch.autograd.Function):
    """Keeps the events in place of the input: an eighth of the memory at a tenth of ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, events: Events, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(*events, weight)
        rows, size = x.shape[:-1].numel(), len(weight)
        out = torch.empty((rows, size), dtype=dtype)
        start = torch.zeros(size, dtype=weight.dtype) if bias is None else bias.detach()
        starts, columns = (t.numpy() for t in events)
        add = kernels.add_rows(False, dtype == torch.bfloat16)
        add(weight.detach().numpy().T, starts[None], columns, start.numpy(), as_array(out),
            weight.shape[1], torch.get_num_threads())  # fmt: skip
        return out.view(*x.shape[:-1], size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        *events, weight = ctx.saved_tensors
        flat = error.flatten(0, -2).contiguous()
        at_x = at_weight = at_bias = None
        if ctx.needs_input_grad[0] and _is_wanted(ctx.next_functions[0][0]):
            dtype = products_dtype(flat.dtype)
            at_x = (flat.to(dtype) @ weight.to(dtype)).to(flat.dtype)
            at_x = at_x.view(*error.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[1]:
            at_weight = _at_weight(flat, Events(*events), weight.shape[1], weight.dtype)
        if ctx.needs_input_grad[2]:
            at_bias = flat.sum(0, dtype=weight.dtype)
        return at_x, at_weight, at_bias, None, None


def _is_wanted(node: Any) -> bool:
    """Return whether autograd goes on to a node in this pass, as its own products ask."""
    if node is None or not node.next_functions:  # a leaf
        return node is not None
    return torch._C._will_engine_execute_node(node)


def _at_weight(error: Tensor, events: Events, features: int, dtype: torch.dtype) -> Tensor:
    """Sum the errors [R, N] over the rows in which each input fired."""
    starts, columns, size = events.starts.numpy(), events.columns.numpy(), error.shape[1]
    out = torch.zeros((features, size), dtype=dtype)
    begins, rows = kernels.by_column()(starts, columns, features, _CHUNK)
    add = kernels.add_rows(error.dtype == torch.bfloat16, False)
    nothing = torch.zeros(size, dtype=dtype).numpy()
    add(as_array(error), begins, rows, nothing, out.numpy(), _CHUNK, torch.get_num_threads())
    return out.t()


def spike_sum(error: Tensor, x: Tensor) -> Tensor | None:
    """Return the product of error [R, N], transposed, and x [R, F], where x is few spikes.

    Args:
        error: At the results of a linear layer.
        x: What came into it.

    Returns:
        [N, F]; ``None`` where x is no matrix of few ones, or where a dense product is as good.

    Example:
        >>> spike_sum(torch.ones(1, 2), torch.ones(1, 3)) is None
        True
    """
    most = _SPARSE.get(x.dtype) if x.dtype == error.dtype else None
    if most is None or not _worth_a_look(x, error.t()):
        return None
    events = events_of(x.detach(), most)
    if events is None:
        return None
    return _at_weight(error.contiguous(), events, x.shape[1], error.dtype)
