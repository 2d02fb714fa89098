"""The kinds of neuron dynamics a scan computes."""

import torch

from snn_dfa import RefractoryLeaky
from snn_dfa.sequence import dynamics_of
from snn_dfa.surrogate import fast_sigmoid

KINDS = [
    {"reset_mechanism": "subtract"},
    {"reset_mechanism": "zero"},
    {"reset_mechanism": "none"},
    {"reset_mechanism": "zero", "reset_delay": False},
    {"reset_mechanism": "subtract", "reset_delay": False, "refractory_steps": 2},
    {"reset_mechanism": "zero", "refractory_steps": 3, "refractory": "clamp"},
]


def dynamics(dtype=torch.float32, **options):
    neuron = RefractoryLeaky(
        torch.tensor(0.7, dtype=dtype), torch.tensor(0.3, dtype=dtype), spike_grad=fast_sigmoid(5),
        **options,
    )  # fmt: skip
    return dynamics_of(neuron)
