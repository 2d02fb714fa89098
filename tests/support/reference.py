"""Direct feedback alignment written out: loops, no hooks, no autograd, no snn_dfa.

A network is a list of blocks, a block a list of synapse, optional normalisation and neuron. Each
piece has ``forward(x)``, which takes one step and remembers it, and ``backward(t, ...)``. All
tensors are float64. The formulas are those of snnTorch's documentation and of the chain rule.
"""

from __future__ import annotations

import torch
from reference_layers import BatchNorm, Conv2d, Linear, Pool

__all__ = [
    "BatchNorm", "Conv2d", "CurrentNeuron", "Linear", "Neuron", "Pool", "TraceNeuron", "dfa", "error",
    "fa", "local", "run", "sign", "target",
]  # fmt: skip


def heaviside(x):
    return (x > 0).to(x.dtype)


def fast_sigmoid_slope(x, k=10.0):
    return 1.0 / (1.0 + k * abs(x)) ** 2


class Neuron:
    """Leaky, Synaptic (``alpha``), RLeaky (``recurrent``), with or without refractory period."""

    through_time = True

    def __init__(
        self,
        beta,
        threshold=1.0,
        reset="subtract",
        delay=True,
        alpha=0.0,
        recurrent=None,
        refractory_steps=0,
        clamp=False,
        gain=1.0,
        slope=fast_sigmoid_slope,
    ):
        self.beta, self.threshold, self.reset, self.delay = beta, threshold, reset, delay
        self.alpha, self.recurrent, self.gain, self.slope = alpha, recurrent, gain, slope
        self.refractory_steps, self.clamp = refractory_steps, clamp
        self.mem = self.syn = self.spk = self.wait = None
        self.steps = []
        self.grads = {"beta": 0.0, "threshold": 0.0}
        if recurrent is not None:
            self.grads["V"] = torch.zeros_like(recurrent[0])
            self.grads["Vb"] = torch.zeros_like(recurrent[1])

    def forward(self, x):
        if self.mem is None:
            self.mem, self.syn, self.spk = (torch.zeros_like(x) for _ in range(3))
            self.wait = torch.zeros_like(x)
        before, spk_before = self.mem, self.spk
        r = heaviside(before - self.threshold)
        if self.refractory_steps:
            r = spk_before if self.delay else torch.zeros_like(r)
        self.syn = self.alpha * self.syn + self.gain * x
        drive = self.syn
        if self.recurrent is not None:
            drive = drive + spk_before @ self.recurrent[0].T + self.recurrent[1]
        kept = before * (1 - r) if self.reset == "zero" else before
        u = self.beta * kept + drive
        if self.reset == "subtract":
            u = u - r * self.threshold
        blocked = self.wait > 0
        if self.clamp:
            u = torch.where(blocked, torch.zeros_like(u), u)
        s = torch.where(blocked, torch.zeros_like(u), heaviside(u - self.threshold))
        after = u
        if not self.delay:
            after = u - (s - r) * self.threshold if self.reset == "subtract" else u - (s - r) * u
        self.wait = torch.where(
            s > 0, torch.full_like(u, self.refractory_steps), (self.wait - 1).clamp(min=0)
        )
        self.steps.append((kept, r, u, s, blocked, spk_before))
        self.mem, self.spk = after, s
        return s

    def backward(self, at_spikes, at_mem):
        """Gradients at the spikes and at the returned membranes to those at the input."""
        deltas = [None] * len(self.steps)
        zero = torch.zeros_like(self.mem)
        to_mem, to_syn, to_spk = zero, zero, zero
        before = self.inputs_of([step[5] for step in self.steps])
        for t in reversed(range(len(self.steps))):
            kept, r, u, s, blocked, _ = self.steps[t]
            g = torch.where(blocked, zero, self.slope(u - self.threshold))
            gs = at_spikes[t] + to_spk
            mu = at_mem[t] + to_mem
            if not self.delay:
                if self.reset == "subtract":
                    self.grads["threshold"] += (mu * (-(s - r) + self.threshold * g)).sum()
                    du = mu - mu * self.threshold * g
                else:
                    self.grads["threshold"] += (mu * u * g).sum()
                    du = mu * (1 - (s - r)) - mu * u * g
            else:
                du = mu
            lam = gs * g + du
            self.grads["threshold"] += (-gs * g).sum()
            if self.clamp:
                lam = torch.where(blocked, zero, lam)
            if self.reset == "subtract":
                self.grads["threshold"] += (-lam * r).sum()
            self.grads["beta"] += (lam * kept).sum()
            to_mem = self.beta * lam * ((1 - r) if self.reset == "zero" else 1)
            d_syn = lam + to_syn
            to_syn = self.alpha * d_syn
            if self.recurrent is not None:
                seen, one = before[t]
                self.grads["V"] += lam.T @ seen
                self.grads["Vb"] += lam.sum(0) * one
                to_spk = lam @ self.recurrent[0]
            deltas[t] = self.gain * d_syn
            if not self.through_time:
                to_mem, to_syn, to_spk = zero, zero, zero
        return deltas

    def inputs_of(self, xs):
        """What the weight and the bias that feed this neuron are multiplied by, at each step."""
        return [(x, 1.0) for x in xs]


class TraceNeuron(Neuron):
    """The error of a step reaches that step alone; the inputs are what has leaked in up to it."""

    through_time = False

    def inputs_of(self, xs):
        found, syn, mem, syn_one, mem_one = [], 0.0, 0.0, 0.0, 0.0
        for x in xs:
            syn, syn_one = self.alpha * syn + x, self.alpha * syn_one + 1.0
            mem, mem_one = self.beta * mem + syn, self.beta * mem_one + syn_one
            found.append((mem, mem_one))
        return found


class CurrentNeuron(Neuron):
    """The same spikes; the gradient is g at the current of the same step."""

    def forward(self, x):
        self.currents = [*getattr(self, "currents", []), x]
        return super().forward(x)

    def backward(self, at_spikes, at_mem):
        return [
            gs * self.slope(x - self.threshold) + gm
            for gs, gm, x in zip(at_spikes, at_mem, self.currents, strict=True)
        ]


def run(blocks, inputs):
    """Return the spikes [T][B, C] and the membranes of the last block."""
    spikes, mems = [], []
    for x in inputs:
        for block in blocks:
            for piece in block:
                x = piece.forward(x)
        spikes.append(x)
        mems.append(blocks[-1][-1].mem)
    return spikes, mems


def error(e, y):
    return e


def sign(e, y):
    return torch.where(e > 0, 1.0, torch.where(e < 0, -1.0, 0.0)).to(e.dtype)


def target(e, y):
    signal = torch.zeros_like(e)
    for b, label in enumerate(y):
        signal[b, label] = -1.0 / len(y)
    return signal


def local(spikes, matrix, y):
    """The error of a layer's own readout: a score is the sum of what its row has for each spike."""
    signal = torch.zeros(len(y), len(matrix), dtype=spikes.dtype)
    for b, label in enumerate(y):
        scores = [
            sum(s * w for s, w in zip(spikes[b].flatten(), row.flatten(), strict=True))
            for row in matrix
        ]
        total = sum(torch.exp(score) for score in scores)
        for c, score in enumerate(scores):
            signal[b, c] = (torch.exp(score) / total - (1 if c == label else 0)) / len(y)
    return signal


def dfa(blocks, feedback, at_spikes, at_mem, rule=error, y=None):
    """Fill ``grads`` of every piece, given dL/d(output spikes) and dL/d(output membranes)."""
    *hidden, last = blocks
    _block_backward(last, at_spikes, at_mem)
    for block, matrix in zip(hidden, feedback, strict=True):
        sent = []
        for t, (gs, gm) in enumerate(zip(at_spikes, at_mem, strict=True)):
            e = local(block[-1].steps[t][3], matrix, y) if rule is local else rule(gs + gm, y)
            g = torch.zeros(e.shape[0], *matrix.shape[1:], dtype=e.dtype)
            for b in range(e.shape[0]):
                for c in range(e.shape[1]):
                    g[b] += e[b, c] * matrix[c]
            sent.append(g)
        _block_backward(block, sent, [torch.zeros_like(s) for s in sent])


def fa(blocks, matrices, at_spikes, at_mem):
    """Feedback alignment: from block to block, a matrix in the place of each synapse's weight."""
    for block in reversed(blocks):
        *pieces, neuron = block
        below = []
        for t, delta in enumerate(neuron.backward(at_spikes, at_mem)):
            for piece in reversed(pieces):
                if isinstance(piece, Linear):
                    piece.backward(t, delta)
                    delta = piece.back(delta, matrices.get(piece, piece.weight))
                elif isinstance(piece, Pool):
                    delta = piece.back(delta)
                else:
                    delta = piece.backward(t, delta)
            below.append(delta)
        at_spikes, at_mem = below, [torch.zeros_like(d) for d in below]


def _block_backward(block, at_spikes, at_mem):
    *pieces, neuron = block
    for piece in pieces:
        if isinstance(piece, Linear):
            seen = neuron.inputs_of(piece.x)
            piece.x, piece.ones = [x for x, _ in seen], {t: one for t, (_, one) in enumerate(seen)}
    for t, delta in enumerate(neuron.backward(at_spikes, at_mem)):
        for piece in reversed(pieces):
            delta = piece.backward(t, delta)
            if delta is None:  # a synapse: what lies before it belongs to the block below
                break
