"""Which leading dimensions of what an output returns are samples and steps, and not features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snn_dfa._attach import messages
from snn_dfa._attach.calls import Call
from snn_dfa._attach.layers import Layers
from snn_dfa.errors import OutOfStepError

__all__ = ["dims_of", "with_samples"]


def dims_of(call: Call, layers: Layers) -> int:
    """Return how many leading dimensions of an output's values are samples and steps.

    Of one that was given all steps, those of one step. A lone sample has none.

    Raises:
        OutOfStepError: if steps and samples cannot be told from features.
    """
    if call.along is not None:
        return 1
    dims, shape = 2 if layers.sequences else 1, call.shape
    if dims == len(shape) == 2 and shape[0] == shape[1]:
        raise messages.square(call.layer or "", shape[0])
    if len(shape) > 1:
        return dims
    below = [hidden.shape for hidden in call.below.values()]
    if _are_lone(below, shape, dims):
        return 0
    if all(len(s) == dims == 2 for s in below) and {s[:1] for s in below} == {shape}:
        return 1  # of one sequence without samples
    ambiguous = dims == 1 and all(len(s) == 3 for s in below)  # channels may be as many
    if not ambiguous and all(_put_back(shape, s[:dims]) is not None for s in below):
        return dims
    name, hidden = next(iter(call.below.items()))
    raise OutOfStepError(
        f"output {call.layer!r}: expected a first value of shape [B, C], samples before outputs, "
        f"as hidden layer {name!r} has spikes of shape {list(hidden.shape)}; got shape "
        f"{list(shape)}. Return [B, C], also if C = 1 or B = 1: leave out squeeze() and flatten(), "
        f"and take a mean over the samples, or the loss, of what {call.layer!r} returns. Does the "
        f"network run one sample without a dimension of samples? Give it one: x.unsqueeze(0)"
    )


def _are_lone(below: Sequence[torch.Size], shape: torch.Size, dims: int) -> bool:
    """Return whether an output [C] is of one sample: of numbers, or of an image [channels, *S]."""
    if not below or any(len(s) == 1 for s in below):
        return True
    images = dims == 1 and all(len(s) == 3 for s in below)
    return images and any(_put_back(shape, s[:1]) is None for s in below)


def with_samples(shape: torch.Size, call: Call, dims: int) -> torch.Size:
    """Return the shape of a value, with the dimensions of one sample that a ``squeeze`` took out.

    Args:
        shape: Of one of the values that an output has returned.
        call: The output's.
        dims: How many dimensions are samples and steps.
    """
    if call.along is not None or not call.below:
        return shape
    samples = next(iter(call.below.values())).shape[:dims]
    return shape if shape[:dims] == samples else _put_back(shape, samples) or shape


def _put_back(shape: torch.Size, samples: torch.Size) -> torch.Size | None:
    """Return a shape that begins with that of samples and steps, ones put back where they lack."""
    whole = list(shape)
    for i, size in enumerate(samples):
        if whole[i : i + 1] != [size]:
            if size != 1:
                return None
            whole.insert(i, 1)
    return torch.Size(whole)
