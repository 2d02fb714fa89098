"""Networks of blocks, and one batch through them."""

import itertools

import snntorch as snn
import torch
from kp_network import batch, loop
from torch import nn

from snn_dfa.surrogate import fast_sigmoid


def lif():
    return snn.Leaky(0.5, 0.2, spike_grad=fast_sigmoid(5), init_hidden=True)


class Block(nn.Module):
    """A layer that registers its neuron before its weights."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.lif, self.fc = lif(), nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.lif(self.fc(x))


def blocks(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(Block(n, m) for n, m in itertools.pairwise(sizes)))


def passed(net, form=loop):
    form(net, batch(0)[0]).square().sum().backward()
