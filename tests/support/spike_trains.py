"""Measures of spike trains."""

import torch
import torch._dynamo


def intervals(spikes):
    """Steps from each spike to the neuron's next one."""
    return [
        int(d)
        for train in spikes.flatten(1).T
        for d in torch.diff(train.nonzero().flatten())
    ]  # fmt: skip
