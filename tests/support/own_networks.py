"""Networks with a forward of their own, one step or a loop, in double precision."""

import snntorch as snn
import torch
from sequences import SG, B, C, F, N, T, f64
from torch import nn

from snn_dfa import RefractoryLeaky, reset
from snn_dfa.surrogate import fast_sigmoid

OPTIONS = {"spike_grad": SG, "threshold": f64(0.3)}
LOW = {"spike_grad": SG, "threshold": f64(0.1)}
NEURONS = {
    "Leaky": lambda n, **o: snn.Leaky(f64(0.8), **OPTIONS, **o),
    "Leaky to zero": lambda n, **o: snn.Leaky(f64(0.8), reset_mechanism="zero", **OPTIONS, **o),
    "Leaky at once": lambda n, **o: snn.Leaky(f64(0.8), reset_delay=False, **OPTIONS, **o),
    "Leaky that learns": lambda n, **o: snn.Leaky(
        f64(0.8), learn_beta=True, learn_threshold=True, **OPTIONS, **o
    ),
    "Lapicque": lambda n, **o: snn.Lapicque(f64(0.6), **OPTIONS, **o),
    "Synaptic": lambda n, **o: snn.Synaptic(f64(0.5), f64(0.8), **OPTIONS, **o),
    "Alpha": lambda n, **o: snn.Alpha(f64(0.8), f64(0.6), **LOW, **o),
    "RLeaky": lambda n, **o: snn.RLeaky(
        f64(0.8), linear_features=n, **LOW, **o
    ).double(),
    "RSynaptic": lambda n, **o: snn.RSynaptic(
        f64(0.5), f64(0.8), linear_features=n, **LOW, **o
    ).double(),
    "DeltaLeaky": lambda n, **o: snn.DeltaLeaky(0.2, beta=f64(0.8), spike_grad=SG, **o),
    "RefractoryLeaky": lambda n, **o: RefractoryLeaky(
        f64(0.8), refractory_steps=1, input_gain=0.9, **OPTIONS, **o
    ),
}  # fmt: skip


def coarse(x):
    """Return multiples of 1/256, whose products are summed without rounding, in any order."""
    return (256 * x).round() / 256


def linear(n, m):
    layer = nn.Linear(n, m).double()
    with torch.no_grad():
        layer.weight.copy_(coarse(2 * layer.weight))
        layer.bias.copy_(coarse(layer.bias + 0.4))
    return layer


def first(result):
    return result[0] if isinstance(result, tuple) else result


class Loop(nn.Module):
    """Explicit states and a loop over the input's first dimension, as tutorials have it."""

    def __init__(self, make):
        super().__init__()
        self.fc1, self.lif1 = linear(F, N), make(N)
        self.fc2, self.lif2 = linear(N, N), make(N)
        self.fc3, self.lif3 = linear(N, C), make(C)

    def forward(self, x):
        states = [lif.reset_mem() for lif in (self.lif1, self.lif2, self.lif3)]
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk = x[t]
            for i, (fc, lif) in enumerate(
                ((self.fc1, self.lif1), (self.fc2, self.lif2), (self.fc3, self.lif3))
            ):
                given = states[i]
                if isinstance(lif, snn.DeltaLeaky):
                    given = (given,)
                given = given if isinstance(given, tuple) else (given,)
                out = lif(fc(spk), *given)
                spk = out[0]
                states[i] = out if isinstance(lif, (snn.RLeaky, snn.RSynaptic)) else out[1:]
                if isinstance(lif, snn.DeltaLeaky):
                    states[i] = out[1]
            spk_rec.append(spk)
            mem_rec.append(first(out[-1]))
        return torch.stack(spk_rec), torch.stack(mem_rec)


class Step(nn.Module):
    """One step with hidden states: a branch, a function, a residual addition."""

    def __init__(self, make):
        super().__init__()
        self.fc1, self.lif1 = linear(F, N), make(N, init_hidden=True)
        self.fc2, self.lif2 = linear(N, N), make(N, init_hidden=True)
        self.out = nn.Sequential(linear(N, C), make(C, init_hidden=True, output=True))

    def forward(self, x):
        a = first(self.lif1(self.fc1(x)))
        b = first(self.lif2(torch.tanh(self.fc2(a)) + 0.5 * a))
        return self.out(a + b)


class States(nn.Module):
    """One step with the states among arguments and results."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = linear(F, N), NEURONS["Leaky"](N)
        self.fc2, self.lif2 = linear(N, C), NEURONS["Synaptic"](C)

    def forward(self, x, mem1, state2, scale=1.0):
        spk, mem1 = self.lif1(scale * self.fc1(x), mem1)
        spk, *state2 = self.lif2(self.fc2(spk), *state2)
        return spk, mem1, tuple(state2)


class Residual(nn.Module):
    """A residual convolutional step, with functions in between."""

    def __init__(self):
        super().__init__()
        slope = {"spike_grad": fast_sigmoid(10), "threshold": f64(0.2), "init_hidden": True}
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, padding=1), snn.Leaky(f64(0.9), **slope)
        self.conv2, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), snn.Leaky(f64(0.9), **slope)
        self.fc, self.lif3 = nn.Linear(16, C), snn.Leaky(f64(0.9), output=True, **slope)
        self.double()

    def forward(self, x):
        a = self.lif1(nn.functional.max_pool2d(self.conv1(x), 2))
        b = nn.functional.avg_pool2d(self.lif2(self.conv2(a) + a), 2)
        return self.lif3(self.fc(b.view(b.size(0), -1)))


def steps(net, x):
    """The loop around a network that takes one step."""
    reset(net)
    out = [net(step) for step in x]
    if isinstance(out[0], torch.Tensor):
        return torch.stack(out)
    return tuple(stack(each) for each in zip(*out, strict=True))


def stack(each):
    if isinstance(each[0], torch.Tensor):
        return torch.stack(each)
    return tuple(stack(e) for e in zip(*each, strict=True))


def tensors(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for each in result for t in tensors(each)]


def zeros(*shape):
    return torch.zeros(B, *shape, dtype=torch.float64)


def inputs():
    return coarse(torch.rand(T, B, F, dtype=torch.float64) * 2)


class Hidden(nn.Module):
    """Two layers, one step, hidden states: to be derived from."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = linear(F, N), NEURONS["Leaky"](N, init_hidden=True)
        self.out, self.lif_out = linear(N, C), NEURONS["Leaky"](C, init_hidden=True)

    def forward(self, x):
        return self.lif_out(self.out(self.lif(self.fc(x))))


class Inside(nn.Module):
    """Two layers, a loop, explicit states: to be derived from."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = linear(F, N), NEURONS["Leaky"](N)
        self.out, self.lif_out = linear(N, C), NEURONS["Leaky"](C)

    def forward(self, x):
        mem, mem_out = self.first(x)
        spikes = []
        for t in range(x.size(0)):
            spk, mem = self.lif(self.current(t, x[t]), mem)
            spk, mem_out = self.lif_out(self.out(spk), mem_out)
            spikes.append(spk)
        return self.result(spikes)

    def first(self, x):
        return self.lif.reset_mem(), self.lif_out.reset_mem()

    def current(self, t, step):
        return self.fc(step)

    def result(self, spikes):
        return torch.stack(spikes)
