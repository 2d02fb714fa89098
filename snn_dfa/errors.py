"""What goes wrong, by kind. Each message says what was expected, what came and what to do."""

__all__ = [
    "AttachError",
    "BackwardError",
    "DFAError",
    "ExportError",
    "FeedbackError",
    "InputError",
    "NonFiniteError",
    "OutOfStepError",
    "TargetError",
]


class DFAError(Exception):
    """Base of every error that this library raises on its own behalf."""


class AttachError(DFAError, ValueError):
    """The network, or an argument about it, cannot be used; nothing was changed."""


class BackwardError(DFAError, RuntimeError):
    """A part of the graph that a gradient needs was used up by an earlier backward pass."""


class ExportError(DFAError, ValueError):
    """The other format cannot describe the network, DFA is attached, or packages are missing."""


class FeedbackError(DFAError, ValueError):
    """A feedback matrix is missing, or has the wrong name or shape."""


class InputError(DFAError, ValueError):
    """The input of a network over time is no sequence, or an argument of a function is wrong."""


class NonFiniteError(DFAError, ArithmeticError):
    """The error at the output is infinite or not a number; no hidden layer has got any of it."""


class OutOfStepError(DFAError, RuntimeError):
    """Hidden layers and the output were not called equally often in one forward pass."""


class TargetError(DFAError, ValueError):
    """The targets that a rule broadcasts are missing, or do not fit the output."""
