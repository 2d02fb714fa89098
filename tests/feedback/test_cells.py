"""Errors through gated cells: the factor of their input weights, and the gates of each step."""

from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn
from ways import grads_of

from snn_dfa import DFA, WeightMirror, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

B, F = 4, 5
OPTIONS = {"spike_grad": fast_sigmoid(5), "threshold": 0.05}


class Lstm(nn.Module):
    """A layer of spikes or of an SLSTM before an SLSTM, of which a readout reads one value."""

    def __init__(self, reads="spikes", passes="spikes", depth=2, **options):
        super().__init__()
        self.lstms = nn.ModuleList(snn.SLSTM(F, F, **OPTIONS, **options) for _ in range(depth))
        self.out, self.reads, self.passes, self.spikes = nn.Linear(F, 3), reads, passes, 0

    def forward(self, x, cut=()):
        """``cut``: of which cells the states are detached, where ``inputs`` notes what comes in."""
        states = [(x.new_zeros(B, F),) * 2 for _ in self.lstms]
        out, self.inputs = [], [[] for _ in self.lstms]
        for h in x:
            for i, lstm in enumerate(self.lstms):
                if i in cut:
                    self.inputs[i].append((h, h := h.detach().requires_grad_()))
                    states[i] = tuple(s.detach() for s in states[i])
                spk, *states[i] = lstm(h, *states[i])
                self.spikes += int(spk.sum())
                last = lstm is self.lstms[-1]
                h = spk if (self.reads if last else self.passes) == "spikes" else states[i][1]
            out.append(self.out(h))
        return torch.stack(out)


class Conv(nn.Module):
    def __init__(self, **pool):
        super().__init__()
        self.first = snn.SConv2dLSTM(1, 2, 3, **OPTIONS)
        self.second = snn.SConv2dLSTM(2, 3, 3, **OPTIONS, **pool)
        self.out, self.spikes = nn.LazyLinear(3), 0

    def forward(self, x):
        first, second, out = self.first.reset_mem(), self.second.reset_mem(), []
        for h in x:
            h, *first = self.first(h, *first)
            self.spikes += int(h.sum())
            h, *second = self.second(h, *second)
            out.append(self.out(h.flatten(1)))
        return torch.stack(out)


class Cell(nn.Module):
    """A cell of PyTorch that is named as a layer, between two spiking layers."""

    def __init__(self, kind):
        super().__init__()
        self.fc, self.lif, self.cell = nn.Linear(F, F), snn.Leaky(beta=0.7, **OPTIONS), kind(F, F)
        self.out, self.spikes = nn.Linear(F, 3), 0

    def forward(self, x):
        mem, state, out = self.lif.reset_mem(), None, []
        for h in x:
            spk, mem = self.lif(self.fc(h), mem)
            self.spikes += int(spk.sum())
            state = self.cell(spk, state)
            out.append(self.out(state[0] if isinstance(state, tuple) else state))
        return torch.stack(out)


def with_weights(dfa, net):
    """Let the factors be the weights."""
    state, held = dfa.state_dict(), dict(net.named_parameters())
    for name in state["matrices"]:
        weight = held.get(name, held.get(f"{name}.weight"))
        state["matrices"][name] = weight.detach().clone()
    dfa.load_state_dict(state)


def attached(net, x, loss, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, output="out", optimizer=optimizer, **options)
    loss(net(x)).backward()
    with_weights(dfa, net)
    return dfa, optimizer


def made(net, *shape):
    torch.manual_seed(0)
    return net().double(), torch.randn(shape, dtype=torch.double)


def same(out):
    """A loss that is the same function of each step."""
    return (out.sum(0) * torch.arange(1.0, 4).double()).sin().sum()


def other(out):
    """A loss of which each step has another error."""
    at = torch.arange(1.0, 1 + len(out)).double()[:, None, None]
    return (out.sin() * at * torch.arange(1.0, 4).double()).sum()


@pytest.mark.parametrize(
    ("net", "shape", "options"),
    [
        *(
            (lambda r=r, p=p: Lstm(r, p), (B, F), {})
            for r in ("spikes", "membranes")
            for p in ("spikes", "membranes")
        ),
        (lambda: Lstm(reset_mechanism="subtract", depth=3), (B, F), {}),
        (Conv, (B, 1, 6, 7), {}),
        (lambda: Conv(max_pool=2), (B, 1, 6, 7), {}),
        (lambda: Conv(avg_pool=2), (B, 1, 6, 7), {}),
        *(
            (lambda k=k: Cell(k), (B, F), {"hidden": ["lif", "cell"]})
            for k in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
        ),
    ],
)
def test_with_one_step_and_the_weights_it_is_back_propagation(net, shape, options):
    net, x = made(net, 1, *shape)
    net(x)
    want = grads_of(net, net, x, same)
    dfa, _ = attached(net, x, same, feedback=WeightMirror(by_sample=1), **options)
    got = grads_of(net, net, x, same)
    assert net.spikes
    assert "own_matrix" not in repr(dfa)
    for name, each in want.items():
        torch.testing.assert_close(got[name], each, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [same, other])
@pytest.mark.parametrize("passes", ["spikes", "membranes"])
@pytest.mark.parametrize("reads", ["spikes", "membranes"])
def test_errors_pass_a_cell_step_by_step(reads, passes, loss):
    """As in back-propagation that leaves out the cell's own states, from one step to the next."""
    net, x = made(lambda: Lstm(reads, passes, depth=3), 5, B, F)
    want = {}
    for lowest in (1, 2):  # what the layer below gets, where the cells above are cut
        net.zero_grad()
        loss(net(x, cut=range(lowest, 3))).backward()
        for i in reversed(range(lowest, 3)):
            sent = [(before, cut.grad) for before, cut in net.inputs[i]]
            net.zero_grad()
            torch.autograd.backward(*zip(*sent, strict=True), retain_graph=True)
        below = net.lstms[lowest - 1]
        want[lowest - 1] = {n: p.grad.clone() for n, p in below.named_parameters()}
    _kept = attached(net, x, loss)
    grads = grads_of(net, net, x, loss)
    assert net.spikes
    for i, each in want.items():
        for name, grad in each.items():
            assert grad.any()
            torch.testing.assert_close(grads[f"lstms.{i}.{name}"], grad, rtol=1e-9, atol=1e-12)


def test_the_factor_becomes_the_input_weight():
    net, x = made(Lstm, 3, B, F)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, output="out", optimizer=optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        same(net(x)).backward()
        optimizer.step()
    factor = dfa.state_dict()["matrices"]["lstms.1.lstm_cell.weight_ih"]
    weight = net.lstms[1].lstm_cell.weight_ih.detach()
    assert torch.cosine_similarity(factor.flatten(), weight.flatten().float(), dim=0) > 0.95
    dfa.load_state_dict(dfa.state_dict())
    same(net(x)).backward()
    assert net.lstms[0].lstm_cell.weight_ih.grad.any()


@pytest.mark.parametrize("frozen", ["weight_ih", "bias_ih", ""])
def test_of_a_frozen_cell_too(frozen):
    """Frozen before the first pass, or after it."""
    net, x = made(Lstm, 1, B, F)
    want = grads_of(net, net, x, same)
    found = []
    for first in (True, False):
        parameters = [p for n, p in net.lstms[1].named_parameters() if frozen in n]
        for p in parameters:
            p.requires_grad_(not first)
        dfa, _kept = attached(net, x, same, feedback=WeightMirror(by_sample=1))
        for p in parameters:
            p.requires_grad_(False)
        found.append(grads_of(net, net, x, same))
        dfa.remove()
    for got in found:
        for name, each in got.items():
            torch.testing.assert_close(each, want[name], rtol=1e-9, atol=1e-12)
        assert "lstms.0.lstm_cell.weight_ih" in got


def test_where_gates_are_not_known_they_are_half_open():
    net, x = made(Lstm, 3, B, F)
    dfa, _kept = attached(net, x, same)
    same(net(x)).backward()
    weight = net.lstms[1].lstm_cell.weight_ih.detach()[2 * F : 3 * F]
    want = 0.25 * net.out.weight.detach() @ weight
    torch.testing.assert_close(dfa.feedback["lstms.0"], want)


def test_a_layer_may_be_frozen_while_its_last_spikes_have_a_graph():
    """Then its first call alone wants an error, and errors do not take the samples' ways."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstms = nn.ModuleList(snn.SLSTM(F, F, init_hidden=True, **OPTIONS) for _ in "12")
            self.out = nn.Linear(F, 3)

        def forward(self, x):
            return torch.stack([self.out(self.lstms[1](self.lstms[0](h))) for h in x])

    torch.manual_seed(0)
    net, x = Hidden(), torch.randn(3, B, F)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    DFA(net, output="out", optimizer=optimizer)
    for frozen in (False, True, False):
        net.lstms[0].requires_grad_(not frozen)
        reset(net)
        optimizer.zero_grad()
        same(net(x)).backward()
        optimizer.step()
    assert net.lstms[0].lstm_cell.weight_ih.grad.any()


def test_what_comes_in_may_be_made_in_another_way_at_each_step():
    class Scaled(Lstm):
        def forward(self, x):
            states = [(x.new_zeros(B, F),) * 2 for _ in self.lstms]
            out = []
            for t, h in enumerate(x):
                spk, *states[0] = self.lstms[0](h, *states[0])
                spk, *states[1] = self.lstms[1](spk * (t + 1), *states[1])
                out.append(self.out(spk))
            return torch.stack(out)

    net, x = made(Scaled, 3, B, F)
    dfa, _kept = attached(net, x, same)
    grads = grads_of(net, net, x, same)
    assert "own_matrix" not in repr(dfa)
    assert grads["lstms.0.lstm_cell.weight_ih"].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda lstm: nn.utils.parametrizations.weight_norm(lstm.lstm_cell, "weight_ih"),
        lambda lstm: setattr(
            lstm.lstm_cell, "forward", partial(nn.LSTMCell.forward, lstm.lstm_cell)
        ),
    ],
)
def test_a_cell_that_is_changed_has_no_way(change):
    net, x = made(Lstm, 3, B, F)
    change(net.lstms[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, output="out", optimizer=optimizer)
    same(net(x)).backward()
    assert "own_matrix=('lstms.0',)" in repr(dfa)
    assert net.lstms[0].lstm_cell.weight_hh.grad.any()


def test_under_activation_checkpointing_a_cell_has_no_way():
    from torch.utils.checkpoint import checkpoint

    net, x = made(Lstm, 3, B, F)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    dfa = DFA(net, output="out", optimizer=optimizer)
    same(checkpoint(net, x, use_reentrant=False)).backward()
    assert "own_matrix=('lstms.0',)" in repr(dfa)
    assert net.lstms[0].lstm_cell.weight_ih.grad.any()


def test_in_the_form_over_time_a_cell_has_no_way():
    net, x = made(Lstm, 3, B, F)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    run = over_time(net, check=False)
    dfa = DFA(run, output="out", optimizer=optimizer)
    same(run(x)).backward()
    assert "own_matrix=('lstms.0',)" in repr(dfa)
    assert net.lstms[0].lstm_cell.weight_ih.grad.any()


@pytest.mark.parametrize("loss", [same, other])
def test_layer_by_layer_it_is_the_loop_over_time(loss):
    class InTurn(Lstm):
        """Each cell runs through all steps before the next one."""

        def forward(self, x):
            for lstm in self.lstms:
                state, made = (x.new_zeros(B, F),) * 2, []
                for h in x:
                    spk, *state = lstm(h, *state)
                    made.append(spk)
                x = torch.stack(made)
            return torch.stack([self.out(h) for h in x])

    found = []
    for kind in (Lstm, InTurn):
        net, x = made(kind, 4, B, F)
        dfa, _kept = attached(net, x, loss)
        found.append(grads_of(net, net, x, loss))
        assert "own_matrix" not in repr(dfa)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


class Between(Lstm):
    """Functions between two cells with another derivative for each sample."""

    def __init__(self):
        super().__init__()
        self.between = nn.Sequential(nn.Linear(F, F), nn.LayerNorm(F), nn.SiLU())
        self.scale = nn.Linear(F, F)

    def forward(self, x):
        states, out = [(x.new_zeros(B, F),) * 2 for _ in self.lstms], []
        for h in x:
            spk, *states[0] = self.lstms[0](h, *states[0])
            self.spikes += int(spk.sum())
            spk, *states[1] = self.lstms[1](self.between(spk) * self.scale(spk), *states[1])
            out.append(self.out(spk))
        return torch.stack(out)


def in_one_step_it_is_back_propagation(network):
    """See so, with the weights as factors; return what is attached."""
    net, x = made(network, 1, B, F)
    want = grads_of(net, net, x, same)
    kept = attached(net, x, same, feedback=WeightMirror(by_sample=1))
    got = grads_of(net, net, x, same)
    assert net.spikes
    for name, each in want.items():
        torch.testing.assert_close(got[name], each, rtol=1e-9, atol=1e-12)
    return kept


def test_functions_between_cells_have_the_derivative_of_each_sample():
    in_one_step_it_is_back_propagation(Between)


class Beside(Lstm):
    """The lower cell flows into the readout, too, past the upper one."""

    def forward(self, x):
        states, out = [(x.new_zeros(B, F),) * 2 for _ in self.lstms], []
        for h in x:
            low, *states[0] = self.lstms[0](h, *states[0])
            spk, *states[1] = self.lstms[1](low, *states[1])
            self.spikes += int(low.sum() + spk.sum())
            out.append(self.out(low + spk))
        return torch.stack(out)


def test_a_layer_that_flows_past_a_cell_too_is_sent_both_errors():
    in_one_step_it_is_back_propagation(Beside)[0].remove()
    net, x = made(Beside, 4, B, F)
    dfa, _optimizer = attached(net, x, other)
    got = grads_of(net, net, x, other)
    assert all(grad.isfinite().all() and grad.any() for grad in got.values())
    assert "own_matrix" not in repr(dfa)


@pytest.mark.parametrize("named", [{"output": "lstms.1"}, {}])
@pytest.mark.parametrize("width", [F, 3])
def test_a_cell_may_be_the_output(width, named):
    """Then the layers below have matrices of their own."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstms = nn.ModuleList(snn.SLSTM(F, n, **OPTIONS) for n in (F, width))

        def forward(self, x):
            states = [(x.new_zeros(B, F),) * 2, (x.new_zeros(B, width),) * 2]
            out = []
            for h in x:
                for i, lstm in enumerate(self.lstms):
                    h, *states[i] = lstm(h, *states[i])
                out.append(h)
            return torch.stack(out)

    torch.manual_seed(0)
    net, x = Last(), torch.randn(3, B, F)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, optimizer=optimizer, **named)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) * torch.randn(width)).sum().backward()
        optimizer.step()
        assert net.lstms[0].lstm_cell.weight_ih.grad.any()
    assert "own_matrix=('lstms.0',)" in repr(dfa)


def test_states_that_come_from_another_layer_do_not_pass_the_input_weights():
    """Of a decoder that starts from an encoder's states; its inputs have another width."""

    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.decoder = (snn.SLSTM(n, 6, threshold=0.05) for n in (4, 3))
            self.head = nn.Linear(6, 2)

        def forward(self, source, target):
            syn, mem = torch.zeros(2, 5, 6)
            for step in source:
                _, syn, mem = self.encoder(step, syn, mem)
            found = []
            for step in target:
                spk, syn, mem = self.decoder(step, syn, mem)
                found.append(spk)
            return self.head(torch.stack(found))

    net = Translator()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(net, output="head", optimizer=optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.rand(3, 5, 4), torch.rand(3, 5, 3)).square().sum().backward()
        optimizer.step()
    assert net.encoder.lstm_cell.weight_ih.grad.any()
    assert repr(dfa).endswith("no_way={'decoder': 'SLSTM'}, own_matrix=('encoder',))")
