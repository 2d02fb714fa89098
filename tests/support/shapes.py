"""Networks of every shape, and what each hidden layer learns, with cuts made by hand."""

import snntorch as snn
import torch
from torch import nn
from torch.nn import functional as F

from snn_dfa import DFA
from snn_dfa.surrogate import fast_sigmoid

T, B, X, N, C = 5, 4, 6, 6, 3


def lif(**options):
    return snn.Leaky(beta=0.8, threshold=0.4, spike_grad=fast_sigmoid(slope=10), **options)


class Net(nn.Module):
    """Two hidden layers and an output; ``hand`` is what lies between a layer and the next.

    ``forward`` returns spikes and membranes of the output, [T, B, C], and the hidden spikes.
    """

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(X, N), lif()
        self.fc2, self.lif2 = nn.Linear(N, N), lif()
        self.fc3, self.lif3 = nn.Linear(N, C), lif()

    def first(self, x):
        return self.fc1(x)

    def second(self, spk1, mem1):
        return self.fc2(spk1)

    def third(self, spk1, spk2):
        return self.fc3(spk2)

    def forward(self, x, hand=lambda name, t: t):
        mem1, mem2, mem3 = (m.reset_mem() for m in (self.lif1, self.lif2, self.lif3))
        spikes, mems, below = [], [], {"lif1": [], "lif2": []}
        for step in x:
            spk1, mem1 = self.lif1(self.first(step), mem1)
            below["lif1"].append(spk1)
            handed1 = hand("lif1", spk1)
            spk2, mem2 = self.lif2(self.second(handed1, hand("", mem1)), mem2)
            below["lif2"].append(spk2)
            spk3, mem3 = self.lif3(self.third(handed1, hand("lif2", spk2)), mem3)
            spikes.append(spk3)
            mems.append(mem3)
        return torch.stack(spikes), torch.stack(mems), {k: torch.stack(v) for k, v in below.items()}


class Residual(Net):
    def second(self, spk1, mem1):
        return self.fc2(spk1) + spk1

    def third(self, spk1, spk2):
        return self.fc3(spk1 + spk2)


class Functions(Net):
    """No module between layers, and parameters that belong to none."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.2))

    def second(self, spk1, mem1):
        return F.linear(spk1 * self.gain, self.fc2.weight, self.fc2.bias)

    def third(self, spk1, spk2):
        wide = torch.cat([spk1[:, : N // 2], spk2[:, N // 2 :]], 1)
        return self.fc3(F.max_pool1d(wide[:, None], 1)[:, 0] * self.gain)


class Membranes(Net):
    """The second layer sees the first one's membrane, and not its spikes."""

    def second(self, spk1, mem1):
        return self.fc2(mem1) + 0.0 * spk1


class Branches(Net):
    """The second layer stands beside the first, and the output sees both."""

    def second(self, spk1, mem1):
        return self.fc2(self.x)

    def first(self, x):
        self.x = x
        return self.fc1(x)

    def third(self, spk1, spk2):
        return self.fc3(spk1 - spk2)


class Shared(Net):
    """One linear layer for two neurons."""

    def second(self, spk1, mem1):
        return self.fc1(spk1)


class Normalised(Net):
    """snnTorch's normalisation with weights of its own at each step; dropout that is off."""

    def __init__(self):
        super().__init__()
        self.bntt = snn.BatchNormTT1d(N, T) if hasattr(snn, "BatchNormTT1d") else None
        self.norm, self.drop, self.t = nn.BatchNorm1d(N), nn.Dropout(0.0), 0
        if self.bntt is None:
            from snntorch._layers.bntt import BatchNormTT1d

            self.bntt = BatchNormTT1d(N, T)

    def first(self, x):
        current = self.bntt[self.t % T](self.fc1(x))
        self.t += 1
        return current

    def second(self, spk1, mem1):
        return self.drop(self.fc2(self.norm(spk1)))


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.fc2 = nn.LazyLinear(N)


SHAPES = [Net, Residual, Functions, Membranes, Branches, Shared, Normalised, Lazy]


def made(kind=Net, dtype=torch.float64):
    torch.manual_seed(1)
    net = kind()
    net(torch.rand(T, B, X))  # what is lazy takes shape
    net = net.to(dtype)
    net.t = 0
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5) if p.dim() > 1 else p.add_(0.1)
    return net, torch.rand(T, B, X, dtype=dtype) * 1.5


def by_hand(net, x, loss_of, feedback, rule=lambda e: e):
    """Gradients of a plain network whose hidden layers are cut here, with e B added by hand."""
    kept = {"lif1": [], "lif2": []}

    def hand(name, t):
        if name:
            kept[name].append(t)
        return t.detach()

    net.zero_grad()
    outputs, joints = [], []

    def note(module, args, result):
        outputs.append(result)
        joints.extend(result)

    handle = net.lif3.register_forward_hook(note)
    spk, mem, below = net(x, hand)
    handle.remove()
    for t in joints:
        t.retain_grad()
    loss = loss_of(spk, mem, below)
    loss.backward(retain_graph=True)
    # Membranes are given on to the next step, so that their own error is asked of the loss alone.
    at_spk = torch.autograd.grad(loss, spk, retain_graph=True, allow_unused=True)[0]
    at_mem = torch.autograd.grad(loss, mem, retain_graph=True, allow_unused=True)[0]
    error = sum(g for g in (at_spk, at_mem) if g is not None)
    for name, spikes in kept.items():
        for t, one in enumerate(spikes if spikes[0].requires_grad else []):
            one.backward(rule(error[t]) @ feedback[name], retain_graph=True)
    return {k: p.grad for k, p in net.named_parameters()}, below


def count_loss(spk, mem, below):
    return F.cross_entropy(spk.sum(0), torch.tensor([0, 1, 2, 0])) + 0.1 * mem.square().mean()


def compare(net, x, loss_of, **options):
    dfa = DFA(net, **options)
    for _ in range(2):
        net.zero_grad()
        net.t = 0
        loss_of(*net(x)).backward()
    got = {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}
    feedback = dict(dfa.feedback)
    dfa.remove()
    net.t = 0
    expected, below = by_hand(net, x, loss_of, feedback)
    for name, rate in ((k, v.mean()) for k, v in below.items()):
        assert 0.05 < rate < 0.95, (name, rate)
    for name, reference in expected.items():
        if reference is None:
            assert got[name] is None or not got[name].any(), name
            continue
        torch.testing.assert_close(got[name], reference, rtol=1e-10, atol=1e-12, msg=name)
        assert reference.any(), name
    return got
