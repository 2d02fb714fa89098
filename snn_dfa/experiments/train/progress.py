"""An epoch that is under way, so that a run that was cut off goes on in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snn_dfa.diagnostics.alignment import Sums
from snn_dfa.experiments.settings import UsageError

__all__ = ["Progress", "mask_states", "own_masks", "refuse_another"]


@dataclass
class Progress:
    """What of an epoch is behind, as far as its rest and its line of the history depend on it.

    Plain values and tensors, to be saved and to be made again from them.
    """

    order: Tensor  # state of the generator that draws the epoch's order, before it did
    first_step: int  # how many training steps came before this epoch
    batches: int = 0
    seen: int = 0  # samples
    right: int = 0  # of these
    loss: float = 0.0  # summed over samples
    seconds: float = 0.0
    masks: list[Tensor] = field(default_factory=list)  # states of dropout's generators
    sent: Sums = field(default_factory=dict)  # squares of the errors sent, where these are noted

    def add(self, samples: int, right: int, loss: float) -> None:
        """Count a batch that was trained on, of this mean loss."""
        self.seen, self.right = self.seen + samples, self.right + right
        self.loss += loss * samples


def refuse_another(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse the state of a run of other settings, data or form than that which has ``mine``.

    What may differ: where the data is, the device, and the number of epochs where no rate depends
    on it and no more epochs are behind.

    Raises:
        UsageError: naming the first difference.
    """
    lacking = sorted(set(mine) - set(state))
    if lacking:
        raise UsageError(
            f"--resume: expected a checkpoint of this version of snn-dfa, got one without "
            f"{lacking[0]!r}; train anew without --resume"
        )
    free = {"dataset": "", "data_root": "", "device": ""}
    if mine["settings"]["schedule"] in ("none", "step"):  # others depend on where the run ends
        free["epochs"] = ""
    theirs, ours = (_identity(each, free) for each in (state, mine))
    for name in {**theirs, **ours}:
        if name not in theirs or name not in ours or theirs[name] != ours[name]:
            made = f"{name}={theirs[name]!r}" if name in theirs else f"no {name}"
            expected = repr(ours[name]) if name in ours else "none"
            raise UsageError(
                f"--resume: the checkpoint was made with {made}, expected {expected}; give "
                f"what it was made with, or another --out"
            )
    behind, epochs = len(state["history"]), mine["settings"]["epochs"]
    if behind > epochs:
        raise UsageError(
            f"--resume: the checkpoint has {behind} epochs behind it, expected at most "
            f"--epochs={epochs}; give --epochs={behind} or more, or another --out"
        )
    if state["data"] != mine["data"]:
        raise UsageError(
            f"--resume: the checkpoint was made with other data, of "
            f"{state['settings']['dataset']}, than {mine['settings']['dataset']} has now; give the "
            f"same data or another --out"
        )


def _identity(state: Mapping[str, Any], free: Mapping[str, Any]) -> dict[str, Any]:
    return {**state["settings"], "rule": state["rule"], **free, **state.get("made_of", {})}


@contextmanager
def own_masks(seed: int, device: str, states: Sequence[Tensor] = ()) -> Iterator[None]:
    """Let dropout draw from a seed of its own; the global generator is left as it was.

    Args:
        seed: Of the block's draws.
        device: On which they are.
        states: From :func:`mask_states`: where there are some, the block goes on from these.
    """
    on = torch.device(device)
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []):
        torch.manual_seed(seed)
        if states:
            torch.set_rng_state(states[0])
            if on.type == "cuda":
                torch.cuda.set_rng_state(states[1], on)
        yield


def mask_states(device: str) -> list[Tensor]:
    """Return the states of the generators from which dropout draws now."""
    on = torch.device(device)
    return [
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state(on)] if on.type == "cuda" else []),
    ]
