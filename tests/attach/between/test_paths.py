"""Which weights lie between layers is seen in the first batch, whatever the order of registration."""

import pytest
import shapes
import torch
from block_nets import blocks, lif, passed
from kp_network import loop
from parity import run, two_layers
from torch import nn

from snn_dfa import DFA, AttachError, FeedbackError, diagnostics, over_time, reset
from snn_dfa.surrogate import fast_sigmoid


@pytest.mark.parametrize("sizes", [(8, 12, 12, 12, 3), (8, 8, 8, 8, 8)])
@pytest.mark.parametrize(
    ("form", "credit"),
    [
        ("loop", "membrane"),
        ("loop", "current"),
        ("loop", "trace"),
        ("sequence", "membrane"),
        ("sequence", "current"),
    ],
)
def test_neurons_that_are_registered_before_their_weights(sizes, form, credit):
    net = blocks(*sizes)
    if form == "sequence":
        net = over_time(nn.Sequential(*(m for b in net for m in (b.fc, b.lif))))
    with DFA(net, feedback="transpose", credit=credit) as dfa:
        passed(net, loop if form == "loop" else nn.Module.__call__)
        weights = [m.weight.detach() for m in net.modules() if isinstance(m, nn.Linear)]
        wanted = weights[-1]
        for name, weight in zip(reversed(dfa.hidden), reversed(weights[:-1]), strict=True):
            torch.testing.assert_close(dfa.feedback[name], wanted)
            wanted = wanted @ weight
        assert set(diagnostics.feedback_angles(dfa).values()) == {0.0}


def test_angles_of_any_feedback_are_to_the_product_of_the_weights_on_the_way():
    net = blocks(8, 8, 8, 8)
    with DFA(net, output="2.lif") as dfa:
        assert diagnostics.feedback_angles(dfa) == {}  # nothing has been seen yet
        passed(net)
        wanted = net[2].fc.weight @ net[1].fc.weight
        found = diagnostics.feedback_angles(dfa)["0.lif"]
        assert found == pytest.approx(
            diagnostics.alignment.angle(dfa.feedback["0.lif"], wanted), abs=1e-3
        )


@pytest.mark.parametrize(
    ("kind", "chains"),
    [
        (shapes.Net, {"lif1": ["fc2", "fc3"], "lif2": ["fc3"]}),
        (shapes.Normalised, {"lif1": ["fc2", "fc3"], "lif2": ["fc3"]}),
        (shapes.Lazy, {"lif1": ["fc2", "fc3"], "lif2": ["fc3"]}),
        (shapes.Branches, {"lif1": ["fc3"], "lif2": ["fc3"]}),
        (shapes.Shared, {"lif1": ["fc1", "fc3"], "lif2": ["fc3"]}),
    ],
)
def test_the_ways_through_networks_of_every_shape(kind, chains):
    net, x = shapes.made(kind)
    with DFA(net, feedback="transpose") as dfa:
        net(x)[0].sum().backward()
        for name, chain in chains.items():
            wanted = torch.eye(shapes.C, dtype=x.dtype)
            for layer in reversed(chain):
                wanted = wanted @ net.get_submodule(layer).weight
            torch.testing.assert_close(dfa.feedback[name], wanted.detach())


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (shapes.Residual, "no weights to 'lif2', 'fc2' to 'lif2', 'fc3' to 'lif3'"),
        (shapes.Functions, "'fc2' to 'lif2', 'fc3' to 'lif3'"),
        (shapes.Membranes, "no weights to 'lif2', 'fc2' to 'lif2'"),
    ],
)
def test_more_than_one_way_is_refused(kind, found):
    net, x = shapes.made(kind)
    with DFA(net, feedback="transpose"):
        spk = net(x)[0]
        with pytest.raises(FeedbackError, match=f"layer 'lif1' to one next layer, found {found};"):
            spk.sum().backward()


def test_two_layers_with_weights_in_a_row_are_refused():
    net = nn.Sequential(nn.Linear(8, 8), lif(), nn.Linear(8, 8), nn.Linear(8, 3), lif())
    with (
        DFA(net, feedback="transpose", output="4"),
        pytest.raises(FeedbackError, match="found '2' and '3' to '4'; use another kind"),
    ):
        passed(net)


def test_a_neuron_that_is_left_out_is_seen_where_the_readout_is_registered_first():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.l1, self.n1 = nn.Linear(6, 6), nn.Linear(8, 6), lif()
            self.l2, self.n2 = nn.Linear(6, 6), lif()

        def forward(self, x):
            return self.out(self.n2(self.l2(self.n1(self.l1(x)))))

    net = Net()
    with (
        DFA(net, output="out", hidden=["n1"], feedback="transpose"),
        pytest.raises(FeedbackError, match="found 'l2' and 'out' to 'out'"),
    ):
        passed(net)


def test_only_the_first_batch_is_traced():
    net, x = two_layers(spike_grad=fast_sigmoid(10)), torch.rand(6, 4, 5, dtype=torch.float64)
    with DFA(net, output="3") as dfa:
        for _ in range(2):  # up to the first backward pass
            loss = run(net, x).sum()
            assert dfa._core.paths.tracing
        loss.backward()
        run(net, x)
        assert not dfa._core.paths.tracing


def test_a_layer_that_is_thawed_later_is_looked_at_then():
    net = blocks(8, 8, 8, 8)
    net[0].requires_grad_(False)
    with DFA(net, output="2.lif", feedback="transpose") as dfa:
        for _ in range(2):
            passed(net)
        assert "0.lif" not in dfa.feedback
        net[0].requires_grad_(True)
        passed(net)
        wanted = (net[2].fc.weight @ net[1].fc.weight).detach()
        torch.testing.assert_close(dfa.feedback["0.lif"], wanted)
        assert net[0].fc.weight.grad.abs().sum() > 0
        reset(net)


# -- what takes the place of the output or of a layer ----------------------------------------------


class Readout(nn.Module):
    """Weights behind the last neuron; what they give may come back in the next step."""

    def __init__(self, back=False):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(8, 8), lif(), nn.Linear(8, 6), lif()
        self.out = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 8))
        self.back, self.value, self.seen = back, 0.0, None

    def forward(self, x):
        spk = self.lif2(self.fc2(self.lif1(self.fc1(x + self.value))))
        if self.back is None:
            with torch.no_grad():
                self.seen = self.out(spk)
            return spk
        value = self.out(spk)
        self.value = value if self.back else 0.0
        return value


@pytest.mark.parametrize("back", [True, False])
def test_weights_behind_an_output_that_is_not_named_are_refused(back):
    net = Readout(back)
    with DFA(net):
        for _ in range(2):
            with pytest.raises(AttachError, match=r"'lif2' is followed by 'out.0'"):
                passed(net)
    for output in ("out.2", "lif2"):
        net.value = 0.0
        with DFA(net, output=output) as dfa:
            passed(net)
            assert dfa.output == output


def test_weights_that_only_watch_are_no_readout():
    net = Readout(back=None)
    with DFA(net) as dfa:
        passed(net)
        assert dfa.output == "lif2"
        assert net.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["1", "3", "5"])
def test_a_layer_whose_place_another_has_taken_is_missed(before, name):
    net = nn.Sequential(nn.Linear(8, 8), lif(), nn.Linear(8, 8), lif(), nn.Linear(8, 3), lif())
    with DFA(net, output="5"):
        if not before:
            passed(net)
        net[int(name)] = lif()
        with pytest.raises(AttachError, match=f"layer '{name}' was removed from the network"):
            passed(net)


def test_a_neuron_that_comes_in_after_dfa_is_missed():
    net = nn.Sequential(nn.Linear(8, 8), lif(), nn.Identity(), nn.Linear(8, 3), lif())
    with DFA(net):
        passed(net)
        net.zero_grad()
        net[2] = nn.Identity()  # no neuron
        passed(net)
        net.zero_grad()
        net[2] = lif()
        with pytest.raises(AttachError, match="layer '2' was added to the network after"):
            passed(net)
        assert all(p.grad is None for p in net.parameters())


def test_a_layer_that_is_not_called_is_left_alone():
    class Skips(nn.Sequential):
        def forward(self, x):
            return self[5](self[4](self[1](self[0](x))))

    net = Skips(nn.Linear(8, 8), lif(), nn.Linear(8, 8), lif(), nn.Linear(8, 3), lif())
    with DFA(net, output="5") as dfa:
        passed(net)
        assert list(dfa.feedback) == ["1"]
