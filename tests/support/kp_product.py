"""What the tests of the Kolen-Pollack product share: its options and a training."""

import torch
from kp_network import DECAY, LR, backward, loop

from snn_dfa import DFA, KolenPollackProduct

OPTIONS = KolenPollackProduct(lr=LR, weight_decay=DECAY)


def followed(net, **options):
    """DFA, and the optimiser that it follows, with the rate and the decay of the factors."""
    dfa = DFA(net, **{"output": "5", "feedback": OPTIONS, **options})
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)
    dfa.follow(optimizer)
    return dfa, optimizer


def train(net, optimizer, seeds, forward=loop):
    for seed in seeds:
        optimizer.zero_grad()
        backward(forward, net, seed)
        optimizer.step()
