"""From values to sequences: spikes or a current, time first, [T, B, ...]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["constant", "poisson", "spikes_at"]


def poisson(
    x: Tensor, num_steps: int, max_rate: float = 0.8, generator: torch.Generator | None = None
) -> Tensor:
    """Code values as spike trains: at each step a spike with probability ``x * max_rate``.

    Args:
        x: [B, ...], floating point, in [0, 1].
        num_steps: T, one or more.
        max_rate: Spikes a step where x is 1, in [0, 1].
        generator: Where the numbers come from, on the device of ``x``; ``None`` for torch's own.

    Returns:
        [T, B, ...], zeros and ones in the dtype and on the device of ``x``, from one draw.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if ``x`` is not floating point.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> spikes = poisson(torch.tensor([0.0, 0.5, 1.0]), num_steps=1000, generator=g)
        >>> spikes.mean(0).round(decimals=1)
        tensor([0.0000, 0.4000, 0.8000])
    """
    _check(x, num_steps)
    if not 0 <= max_rate <= 1:
        raise ValueError(f"max_rate: expected a probability in [0, 1], got {max_rate!r}")
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"x: expected values in [0, 1], got [{x.min().item():.4g}, {x.max().item():.4g}]; "
            f"scale the input first"
        )
    return spikes_at(x * max_rate, num_steps, generator, x.dtype)


def spikes_at(
    probability: Tensor,
    num_steps: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw spikes [T, ...] of the given probabilities, unchecked.

    The draw is of 16 bits a spike, four spikes to a random word: a quarter of the time of as many
    floats, and a probability is met to 2^-17. Zero and one are met exactly.

    Args:
        probability: Of a spike at a step, any shape, in [0, 1].
        num_steps: T, one or more.
        generator: Where the numbers come from; ``None`` for torch's own.
        dtype: Of the spikes; ``None`` for that of ``probability``.

    Returns:
        [T, ...], zeros and ones.

    Example:
        >>> spikes_at(torch.tensor([0.0, 1.0]), num_steps=3).sum(0)
        tensor([0., 3.])
    """
    count = num_steps * probability.numel()
    words = _random_words(-(-count // 4), probability.device, generator)
    draw = words.view(torch.int16)[:count]
    # Uniform on -32768 ... 32767, and a spike where at most the bound, which is the last value for
    # probability one. The first value is made the second, so that zero has a bound below all.
    draw = draw.clamp_(min=-32767).view(num_steps, *probability.shape)
    bound = (probability.float() * 65536).round().sub(32769).clamp(-32768, 32767).to(torch.int16)
    spikes = torch.empty_like(draw, dtype=probability.dtype if dtype is None else dtype)
    return torch.le(draw, bound, out=spikes)


def _random_words(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw 64 random bits a word; on the CPU with numpy, in half of torch's time."""
    if device.type != "cpu":
        words = torch.empty(count, dtype=torch.int64, device=device)
        return words.random_(-(2**63), None, generator=generator)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    return torch.from_numpy(np.random.SFC64(seed).random_raw(count).view(np.int64))


def constant(x: Tensor, num_steps: int) -> Tensor:
    """Give values as a constant current, expanded over time and not copied.

    Args:
        x: [B, ...], floating point.
        num_steps: T, one or more.

    Returns:
        [T, B, ...], a view with stride zero over time.

    Raises:
        ValueError: if ``num_steps`` is below one.
        TypeError: if ``x`` is not floating point.

    Example:
        >>> constant(torch.rand(2, 3), num_steps=25).stride()
        (0, 3, 1)
    """
    _check(x, num_steps)
    return x.expand(num_steps, *x.shape)


def _check(x: Tensor, num_steps: int) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating point tensor, got {x.dtype}; call x.float() first")
    if num_steps < 1:
        raise ValueError(f"num_steps: expected one or more, got {num_steps!r}")
