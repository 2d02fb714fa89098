"""DFA on a GPU beside the CPU, and all that differs there: threads of autograd, streams, graphs."""

import copy
import io
import os

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from snn_dfa import DFA, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

DEVICE = os.environ.get("SNN_DFA_TEST_DEVICE", "cuda")  # cpu, to try the tests themselves

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"
)

T, B, C = 5, 6, 3


def neuron(kind=snn.Leaky, **options):
    given = {"beta": 0.8, "threshold": 0.4, "spike_grad": fast_sigmoid(5), "init_hidden": True}
    if kind in (snn.Synaptic, snn.Alpha, snn.RSynaptic):
        given["alpha"] = 0.9
    if kind in (snn.RLeaky, snn.RSynaptic):
        given["linear_features"] = 8
    return kind(**given, **options)


def dense(kind=snn.Leaky):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(7, 8), neuron(kind), nn.Linear(8, 8), neuron(), nn.Linear(8, C), neuron()
    ).double()


class Conv(nn.Module):
    """Explicit states, a residual addition, pooling and normalisation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.conv1, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 9, C)
        self.lif1, self.lif2 = (neuron_explicit() for _ in range(2))
        self.lif3 = neuron_explicit()
        self.double()

    def forward(self, x, states=None):
        mem1, mem2, mem3 = states or (lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3))
        spk1, mem1 = self.lif1(self.norm(self.conv1(x)), mem1)
        spk2, mem2 = self.lif2(self.conv2(spk1) + spk1, mem2)
        flat = functional.max_pool2d(spk2, 2).flatten(1)
        spk3, mem3 = self.lif3(self.fc(flat), mem3)
        return spk3, (mem1, mem2, mem3)


def neuron_explicit():
    return snn.Leaky(beta=0.8, threshold=0.4, spike_grad=fast_sigmoid(5))


def batch(shape, device):
    g = torch.Generator().manual_seed(4)
    x = 2 * torch.rand(T, B, *shape, generator=g, dtype=torch.float64)
    return x.to(device), torch.randint(C, (B,), generator=g).to(device)


def steps(net, x):
    """Run the loop over time; return spikes [T, B, C]."""
    reset(net)
    if not isinstance(net, Conv):
        return torch.stack([net(step) for step in x])
    found, states = [], None
    for step in x:
        spk, states = net(step, states)
        found.append(spk)
    return torch.stack(found)


def gradients(net, device, run=steps, **options):
    """Return all gradients of two batches under DFA, on the CPU."""
    net = copy.deepcopy(net).to(device)
    x, y = batch((1, 6, 6) if isinstance(net, Conv) else (7,), device)
    output = "lif3" if isinstance(net, Conv) else "5"
    form = over_time(net) if run == "over_time" else net
    dfa = DFA(form, output=output, **options)
    for _ in range(2):
        spk = form(x) if run == "over_time" else run(net, x)
        assert 0.02 < spk.mean() < 0.98
        functional.cross_entropy(spk.sum(0), y).backward()
    dfa.remove()
    return {name: p.grad.cpu() for name, p in net.named_parameters()}


def same(net, run=steps, **options):
    bound = 1e-6 if "feedback" in options else 1e-9  # matrices that learn are in float32
    expected = gradients(net, "cpu", run, **options)
    found = gradients(net, DEVICE, run, **options)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=bound, atol=bound, msg=name)


KINDS = [snn.Leaky, snn.Synaptic, snn.Alpha, snn.RLeaky, snn.RSynaptic]


@pytest.mark.parametrize("run", [steps, "over_time"], ids=["loop", "over_time"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_neuron(kind, run):
    same(dense(kind), run)


@pytest.mark.parametrize(
    "options",
    [{"credit": "current"}, {"error_at": "current"}, {"rule": "fa"}, {"rule": "sign"},
     {"feedback": "kolen-pollack"}],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:feedback")
def test_rules_and_credits(options):
    same(dense(), **options)


def test_convolutions_with_explicit_states():
    same(Conv())


def test_activation_checkpointing():
    """Autograd runs the segment again, on a GPU in another thread."""

    def run(net, x):
        reset(net)
        found = []
        for step in x:
            hidden = net[1](checkpoint(net[0], step, use_reentrant=False))
            found.append(net[5](net[4](net[3](checkpoint(net[2], hidden, use_reentrant=False)))))
        return torch.stack(found)

    same(dense(), run)


def test_backward_in_a_loop_over_chunks():
    """Truncated: backward after every second step, states detached."""

    def trained(device):
        net = dense().to(device)
        x, y = batch((7,), device)
        DFA(net, output="5")
        reset(net)
        for chunk in x.split(2):
            spk = torch.stack([net(step) for step in chunk])
            functional.cross_entropy(spk.sum(0), y).backward()
            for layer in (net[1], net[3], net[5]):
                layer.mem = layer.mem.detach()
        return [p.grad.cpu() for p in net.parameters()]

    for found, expected in zip(trained(DEVICE), trained("cpu"), strict=True):
        torch.testing.assert_close(found, expected)


def test_traces_over_chunks():
    def trained(device):
        net = dense().to(device)
        x, y = batch((7,), device)
        form = over_time(net, stateful=True)
        DFA(form, output="5", credit="trace")
        for chunk in x.split(2):
            functional.cross_entropy(form(chunk).sum(0), y).backward()
        return [p.grad.cpu() for p in net.parameters()]

    for found, expected in zip(trained(DEVICE), trained("cpu"), strict=True):
        torch.testing.assert_close(found, expected)


def filled(spikes):
    """Put steps into a tensor in place."""
    rec = torch.zeros_like(torch.stack(spikes))
    for t, spk in enumerate(spikes):
        rec[t] = spk
    return rec


@pytest.mark.parametrize(
    "read", [torch.stack, filled, lambda spikes: torch.stack(spikes)[-2:].mean(0), lambda s: s[-1]]
)
@pytest.mark.parametrize("feedback", ["gaussian", "weight-mirror"])
def test_a_readout_after_the_loop(read, feedback):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.fc1, self.lif1, self.fc2, self.lif2 = (
                nn.Linear(7, 8), neuron(), nn.Linear(8, 8), neuron(),
            )  # fmt: skip
            self.mask = nn.Parameter((torch.rand(8, 8) < 0.7).float(), requires_grad=False)
            self.head = nn.Linear(8, C)

        def forward(self, x):
            reset(self)
            spikes = []
            for step in x:
                weight = self.fc2.weight * self.mask  # one that the program makes
                spikes.append(self.lif2(functional.linear(self.lif1(self.fc1(step)), weight)))
            return self.head(read(spikes))

    def trained(device):
        net = Reads().double().to(device)
        x, y = batch((7,), device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        given = {"optimizer": optimizer} if feedback == "weight-mirror" else {}
        dfa = DFA(net, output="head", feedback=feedback, **given)
        for _ in range(3):
            optimizer.zero_grad()
            out = net(x)
            out = out.mean(0) if out.dim() == 3 else out
            functional.cross_entropy(out, y).backward()
            optimizer.step()
        assert ("into lif2 1" in dfa.state_dict()["matrices"]) == bool(given)
        return [p.grad.cpu() for p in net.parameters() if p.grad is not None]

    grads = trained(DEVICE)
    assert grads[0].any()
    if feedback == "gaussian":  # noise is other noise on each device
        for found, expected in zip(grads, trained("cpu"), strict=True):
            torch.testing.assert_close(found, expected)


def test_learned_errors_pass_an_lstm():
    """Its gates are in one node there."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(7, 8), neuron(), snn.SLSTM(8, 8, threshold=0.05, init_hidden=True),
        nn.Linear(8, C), neuron(),
    ).to(DEVICE)  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    dfa = DFA(net, optimizer=optimizer, output="4")
    x, y = batch((7,), DEVICE)
    x = x.float()
    for _ in range(3):
        optimizer.zero_grad()
        reset(net)
        functional.cross_entropy(torch.stack([net(step) for step in x]).sum(0), y).backward()
        optimizer.step()
    assert "own_matrix" not in repr(dfa)
    assert net[0].weight.grad.any()


@pytest.mark.parametrize("attach_first", [False, True])
def test_one_line_learns_and_moves(attach_first):
    """The feedback learns on the device to which the network was moved, before or after."""
    net = dense().float()
    if not attach_first:
        net.to(DEVICE)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    dfa = DFA(net, optimizer=optimizer, output="5")
    if attach_first:
        net.to(DEVICE)
    x, y = batch((7,), DEVICE)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = functional.cross_entropy(steps(net, x.float()).sum(0), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    cosine = torch.cosine_similarity(
        dfa.feedback["3"].cpu().flatten(), net[4].weight.cpu().flatten(), 0
    )
    assert cosine > 0.8
    file = io.BytesIO()
    torch.save(dfa.state_dict(), file)
    file.seek(0)
    dfa.load_state_dict(torch.load(file, map_location="cpu"))
    functional.cross_entropy(steps(net, x.float()).sum(0), y).backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_with_a_gradient_scaler(dtype):
    """Scaled and unscaled gradients agree, and a step that overflows is skipped."""
    net = dense().float().to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**12, enabled=dtype == torch.float16)
    DFA(net, optimizer=optimizer, output="5")
    x, y = batch((7,), DEVICE)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype):
            loss = functional.cross_entropy(steps(net, x.float()).sum(0), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(p.isfinite().all() for p in net.parameters())
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no graphs")
@pytest.mark.parametrize("rule", ["bptt", "dfa"])
def test_a_cuda_graph_of_a_training_step(rule):
    """What a captured step writes into gradients equals that of a step that runs as it is."""
    net = dense().float().to(DEVICE)
    form = over_time(net)
    if rule == "dfa":
        DFA(form, output="5")
    x, y = batch((7,), DEVICE)
    x = x.float()

    def step():
        functional.cross_entropy(form(x).sum(0), y).backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            net.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(side)
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for p in net.parameters():
        p.grad.zero_()
    graph.replay()
    for p, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
