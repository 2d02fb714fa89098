"""Networks and numbers for sequences."""

import snntorch as snn
import torch

from snn_dfa.surrogate import fast_sigmoid

T, B, F, N, C = 7, 3, 5, 6, 3
SG = fast_sigmoid(10)


def f64(value):
    return torch.tensor(value, dtype=torch.float64)


def leaky(n):
    return snn.Leaky(f64(0.8), f64(0.3), SG, init_hidden=True)
