"""Hooks of others, and values inside a layer."""

import pytest
import snntorch as snn
import torch
from torch import nn
from user_nets import B, Net, T, X, assert_alike, gradients, hidden

from snn_dfa import DFA, AttachError, BackwardError, reset
from snn_dfa.surrogate import fast_sigmoid


class Counter(snn.SpikingNeuron):
    """A neuron of one's own, which keeps its membrane in a dict."""

    def __init__(self):
        super().__init__(threshold=0.3, spike_grad=fast_sigmoid(10))
        self.states = {}

    def forward(self, x):
        mem = self.states["mem"] = 0.8 * self.states.get("mem", 0.0) + x
        return self.spike_grad(mem - self.threshold)


@pytest.mark.parametrize("returned", [True, False])
@pytest.mark.parametrize("rule", ["error", "shallow"])
def test_a_value_inside_a_layer_carries_no_loss_into_the_layer_before(returned, rule):
    class Dicts(nn.Sequential):
        def forward(self, x):
            return super().forward(x), self[3].states["mem"] if returned else None

    torch.manual_seed(0)
    net = Dicts(nn.Linear(4, 8), Counter(), nn.Linear(8, 8), Counter(), nn.Linear(8, 2), Counter())
    with DFA(net, rule=rule, output="5"):
        out, mem = net(3 * X[0])
        mem = mem if returned else net[3].states["mem"]
        with pytest.raises(
            BackwardError, match="layer '3': the loss reads a value inside the layer"
        ):
            (out.sum() + mem.square().sum()).backward()
        assert all(p.grad is None for p in net.parameters())


def test_a_hook_on_a_state_that_goes_on_may_look():
    seen = []

    def looked_at(spk, mem):
        if mem.requires_grad:
            mem.register_hook(lambda grad: seen.append(grad) or None)
        return spk, mem

    assert_alike(gradients(Net(looked_at), batches=1), gradients(Net(), batches=1))
    assert len(seen) >= T
    assert all(grad is not None for grad in seen)


def test_a_hook_that_changes_a_state_that_goes_on_raises_an_error():
    def changed(spk, mem):
        if mem.requires_grad:
            mem.register_hook(lambda grad: grad.clamp(-1, 1))
        return spk, mem

    net = Net(changed)
    with DFA(net, output="lif2"):
        loss = (net(X) - 1).square().sum()
        with pytest.raises(BackwardError, match=r"'lif\d': a hook .* changes the gradient"):
            loss.backward()
        assert all(p.grad is None for p in net.parameters())

    def made(spk, mem):
        mem = mem * 1.0  # which the next step alone reads
        mem.register_hook(lambda grad: 0 * grad)
        return spk, mem

    assert_alike(gradients(Net(made)), gradients(Net(lambda spk, mem: (spk, mem.detach()))))


@pytest.mark.parametrize(
    "where", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
@pytest.mark.parametrize("layer", ["lif1", "lif2"])
def test_hooks_of_modules_on_a_spiking_layer(layer, where):
    """A hook would see a gradient in parts; one on a hidden layer not what is sent to the spikes."""
    for changes in (True, False):
        net = Net()
        hook = (
            (lambda m, *g: tuple(None if t is None else 2 * t for t in g[0]))
            if changes
            else lambda *_: None
        )
        getattr(net.get_submodule(layer), where)(hook)
        if not changes and layer == "lif2":
            assert_alike(gradients(Net()), gradients(net))
            continue
        with DFA(net, output="lif2"):
            loss = net(X).sum()
            with pytest.raises((BackwardError, AttachError), match=f"{layer}.*full_backward_hook"):
                loss.backward()
            assert all(p.grad is None for p in net.parameters())


def test_a_hook_that_changes_what_the_loss_and_the_next_step_read():
    class Read(Net):
        def forward(self, x):
            mem, out = torch.zeros(B, 2), []
            for step in x:
                _, mem = self.lif2(self.fc2(self.fc1(step)), mem)
                mem = mem * 1.0
                mem.register_hook(lambda grad: grad.clamp(-1, 1))
                out.append(mem)
            return torch.stack(out)

    net = Read()
    with DFA(net, output="lif2"):
        loss = net(X).sum()
        with pytest.raises(BackwardError, match=r"'lif2': a hook .* changes the gradient"):
            loss.backward()


@pytest.mark.parametrize("width", [8, 100])  # the second has steps of a compiled kernel
def test_constants_that_are_changed_behind_autograds_back(width):
    found = []
    for attach in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, width), hidden(), nn.Linear(width, 2), hidden(output=True))
        dfa = DFA(net) if attach else None
        steps = torch.rand(T, 64, 4, generator=torch.Generator().manual_seed(1))
        for beta, threshold in ((0.8, 0.3), (0.3, 0.2)):
            for neuron in (net[1], net[3]):
                neuron.beta.data.fill_(beta)
                neuron.threshold.data = torch.tensor(threshold)
            reset(net)
            found.append(torch.stack([torch.cat(net(x), 1) for x in steps]))
            found[-1].sum().backward()
        del dfa
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])
