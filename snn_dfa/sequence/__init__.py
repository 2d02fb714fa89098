"""Whole sequences: a snnTorch network turned inside out, each layer over all steps at once.

``over_time.py`` changes the network: an ``nn.Sequential`` layer by layer, and any other by
``any_network.py``, which runs the network's own ``forward`` once; ``probe.py`` sees whether that is
right. ``neuron.py`` is a neuron over a sequence, ``flat_scan.py`` one in a network of any kind,
``equations.py`` says what a neuron computes, ``scan`` runs it, and ``spike_linear.py`` runs linear
layers on spikes.
"""

from snn_dfa.sequence.any_network import OneMask, SpikeLinear, TimeAsBatch
from snn_dfa.sequence.equations import dynamics_of, has_trace
from snn_dfa.sequence.flat_scan import FlatScan, Layout
from snn_dfa.sequence.neuron import NeuronOverTime, Scan, state_names
from snn_dfa.sequence.over_time import AtOnce, OverTime, over_time
from snn_dfa.sequence.spike_linear import spike_sum

__all__ = [
    "AtOnce",
    "FlatScan",
    "Layout",
    "NeuronOverTime",
    "OneMask",
    "OverTime",
    "Scan",
    "SpikeLinear",
    "TimeAsBatch",
    "dynamics_of",
    "has_trace",
    "over_time",
    "spike_sum",
    "state_names",
]
