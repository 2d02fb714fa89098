"""A spiking neuron over a whole sequence, forward and backward, in as few passes as it takes.

``leaky_scan`` is one autograd function. ``reference.py`` has its arithmetic in torch, the
reference and the fallback. ``cpu.py`` has the same for the CPU with numba, ``cuda.py`` for CUDA
with Triton.
"""

from snn_dfa.sequence.scan.function import (
    Dynamics,
    credit_at_current,
    gate_of,
    is_scanned,
    leaky_scan,
)
from snn_dfa.sequence.scan.in_steps import InSteps

__all__ = ["Dynamics", "InSteps", "credit_at_current", "gate_of", "is_scanned", "leaky_scan"]
