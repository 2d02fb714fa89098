"""Products in bfloat16 on a CPU that has none: in single precision, which is faster there."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["fast_product", "products_dtype"]


@functools.cache
def _has_bfloat16() -> bool:
    """Return whether oneDNN has products in bfloat16 for this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def products_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a CPU does products that are asked for in ``dtype``.

    Args:
        dtype: Any.

    Example:
        >>> products_dtype(torch.float64)
        torch.float64
    """
    return torch.float32 if dtype == torch.bfloat16 and not _has_bfloat16() else dtype


def fast_product(product: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """Return ``product(x)``, under autocast to bfloat16 computed as fast as the CPU can.

    Without instructions for bfloat16 a product in it takes several times that in single precision.
    There it is computed in single precision, and its result alone is rounded to bfloat16.

    Args:
        product: A linear layer or a convolution.
        x: What goes in.
        weight: The layer's.

    Example:
        >>> fc = torch.nn.Linear(4, 2)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     fast_product(fc, torch.rand(3, 4), fc.weight).dtype
        torch.bfloat16
    """
    half = (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    known = x.dtype in (torch.float32, torch.bfloat16) and weight.dtype == torch.float32
    if not half or not known or _has_bfloat16():
        return product(x)
    with torch.autocast("cpu", enabled=False):
        return product(x.float()).to(torch.bfloat16)
