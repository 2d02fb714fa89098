"""Direct feedback alignment for snnTorch networks."""

from snn_dfa import diagnostics, encoding, feedback, functional, surrogate
from snn_dfa._version import __version__
from snn_dfa.dfa import DFA
from snn_dfa.errors import (
    AttachError,
    BackwardError,
    DFAError,
    ExportError,
    FeedbackError,
    InputError,
    NonFiniteError,
    OutOfStepError,
    TargetError,
)
from snn_dfa.folding import fold_normalization
from snn_dfa.kolen_pollack import KolenPollack, KolenPollackProduct, WeightMirror
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.nir import export_nir
from snn_dfa.sequence import over_time
from snn_dfa.state import reset

__all__ = [
    "DFA",
    "AttachError",
    "BackwardError",
    "DFAError",
    "ExportError",
    "FeedbackError",
    "InputError",
    "KolenPollack",
    "KolenPollackProduct",
    "NonFiniteError",
    "OutOfStepError",
    "RefractoryLeaky",
    "TargetError",
    "WeightMirror",
    "__version__",
    "diagnostics",
    "encoding",
    "export_nir",
    "feedback",
    "fold_normalization",
    "functional",
    "over_time",
    "reset",
    "surrogate",
]
