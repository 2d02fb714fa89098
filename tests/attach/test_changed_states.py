"""States, spikes and membranes that the program changes, keeps or hands on."""

import dataclasses

import pytest
import torch
from torch import nn
from user_nets import B, Net, X, assert_alike, gradients, hidden, lif

from snn_dfa import DFA, BackwardError, KolenPollack, reset


def masked_(spk, mem):
    mem[:, :1] = 0
    return spk, mem


def halved_(spk, mem):
    spk *= 0.5
    return spk, mem.mul_(0.5)


ONES = torch.ones(B, 1)


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        (lambda s, m: (s, m * ONES), lambda s, m: (s, m)),
        (lambda s, m: (s, m.clone()), lambda s, m: (s, m)),
        (lambda s, m: (s, torch.where(ONES.bool(), m, 0.0)), lambda s, m: (s, m)),
        (lambda s, m: (s.view(-1).view(s.shape), m.view(-1).view(m.shape)), lambda s, m: (s, m)),
        (masked_, lambda s, m: (s, torch.cat([0 * m[:, :1], m[:, 1:]], 1))),
        (halved_, lambda s, m: (0.5 * s, 0.5 * m)),
        (lambda s, m: (s.relu_(), m), lambda s, m: (s.relu(), m)),
        (lambda s, m: (s, m.detach_()), lambda s, m: (s, m.detach())),
    ],
    ids=["ones", "clone", "where", "view", "mask in place", "in place", "relu_", "detach_"],
)  # fmt: skip
def test_states_and_spikes_that_the_program_changes(change, plain):
    class Recorded(Net):
        """Records the membrane before it is changed: in place it would be another value."""

        def forward(self, x):
            mem1, mem2, out = torch.zeros(B, 8), torch.zeros(B, 2), []
            for step in x:
                spk1, mem1 = self.lif1(self.fc1(step), mem1)
                spk1, mem1 = self.change(spk1, mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                out.append(mem2.clone())
                _, mem2 = self.change(spk2, mem2)
            return torch.stack(out)

    assert_alike(gradients(Recorded(plain)), gradients(Recorded(change)))


@pytest.mark.parametrize("rule", ["error", "shallow"])
@pytest.mark.parametrize("called", [("lif1",), ("lif2",), ("lif1", "lif2")])
def test_forward_called_directly_is_a_call(called, rule):
    net = Net()
    layers = [net.get_submodule(name) for name in called]
    direct = Net(call=lambda module: module.forward if module in direct_layers else module)
    direct_layers = [direct.get_submodule(name) for name in called]
    assert len(layers) == len(direct_layers)
    wanted, got = gradients(net, rule=rule), gradients(direct, rule=rule)
    if rule == "shallow":
        assert wanted.pop("fc1.weight") is got.pop("fc1.weight") is None
        assert wanted.pop("fc1.bias") is got.pop("fc1.bias") is None
    assert_alike(wanted, got)


class Hidden(nn.Module):
    """Hidden states; where the prediction is read is a choice."""

    def __init__(self, attribute):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2 = nn.Linear(4, 8), hidden(), nn.Linear(8, 2)
        self.lif2 = hidden(output=not attribute, reset_mechanism="none")
        self.attribute = attribute

    def forward(self, x):
        reset(self)
        for step in x:
            out = self.lif2(self.fc2(self.lif1(self.fc1(step))))
        return self.lif2.mem if self.attribute else out[1]


@pytest.mark.parametrize("kept", [False, True])
def test_a_membrane_that_is_an_attribute_is_the_prediction(kept):
    wanted = gradients(Hidden(attribute=False))
    net = Hidden(attribute=True)
    if not kept:
        assert_alike(wanted, gradients(net))
        return
    with DFA(net, output="lif2"):
        for _ in range(2):
            net.zero_grad()
            net(X)
            (net.lif2.mem - 1).square().sum().backward()  # read off the network, not returned
    assert_alike(wanted, {n: p.grad for n, p in net.named_parameters()})


class Between(nn.Module):
    """A membrane drives the next layer, and another is what the readout sees."""

    def __init__(self, attribute):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.lif2, self.out = (
            nn.Linear(4, 8),
            hidden(),
            hidden(),
            nn.Linear(8, 2),
        )
        self.attribute = attribute

    def forward(self, x):
        reset(self)
        out = []
        for step in x:
            self.lif1(self.fc1(step))
            self.lif2(self.lif1.mem)
            out.append(self.out(self.lif2.mem))
        return torch.stack(out)


def test_a_membrane_that_is_an_attribute_leads_into_no_other_layer():
    got = gradients(Between(True), output="out", rule="shallow")
    assert got["fc1.weight"] is None
    assert got["out.weight"].abs().sum() > 0


@dataclasses.dataclass(frozen=True)
class Data:
    x: torch.Tensor


class FromData(nn.Linear):
    def forward(self, data):
        return super().forward(data.x)


def test_spikes_inside_an_object_lead_into_no_other_layer():
    class Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.lif1, self.lif2 = nn.Linear(4, 8), hidden(), hidden()
            self.fc2 = FromData(8, 2) if wrap else nn.Linear(8, 2)
            self.wrap = Data if wrap else lambda x: x

        def forward(self, x):
            reset(self)
            return torch.stack([self.lif2(self.fc2(self.wrap(self.lif1(self.fc1(s))))) for s in x])

    assert_alike(gradients(Wrapped(False)), gradients(Wrapped(True)))


def test_a_layer_that_returns_an_object():
    class Boxed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 8), hidden()

        def forward(self, x):
            return Data(self.lif(self.fc(x)))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.fc, self.lif = Boxed(), nn.Linear(8, 2), hidden()

        def forward(self, x):
            reset(self)
            return torch.stack([self.lif(self.fc(self.one(step).x)) for step in x])

    net = Whole()
    got = gradients(net, output="lif", hidden=["one"], rule="shallow")
    assert got["one.fc.weight"] is None
    assert gradients(Whole(), output="lif", hidden=["one"])["one.fc.weight"].abs().sum() > 0


class Residual(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.fc2, self.lif2 = (
            nn.Linear(4, 8),
            hidden(),
            nn.Linear(8, 8),
            hidden(),
        )
        self.short, self.fc3, self.lif3 = nn.Linear(4, 8), nn.Linear(8, 2), hidden()
        self.in_place = in_place

    def forward(self, x):
        reset(self)
        out = []
        for step in x:
            spk = self.lif2(self.fc2(self.lif1(self.fc1(step))))
            if self.in_place:
                spk += self.short(step)
            else:
                spk = spk + self.short(step)
            out.append(self.lif3(self.fc3(spk)))
        return torch.stack(out)


def test_a_residual_that_is_added_in_place():
    assert_alike(
        gradients(Residual(False), output="lif3"), gradients(Residual(True), output="lif3")
    )


class TopDown(nn.Module):
    def __init__(self, detached):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(4, 8), lif(threshold=0.1)
        self.fc2, self.lif2 = nn.Linear(8, 2), lif(threshold=0.1)
        self.back, self.detached = nn.Linear(2, 8), detached
        nn.init.constant_(self.fc2.bias, 0.5)

    def forward(self, x):
        mem1, mem2, spk2, out = torch.zeros(B, 8), torch.zeros(B, 2), torch.zeros(B, 2), []
        for step in x:
            top = spk2.detach() if self.detached else spk2
            spk1, mem1 = self.lif1(self.fc1(step) + self.back(top), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(mem2)
        return torch.stack(out)


def test_what_an_output_hands_back_is_cut():
    assert_alike(gradients(TopDown(True)), gradients(TopDown(False)))


class Masked(nn.Module):
    """Changes the spikes behind a layer; behind the first one is a product that has no way back."""

    def __init__(self, change, layer):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.left = nn.Linear(4, 8), hidden(), nn.Parameter(torch.rand(B, B))
        self.lif2, self.fc3, self.lif3 = hidden(), nn.Linear(8, 2), hidden()
        self.change, self.layer = change, layer
        with torch.no_grad():
            self.fc3.weight.abs_()

    def forward(self, x):
        spk = self.masked(self.lif1(self.fc1(x)), 1)
        spk = self.masked(self.lif2(self.left @ spk), 2)
        return self.lif3(self.fc3(spk))

    def masked(self, spk, layer):
        return self.change(spk) if layer == self.layer else spk


MASK = (torch.arange(8) % 2).float()
LABELS = torch.arange(B) % 2


READS = {
    "local": {"rule": "local"},
    "kolen-pollack": {"feedback": KolenPollack(lr=0.1)},
    "own matrix of a mirror": {"mirror": True},
}


def attached(net, mirror=False, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options |= {"optimizer": optimizer} if mirror else {}
    return DFA(net, output="lif3", **options), optimizer


@pytest.mark.parametrize("options", READS.values(), ids=READS)
@pytest.mark.parametrize(
    "change", [lambda spk: spk.mul_(MASK), nn.Dropout(0.5, inplace=True)], ids=["mul_", "dropout"]
)
def test_spikes_that_are_learned_from_and_were_changed_in_place_are_an_error(change, options):
    net = Masked(change, 1)
    dfa, _ = attached(net, **options)
    with dfa.targets(LABELS):
        loss = torch.stack([net(step) for step in X]).sum()
        with pytest.raises(BackwardError, match="spikes of layer 'lif1' were changed in place"):
            loss.backward()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("mirror", [False, True])
def test_spikes_that_no_one_learns_from_may_be_changed_in_place(mirror):
    def trained(change):
        net = Masked(change, 2)
        _, optimizer = attached(net, mirror)
        for _ in range(3):
            reset(net)
            spikes = torch.stack([net(step) for step in X])
            assert 0 < spikes.mean() < 1
            optimizer.zero_grad()
            (spikes - 1).square().mean().backward()
            optimizer.step()
        return {name: p.grad for name, p in net.named_parameters()}

    assert_alike(trained(lambda spk: spk * MASK), trained(lambda spk: spk.mul_(MASK)))
