"""Every neuron of snnTorch under DFA, beside blocks that are cut and passed back by hand."""

import pytest
import torch
from kinds import SEQUENCES, STEPS, B, F, Net, T, by_hand

from snn_dfa import DFA

CASES = [
    *((kind, block, hidden, False) for kind, block in STEPS.items() for hidden in (True, False)),
    *((kind, block, False, True) for kind, block in SEQUENCES.items()),
]


@pytest.mark.parametrize(
    ("kind", "block", "hidden", "by_sequence"), CASES,
    ids=[f"{kind}-{'sequence' if s else 'hidden' if h else 'explicit'}" for kind, _, h, s in CASES],
)  # fmt: skip
def test_gradients_of_every_neuron(kind, block, hidden, by_sequence, generator):
    net = Net(block, hidden, by_sequence)
    double = kind not in ("AssociativeLeaky", "SLSTM")  # which are in single precision inside
    if double:
        net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.dim() > 1 else p.add_(0.2 * (p.numel() > 1))
    shape = (T, B, 1, 4, 4) if kind == "SConv2dLSTM" else (T, B, F)
    dtype = torch.float64 if double else torch.float32
    x = torch.rand(shape, generator=generator, dtype=dtype) * 2
    dfa = DFA(net)
    for _ in range(2):  # the first pass finds the output, the second knows it
        net.zero_grad()
        out = net(x)
        weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        (out * weights).sum().backward()
    feedback = list(dfa.feedback.values())
    assert len(dfa.hidden) == 2
    learn = {name: p for name, p in net.named_parameters() if p.requires_grad}
    got = [None if p.grad is None else p.grad.clone() for p in learn.values()]
    dfa.remove()
    expected, rates = by_hand(net, x, weights, feedback)
    assert all(0.02 < rate < 0.99 for rate in rates) or kind == "AssociativeLeaky", rates
    tolerance = 1e-10 if double else 1e-5
    moved = 0
    for name, mine, reference in zip(learn, got, expected, strict=True):
        if reference is None:
            assert mine is None or not mine.any(), name
            continue
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance, msg=name)
        moved += bool(mine.any())
    assert moved >= 3
