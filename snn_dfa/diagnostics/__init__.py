"""Eyes on a network: what its layers do, where its gradients point, what a sample costs."""

from snn_dfa.diagnostics.activity import (
    Activity,
    ActivityWarning,
    activity,
    complaints,
    raster,
    warn,
)
from snn_dfa.diagnostics.alignment import (
    GradientReport,
    angle,
    feedback_angles,
    gradient_angles,
    gradient_report,
    projected_errors,
)
from snn_dfa.diagnostics.blocks import blocks
from snn_dfa.diagnostics.cost import Cost, cost
from snn_dfa.diagnostics.learning import LearningWarning, learning_complaints
from snn_dfa.diagnostics.training_cost import (
    EnergyConstants,
    Operations,
    TrainingCost,
    training_cost,
)

__all__ = [
    "Activity",
    "ActivityWarning",
    "Cost",
    "EnergyConstants",
    "GradientReport",
    "LearningWarning",
    "Operations",
    "TrainingCost",
    "activity",
    "angle",
    "blocks",
    "complaints",
    "cost",
    "feedback_angles",
    "gradient_angles",
    "gradient_report",
    "learning_complaints",
    "projected_errors",
    "raster",
    "training_cost",
    "warn",
]
