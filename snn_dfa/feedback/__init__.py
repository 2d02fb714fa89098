r"""Feedback: the matrices that carry the output error to the hidden layers.

A feedback matrix B has the shape [C, \*S]: C outputs, S the shape of one sample's spikes in the
layer. Drawn matrices keep the norm of the error on average, whatever the layer's size.

Pure functions draw (``draw``) and apply (``apply``) a matrix. A class holds the matrices of a
network, one class for each feedback type (``base`` and the files beside it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from snn_dfa.feedback import base, draw, make
from snn_dfa.feedback.apply import product, project
from snn_dfa.feedback.draw import (
    channelwise,
    gaussian,
    generator_for,
    low_rank,
    orthogonal,
    sparse,
    uniform,
)

__all__ = [
    "KINDS",
    "LEARNED",
    "MAX_MATRIX_BYTES",
    "NAMES",
    "Draw",
    "Feedback",
    "channelwise",
    "gaussian",
    "generator_for",
    "low_rank",
    "orthogonal",
    "product",
    "project",
    "sparse",
    "uniform",
]

#: From a shape [C, ...] and a generator to a matrix of that shape, float32, on the CPU.
Draw: TypeAlias = draw.Draw
#: What ``DFA(feedback=...)`` takes: one of :data:`NAMES`, a function that draws, options of a type
#: that learns, or the matrices by layer.
Feedback: TypeAlias = make.Feedback
#: Name of a feedback type to the function that draws its fixed matrices.
KINDS: Mapping[str, Draw] = draw.KINDS
#: The names of all feedback types.
NAMES: tuple[str, ...] = make.NAMES
#: Name of each feedback type that learns to the class of its options.
LEARNED: Mapping[str, type[make.Options]] = make.LEARNED
#: The library draws no matrix that needs more bytes (4 GB), and raises a ``FeedbackError``. A
#: function or matrices of your own have no such limit.
MAX_MATRIX_BYTES: int = base.MAX_MATRIX_BYTES
