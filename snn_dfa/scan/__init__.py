"""A leaky neuron over a whole sequence, forward and backward, in as few passes as it takes.

``leaky_scan`` is one autograd function. Its arithmetic is in ``plain.py``, in torch, which is the
reference and the fallback; ``compiled.py`` has the same for the CPU with numba, ``gpu.py`` for
CUDA with Triton.
"""

from snn_dfa.scan.function import Dynamics, credit_at_current, leaky_scan

__all__ = ["Dynamics", "credit_at_current", "leaky_scan"]
