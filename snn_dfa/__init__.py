"""Direct feedback alignment for snnTorch networks."""

from typing import TYPE_CHECKING, Any

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
from snn_dfa.kolen_pollack import (
    KolenPollack,
    KolenPollackProduct,
    ProductFeedbackAlignment,
    WeightMirror,
)
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.nir import export_nir
from snn_dfa.sequence import over_time
from snn_dfa.state import reset

if TYPE_CHECKING:
    from snn_dfa.experiments.compare import Comparison, compare

__all__ = [
    "DFA",
    "AttachError",
    "BackwardError",
    "Comparison",
    "DFAError",
    "ExportError",
    "FeedbackError",
    "InputError",
    "KolenPollack",
    "KolenPollackProduct",
    "NonFiniteError",
    "OutOfStepError",
    "ProductFeedbackAlignment",
    "RefractoryLeaky",
    "TargetError",
    "WeightMirror",
    "__version__",
    "compare",
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


def __getattr__(name: str) -> Any:
    """Import what draws figures and reads data sets once it is asked for."""
    if name in ("Comparison", "compare"):
        from snn_dfa.experiments import compare as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
