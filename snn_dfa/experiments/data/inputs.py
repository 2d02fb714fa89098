"""From images or recordings to what the network sees at each step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from snn_dfa import encoding
from snn_dfa.experiments.settings import Settings

__all__ = ["drop_pixels", "encode", "random_flip", "random_shift"]


def encode(x: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Return the input sequence [T, B, ...] of images or recordings.

    Args:
        x: [B, channels, height, width] in [0, 1], or spikes [B, T, channels, height, width].
        settings: Say how; a network that begins with a dense layer gets rows.
        generator: Of Poisson spikes.
    """
    if not settings.is_convolutional:
        x = x.flatten(-3)
    if settings.encoding == "events":
        return x.transpose(0, 1).contiguous().float()
    rate = x * settings.max_rate
    if settings.encoding == "constant":
        return encoding.constant(rate, settings.steps)
    dtype = torch.bfloat16 if settings.amp else x.dtype  # spikes are exact in both
    return encoding.spikes_at(rate, settings.steps, generator, dtype)


def drop_pixels(x: Tensor, dropped: float, pixel_mean: Tensor | None = None) -> Tensor:
    """Drop a share of the pixels, in recordings for all of their time; scale the others up.

    Args:
        x: Images or recordings, as for :func:`encode`.
        dropped: The share.
        pixel_mean: The value of a dropped pixel of an image, about which the others are scaled;
            ``None`` for zero. With the mean over samples, dropping is noise of a share of what
            tells samples apart, however much all of them have in common.
    """
    if not dropped:
        return x
    if pixel_mean is not None:
        return pixel_mean + functional.dropout(x - pixel_mean, dropped)
    if x.is_floating_point():
        return functional.dropout(x, dropped)
    return x * functional.dropout(torch.ones_like(x[:, :1], dtype=torch.float32), dropped)


def random_flip(x: Tensor) -> Tensor:
    """Mirror half of the samples, chosen at random, left to right, all of their time alike.

    Args:
        x: Images or recordings, as for :func:`encode`.
    """
    turned = torch.rand(len(x)).to(x.device) < 0.5
    return torch.where(turned[(...,) + (None,) * (x.dim() - 1)], x.flip(-1), x)


def random_shift(x: Tensor, most: int) -> Tensor:
    """Move each sample by up to so many pixels up or down, left or right, all of its time alike.

    What leaves the frame is lost, and what comes in is black.
    """
    if not most:
        return x
    frames = x.flatten(1, -3)
    samples, number, height, width = frames.shape
    padded = functional.pad(frames, [most] * 4)
    down, right = torch.randint(2 * most + 1, (2, samples, 1)).to(x.device)
    rows = down + torch.arange(height, device=x.device)
    columns = right + torch.arange(width, device=x.device)
    sample = torch.arange(samples, device=x.device)[:, None, None, None]
    frame = torch.arange(number, device=x.device)[:, None, None]
    return padded[sample, frame, rows[:, None, :, None], columns[:, None, None, :]].view_as(x)
