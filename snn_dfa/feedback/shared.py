"""Fixed matrices that are slices of one Gaussian matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snn_dfa.feedback.base import FeedbackWeights, Forward, Shapes
from snn_dfa.feedback.draw import gaussian, generator_for

__all__ = ["Shared"]


class Shared(FeedbackWeights):
    """Slices of one Gaussian matrix, the largest layer's: no other matrix is stored."""

    for_weights = False

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        super().__init__(type_name, scale, seed, forward)
        self._base: Tensor | None = None  # flat; the matrices are views of it

    def _require(self, shapes: Shapes) -> None:
        if not self.shapes:  # with rule="shallow" no layer gets an error
            return
        layers = {**self.shapes, **self.path}
        name = max(layers, key=lambda layer: math.prod(layers[layer]))
        largest = math.prod(layers[name])
        if self._base is None or self._base.numel() < largest:
            self._check_memory(name, layers[name])
            outputs = next(iter(self.shapes.values()))[0]
            self._base = self.draw(self.type_name, (outputs, largest // outputs)).flatten()
            self._cache.clear()
        self._slice(self._base)
        super()._require(shapes)

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the matrix [C, N] of which all others are slices."""
        return self.scale * gaussian(shape, generator_for(self.seed, name, shape))

    def _slice(self, base: Tensor) -> None:
        for name, shape in self.shapes.items():
            self.matrices[name] = _part(base, shape)

    def matrix(self, name: str, like: Tensor) -> Tensor:
        r"""Return a slice [C, \*S] of one copy in the dtype and on the device of ``like``."""
        return _part(super().matrix("", like), tuple(self.matrices[name].shape))

    def _make(self, name: str, device: torch.device) -> Tensor:
        if self._base is None:
            raise KeyError(name)
        return self._base

    def _copied(self) -> dict[str, Tensor]:
        if not self.matrices:
            return {}
        base = max(self.matrices.values(), key=Tensor.numel).flatten().clone()
        return {name: _part(base, tuple(m.shape)) for name, m in self.matrices.items()}

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        if self.matrices:
            self.shapes.update({name: tuple(m.shape) for name, m in self.matrices.items()})
            self._base = max(self.matrices.values(), key=Tensor.numel).flatten()
            self._slice(self._base)


def _part(base: Tensor, shape: tuple[int, ...]) -> Tensor:
    return base[: math.prod(shape)].view(shape)
