"""The feedback matrices of one network: drawn when shapes are first seen, kept, moved, saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback import KINDS, Draw, Feedback, gaussian, generator_for
from snn_dfa.kolen_pollack import KolenPollack, Learner
from snn_dfa.zhang import zhang_feedback

__all__ = ["NAMES", "FeedbackBank", "Sites", "Transposed", "check_names"]

#: Layer name to shape [C, *S] of its matrix, in the order in which the layers are called.
Sites: TypeAlias = Mapping[str, tuple[int, ...]]
#: From a layer's name and all sites to the matrix that the network's weights of this moment give.
Transposed: TypeAlias = Callable[[str, Sites], Tensor]

_LEARNED, _TRANSPOSE, _ZHANG, _SHARED = "kolen-pollack", "transpose", "zhang", "shared"
_GIVEN, _FUNCTION = "given", "function"  # what a user gave instead of a name
NAMES = (*KINDS, _SHARED, _ZHANG, _TRANSPOSE, _LEARNED)


def check_names(names: Iterable[str], known: list[str], argument: str) -> None:
    """Refuse matrices for layers that take none."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise FeedbackError(
            f"{argument}: expected matrices for layers among {known}, got one for {unknown[0]!r}"
        )


class FeedbackBank:
    """The matrices by layer name.

    Args:
        feedback: One of :data:`NAMES`; a function that draws; options for matrices that learn; or
            a mapping of layer name to tensor [C, *S].
        scale: Factor on what is drawn; a mapping is taken as it is.
        seed: Of the draw.
        transposed: For the kind ``"transpose"``.

    Raises:
        FeedbackError: if ``feedback`` is none of these.
    """

    def __init__(self, feedback: Feedback, scale: float, seed: int, transposed: Transposed) -> None:
        self.scale = scale
        self.seed = seed
        self.matrices: dict[str, Tensor] = {}
        self.learner: Learner | None = None
        self.draw: Draw | None = None
        self._transposed = transposed
        self.sites: dict[str, tuple[int, ...]] = {}
        self.observer: Callable[[str, Tensor], None] | None = None
        self._moved: dict[str, Tensor] = {}
        if feedback == _LEARNED:
            feedback = KolenPollack()
        if isinstance(feedback, KolenPollack):
            self.kind, self.learner = _LEARNED, Learner(feedback)
        elif isinstance(feedback, str) and feedback in NAMES:
            self.kind, self.draw = feedback, KINDS.get(feedback)
        elif isinstance(feedback, Mapping):
            self.kind = _GIVEN
            for name, matrix in feedback.items():
                self._put(name, matrix)
        elif callable(feedback):
            self.kind, self.draw = _FUNCTION, feedback
        else:
            got = repr(feedback) if isinstance(feedback, str) else type(feedback).__name__
            raise FeedbackError(
                f"feedback: expected one of {sorted(NAMES)}, a KolenPollack, a function of shape "
                f"and generator, or a mapping of layer name to tensor, got {got}"
            )

    def _put(self, name: str, matrix: Any) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise FeedbackError(
                f"feedback[{name!r}]: expected a floating point tensor [C, *spike shape], got "
                f"{matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__}"
            )
        self.matrices[name] = matrix.detach().clone()
        self._moved.clear()

    # -- drawing -----------------------------------------------------------------------------------

    def require(self, sites: Sites) -> None:
        """See that each layer has a matrix of its shape; draw those that are new.

        Raises:
            FeedbackError: if a given or drawn matrix is missing or has another shape.
        """
        self.sites.update(sites)
        if self.kind == _TRANSPOSE:
            return
        if self.kind == _SHARED:
            self._share()
        for name, shape in sites.items():
            if name not in self.matrices:
                self.matrices[name] = self._drawn(name, shape)
            if not _fits(self.matrices[name].shape, shape):
                raise FeedbackError(
                    f"feedback[{name!r}]: expected shape {list(shape)} (outputs, then the shape of "
                    f"one sample's spikes; dimensions after the second may be 1), got "
                    f"{list(self.matrices[name].shape)}"
                )

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = generator_for(self.seed, name, shape)
        if self.learner is not None:
            return self.scale * self.learner.options.initial * gaussian(shape, generator)
        if self.kind == _ZHANG:
            return self.scale * zhang_feedback(self._sizes_from(name), generator)
        if self.draw is None:
            told = "a function" if self.kind == _FUNCTION else "a tensor"
            raise FeedbackError(
                f"feedback: no matrix for hidden layer {name!r}; expected {told} of shape "
                f"{list(shape)}, got matrices for {sorted(self.matrices)}"
            )
        matrix = self.draw(shape, generator)
        if not isinstance(matrix, Tensor):
            raise FeedbackError(
                f"feedback: expected a function that returns a tensor of shape {list(shape)}, got "
                f"a {type(matrix).__name__} for layer {name!r}"
            )
        return self.scale * matrix.detach()

    def _sizes_from(self, name: str) -> list[int]:
        """Return the sizes of this layer, of those after it and of the output."""
        after = list(self.sites)[list(self.sites).index(name) :]
        if any(len(self.sites[n]) > 2 for n in after):
            raise FeedbackError(
                f"feedback: 'zhang' is for dense layers, got spikes of shape "
                f"{list(self.sites[name][1:])} in or after layer {name!r}; use 'gaussian'"
            )
        return [*(self.sites[n][1] for n in after), self.sites[name][0]]

    def _share(self) -> None:
        """Make every matrix a slice of one that serves the largest layer."""
        if not self.sites:  # as in the rule shallow
            return
        largest = max(math.prod(shape) for shape in self.sites.values())
        if self.matrices and max(m.numel() for m in self.matrices.values()) >= largest:
            base = max(self.matrices.values(), key=Tensor.numel).flatten()
        else:
            outputs = next(iter(self.sites.values()))[0]
            shape = (outputs, largest // outputs)
            base = self.scale * gaussian(shape, generator_for(self.seed, _SHARED, shape)).flatten()
        self._slice(base)

    def _slice(self, base: Tensor) -> None:
        for name, shape in self.sites.items():
            self.matrices[name] = _sliced(base, shape)

    # -- use ---------------------------------------------------------------------------------------

    def learning(self) -> Learner:
        """Return what lets the matrices learn.

        Raises:
            FeedbackError: if they are fixed.
        """
        if self.learner is None:
            raise FeedbackError(
                f"feedback: expected 'kolen-pollack', whose matrices learn, got "
                f"{self.kind!r}, which is fixed"
            )
        return self.learner

    def learn(self) -> None:
        """Let matrices that learn follow what was gathered for them since the last time."""
        if self.learner is not None:
            for name in self.learner.step(self.matrices):
                self._moved.pop(name, None)

    def moved(self, name: str, like: Tensor) -> Tensor:
        """Return a known matrix in the device and dtype of ``like``; the original keeps its dtype.

        A network that goes to half precision and back finds its matrices unchanged.
        """
        if self.kind == _TRANSPOSE:
            return self._transposed(name, self.sites).to(like.device, like.dtype)
        if self.kind == _SHARED:  # so that its copy is shared, too
            base = max(self.matrices.values(), key=Tensor.numel)
            return _sliced(self._cached("", base, like).flatten(), tuple(self.matrices[name].shape))
        return self._cached(name, self.matrices[name], like)

    def sent(self, name: str, error: Tensor) -> Tensor:
        """Show an observer what goes to a layer; return it."""
        if self.observer is not None:
            self.observer(name, error)
        return error

    def _cached(self, name: str, matrix: Tensor, like: Tensor) -> Tensor:
        cached = self._moved.get(name)
        if cached is None or cached.dtype != like.dtype or cached.device != like.device:
            cached = self._moved[name] = matrix.to(device=like.device, dtype=like.dtype)
        return cached

    def known(self) -> list[str]:
        """Return the names of the layers whose matrix is there."""
        return list(self.sites if self.kind == _TRANSPOSE else self.matrices)

    # -- saving ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, loadable with ``torch.load(weights_only=True)``."""
        if self.kind == _SHARED and self.matrices:
            base = max(self.matrices.values(), key=Tensor.numel).flatten().clone()
            matrices = {n: _sliced(base, tuple(m.shape)) for n, m in self.matrices.items()}
        else:
            matrices = {name: matrix.clone() for name, matrix in self.matrices.items()}
        learner = None if self.learner is None else self.learner.state_dict()
        return {"kind": self.kind, "scale": self.scale, "seed": self.seed, "matrices": matrices,
                "learner": learner}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; a matrix already known must keep its shape.

        Raises:
            FeedbackError: if the state is of another form or another network; nothing is changed.
        """
        missing = {"kind", "scale", "seed", "matrices", "learner"} - set(state)
        if missing:
            raise FeedbackError(
                f"state_dict: expected what DFA.state_dict() returned, got one without "
                f"{sorted(missing)}"
            )
        for name, matrix in state["matrices"].items():
            known = self.matrices.get(name)
            if known is not None and known.shape != matrix.shape:
                raise FeedbackError(
                    f"state_dict: layer {name!r} has feedback of shape {list(known.shape)}, got "
                    f"{list(matrix.shape)}: the checkpoint is of another network"
                )
        self.kind, self.scale, self.seed = state["kind"], state["scale"], state["seed"]
        if self.kind != _FUNCTION:
            self.draw = KINDS.get(self.kind)
        for name, matrix in state["matrices"].items():
            self._put(name, matrix)
        if self.kind == _SHARED and self.matrices:
            self.sites.update({n: tuple(m.shape) for n, m in self.matrices.items()})
            self._slice(max(self.matrices.values(), key=Tensor.numel).flatten())
        self.learner = None
        if state["learner"] is not None:
            self.learner = Learner(KolenPollack())
            self.learner.load_state_dict(state["learner"], self.matrices)


def _fits(matrix: torch.Size, wanted: tuple[int, ...]) -> bool:
    """Whether a matrix is of the shape, or one that is spread over the places of an image."""
    return (
        len(matrix) == len(wanted)
        and tuple(matrix[:2]) == wanted[:2]
        and all(m in (1, w) for m, w in zip(matrix[2:], wanted[2:], strict=True))
    )


def _sliced(base: Tensor, shape: tuple[int, ...]) -> Tensor:
    return base[: math.prod(shape)].view(shape)
