"""Networks with DFA of their own, of which one reads what another has made."""

import gc

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, BackwardError
from snn_dfa.surrogate import fast_sigmoid

X = 2 * torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        options = {"beta": 0.8, "threshold": 0.3, "spike_grad": fast_sigmoid(10)}
        self.fc1, self.lif1 = nn.Linear(2, 6), snn.Leaky(**options)
        self.fc2, self.lif2 = nn.Linear(6, 2), snn.Leaky(**options)

    def forward(self, x, state=(None, None)):
        mem1, mem2 = (
            torch.zeros(4, n) if m is None else m for n, m in zip((6, 2), state, strict=True)
        )
        self.spk, mem1 = self.lif1(self.fc1(x), mem1)
        return (*self.lif2(self.fc2(self.spk), mem2), mem1)


def losses(nets, give, reads):
    """Each network reads the spikes of the one before, and the last reads the hidden ones, too."""
    states, found = {name: (None, None) for name in "abc"}, dict.fromkeys("abc", 0.0)
    for x in X:
        for name in "abc":
            x = give(name, x)
            out, mem2, mem1 = nets[name](x)
            states[name] = mem1, mem2
            found[name] = found[name] + (out - 1).square().sum() + mem1.sum()
            x = out + nets["a"].spk[:, :2] if name == "b" else out
    return [found[name] for name in reads]


def attached(order):
    nets = {name: Net(seed) for seed, name in enumerate("abc")}
    generator = torch.Generator().manual_seed(3)
    feedback = {n: torch.randn(2, 6, generator=generator) for n in "abc"}
    for name in order:
        DFA(nets[name], output="lif2", feedback={"lif1": feedback[name]})
    return nets


def gradients(nets):
    return {f"{n}.{k}": p.grad for n, net in nets.items() for k, p in net.named_parameters()}


def one_after_the_other(reads):
    """The same with each network's input cut, and its gradient handed on by hand."""
    nets, given = attached("abc"), []

    def give(name, x):
        if not x.requires_grad:
            return x
        given.append((name, x, x.detach().requires_grad_()))
        return given[-1][2]

    found = dict(zip("abc", losses(nets, give, "abc"), strict=True))
    for name in "cba":
        back = [(x * z.grad).sum() for reader, x, z in given if z.grad is not None
                and reader == chr(ord(name) + 1)]  # fmt: skip
        back += [0.0 * sum(p.sum() for p in nets[name].parameters())]
        (sum(back) + (found[name] if name in reads else 0.0)).backward(retain_graph=True)
    return gradients(nets)


@pytest.mark.parametrize("reads", ["c", "abc", "ac", "ab"])
def test_the_gradient_is_that_of_one_after_the_other(reads):
    wanted = one_after_the_other(reads)
    for order in ("abc", "cba", "bca"):
        nets = attached(order)
        sum(losses(nets, lambda name, x: x, reads)).backward()
        for name, grad in gradients(nets).items():
            want = wanted[name]
            assert grad is not None or not want.any(), name
            torch.testing.assert_close(torch.zeros_like(want) if grad is None else grad, want,
                                       msg=name)  # fmt: skip


@pytest.mark.parametrize("of", ["a", "b", "ab"])
def test_what_cannot_be_had_is_an_error(of):
    nets = attached("ab")
    out = nets["b"](nets["a"](X[0])[0])[0]
    with pytest.raises(BackwardError, match=r"call loss.backward\(\)"):
        torch.autograd.grad(out.sum(), [p for n in of for p in nets[n].parameters()])
    assert all(p.grad is None for net in nets.values() for p in net.parameters())
    del out
    first = nets["a"](X[0])
    second = nets["b"](first[0])
    again = nets["a"](second[0], first[:0:-1])  # what `b` returned goes into `a`
    with pytest.raises(BackwardError, match="values of each other"):
        sum({"a": again, "b": second}[n][0].sum() for n in of).backward()
    assert all(p.grad is None for p in nets["a"].parameters())
    del first, second, again
    gc.collect()
    nets["b"](nets["a"](X[0])[0])[0].sum().backward()  # the next batch is none of this one
