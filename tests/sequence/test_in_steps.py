"""An error that is the same at all steps but for a factor equals the product in all that is done."""

import pytest
import torch

from snn_dfa.sequence.scan import Dynamics, InSteps, cpu, leaky_scan
from snn_dfa.surrogate import fast_sigmoid

T, B = 5, 3
SHAPES = {"one": (4,), "image": (2, 3, 4)}
CHANGES = {
    "detach": lambda x: x.detach(),
    "steps as samples": lambda x: x.flatten(0, 1),
    "and back": lambda x: x.flatten(0, 1).view(x.shape),
    "flat": lambda x: x.flatten(2),
    "the rest": lambda x: x.reshape(T, B, -1),
    "numbers first": lambda x: x.permute(0, 1, *reversed(range(2, x.dim()))),
    "as samples, numbers first": lambda x: x.flatten(0, 1).permute(0, *reversed(range(1, x.dim() - 1))),
    "samples first": lambda x: x.transpose(0, 1),
    "numbers before samples": lambda x: x.movedim(2, 1),
    "all": lambda x: x.flatten(),
    "samples in two": lambda x: x.reshape(T * B * 2, -1),
    "one step": lambda x: x[2],
    "sum": lambda x: x.sum(0),
    "plus": lambda x: x + torch.arange(float(T)).view(-1, *(1,) * (x.dim() - 1)),
    "times itself": lambda x: x * x,
}  # fmt: skip
KEPT = ["detach", "steps as samples", "and back", "flat", "the rest", "numbers first",
        "as samples, numbers first"]  # fmt: skip


@pytest.fixture(params=SHAPES)
def error(request):
    torch.manual_seed(0)
    return InSteps.of(torch.randn(B, *SHAPES[request.param]), torch.rand(T))


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_is_done_with_it_is_done_with_the_product(error, change):
    whole = error.factors.view(T, 1, *(1,) * (error.once.dim() - 1)) * error.once
    found = CHANGES[change](error)
    assert isinstance(found, InSteps) == (change in KEPT)
    found = found.product() if isinstance(found, InSteps) else found
    torch.testing.assert_close(found, CHANGES[change](whole))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("over_resets", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_a_scan_has_the_same_gradients(
    error, compiled, penalty, learns, over_resets, merged, monkeypatch
):
    if not compiled:
        monkeypatch.setattr(cpu, "available", lambda *_: False)
    drawn, beta = torch.rand(T, *error.once.shape), torch.tensor(0.8)
    whole, found = error.product(), []
    for sent in (error, whole):
        x, decay = drawn.clone().requires_grad_(), beta.clone().requires_grad_(learns)
        dyn = Dynamics(decay, torch.tensor(0.7), fast_sigmoid(5))
        spikes, mems = leaky_scan(x, dyn, want_states=True, over_resets=over_resets and not learns)
        assert 0.05 < spikes.mean() < 0.95
        spikes, sent = (t.flatten(0, 1) if merged else t for t in (spikes, sent))
        leaves = [x, decay] if learns else [x]
        ends, errors = [spikes], [sent]
        if penalty:
            ends, errors = [*ends, spikes.square().sum(), mems.sum()], [*errors, None, None]
        found.append(torch.autograd.grad(ends, leaves, errors))
    for a, b in zip(*found, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)
