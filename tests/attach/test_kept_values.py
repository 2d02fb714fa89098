"""Values inside a named block, which a hook has kept and the loss reads."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, BackwardError

T, B = 4, 5


class Block(nn.Module):
    """A layer and its neuron."""

    def __init__(self, n_in, n):
        super().__init__()
        self.fc, self.lif = nn.Linear(n_in, n), snn.Leaky(beta=0.8)

    def forward(self, x, mem):
        return self.lif(self.fc(x), mem)


class Net(nn.Module):
    """A block, whose spikes are changed in place on their way to the output."""

    def __init__(self, factor):
        super().__init__()
        self.block, self.factor = Block(4, 6), factor
        self.fc, self.out = nn.Linear(6, 3), snn.Leaky(beta=0.8)

    def forward(self, x):
        spk, _ = self.block(x, self.block.lif.init_leaky())
        if self.factor is not None:
            spk.mul_(self.factor)
        return self.out(self.fc(spk), self.out.init_leaky())


def trained(factor, attach):
    """Return a network, the spikes that a hook kept, and gradients of a loss on the output."""
    torch.manual_seed(0)
    net, kept = Net(factor), []
    net.block.lif.register_forward_hook(lambda module, args, out: kept.append(out[0]))
    if attach:
        DFA(net, hidden=["block"], output="out")
    _, mem = net(2 * torch.rand(B, 4))
    assert 0 < kept[0].mean() < 1
    mem.square().sum().backward(retain_graph=True)
    return net, kept[0], {n: p.grad.clone() for n, p in net.named_parameters()}


def penalty_grads(attach):
    """Return what a penalty on the kept spikes adds to gradients."""
    net, kept, before = trained(None, attach)
    (kept * torch.arange(6)).sum().backward()
    return {n: p.grad - before[n] for n, p in net.named_parameters()}


def test_a_kept_value_has_its_own_gradient():
    found, wanted = penalty_grads(attach=True), penalty_grads(attach=False)
    assert wanted["block.fc.weight"].any()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-6)


def test_a_kept_value_that_was_changed_in_place_is_an_error_before_a_gradient_is_written():
    """Its graph lacks the change, so that the gradient would be another one."""
    net, kept, before = trained(0.5, attach=True)
    with pytest.raises(BackwardError, match=r"'block' has kept.*changed this value in place"):
        kept.sum().backward()
    for name, p in net.named_parameters():
        assert torch.equal(p.grad, before[name])


class Keeps(nn.Module):
    """Keeps the hidden layer's last spikes on itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif = nn.Linear(4, 6), snn.Leaky(beta=0.8)
        self.fc_out, self.out = nn.Linear(6, 3), snn.Leaky(beta=0.8)

    def forward(self, x):
        mem, mem_out, steps = self.lif.init_leaky(), self.out.init_leaky(), []
        for x_t in x:
            self.last, mem = self.lif(self.fc(x_t), mem)
            steps.append(self.out(self.fc_out(self.last), mem_out)[0])
        return torch.stack(steps).sum(0)


def ask(loss, params):
    torch.autograd.grad(loss, params)


def ask_backward(loss, params):
    loss.backward(inputs=params)


@pytest.mark.parametrize("asked", [ask, ask_backward])
def test_asked_for_gradients_lack_no_penalty_on_a_kept_value(asked):
    """Autograd leaves out what does not lead to the parameters, as a hidden layer's values."""
    net, x = Keeps(), 3 * torch.rand(T, B, 4)
    DFA(net)
    params = list(net.parameters())
    net(x).sum().backward()
    net.zero_grad()
    out = net(x).square().sum()
    assert 0 < net.last.mean() < 1
    with pytest.raises(BackwardError, match=r"'lif': the loss reads.*call loss\.backward\(\)"):
        asked(out + net.last.mean(), params)
    assert all(p.grad is None for p in params)
    asked(net(x).square().sum() + net.last.detach().mean(), params)


@pytest.mark.parametrize("reads", [0, 1])
@pytest.mark.parametrize("changes", [0, 1])
def test_values_that_share_memory_and_are_changed_in_place_are_an_error(reads, changes):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 6), snn.Leaky(beta=0.8)

        def forward(self, x):
            spk, _ = self.lif(self.fc(x), self.lif.init_leaky())
            return spk, spk[:, :3]

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.block, self.fc, self.out = Shared(), nn.Linear(6, 3), snn.Leaky(beta=0.8)

        def forward(self, x):
            values = self.block(x)
            spk, _ = self.out(self.fc(values[0]), self.out.init_leaky())
            return spk, values

    net = Whole()
    x = 4 * torch.rand(5, 4)
    with DFA(net, hidden=["block"], output="out"):
        spk, values = net(x)
        (spk.sum() + values[reads].sum()).backward()  # without a change all is well
        assert net.block.fc.weight.grad.any()
        net.zero_grad()
        spk, values = net(x)
        values[changes].mul_(3.0)
        with pytest.raises(BackwardError, match="share memory"):
            (spk.sum() + values[reads].sum()).backward()
    assert all(p.grad is None for p in net.parameters())
