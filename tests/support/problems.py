"""Tiny networks, each given twice: as a snnTorch user writes it, and as reference blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import reference as ref
import snntorch as snn
import torch
from torch import nn

from snn_dfa import RefractoryLeaky
from snn_dfa.surrogate import fast_sigmoid

T, B, F, N1, N2, C = 6, 3, 5, 7, 4, 3
SG = fast_sigmoid(slope=10)


def sequential(neuron, init_hidden=True):
    """The loop over time is around the network."""
    return nn.Sequential(
        nn.Linear(F, N1), neuron(N1), nn.Sequential(nn.Linear(N1, N2), neuron(N2)),
        nn.Linear(N2, C), neuron(C, output=True),
    )  # fmt: skip


def loop_around(net, x):
    out = [net(step) for step in x]
    return torch.stack([o[0] for o in out]), torch.stack([o[-1] for o in out])


class LoopInside(nn.Module):
    """Explicit states and a loop over time in ``forward``, as in snnTorch's tutorial 5."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(F, N1), neuron(N1)
        self.fc2, self.lif2 = nn.Linear(N1, N2), neuron(N2)
        self.fc3, self.lif3 = nn.Linear(N2, C), neuron(C)

    def forward(self, x):
        s1, s2, s3 = (self.start(lif) for lif in (self.lif1, self.lif2, self.lif3))
        spikes, mems = [], []
        for step in x:
            spk, *s1 = self.call(self.lif1, self.fc1(step), s1)
            spk, *s2 = self.call(self.lif2, self.fc2(spk), s2)
            spk, *s3 = self.call(self.lif3, self.fc3(spk), s3)
            spikes.append(spk)
            mems.append(s3[-1])
        return torch.stack(spikes), torch.stack(mems)

    @staticmethod
    def start(lif):
        state = lif.reset_mem()
        return list(state) if isinstance(state, tuple) else [state]

    @staticmethod
    def call(lif, current, state):
        if isinstance(lif, snn.RLeaky):  # its state is (spk, mem) and its result, too
            spk, mem = lif(current, *state)
            return spk, spk, mem
        return lif(current, *state)


class LayerByLayer(LoopInside):
    """All steps of a layer before the next layer."""

    def forward(self, x):
        for lif, fc in ((self.lif1, self.fc1), (self.lif2, self.fc2), (self.lif3, self.fc3)):
            state, spikes, mems = self.start(lif), [], []
            for step in x:
                spk, *state = self.call(lif, fc(step), state)
                spikes.append(spk)
                mems.append(state[-1])
            x = spikes
        return torch.stack(spikes), torch.stack(mems)


class WrongOrder(LoopInside):
    """The neuron that is called last is registered first."""

    def __init__(self, neuron):
        nn.Module.__init__(self)
        self.lif3, self.fc3 = neuron(C), nn.Linear(N2, C)
        self.lif1, self.fc1 = neuron(N1), nn.Linear(F, N1)
        self.lif2, self.fc2 = neuron(N2), nn.Linear(N1, N2)


def convolutional(neuron):
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), neuron(None), nn.AvgPool2d(2),
        nn.Conv2d(2, 3, 2), neuron(None), nn.Flatten(), nn.Linear(3, C), neuron(C, output=True),
    )  # fmt: skip


def normalised(neuron):
    return nn.Sequential(
        nn.Linear(F, N1), nn.BatchNorm1d(N1), neuron(N1),
        nn.Linear(N1, N2), nn.BatchNorm1d(N2), neuron(N2), nn.Linear(N2, C), neuron(C, output=True),
    )  # fmt: skip


# -- neurons: how a user makes one of N, and the reference's arguments -----------------------------


def exact(value):
    """Keep a decay's digits: snnTorch would make it a float32 before ``.double()``."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value


def leaky(cls=snn.Leaky, **options):
    options = {name: exact(value) for name, value in options.items()}
    return lambda hidden: (
        lambda n, output=False: cls(
            spike_grad=SG, init_hidden=hidden, output=output and hidden, **options
        )
    )


def rleaky(hidden):
    return lambda n, output=False: snn.RLeaky(
        beta=exact(0.8),
        linear_features=n,
        spike_grad=SG,
        init_hidden=hidden,
        output=output and hidden,
    )


NEURONS = {
    "leaky": (leaky(beta=0.8, threshold=0.3), {"beta": 0.8, "threshold": 0.3}),
    "leaky-learns": (
        leaky(beta=0.8, threshold=0.3, learn_beta=True, learn_threshold=True),
        {"beta": 0.8, "threshold": 0.3},
    ),
    "leaky-zero": (
        leaky(beta=0.7, threshold=0.3, reset_mechanism="zero"),
        {"beta": 0.7, "threshold": 0.3, "reset": "zero"},
    ),
    "leaky-none": (
        leaky(beta=0.7, threshold=0.3, reset_mechanism="none"),
        {"beta": 0.7, "threshold": 0.3, "reset": "none"},
    ),
    "leaky-prompt": (
        leaky(beta=0.7, threshold=0.3, reset_delay=False),
        {"beta": 0.7, "threshold": 0.3, "delay": False},
    ),
    "synaptic": (
        leaky(snn.Synaptic, alpha=0.6, beta=0.8, threshold=0.3),
        {"beta": 0.8, "alpha": 0.6, "threshold": 0.3},
    ),
    "rleaky": (rleaky, {"beta": 0.8}),
    "refractory": (
        leaky(RefractoryLeaky, beta=0.8, threshold=0.2, refractory_steps=2),
        {"beta": 0.8, "threshold": 0.2, "refractory_steps": 2},
    ),
    "refractory-clamp": (
        leaky(RefractoryLeaky, beta=0.8, threshold=0.2, refractory_steps=1, refractory="clamp"),
        {"beta": 0.8, "threshold": 0.2, "refractory_steps": 1, "clamp": True},
    ),
    "time-constants": (
        lambda hidden: lambda n, output=False: RefractoryLeaky.from_time_constants(
            tau=4.0, dt=1.0, t_ref=2.0, threshold=exact(0.05),
            spike_grad=SG, init_hidden=hidden, output=output and hidden,
        ),
        {"beta": 0.75, "gain": 0.25, "threshold": 0.05, "refractory_steps": 1, "reset": "zero",
         "delay": False},
    ),
}  # fmt: skip

NETWORKS = {
    "sequential": (lambda n: sequential(n(True)), loop_around),
    "loop-inside": (lambda n: LoopInside(n(False)), lambda net, x: net(x)),
    "layer-by-layer": (lambda n: LayerByLayer(n(False)), lambda net, x: net(x)),
    "wrong-order": (lambda n: WrongOrder(n(False)), lambda net, x: net(x)),
    "convolutional": (lambda n: convolutional(n(True)), loop_around),
    "normalised": (lambda n: normalised(n(True)), loop_around),
}


@dataclass
class Problem:
    """A network, how it is run over a sequence, an input, and its reference blocks."""

    net: nn.Module
    forward: object
    x: torch.Tensor
    options: dict = field(repr=False)

    def blocks(self, neuron=ref.Neuron):
        """Reference blocks on copies of the parameters, in the order of calls."""
        blocks, pieces = [], []
        for module in in_order(self.net):
            if isinstance(module, snn.SpikingNeuron):
                blocks.append([*pieces, _neuron(module, neuron, self.options)])
                pieces = []
            else:
                pieces.extend(_piece(module))
        return blocks


def in_order(net):
    if isinstance(net, LoopInside):
        return [net.fc1, net.lif1, net.fc2, net.lif2, net.fc3, net.lif3]
    return [m for m in net.modules() if not isinstance(m, (nn.Sequential, type(net)))
            and not _inside_neuron(net, m)]  # fmt: skip


def _inside_neuron(net, module):
    return any(
        module in list(n.modules())[1:] for n in net.modules() if isinstance(n, snn.SpikingNeuron)
    )


def _piece(module):
    if isinstance(module, nn.Conv2d):
        return [ref.Conv2d(module.weight.detach(), module.bias.detach())]
    if isinstance(module, nn.Linear):
        return [ref.Linear(module.weight.detach(), module.bias.detach())]
    if isinstance(module, nn.AvgPool2d):
        return [ref.Pool()]
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return [ref.BatchNorm(module.weight.detach(), module.bias.detach(), module.eps)]
    assert isinstance(module, nn.Flatten), module
    return []


def _neuron(module, cls, options):
    if isinstance(module, snn.RLeaky):
        v = module.recurrent
        options = {**options, "recurrent": (v.weight.detach(), v.bias.detach())}
    return cls(**options)


def problem(network, neuron, seed=0):
    """Return a :class:`Problem` in float64 whose every layer fires, but not always."""
    torch.manual_seed(seed)
    make, options = NEURONS[neuron]
    build, forward = NETWORKS[network]
    net = build(make).double()
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            with torch.no_grad():
                module.weight.mul_(2.0)
                module.bias.add_(0.2)
    shape = (T, B, 1, 6, 6) if network == "convolutional" else (T, B, F)
    return Problem(net, forward, torch.rand(shape, dtype=torch.float64), options)


def grads_of(blocks):
    """The reference's gradients in the order of ``net.parameters()`` of the block's modules."""
    return [piece.grads for block in blocks for piece in block if hasattr(piece, "grads")]
