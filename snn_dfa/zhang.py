"""First weights and feedback of Zhang et al. 2024, arXiv 2409.07776: pure functions of shapes."""

from snn_dfa.feedback.zhang import zhang_feedback, zhang_weights

__all__ = ["zhang_feedback", "zhang_weights"]
