"""Functions between two layers before which the samples' dimension changes places with others."""

import pytest
import snntorch as snn
import torch
from torch import nn
from ways import leaky, loop

from snn_dfa import DFA, WeightMirror, over_time
from snn_dfa.surrogate import fast_sigmoid

B, L, E = 3, 4, 6


def turned(net, h):
    return net.wide(h.transpose(0, 1)).transpose(0, 1)


def behind_two(net, h):
    z = net.small(h.unflatten(2, (2, 3)).permute(2, 1, 0, 3))
    return z.sum(0).transpose(0, 1).repeat(1, 1, 2)


def in_parts(net, h):
    q, k, v = net.qkv(h.permute(1, 0, 2)).chunk(3, -1)
    first, second = (q - 2 * k).split(2)
    return torch.cat([first.mean(0), second[1] + v.sum(0)], -1)[:, :E].unsqueeze(1)


def numbers(net, h):
    q, k = h.transpose(0, 1), net.wide(h).transpose(0, 1)
    return (0.5 * q - k / 2 + net.place).transpose(1, 0).contiguous()


def stacked(net, h):
    q, k = net.wide(h), net.qkv(h)[..., :E]
    return torch.stack([q, k, h])[1:].permute(1, 0, 2, 3).flatten(1, 2)


def einsum(net, h):
    return torch.einsum("bld,ed->ble", h, net.matrix)


def first(net, h):
    z = h.transpose(0, 1)
    return net.first(z, z, z, need_weights=False)[0].transpose(0, 1)


def encoder(net, h):
    return net.encoder(h)


def attention(net, h):
    return net.attention(h, h, h)[0]


FUNCTIONS = {f.__name__: f for f in (
    turned, behind_two, in_parts, numbers, stacked, einsum, first, encoder, attention,
)}  # fmt: skip


def leaky_of_channels(channels):
    constants = {
        "beta": torch.full((channels, 1, 1), 0.7),
        "threshold": torch.full((channels, 1, 1), 0.2),
    }
    return snn.Leaky(
        **constants, learn_beta=True, learn_threshold=True, init_hidden=True,
        spike_grad=fast_sigmoid(5),
    )  # fmt: skip


class Net(nn.Module):
    """Neurons at each place, a function over places, and neurons that get the mean of places."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1, self.lif2 = nn.Linear(5, L * E), leaky(), leaky()
        self.wide, self.qkv, self.place = nn.Linear(E, E), nn.Linear(E, 3 * E), nn.Linear(E, E).bias
        self.matrix = nn.Parameter(torch.randn(E, E))
        self.small, self.square = nn.Linear(3, 3), nn.Parameter(torch.randn(L, L))
        self.first, self.attention = (
            nn.MultiheadAttention(E, 2, batch_first=b) for b in (False, True)
        )
        self.encoder = nn.TransformerEncoderLayer(E, 2, 8, dropout=0.0, batch_first=True)
        self.fc3, self.out = nn.Linear(E, 3), leaky()
        self.function = function
        self.double()

    def forward(self, x):
        h = self.lif1(self.fc1(x)).view(-1, L, E)
        return self.out(self.fc3(self.lif2(2 * self.function(self, h).mean(1))))


def gradient(net, run, x):
    net.zero_grad()
    (run(x).sum(0) * torch.arange(1.0, 4)).sin().sum().backward()
    return net.fc1.weight.grad.clone()


def with_the_weights(dfa, net):
    state, held = dfa.state_dict(), {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name in state["matrices"]:
        matrix = held.get(name.removesuffix(".T"), held.get(f"{name}.weight")).detach()
        state["matrices"][name] = (matrix.t() if name.endswith(".T") else matrix).clone()
    dfa.load_state_dict(state)


@pytest.mark.parametrize(
    "form",
    [lambda net: lambda x: loop(net, x), lambda net: over_time(net, check=False)],
    ids=["loop", "over_time"],
)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_with_one_step_and_the_weights_as_factors_it_is_back_propagation(function, form):
    net = Net(function)
    x = 2 * torch.rand(1, B, 5, dtype=torch.float64)
    wanted = gradient(net, lambda x: loop(net, x), x)
    assert wanted.any()
    run = form(net)
    attached = run if isinstance(run, nn.Module) else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(attached, optimizer=optimizer, feedback=WeightMirror(by_sample=1)) as dfa:
        gradient(net, run, x)
        assert "own_matrix" not in repr(dfa)
        with_the_weights(dfa, net)
        torch.testing.assert_close(gradient(net, run, x), wanted, rtol=1e-9, atol=1e-12)


def test_of_one_sample_and_of_several_the_way_is_the_same():
    net = Net(attention)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = 2 * torch.rand(1, B, 5, dtype=torch.float64)
    wanted = gradient(net, lambda x: loop(net, x), x)
    with DFA(net, optimizer=optimizer, feedback=WeightMirror(by_sample=1)) as dfa:
        gradient(net, lambda x: loop(net, x), x[:, :1])
        for samples in (x, x):
            gradient(net, lambda x: loop(net, x), samples)
        assert "no_way" not in repr(dfa)
        with_the_weights(dfa, net)
        found = gradient(net, lambda x: loop(net, x), x)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


WITHOUT = {
    "weights from the left": lambda net, h: (net.wide.weight @ h.flatten(0, 1).t()).t().view_as(h),
    "weights from the left, over places": lambda net, h: torch.einsum("ol,bld->bod", net.square, h),
    "a function of each number": lambda net, h: h.transpose(0, 1).sigmoid().transpose(0, 1),
}


@pytest.mark.parametrize("function", WITHOUT.values(), ids=WITHOUT)
def test_other_functions_of_values_behind_give_the_layer_a_matrix_of_its_own(function):
    net = Net(function)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    gradient(net, lambda x: loop(net, x), 2 * torch.rand(2, B, 5, dtype=torch.float64))
    assert "own_matrix=('lif1',)" in repr(dfa)


def test_a_sparse_matrix_of_a_graph_is_no_weight():
    net = Net(lambda net, h: net.wide(torch.sparse.mm(net.graph, h.flatten(1)).view_as(h)))
    net.register_buffer("graph", torch.eye(B, dtype=torch.float64).to_sparse())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer)
    assert gradient(net, lambda x: loop(net, x), 2 * torch.rand(2, B, 5).double()).isfinite().all()
    assert "own_matrix=('lif1',)" in repr(dfa)


def test_constants_of_channels_leave_a_layer_its_way():
    def neuron():
        return leaky_of_channels(2)

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), neuron(), nn.Conv2d(2, 2, 3), neuron(), nn.Flatten(), nn.Linear(8, 3),
        leaky(),
    ).double()  # fmt: skip
    x = 2 * torch.rand(1, B, 1, 6, 6, dtype=torch.float64)

    def gradients():
        net.zero_grad()
        (loop(net, x).sum(0) * torch.arange(1.0, 4)).sin().sum().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    wanted = gradients()
    assert wanted["1.beta"].shape == (2, 1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with DFA(net, optimizer=optimizer, feedback=WeightMirror(by_sample=1)) as dfa:
        gradients()
        with_the_weights(dfa, net)
        torch.testing.assert_close(gradients(), wanted, rtol=1e-9, atol=1e-12)
