"""The samples of an experiment: where they come from, and what becomes of them on the way in."""

from snn_dfa.experiments.data.loading import SHOWN, Part, Splits, load

__all__ = ["SHOWN", "Part", "Splits", "load"]
