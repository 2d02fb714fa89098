"""Networks of each kind of neuron, and their gradients by hand."""

import itertools

import snntorch as snn
import torch
from torch import nn

from snn_dfa import RefractoryLeaky, reset
from snn_dfa.surrogate import fast_sigmoid

T, B, F, N, C = 5, 3, 4, 4, 4


SG = fast_sigmoid(slope=10)


def dense(make):
    """A linear layer and a neuron on its current."""
    return lambda n, m, hidden: nn.Sequential(nn.Linear(n, m), make(m, hidden))


def alone(make):
    """A neuron that has weights of its own."""
    return lambda n, m, hidden: nn.Sequential(make(n, m, hidden))


def options(hidden):
    return {"spike_grad": SG, "threshold": 0.3, "init_hidden": hidden, "output": hidden}


class Twice(snn.SpikingNeuron):
    """A user's neuron on snnTorch's base class: two membranes, one inside the other."""

    def __init__(self, hidden):
        super().__init__(**options(hidden))
        self.register_buffer("mem", torch.zeros(0), False)

    def reset_mem(self):
        self.mem = torch.zeros(())
        return self.mem

    def forward(self, input_, mem=None):
        mem = 0.7 * (self.mem if self.init_hidden else mem) + input_
        self.mem = mem
        return self.fire(mem), mem


STEPS = {
    "Leaky": dense(lambda m, h: snn.Leaky(beta=0.8, **options(h))),
    "Lapicque": dense(lambda m, h: snn.Lapicque(beta=0.8, **{**options(h), "threshold": 0.1})),
    "Synaptic": dense(lambda m, h: snn.Synaptic(alpha=0.6, beta=0.8, **options(h))),
    "Alpha": dense(lambda m, h: snn.Alpha(alpha=0.8, beta=0.6, **options(h))),
    "RLeaky": dense(lambda m, h: snn.RLeaky(beta=0.8, linear_features=m, **options(h))),
    "RSynaptic": dense(lambda m, h: snn.RSynaptic(alpha=0.6, beta=0.8, linear_features=m, **options(h))),
    "SLSTM": alone(lambda n, m, h: snn.SLSTM(n, m, **{**options(h), "threshold": 0.02})),
    "SConv2dLSTM": alone(lambda n, m, h: snn.SConv2dLSTM(1, 1, 3, **{**options(h), "threshold": 0.02})),
    "DeltaLeaky": dense(lambda m, h: snn.DeltaLeaky(0.4, beta=0.8, **options(h))),
    "RefractoryLeaky": dense(lambda m, h: RefractoryLeaky(beta=0.8, refractory_steps=1, **options(h))),
    "a subclass": dense(lambda m, h: Twice(h)),
}  # fmt: skip


SEQUENCES = {
    "StateLeaky": dense(lambda m, h: snn.StateLeaky(0.8, m, threshold=0.3, spike_grad=SG)),
    "LinearLeaky": alone(lambda n, m, h: snn.LinearLeaky(0.8, n, m, threshold=0.3, spike_grad=SG)),
    "AssociativeLeaky": alone(lambda n, m, h: snn.AssociativeLeaky(n, 2, 2, m)),
    "LeakyParallel": alone(
        lambda n, m, h: snn.LeakyParallel(n, m, beta=0.8, threshold=0.3, spike_grad=SG)
    ),
}


def first(result):
    return result[0] if isinstance(result, tuple) else result


def starting(neuron):
    """The state to begin with, as a user writes it: ``mem = lif.reset_mem()``."""
    state = neuron.reset_mem()
    if isinstance(neuron, snn.DeltaLeaky):
        return (state,)
    return state if isinstance(state, tuple) else (state,)


def step(neuron, current, state):
    result = neuron(current, *state)
    recurrent = isinstance(neuron, (snn.RLeaky, snn.RSynaptic))
    return result[0], result if recurrent else result[1:]


class Net(nn.Module):
    """Three layers, steps outside and layers inside, with hidden or with explicit states."""

    def __init__(self, block, hidden, by_sequence, sizes=(F, N, N, C)):
        super().__init__()
        self.blocks = nn.ModuleList(block(n, m, hidden) for n, m in itertools.pairwise(sizes))
        self.hidden, self.by_sequence = hidden, by_sequence

    def forward(self, x):
        if self.by_sequence:
            for block in self.blocks:
                x = first(block(x))
            return x
        if self.hidden:
            reset(self)
            return torch.stack([self.step(each) for each in x])
        states, out = [starting(block[-1]) for block in self.blocks], []
        for spk in x:
            for i, (*before, neuron) in enumerate(self.blocks):
                spk, states[i] = step(neuron, nn.Sequential(*before)(spk), states[i])
            out.append(spk)
        return torch.stack(out)

    def step(self, spk):
        for block in self.blocks:
            spk = first(block(spk))
        return spk


def by_hand(net, x, weights, feedback):
    """Gradients without a hook: each block from its own spikes, which get e B."""
    whole, kept = x, []
    for block in net.blocks:
        whole = whole.detach()
        if net.by_sequence:
            whole = first(block(whole))
        else:
            reset(net)
            *before, neuron = block
            state, spikes = starting(neuron), []
            for each in whole:
                if net.hidden:
                    spk = first(block(each))
                else:
                    spk, state = step(neuron, nn.Sequential(*before)(each), state)
                spikes.append(spk)
            whole = torch.stack(spikes)
        kept.append(whole)
    *hidden, out = kept
    rates = [k.detach().ne(0).double().mean().item() for k in kept]
    error = weights.flatten(2)
    *below, last = ([p for p in b.parameters() if p.requires_grad] for b in net.blocks)
    at_output = torch.autograd.grad(out, last, weights, allow_unused=True)
    grads = []
    for parameters, spk, matrix in zip(below, hidden, feedback, strict=True):
        sent = (error @ matrix.flatten(1)).reshape(spk.shape)
        grads += torch.autograd.grad(spk, parameters, sent, allow_unused=True)
    return [*grads, *at_output], rates
