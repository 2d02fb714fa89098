"""From the argument ``feedback`` of :class:`snn_dfa.DFA`, or a saved state, to an object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.base import FeedbackWeights, Forward
from snn_dfa.feedback.draw import KINDS, Draw
from snn_dfa.feedback.fixed import Channelwise, Fixed
from snn_dfa.feedback.function import Function
from snn_dfa.feedback.given import Given
from snn_dfa.feedback.kolen_pollack import KolenPollack, KolenPollackFeedback
from snn_dfa.feedback.kolen_pollack_product import KolenPollackProduct, KolenPollackProductFeedback
from snn_dfa.feedback.learning import Learned
from snn_dfa.feedback.product_alignment import (
    ProductFeedbackAlignment,
    ProductFeedbackAlignmentFeedback,
)
from snn_dfa.feedback.shared import Shared
from snn_dfa.feedback.sign_symmetry import SignSymmetry
from snn_dfa.feedback.transpose import Transpose
from snn_dfa.feedback.weight_mirror import WeightMirror, WeightMirrorFeedback
from snn_dfa.feedback.zhang import Zhang

__all__ = [
    "LEARNED",
    "NAMES",
    "TYPES",
    "Feedback",
    "check_names",
    "learned",
    "load",
    "make",
    "type_of",
]

Options: TypeAlias = KolenPollack | KolenPollackProduct | ProductFeedbackAlignment | WeightMirror
Feedback: TypeAlias = str | Draw | Options | Mapping[str, Tensor]

_FUNCTION, _GIVEN = "function", "given"  # what a user gives in place of a name

#: Name of a feedback type to its class.
TYPES: Mapping[str, type[FeedbackWeights]] = MappingProxyType(
    {
        **dict.fromkeys(KINDS, Fixed),
        "channelwise": Channelwise,
        "shared": Shared,
        "zhang": Zhang,
        "transpose": Transpose,
        "sign-symmetry": SignSymmetry,
        "kolen-pollack": KolenPollackFeedback,
        "kolen-pollack-product": KolenPollackProductFeedback,
        "product-feedback-alignment": ProductFeedbackAlignmentFeedback,
        "weight-mirror": WeightMirrorFeedback,
        _FUNCTION: Function,
        _GIVEN: Given,
    }
)
NAMES: tuple[str, ...] = tuple(name for name in TYPES if name not in (_FUNCTION, _GIVEN))
LEARNED: Mapping[str, type[Options]] = MappingProxyType(
    {name: each.options for name, each in TYPES.items() if each.options is not None}
)


def make(feedback: Feedback, scale: float, seed: int, forward: Forward) -> FeedbackWeights:
    """Return the feedback of one network; nothing is drawn yet.

    Args:
        feedback: One of :data:`NAMES`; a function of shape and generator; options of a type that
            learns; or a mapping of layer name to tensor [C, *S].
        scale: Factor on drawn matrices. A mapping is not scaled.
        seed: Of the draw.
        forward: The weights of the network.

    Raises:
        FeedbackError: if ``feedback`` is none of these.
    """
    name = _name_of(feedback)
    given = None if isinstance(feedback, str) else feedback
    return TYPES[name](name, scale, seed, forward, given)


def _name_of(feedback: object) -> str:
    for name, options in LEARNED.items():
        if isinstance(feedback, options):
            return name
    if isinstance(feedback, str) and feedback in NAMES:
        return feedback
    if isinstance(feedback, Mapping):
        return _GIVEN
    if callable(feedback) and not isinstance(feedback, type):
        return _FUNCTION
    got = repr(feedback) if isinstance(feedback, str) else type(feedback).__name__
    if isinstance(feedback, type):
        got = f"the class {feedback.__name__} itself"
    raise FeedbackError(
        f"feedback: expected one of {sorted(NAMES)}, options of a type that learns "
        f"(such as KolenPollack()), a function of shape and generator, or a mapping of layer name "
        f"to tensor, got {got}"
    )


def type_of(state: Mapping[str, Any]) -> type[FeedbackWeights]:
    """Return the feedback type of a saved state.

    Raises:
        FeedbackError: if it is no state of feedback.
    """
    missing = {"kind", "scale", "seed", "matrices", "learner"} - set(state)
    if missing:
        raise FeedbackError(
            f"state_dict: expected what DFA.state_dict() returned, got one without "
            f"{sorted(missing)}"
        )
    if state["kind"] not in TYPES:
        raise FeedbackError(
            f"state_dict: expected feedback of a type among {sorted(TYPES)}, got {state['kind']!r}"
        )
    return TYPES[state["kind"]]


def load(state: Mapping[str, Any], current: FeedbackWeights) -> FeedbackWeights:
    """Return the feedback of a saved state, which may be of another type than the current one.

    Args:
        state: What ``state_dict()`` returned.
        current: The feedback that it replaces; it stays unchanged.

    Raises:
        FeedbackError: if the state is of another form or another network.
    """
    return type_of(state).from_state(state, current)


def learned(feedback: FeedbackWeights) -> Learned:
    """Return feedback that learns.

    Raises:
        FeedbackError: if it is fixed.
    """
    if not isinstance(feedback, Learned):
        raise FeedbackError(
            f"feedback: expected one of {list(LEARNED)}, whose matrices learn, got "
            f"{feedback.type_name!r}, which is fixed"
        )
    return feedback


def check_names(names: Iterable[str], known: list[str], argument: str) -> None:
    """Check that each matrix is for a layer that takes one.

    Args:
        names: Of the layers for which there are matrices.
        known: Names of the layers that take one.
        argument: Where the matrices come from, for the error.

    Raises:
        FeedbackError: if a matrix is for another layer.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise FeedbackError(
            f"{argument}: expected matrices for layers among {known}, got one for {unknown[0]!r}"
        )
