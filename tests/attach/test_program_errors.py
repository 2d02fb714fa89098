"""Programs that raise an error before a gradient is written, or are right."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from user_nets import Net, X, assert_alike, hidden

from snn_dfa import DFA, AttachError, BackwardError


class Kept(Net):
    """Keeps the current of its second layer on itself, and goes on with what was made of it."""

    def __init__(self, changed=lambda current: current):
        super().__init__()
        self.changed = changed

    def forward(self, x):
        self.currents = []
        handle = self.fc2.register_forward_hook(
            lambda m, i, o: self.currents.append(o) or self.changed(o)
        )
        out = super().forward(x)
        handle.remove()
        return out


@pytest.mark.parametrize("changed", [torch.clone, lambda current: current])
def test_a_loss_on_a_value_between_two_layers_is_an_error_or_right(changed):
    net = Kept(changed)
    with DFA(net, output="lif2"):
        if changed is torch.clone:
            loss = net(X).square().sum() + torch.stack(net.currents).square().sum()
            with pytest.raises(BackwardError, match="does not return: return the value"):
                loss.backward()
            assert all(p.grad is None for p in net.parameters())
        loss = net(X).square().sum() + torch.stack(net.currents).square().sum()
        loss.backward(retain_graph=changed is torch.clone)
        got = {n: p.grad for n, p in net.named_parameters()}

    class Returned(Kept):
        def forward(self, x):
            return super().forward(x), torch.stack(self.currents)

    net = Returned()
    with DFA(net, output="lif2"):
        out, currents = net(X)
        with pytest.warns(UserWarning, match="reads layer 'lif1' through 'fc2'"):
            (out.square().sum() + currents.square().sum()).backward()
    assert_alike({n: p.grad for n, p in net.named_parameters()}, got)


def test_a_state_of_the_last_batch_is_an_error():
    net = nn.Sequential(nn.Linear(4, 8), hidden(), nn.Linear(8, 2), hidden())
    with DFA(net):
        net(X[0]).sum().backward()
        before = [p.grad.clone() for p in net.parameters()]
        out = net(X[0])  # as a value it may be used
        with pytest.raises(BackwardError, match=r"reset\(net\) before each batch, or detach"):
            out.sum().backward()
        assert all(torch.equal(p.grad, b) for p, b in zip(net.parameters(), before, strict=True))


def test_feedback_alignment_of_a_weight_that_a_function_uses_is_an_error():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.lif1, self.lif2 = nn.Linear(4, 8), hidden(), hidden()

        def forward(self, x):
            return self.lif2(F.linear(self.lif1(self.enc(x)), self.enc.weight.t()))

    with (
        DFA(Tied(), rule="fa") as dfa,
        pytest.raises(AttachError, match="uses the weight of layer 'enc'"),
    ):
        dfa.net(X[0])


def test_a_value_from_inside_a_layer_that_enters_another_is_an_error():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 8), hidden()

        def forward(self, x):
            current = self.fc(x)
            object.__setattr__(self, "seen", [current])
            return self.lif(current)

    class Leaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc, self.lif = Block(), nn.Linear(8, 2), hidden()

        def forward(self, x):
            self.block(x)
            return self.lif(self.fc(self.block.seen[0]))

    with (
        DFA(Leaks(), output="lif", hidden=["block"]) as dfa,
        pytest.raises(AttachError, match="a value from inside layer 'block'"),
    ):
        dfa.net(X[0]).sum().backward()
