"""All hooks of one attachment, in the order in which they must run."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from snn_dfa._alignment import Alignment
from snn_dfa._autograd import AtCurrent
from snn_dfa._discover import Layers
from snn_dfa._fences import Fences
from snn_dfa._hooks import sweep_inert
from snn_dfa._traces import Traces
from snn_dfa._ways import Ways
from snn_dfa._wiring import Wiring
from snn_dfa.feedback.base import FeedbackWeights
from snn_dfa.rules import RULES

__all__ = ["Part", "assemble"]

Part: TypeAlias = Wiring | Fences | Ways | Alignment | Traces


def assemble(
    net: nn.Module,
    layers: Layers,
    weights: dict[str, nn.Module],
    feedback: FeedbackWeights,
    rule: str,
    at_current: dict[str, AtCurrent],
    ways: Ways,
    *,
    traced: bool,
) -> tuple[Wiring, list[Part]]:
    """Place all hooks; return the wiring, and all that can be paused and removed, it among them.

    A hook runs after those that were placed before it: currents are cut before traces look at them,
    traces lie within the join of a plain readout, and the states that neurons get are exchanged
    before traces cut them.

    Args:
        net: The network, which has been found fit.
        layers: Its layers.
        weights: For ``rule="fa"`` the modules whose transposes are replaced; else empty.
        feedback: Its matrices.
        rule: Its name.
        at_current: For ``credit="current"``, by layer.
        ways: What finds out which weights lie between layers, where an error is sent.
        traced: Whether the credit is by traces.
    """
    sweep_inert(net)
    fences = None if weights else Fences(net, layers)
    traces = Traces(net, layers, fences) if traced and fences is not None else None
    wiring = Wiring(net, layers, feedback, RULES[rule], at_current, fences=fences, ways=ways)
    alignment = Alignment(weights, feedback) if weights else None
    if fences is not None and RULES[rule] is not None:
        ways.open()
    if traces is not None:
        traces.watch_neurons()
    return wiring, [part for part in (wiring, fences, ways, alignment, traces) if part is not None]
