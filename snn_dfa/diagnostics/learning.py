"""What accuracies and angles say of a rule that learns badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["LearningWarning", "learning_complaints"]

_BELOW = 0.98  # of the accuracy of the output layer alone
_COLLAPSED = 0.75  # of the best accuracy, in two epochs one after the other
_NO_HELP = 85.0  # degrees


class LearningWarning(UserWarning):
    """Hidden layers learn nothing of use, or what was learnt is lost again."""


def learning_complaints(
    accuracies: Sequence[float] = (),
    shallow: float | None = None,
    angles: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Return what to say of a training, by what was looked at; empty where all is well.

    Args:
        accuracies: After each epoch, on a part that is held out; all in percent or all as shares.
        shallow: That of the output layer alone, ``rule="shallow"``, after as much training.
        angles: Layer name to degrees, of :func:`gradient_angles` or :func:`feedback_angles`. In the
            first epoch wide angles are usual.

    Returns:
        ``"shallow"``: the last accuracy is 2 % or more of it below that of the output layer alone.
        ``"collapse"``: the last two are below three quarters of the best. ``"angles"``: layers
        whose angle is 85 degrees or more.

    Example:
        >>> list(learning_complaints([80.0, 85.0, 84.0], shallow=90.0))
        ['shallow']
        >>> list(learning_complaints([80.0, 90.0, 40.0, 10.0]))
        ['collapse']
        >>> list(learning_complaints(angles={"fc1": 88.0, "fc2": 40.0, "fc3": 0.0}))
        ['angles']
        >>> learning_complaints([10.0, 91.0, 95.0], shallow=90.0, angles={"fc1": 60.0})
        {}
    """
    said = {}
    if accuracies and shallow is not None and accuracies[-1] < _BELOW * shallow:
        said["shallow"] = (
            f"an accuracy of {accuracies[-1]:.4g} is below that of the output layer alone "
            f"({shallow:.4g}): hidden layers are made worse; use DFA(net, optimizer=optimizer), "
            f"then a smaller learning rate"
        )
    if len(accuracies) > 2 and max(accuracies[-2:]) < _COLLAPSED * max(accuracies):
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        said["collapse"] = (
            f"the accuracy was {accuracies[best]:.4g} after epoch {best + 1} and is "
            f"{accuracies[-1]:.4g} now; use a smaller learning rate, or one that falls, or a "
            f"normalisation of the current before each neuron"
        )
    wide = {n: a for n, a in (angles or {}).items() if a >= _NO_HELP}  # NaN is not
    if wide:
        named = ", ".join(f"{name!r} {degrees:.0f}" for name, degrees in wide.items())
        said["angles"] = (
            f"angles of {_NO_HELP:.0f} degrees or more ({named}): these layers do not learn what "
            f"lowers the loss; use DFA(net, optimizer=optimizer), whose feedback learns"
        )
    return said
