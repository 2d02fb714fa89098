"""Feedback that learns: the rule of Kolen and Pollack for direct feedback."""

from snn_dfa.feedback.apply import correlation
from snn_dfa.feedback.kolen_pollack import KolenPollack
from snn_dfa.feedback.kolen_pollack_product import KolenPollackProduct
from snn_dfa.feedback.learning import FeedbackOptimizer, LearningOptions
from snn_dfa.feedback.product_alignment import ProductFeedbackAlignment
from snn_dfa.feedback.weight_mirror import WeightMirror

__all__ = [
    "FeedbackOptimizer",
    "KolenPollack",
    "KolenPollackProduct",
    "LearningOptions",
    "ProductFeedbackAlignment",
    "WeightMirror",
    "correlation",
]
