"""The maps from the output error to the hidden layers: drawn, kept, applied.

A feedback matrix B has the shape [C, *S]: C outputs, S the shape of one sample's spikes in the
layer. It depends on the seed, the layer's name and the shape alone, so that every process draws
the same one and adding a layer changes no other layer's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.kolen_pollack import KolenPollack, Learner

__all__ = ["KINDS", "Feedback", "FeedbackBank", "gaussian", "generator_for", "project"]

#: What a user may give: a kind's name, options for feedback that learns, or the matrices by layer.
Feedback: TypeAlias = str | KolenPollack | Mapping[str, Tensor]

_LEARNED = "kolen-pollack"


def project(error: Tensor, feedback: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Send an error through a feedback matrix, e B.

    Args:
        error: [..., C], the error at the output.
        feedback: [C, *S], the layer's matrix.
        dtype: Of the result; ``None`` for that of the product.

    Returns:
        [..., *S], what takes the place of the gradient at the layer's spikes.

    Source: Nøkland 2016, arXiv 1609.01596, eq. 9, with B transposed.

    Example:
        >>> project(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]))
        tensor([[0., 1., 2.]])
    """
    if error.dim() > 2 and error.shape[0] > 1 and error.stride(0) == 0:
        # The same error at every step, as a loss on spike counts has it: one product for all.
        sent = project(error[0], feedback, dtype)
        return sent.expand(error.shape[0], *sent.shape)
    sent = (error @ feedback.flatten(1)).reshape(*error.shape[:-1], *feedback.shape[1:])
    return sent.to(dtype) if dtype is not None else sent


def generator_for(seed: int, name: str, shape: tuple[int, ...]) -> torch.Generator:
    """Return a generator that depends on these three and on no global state.

    Example:
        >>> a, b = (generator_for(0, "lif1", (10, 5)) for _ in range(2))
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """
    digest = hashlib.sha256(f"{seed}|{name}|{tuple(shape)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def gaussian(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    r"""Draw B with entries :math:`\mathcal N(0, \mathrm{scale}^2 / N)`, N neurons in the layer.

    With ``scale=1`` the projected error has on average the norm of the error, whatever the size
    of the layer. Memory: C * N numbers.

    Args:
        shape: [C, *S].
        scale: Factor on the standard deviation 1 / sqrt(N).
        generator: Where the numbers come from.

    Returns:
        [C, *S], float32, on the CPU.

    Example:
        >>> gaussian((10, 400), 1.0, generator_for(0, "lif1", (10, 400))).norm(dim=1).mean().round()
        tensor(1.)
    """
    neurons = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) * (scale / math.sqrt(neurons))


#: Name to the function that draws a fixed matrix of this kind.
KINDS: Mapping[str, Callable[[tuple[int, ...], float, torch.Generator], Tensor]] = MappingProxyType(
    {"gaussian": gaussian}
)


class FeedbackBank:
    """The feedback matrices of one network, drawn when a layer's shape is first seen.

    Args:
        feedback: A name in :data:`KINDS`; ``"kolen-pollack"`` or its options, for matrices that
            learn; or a mapping of layer name to tensor [C, *S].
        scale: See the kind's function; a mapping is taken as it is.
        seed: Of the draw.

    Raises:
        FeedbackError: if ``feedback`` is none of these.
    """

    def __init__(self, feedback: Feedback, scale: float, seed: int) -> None:
        self.scale = scale
        self.seed = seed
        self.matrices: dict[str, Tensor] = {}
        self.learner: Learner | None = None
        self._moved: dict[str, Tensor] = {}
        if feedback == _LEARNED:
            feedback = KolenPollack()
        if isinstance(feedback, KolenPollack):
            self.kind, self.learner = _LEARNED, Learner(feedback)
        elif isinstance(feedback, str) and feedback in KINDS:
            self.kind = feedback
        elif isinstance(feedback, Mapping):
            self.kind = "given"
            for name, matrix in feedback.items():
                self._put(name, matrix)
        else:
            got = repr(feedback) if isinstance(feedback, str) else type(feedback).__name__
            raise FeedbackError(
                f"feedback: expected one of {sorted([*KINDS, _LEARNED])}, a KolenPollack or a "
                f"mapping of layer name to tensor, got {got}"
            )

    def _put(self, name: str, matrix: Any) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            raise FeedbackError(
                f"feedback[{name!r}]: expected a floating point tensor [C, *spike shape], got "
                f"{getattr(matrix, 'dtype', type(matrix).__name__)}"
            )
        self.matrices[name] = matrix.detach().clone()
        self._moved.pop(name, None)

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """See that the layer has a matrix of this shape; draw it if the layer is new.

        Raises:
            FeedbackError: if a given matrix is missing or has another shape.
        """
        matrix = self.matrices.get(name)
        if matrix is None:
            if self.kind == "given":
                raise FeedbackError(
                    f"feedback: no matrix for hidden layer {name!r}; expected a tensor of shape "
                    f"{list(shape)}, got matrices for {sorted(self.matrices)}"
                )
            self.matrices[name] = matrix = self._draw(name, shape)
        if tuple(matrix.shape) != tuple(shape):
            raise FeedbackError(
                f"feedback[{name!r}]: expected shape {list(shape)} (outputs, then the shape of one "
                f"sample's spikes), got {list(matrix.shape)}"
            )

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = generator_for(self.seed, name, shape)
        if self.learner is not None:
            return gaussian(shape, self.scale * self.learner.options.initial, generator)
        return KINDS[self.kind](shape, self.scale, generator)

    def learn(self) -> None:
        """Let matrices that learn follow what was gathered for them since the last time."""
        if self.learner is not None:
            for name in self.learner.step(self.matrices):
                self._moved.pop(name, None)

    def moved(self, name: str, like: Tensor) -> Tensor:
        """Return a known matrix in the device and dtype of ``like``; the original keeps its dtype.

        A network that goes to half precision and back finds its matrices unchanged.
        """
        cached = self._moved.get(name)
        if cached is None or cached.dtype != like.dtype or cached.device != like.device:
            cached = self.matrices[name].to(device=like.device, dtype=like.dtype)
            self._moved[name] = cached
        return cached

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, loadable with ``torch.load(weights_only=True)``."""
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
        for name, matrix in state["matrices"].items():
            self._put(name, matrix)
        self.learner = None
        if state["learner"] is not None:
            self.learner = Learner(KolenPollack())
            self.learner.load_state_dict(state["learner"], self.matrices)
