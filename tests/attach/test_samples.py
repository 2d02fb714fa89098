"""Which dimension has the samples: outputs that lack it, and values of an output beside it."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, BackwardError, OutOfStepError, reset
from snn_dfa.surrogate import fast_sigmoid

T, B = 5, 3
X = 3 * torch.rand(T, B, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def lif():
    return snn.Leaky(0.8, 0.3, init_hidden=True, spike_grad=fast_sigmoid(5))


class Readout(nn.Module):
    def __init__(self, returned, outputs=2):
        super().__init__()
        self.fc, self.returned = nn.Linear(8, outputs), returned

    def forward(self, spk):
        return self.returned(self.fc(spk), self.fc)


class Net(nn.Module):
    """Two hidden layers and a readout that is called at each step."""

    def __init__(self, returned, outputs=2):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(4, 8), lif(), nn.Linear(8, 8), lif()
        self.out = Readout(returned, outputs)
        self.double()

    def forward(self, x):
        reset(self)
        return [self.out(self.lif2(self.fc2(self.lif1(self.fc1(step))))) for step in x]


def gradients(net):
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-10, atol=1e-12)


LACKING = {
    "flatten": lambda y, _: y.flatten(),
    "mean of samples": lambda y, _: y.mean(0),
    "mean": lambda y, _: y.mean(),
    "loss first": lambda y, _: (y.square().mean(), y),
}


@pytest.mark.parametrize("returned", LACKING.values(), ids=LACKING)
def test_an_output_without_samples_is_an_error(returned):
    net = Net(returned)
    said = r"output 'out': expected a first value of shape \[B, C\].*'lif\d' has .* \[3, 8\]; got"
    with DFA(net, output="out"), pytest.raises(OutOfStepError, match=said):
        net(X)
    for part in (net.fc1, net.fc2):
        part.requires_grad_(False)
    with DFA(net, output="out"):  # no error goes to a layer that does not learn
        torch.utils._pytree.tree_leaves(net(X))[0].sum().backward()
    assert net.out.fc.weight.grad.any()


class Images(nn.Module):
    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.lif1 = nn.Conv2d(1, channels, 3, padding=1), lif()
        self.fc, self.lif2 = nn.Linear(channels * 16, 2), lif()

    def forward(self, x):
        reset(self)
        steps = (self.lif1(self.conv(step)) for step in x)
        return torch.stack([self.lif2(self.fc(spk.flatten(-3))) for spk in steps])


def test_one_image_without_samples():
    x = 3 * torch.rand(T, 1, 4, 4)
    net = Images(5)
    with DFA(net) as dfa:
        net(x).sum().backward()
        assert dfa.feedback["lif1"].shape == (2, 5, 4, 4)
    assert net.conv.weight.grad.any()
    for channels in (1, 2):  # as one sample, or two, of another kind of layer
        net = Images(channels)
        with DFA(net), pytest.raises(OutOfStepError, match=r"Give it one: x\.unsqueeze\(0\)"):
            net(x)
        with DFA(net):
            net(x[:, None]).sum().backward()


def test_one_sample_of_numbers():
    net = Net(lambda y, _: y)
    with DFA(net, output="out") as dfa:
        torch.stack(net(X[:, 0])).square().sum().backward()
        assert {b.shape for b in dfa.feedback.values()} == {(2, 8)}
        found = gradients(net)
        net.zero_grad(set_to_none=True)
        torch.stack(net(X[:, :1])).square().sum().backward()
    same(found, gradients(net))
    assert found["fc1.weight"].any()


class Spiking(Net):
    """Its output is a neuron, before which the values are changed."""

    def __init__(self, returned, outputs):
        super().__init__(returned, outputs)
        self.lif3 = lif().double()

    def forward(self, x):
        reset(self.lif3)
        return [self.lif3(each) for each in super().forward(x)]


@pytest.mark.parametrize("sizes", [(3, 1, 3), (1, 3, 1)])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(
    ("kind", "feedback"),
    [
        (Net, None),
        (Net, "kolen-pollack"),
        (Spiking, "kolen-pollack-product"),
        (Spiking, "weight-mirror"),
    ],
)
def test_a_squeeze_and_a_batch_of_one(kind, feedback, sizes, outputs):
    runs = []
    for returned in (lambda y, _: y.squeeze(), lambda y, _: y):
        net, found = kind(returned, outputs), []
        options = {}
        if feedback:
            sgd = torch.optim.SGD(net.parameters(), lr=0.003)
            options = {"optimizer": sgd, "feedback": feedback}
        with DFA(net, output="out" if kind is Net else "lif3", **options) as dfa:
            for size in sizes:
                net.zero_grad(set_to_none=True)
                torch.stack(net(X[:, :size])).square().sum().backward()
                assert {b.shape for b in dfa.feedback.values()} == {(outputs, 8)}
                found.append(gradients(net))
                if feedback:
                    sgd.step()
        runs.append(found)
    for each, wanted in zip(*runs, strict=True):
        same(each, wanted)
    assert any(each["fc1.weight"].any() for each in runs[0])


@pytest.mark.parametrize("size", [1, 3])
def test_a_squeeze_of_one_of_several_outputs(size):
    class Two(Net):
        def __init__(self, squeeze):
            super().__init__(squeeze)
            self.value = Readout(squeeze).double()

        def forward(self, x):
            reset(self)
            spikes = [self.lif2(self.fc2(self.lif1(self.fc1(step)))) for step in x]
            return [(self.out(spk), self.value(spk)) for spk in spikes]

    found = []
    for squeeze in (lambda y, _: y.squeeze(), lambda y, _: y):
        net = Two(squeeze)
        with DFA(net, output=["out", "value"]):
            for _ in range(2):
                net.zero_grad(set_to_none=True)
                sum(out.square().sum() for out, _ in net(X[:, :size])).backward()
        found.append(gradients(net))
    same(*found)
    assert found[0]["fc1.weight"].any()


def test_a_squeeze_of_a_sequence_of_one_sample():
    class Sequences(Net):
        def __init__(self, returned):
            super().__init__(returned)
            self.lif2 = snn.StateLeaky(0.8, 8, spike_grad=fast_sigmoid(5)).double()
            self.lif1 = snn.StateLeaky(0.8, 8, spike_grad=fast_sigmoid(5)).double()

        def forward(self, x):
            spk = self.lif1(self.fc1(x))[0]
            return self.out(self.lif2(self.fc2(spk))[0])

    found = []
    for returned in (lambda y, _: y.squeeze(), lambda y, _: y):
        net = Sequences(returned)
        with DFA(net, output="out"):
            net(X[:, :1]).square().sum().backward()
        found.append(gradients(net))
    same(*found)
    assert found[0]["fc1.weight"].any()
    net = Sequences(lambda y, _: y.mean((0, 1)))
    with DFA(net, output="out"), pytest.raises(OutOfStepError, match=r"got shape \[2\]"):
        net(X)


MORE = {
    "penalty": lambda y, fc: (y, fc.weight.norm()),
    "by name": lambda y, fc: {"logits": y, "loss": y.square().mean()},
    "by class": lambda y, fc: (y, y.mean(0)[:, None].expand(2, 4)),
}


@pytest.mark.parametrize("returned", MORE.values(), ids=MORE)
def test_a_further_value_that_is_not_of_the_samples(returned):
    def parts(value):
        return tuple(value.values()) if isinstance(value, dict) else value

    net, alone = Net(returned), Net(lambda y, _: y)
    with DFA(alone, output="out"):
        torch.stack(alone(X)).square().sum().backward()
    with DFA(net, output="out") as dfa:
        sum(parts(each)[0].square().sum() for each in net(X)).backward()
        assert {b.shape for b in dfa.feedback.values()} == {(2, 8)}
        same(gradients(net), gradients(alone))
        assert net.fc1.weight.grad.any()
        net.zero_grad(set_to_none=True)
        loss = sum(parts(each)[0].square().sum() + parts(each)[1].sum() for each in net(X))
        with pytest.raises(BackwardError, match=r"'out': the loss reads a further value .* \[3\]"):
            loss.backward()
        assert not gradients(net)


def test_the_last_state_of_a_torch_cell():
    class Cell(Net):
        def __init__(self):
            super().__init__(None)
            self.out = nn.GRU(8, 2, batch_first=True).double()

        def forward(self, x):
            reset(self)
            spikes = [self.lif2(self.fc2(self.lif1(self.fc1(step)))) for step in x]
            return [self.out(spk[:, None])[0] for spk in spikes]

    net = Cell()
    with DFA(net, output="out") as dfa:
        torch.stack(net(X)).square().sum().backward()
        assert {b.shape for b in dfa.feedback.values()} == {(2, 8)}
    assert net.fc1.weight.grad.any()
