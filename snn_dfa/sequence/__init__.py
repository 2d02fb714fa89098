"""Whole sequences: a snnTorch network turned inside out, each layer over all steps at once.

``over_time.py`` changes the network, ``scan`` runs its neurons, and ``spike_linear.py`` its linear
layers on spikes.
"""

from snn_dfa.sequence.over_time import AtOnce, OverTime, Scan, over_time

__all__ = ["AtOnce", "OverTime", "Scan", "over_time"]
