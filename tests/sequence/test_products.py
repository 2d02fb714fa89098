"""Autocast to bfloat16 on a processor that has no products in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snn_dfa.sequence import products
from snn_dfa.sequence.products import fast_product, products_dtype


@pytest.fixture(params=[False, True])
def has_bfloat16(request, monkeypatch):
    monkeypatch.setattr(products, "_has_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("module", [nn.Linear(6, 4), nn.Conv1d(6, 4, 1)], ids=["linear", "conv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_in_bfloat16_and_gradients_in_single_precision(module, dtype, has_bfloat16):
    x = torch.rand(3, 6, dtype=dtype) if isinstance(module, nn.Linear) else torch.rand(3, 6, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fast_product(module, x, module.weight)
    exact = module(x.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.03, rtol=0.03)
    (grad,) = torch.autograd.grad(y.float().sum(), module.weight)
    (wanted,) = torch.autograd.grad(exact.sum(), module.weight)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, wanted, atol=0.05, rtol=0.05)
    if not has_bfloat16:
        assert torch.equal(y, exact.to(torch.bfloat16))


def test_products_are_in_another_dtype_only_where_the_processor_lacks_it(has_bfloat16):
    wanted = torch.bfloat16 if has_bfloat16 else torch.float32
    assert products_dtype(torch.bfloat16) == wanted
    assert products_dtype(torch.float16) == torch.float16
