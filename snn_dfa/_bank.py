"""The feedback matrices of one network: drawn when shapes are first seen, kept, moved, saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from snn_dfa import _kinds
from snn_dfa._factors import Factors
from snn_dfa._kinds import LEARNED, NAMES, PRODUCT, Forward, Sites
from snn_dfa._refusals import refuse_unfollowed
from snn_dfa.errors import FeedbackError
from snn_dfa.feedback import KINDS, Draw, Feedback, gaussian, generator_for
from snn_dfa.kolen_pollack import KolenPollack, KolenPollackProduct, Learner
from snn_dfa.zhang import zhang_feedback

__all__ = ["FeedbackBank"]


class FeedbackBank:
    """The matrices by layer name; of the kind that is a product, its factors by layer of weights.

    Args:
        feedback: One of :data:`NAMES`; a function that draws; options for matrices that learn; or
            a mapping of layer name to tensor [C, *S].
        scale: Factor on what is drawn; a mapping is taken as it is.
        seed: Of the draw.
        forward: The weights that the kinds stand for that are products.

    Raises:
        FeedbackError: if ``feedback`` is none of these.
    """

    def __init__(self, feedback: Feedback, scale: float, seed: int, forward: Forward) -> None:
        self.scale = scale
        self.seed = seed
        self.matrices: dict[str, Tensor] = {}
        self.learner: Learner | None = None
        self.leader: Callable[[], object | None] = lambda: None  # an optimiser, while it lives
        self.draw: Draw | None = None
        self._forward = forward
        self._factors = Factors(forward)
        self.sites: dict[str, tuple[int, ...]] = {}
        self.path: dict[str, tuple[int, ...]] = {}  # the sites, and layers that get no error
        self.observer: Callable[[str, Tensor], None] | None = None
        self._moved: dict[str, Tensor] = {}
        if isinstance(feedback, str) and feedback in LEARNED:
            feedback = LEARNED[feedback]()
        if isinstance(feedback, KolenPollack | KolenPollackProduct):
            self.kind = _kinds.KOLEN_POLLACK if isinstance(feedback, KolenPollack) else PRODUCT
            self.learner = Learner(feedback)
        elif isinstance(feedback, str) and feedback in NAMES:
            self.kind, self.draw = feedback, KINDS.get(feedback)
        elif isinstance(feedback, Mapping):
            self.kind = _kinds.GIVEN
            for name, matrix in feedback.items():
                _kinds.check_tensor(name, matrix)
                self.matrices[name] = matrix.detach().clone()
        elif callable(feedback) and not isinstance(feedback, type):
            self.kind, self.draw = _kinds.FUNCTION, feedback
        else:
            got = repr(feedback) if isinstance(feedback, str) else type(feedback).__name__
            if isinstance(feedback, type):
                got = f"the class {feedback.__name__} itself"
            raise FeedbackError(
                f"feedback: expected one of {sorted(NAMES)}, a KolenPollack, a "
                f"KolenPollackProduct, a function of shape and generator, or a mapping of layer "
                f"name to tensor, got {got}"
            )

    # -- drawing -----------------------------------------------------------------------------------

    def require(self, sites: Sites, path: Sites | None = None) -> None:
        """See that each layer has a matrix of its shape; draw those that are new.

        Args:
            sites: The layers that get an error.
            path: All hidden layers in the order of their calls, where they are not only these.

        Raises:
            FeedbackError: if a given or drawn matrix is missing or has another shape.
        """
        self.sites.update(sites)
        self.path = dict(self.sites if path is None else path)
        self.sites = {n: s for n, s in (*self.path.items(), *self.sites.items()) if n in self.sites}
        if self.kind == _kinds.TRANSPOSE:
            return
        if self.kind == PRODUCT:
            if self._factors.require(self.sites, self.path, self.matrices, self._drawn):
                self._moved.clear()
            return
        if self.kind == _kinds.SHARED:
            self._share()
        for name, shape in sites.items():
            if name not in self.matrices:
                self.matrices[name] = self._drawn(name, shape)
            if not _kinds.fits(self.matrices[name].shape, shape):
                raise FeedbackError(
                    f"feedback[{name!r}]: expected shape {list(shape)} (outputs, then the shape of "
                    f"one sample's spikes; dimensions after the second may be 1), got "
                    f"{list(self.matrices[name].shape)}"
                )

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        generator = generator_for(self.seed, name, shape)
        if self.learner is not None:
            return self.scale * self.learner.options.initial * gaussian(shape, generator)
        if self.kind == _kinds.ZHANG:
            return self.scale * zhang_feedback(self._sizes_from(name), generator)
        if self.draw is None:
            told = "a function" if self.kind == _kinds.FUNCTION else "a tensor"
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
        after = list(self.path)[list(self.path).index(name) :]
        if any(len(self.path[n]) > 2 for n in after):
            raise FeedbackError(
                f"feedback: 'zhang' is for dense layers, got spikes of shape "
                f"{list(self.path[name][1:])} in or after layer {name!r}; use 'gaussian'"
            )
        return [*(self.path[n][1] for n in after), self.path[name][0]]

    def _share(self) -> None:
        """Make every matrix a slice of one that serves the largest layer."""
        if not self.sites:  # as in the rule shallow
            return
        largest = max(math.prod(s) for s in (*self.path.values(), *self.sites.values()))
        if self.matrices and max(m.numel() for m in self.matrices.values()) >= largest:
            base = max(self.matrices.values(), key=Tensor.numel).flatten()
        else:
            outputs = next(iter(self.sites.values()))[0]
            shape = (outputs, largest // outputs)
            generator = generator_for(self.seed, _kinds.SHARED, shape)
            base = self.scale * gaussian(shape, generator).flatten()
            self._moved.clear()
        self._slice(base)

    def _slice(self, base: Tensor) -> None:
        for name, shape in self.sites.items():
            self.matrices[name] = _kinds.sliced(base, shape)

    # -- use ---------------------------------------------------------------------------------------

    def learning(self) -> Learner:
        """Return what lets the matrices learn.

        Raises:
            FeedbackError: if they are fixed.
        """
        if self.learner is None:
            raise FeedbackError(
                f"feedback: expected one of {list(LEARNED)}, whose matrices learn, got "
                f"{self.kind!r}, which is fixed"
            )
        return self.learner

    @property
    def gathers(self) -> bool:
        """Whether what the matrices follow is gathered in the backward pass."""
        return self.kind == _kinds.KOLEN_POLLACK

    @property
    def led(self) -> bool:
        """Whether steps are taken with an optimiser, and not with forward passes."""
        return self.leader() is not None

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Let matrices that learn follow what was gathered for them since the last time.

        Args:
            stepped: The parameters that an optimiser has just changed, whose gradients the factors
                follow.
        """
        if self.learner is None:
            return
        if self.kind == PRODUCT:
            for layer, gradient in self._factors.gradients(self.matrices, stepped):
                self.learner.gather(layer, gradient)
        if self.learner.step(self.matrices):
            self._moved.clear()

    def stands_for(self, name: str) -> Tensor:
        """Return what a layer's matrix stands for: weights, as they are at this moment."""
        return _kinds.product_of_weights(self._forward, name, self.path)

    def moved(self, name: str, like: Tensor) -> Tensor:
        """Return a known matrix in the device and dtype of ``like``; the original keeps its dtype.

        A network that goes to half precision and back finds its matrices unchanged.
        """
        if self.kind == _kinds.TRANSPOSE:
            return self.stands_for(name).to(like.device, like.dtype)
        if self.kind == PRODUCT:
            made = partial(self._factors.product, name, self.matrices, like.device)
            return self._cached(name, lambda: made().reshape(self.path[name]), like)
        if self.kind == _kinds.SHARED:  # so that its copy is shared, too
            base = max(self.matrices.values(), key=Tensor.numel)
            moved = self._cached("", lambda: base, like)
            return _kinds.sliced(moved.flatten(), tuple(self.matrices[name].shape))
        return self._cached(name, lambda: self.matrices[name], like)

    def sent(self, name: str, error: Tensor) -> Tensor:
        """Show an observer what goes to a layer; return it.

        Raises:
            FeedbackError: if factors, which follow an optimiser, follow none.
        """
        refuse_unfollowed(self.kind == PRODUCT and not self.led)
        if self.observer is not None:
            self.observer(name, error)
        return error

    def _cached(self, name: str, matrix: Callable[[], Tensor], like: Tensor) -> Tensor:
        cached = self._moved.get(name)
        if cached is None or cached.dtype != like.dtype or cached.device != like.device:
            cached = self._moved[name] = matrix().to(device=like.device, dtype=like.dtype)
        return cached

    def known(self) -> list[str]:
        """Return the names of the layers whose matrix is there."""
        if self.kind == PRODUCT:
            return list(self._factors.chains)
        return list(self.sites if self.kind == _kinds.TRANSPOSE else self.matrices)

    # -- saving ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, loadable with ``torch.load(weights_only=True)``."""
        if self.kind == _kinds.SHARED and self.matrices:
            base = max(self.matrices.values(), key=Tensor.numel).flatten().clone()
            matrices = {n: _kinds.sliced(base, tuple(m.shape)) for n, m in self.matrices.items()}
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
        kind = state["kind"]
        if kind == _kinds.FUNCTION != self.kind:
            raise FeedbackError(
                "state_dict: expected feedback that is not drawn by a function, which cannot be "
                "saved; give the function to DFA(feedback=)"
            )
        for name, matrix in state["matrices"].items():
            self._check_shape(kind, name, matrix)
        matrices = {name: matrix.detach().clone() for name, matrix in state["matrices"].items()}
        learner = None
        if state["learner"] is not None:
            learner = Learner(LEARNED[kind]())
            learner.load_state_dict(state["learner"], matrices)
        self.kind, self.scale, self.seed = kind, state["scale"], state["seed"]
        self.matrices, self.learner = matrices, learner
        self._factors = Factors(self._forward)
        self._moved.clear()
        if kind != _kinds.FUNCTION:
            self.draw = KINDS.get(kind)
        if kind == _kinds.SHARED and matrices:
            self.sites.update({n: tuple(m.shape) for n, m in matrices.items()})
            self._slice(max(matrices.values(), key=Tensor.numel).flatten())

    def _check_shape(self, kind: str, name: str, matrix: Any) -> None:
        """Refuse a saved matrix that is none, or of another network."""
        _kinds.check_tensor(name, matrix)
        if kind == PRODUCT:
            self._factors.check(name, matrix.shape)
        known = self.matrices.get(name) if self.kind != PRODUCT else None
        if kind != PRODUCT and known is not None and known.shape != matrix.shape:
            raise FeedbackError(
                f"state_dict: layer {name!r} has feedback of shape {list(known.shape)}, got "
                f"{list(matrix.shape)}: the checkpoint is of another network"
            )
