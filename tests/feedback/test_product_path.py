"""Which factors make a layer's feedback, where it is a product: those on the way to the output."""

import pytest
import snntorch as snn
import torch
from kp_network import DECAY, LR, B, T, backward, batch, loop, network
from kp_product import followed, train
from torch import nn

from snn_dfa import DFA, FeedbackError, KolenPollack, KolenPollackProduct, diagnostics
from snn_dfa.surrogate import fast_sigmoid


def equal_sizes():
    torch.manual_seed(0)
    layers = []
    for _ in range(3):
        layers += [nn.Linear(8, 8), snn.Leaky(0.5, 0.2, spike_grad=fast_sigmoid(5),
                                              init_hidden=True)]  # fmt: skip
    return nn.Sequential(*layers, nn.Linear(8, 8))


def chained(dfa):
    """Whether each B is the product of the factors after its layer, here in a row."""
    factors, wanted = dfa.state_dict()["matrices"], None
    for name in ("5", "3", "1"):
        factor = factors.get(str(int(name) + 1))
        if factor is None:
            break
        wanted = factor if wanted is None else wanted @ factor
        if name in dfa.feedback:
            torch.testing.assert_close(dfa.feedback[name], wanted)
    return list(dfa.feedback)


def test_layers_of_equal_sizes_and_a_readout():
    net = equal_sizes()
    dfa, _optimizer = followed(net, output="6")
    loop(net, batch(0)[0]).square().sum().backward()
    assert list(dfa.state_dict()["matrices"]) == ["2", "4", "6"]
    assert chained(dfa) == ["1", "3", "5"]


@pytest.mark.parametrize("frozen", ["0", "2", "4"])
def test_layers_that_get_no_error_are_on_the_way_all_the_same(frozen):
    """Layers that are frozen, and learn later."""
    net = equal_sizes()
    dfa, optimizer = followed(net, output="6")
    net[int(frozen)].requires_grad_(False)
    for _ in range(2):
        loop(net, batch(0)[0]).square().sum().backward()
        optimizer.step()
    assert {n for n in ("1", "3", "5") if int(n) != int(frozen) + 1} <= set(chained(dfa))
    net[int(frozen)].requires_grad_(True)
    loop(net, batch(0)[0]).square().sum().backward()
    optimizer.step()
    assert set(chained(dfa)) == {"1", "3", "5"}


def test_a_readout_that_is_registered_early_is_the_last_weight():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.l1, self.out, self.l2 = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.n1, self.n2 = (snn.Leaky(0.5, 0.2, init_hidden=True) for _ in range(2))

        def forward(self, x):
            return self.out(self.n2(self.l2(self.n1(self.l1(x)))))

    net = Net()
    dfa, _optimizer = followed(net, output="out")
    loop(net, batch(0)[0]).square().sum().backward()
    factors = dfa.state_dict()["matrices"]
    assert torch.equal(dfa.feedback["n2"], factors["out"])
    torch.testing.assert_close(dfa.feedback["n1"], factors["out"] @ factors["l2"])
    x, angles = batch(0)[0], diagnostics.feedback_angles(dfa)
    assert angles["n2"] == pytest.approx(
        diagnostics.alignment.angle(factors["out"], net.out.weight.detach()), abs=1e-3
    )
    assert loop(net, x).shape == (T, B, 6)


def test_a_layer_that_is_left_out_on_the_way():
    net = network()
    with (
        DFA(net, output="5", hidden=["1"], feedback="transpose"),
        pytest.raises(FeedbackError, match=r"found '2' and '4' to '5'; use another kind"),
    ):
        loop(net, batch(0)[0]).sum().backward()
    net = network()  # a neuron without feedback of its own is not linear
    with (
        DFA(net, output="5", hidden=["1"], feedback="kolen-pollack-product"),
        pytest.raises(FeedbackError, match=r"input of layer '5' passes '.*'; use"),
    ):
        loop(net, batch(0)[0]).sum().backward()
    for kind in ("kolen-pollack-product", "transpose"):
        net = network()  # the neuron after a readout is not on the way
        with DFA(net, output="4", hidden=["1", "3"], feedback=kind):
            loop(net, batch(0)[0])


def test_weights_that_are_no_parameters_are_refused():
    net = network()
    nn.utils.parametrizations.weight_norm(net[2])
    followed(net)
    with pytest.raises(FeedbackError, match=r"the weight of layer '2' is computed from other"):
        loop(net, batch(0)[0])


def test_an_output_that_has_been_replaced_is_refused():
    net = network()
    _, optimizer = followed(net)
    train(net, optimizer, [0])
    net[4] = nn.Linear(6, 4)
    with pytest.raises(FeedbackError, match=r"a factor of shape \[4, 6\], .* got \[3, 6\]"):
        loop(net, batch(0)[0])


@pytest.mark.slow
def test_feedback_alignment_takes_each_factor_by_itself():
    """As Kolen and Pollack have it: errors from layer to layer, B following the weight's gradient.

    Feedback that learns by passes follows the same gradients, and so is the same.
    """
    found = []
    for kind in (KolenPollack, KolenPollackProduct):
        net = network()
        dfa = DFA(net, rule="fa", feedback=kind(lr=LR, weight_decay=DECAY, initial=0.5))
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
        if kind is KolenPollackProduct:
            with pytest.raises(FeedbackError, match=r"call dfa.follow\(optimizer\) before"):
                backward(loop, net, 0)
        dfa.follow(optimizer)
        train(net, optimizer, range(5))
        backward(loop, net, 0)
        found.append(dict(dfa.feedback))
    assert list(found[0]) == list(found[1]) == ["2", "4"]
    for name, matrix in found[0].items():
        torch.testing.assert_close(matrix, found[1][name], rtol=1e-4, atol=1e-5)


class Changed(nn.Module):
    """The output's membrane is clamped in the loop, or the second weights are the first ones."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        lif = {"beta": 0.8, "threshold": 0.2, "spike_grad": fast_sigmoid(5)}
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 5)
        self.lif1, self.lif2, self.tied = snn.Leaky(**lif), snn.Leaky(**lif), tied

    def forward(self, x):
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), 0
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            cur = nn.functional.linear(spk, self.fc1.weight.t()) if self.tied else self.fc2(spk)
            spk, mem2 = self.lif2(cur, mem2)
            mem2 = mem2.clamp(-1.0, 1.0)
            out = out + mem2
        return out


@pytest.mark.parametrize("tied", [False, True])
def test_what_the_output_does_to_its_own_state_and_tied_weights_leave_the_rest_linear(tied):
    net = Changed(tied)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, optimizer=optimizer)
    for _ in range(2):
        net(torch.rand(T, B, 5)).square().sum().backward()
        optimizer.step()
    assert dfa.feedback["lif1"].any()
    if not tied:
        similar = torch.cosine_similarity(
            dfa.feedback["lif1"].flatten(), net.fc2.weight.flatten(), 0
        )
        assert similar > 0.95
