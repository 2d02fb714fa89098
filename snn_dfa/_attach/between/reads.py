"""What has come into the calls of a layer, as linear functions, and the mean of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from snn_dfa._attach.between.walk import Signature
from snn_dfa.feedback import stand_in
from snn_dfa.feedback.stand_in import Inflow
from snn_dfa.feedback.way_back import Value

__all__ = ["NOTHING", "Lost", "Parts", "Read", "covers", "mean_of", "parts_of", "stopped"]

#: Why a layer has no inflow, and the layers that it was made of.
Lost: TypeAlias = tuple[str, list[str]]
#: Inflows, each with its share in their mean.
Parts: TypeAlias = list[tuple[Inflow, float]]


@dataclass(eq=False, slots=True)
class Read:
    """What comes into calls of a layer that are alike.

    Args:
        inflow: A linear function of other layers, ``None`` if it is none.
        signature: Of the functions below that have a derivative for each sample.
        lost: Why it is no linear function.
    """

    inflow: Inflow | None = None
    signature: Signature = ()
    lost: Lost | None = None


#: Where no other layer flows in.
NOTHING = Read()


def covers(one: Inflow, other: Inflow) -> bool:
    """Return whether all that flows into another inflow flows into one, and not the reverse."""
    more, less = one.takes, other.takes
    return less < more or (less == more and len(other.needs) < len(one.needs))


def stopped(x: Inflow) -> Inflow:
    """Return an inflow of the same size that passes nothing."""

    def apply(values: stand_in.Values, known: stand_in.Known) -> Value:
        made = x.apply(values, known)
        return Value(made.like, made.shape)

    return Inflow(apply, weights=x.weights, cell=x.cell)


def parts_of(counts: Counter[Read | None], hearing: Mapping[str, int]) -> tuple[Signature, Parts]:
    """Return the inflows of calls; of calls that no layer flows into the way is zero.

    Of calls whose functions have other derivatives of samples the most frequent ones count, and
    none where most have no linear function.

    Args:
        counts: How many calls have which; ``None`` for those that were not looked at.
        hearing: How many calls of each layer may be sent an error.
    """
    ways: dict[Signature, list[tuple[Inflow, int]]] = {}
    for each, count in counts.items():
        if each is not None and each.inflow is not None:
            ways.setdefault(each.signature, []).append((each.inflow, count))
    read = sum(count for each in ways.values() for _, count in each)
    unread = counts.total() - counts[None] - counts[NOTHING] - read
    if unread >= read:
        return (), []
    calls = {signature: sum(n for _, n in each) for signature, each in ways.items()}
    signature = max(reversed(ways), key=calls.__getitem__)
    heard = (hearing.get(source, 0) for each, _ in ways[signature] for source in each.sources)
    share = min(1.0, (read + unread) / min(counts.total(), max(1, *heard)))
    return signature, [(each, share * n / calls[signature]) for each, n in ways[signature]]


def mean_of(parts: Parts) -> Inflow:
    """Return the mean of inflows."""
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    lost = [each.lost for each, _ in parts if each.lost is not None]
    made = stand_in.total([stand_in.multiply(each, share) for each, share in parts])
    only = dict.fromkeys(layer for _, layers in lost for layer in layers)
    only = dict.fromkeys(layer for layer in only if layer not in made.sources)
    made = replace(made, cell=parts[0][0].cell)
    return replace(made, lost=(lost[0][0], tuple(only))) if lost else made
