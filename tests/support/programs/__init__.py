"""Random user programs: a small description, the network that it stands for, and its loss.

A program is a :class:`Spec`, a frozen dataclass of choices. The first value of each choice in
``CHOICES`` and ``LAYER_CHOICES`` is its plain one: a spec of plain values is a network of ``Leaky``
neurons like those of snnTorch's tutorials, and a failure is shrunk by making choices plain.
:func:`draw` draws a spec from a seed, :func:`build` makes its network, and :func:`run` runs a batch
and returns the losses.
"""

from programs.choices import CHOICES, EXTRA, LAYER_CHOICES, RECURRENT, SEQUENCE, STATES, Layer, Spec
from programs.drawing import draw, valid
from programs.network import Network
from programs.running import build, generator, inputs, losses, run

__all__ = [
    "CHOICES",
    "EXTRA",
    "LAYER_CHOICES",
    "RECURRENT",
    "SEQUENCE",
    "STATES",
    "Layer",
    "Network",
    "Spec",
    "build",
    "draw",
    "generator",
    "inputs",
    "losses",
    "run",
    "valid",
]
