r"""The base class of all feedback types: the matrices of one network, by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from snn_dfa.errors import FeedbackError
from snn_dfa.feedback.apply import correlation, product
from snn_dfa.feedback.sample_ways import Ways
from snn_dfa.feedback.sent import Sent
from snn_dfa.feedback.stand_in import Inflow

__all__ = [
    "MAX_MATRIX_BYTES", "FeedbackWeights", "Forward", "Shapes", "check_tensor", "unfollowed",
]  # fmt: skip

#: Layer name to the shape [C, *S] of its matrix, in the order in which the layers are called.
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: The library draws no matrix that needs more bytes (4 GB). A function or matrices of your own
#: have no such limit.
MAX_MATRIX_BYTES = 4 * 10**9


class Forward(Protocol):
    """The forward weights of a network, for feedback that is made of them or follows them."""

    def names(self, name: str, path: Shapes) -> list[str]:
        """Return the layers with weights from hidden layer ``name`` to the output, in order.

        Args:
            name: Of the hidden layer.
            path: All hidden layers with shapes.
        """

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer as it is at this moment."""

    def inflows(self) -> Mapping[str, Inflow] | None:
        """Return what comes into each layer and output; ``None`` if layers get no direct error."""

    def unknown(self) -> Mapping[str, tuple[str, list[str]]]:
        """Return the layers of which :meth:`inflows` knows nothing, why, and their sources."""

    def mirror(self, layer: str, factor: Tensor, noise: Callable[..., Tensor]) -> Tensor:
        """Return the step that makes a factor answer noise more as the layer does."""

    def stand_for(self, layer: str, factor: Tensor) -> None:
        """Let a saved factor stand for a matrix that no layer holds, until a pass makes it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many numbers those outputs have of which it is known before they are called."""


class FeedbackWeights:
    r"""The feedback matrices B of one network, by layer.

    The code that runs a network calls, in this order:

    1. :meth:`require` in each pass, as soon as the shapes are known. New matrices are drawn.
    2. :meth:`matrix` in the backward pass, and :meth:`notify` with the projected error.
    3. :meth:`accumulate` or :meth:`accumulate_gradient` there, if :attr:`accumulates`.
    4. :meth:`learn`: after each step of the followed optimiser. If no optimiser is followed and
       :attr:`accumulates`, when the next training pass begins.

    A loaded state becomes another object (:func:`snn_dfa.feedback.make.load`). Therefore keep one
    reference, and read it at each use.

    A new type is a subclass in a file of its own, and a row in
    :data:`snn_dfa.feedback.make.TYPES`. It defines :meth:`draw`, and replaces other methods where
    the type differs.

    Args:
        type_name: Its name in :data:`snn_dfa.feedback.make.TYPES`.
        scale: Factor on drawn matrices.
        seed: Of the draw.
        forward: The weights of the network.
        given: A function, matrices or options from the user; ``None`` if the user gave a name.
    """

    #: The class of the options if matrices of this type learn, else ``None``.
    options: ClassVar[type[Any] | None] = None
    #: Whether a matrix may have the shape of a weight, as ``rule="fa"`` needs.
    for_weights: ClassVar[bool] = True
    #: Whether :attr:`matrices` has the names of layers with weights, and not of hidden layers.
    by_weight: ClassVar[bool] = False

    def __init__(
        self, type_name: str, scale: float, seed: int, forward: Forward, given: Any = None
    ) -> None:
        self.type_name = type_name
        self.scale = scale
        self.seed = seed
        self.forward = forward
        #: What is stored, float32 if it was drawn.
        self.matrices: dict[str, Tensor] = {}
        #: The layers that get an error, with the shapes of their matrices, in order of the calls.
        self.shapes: dict[str, tuple[int, ...]] = {}
        #: All hidden layers with shapes; some may get no error.
        self.path: dict[str, tuple[int, ...]] = {}
        #: Called by :meth:`notify`.
        self.observer: Callable[[str, Tensor], None] | None = None
        #: Returns the followed optimiser of the weights while it is alive.
        self.optimizer: Callable[[], object | None] = unfollowed
        self._cache: dict[str, Tensor] = {}  # matrices in the dtype and on the device of use

    # -- drawing -----------------------------------------------------------------------------------

    def require(self, shapes: Shapes, path: Shapes | None = None) -> None:
        """Draw the matrices that are missing, and check the shapes of the others.

        Args:
            shapes: The layers that get an error.
            path: All hidden layers in the order of their calls; ``None`` if these are the same.

        Raises:
            FeedbackError: if a matrix has another shape, cannot be made, or needs more memory than
                :data:`MAX_MATRIX_BYTES`.
        """
        self.shapes.update(shapes)
        self.path = dict(self.shapes if path is None else path)
        both = {**self.path, **self.shapes}
        self.shapes = {name: both[name] for name in both if name in self.shapes}
        self._require(shapes)

    def _require(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if name not in self.matrices:
                self._check_memory(name, shape)
                self.matrices[name] = self.draw(name, shape)
            if not _fits(self.matrices[name].shape, shape):
                raise FeedbackError(
                    f"feedback[{name!r}]: expected shape {list(shape)} (outputs, then the shape of "
                    f"one sample's spikes; dimensions after the second may be 1), got "
                    f"{list(self.matrices[name].shape)}. Does the network have other layers or "
                    f"outputs than at DFA(net)? Then call dfa.remove(), and DFA(net) again"
                )

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        r"""Return the first matrix of a layer; it depends on seed, name and shape alone.

        Args:
            name: Of the layer.
            shape: [C, \*S].

        Returns:
            [C, \*S], or 1 in place of dimensions after the second; float32, on the CPU.

        Raises:
            FeedbackError: if this type has no matrix for the layer.
        """
        raise NotImplementedError

    def stored(self, name: str, shape: tuple[int, ...]) -> int:
        """Return how many numbers :meth:`draw` holds at least; 0 if the user makes the matrix."""
        return math.prod(shape)

    def _check_memory(self, name: str, shape: tuple[int, ...]) -> None:
        size = 4 * self.stored(name, shape)  # float32
        if size <= MAX_MATRIX_BYTES:
            return
        small, narrower = 4 * math.prod(shape[:2]), ""
        if len(shape) > 2 and small <= MAX_MATRIX_BYTES:
            narrower = f"use feedback='channelwise', which needs {_bytes(small)}; "
        raise FeedbackError(
            f"feedback[{name!r}]: the matrix of layer {name!r} has the shape [C, *S] = "
            f"{list(shape)}: {shape[0]} outputs, then one sample's spikes; {self.type_name!r} "
            f"needs {_bytes(size)} for it, the limit is {_bytes(MAX_MATRIX_BYTES)}: {narrower}name "
            f"a layer with fewer outputs with output=; or give a mapping of layer name to tensor, "
            f"or a function that draws"
        )

    # -- use ---------------------------------------------------------------------------------------

    def known(self) -> list[str]:
        """Return the names of the layers for which :meth:`matrix` has a matrix."""
        return list(self.matrices)

    def matrix(self, name: str, like: Tensor) -> Tensor:
        r"""Return the matrix of a known layer in the dtype and on the device of ``like``.

        The stored matrix keeps its own dtype: after half precision and back it is unchanged.

        Returns:
            [C, \*S], or 1 in place of dimensions after the second.
        """
        cached = self._cache.get(name)
        if cached is None or cached.dtype != like.dtype or cached.device != like.device:
            made = self._make(name, like.device)
            cached = self._cache[name] = made.to(device=like.device, dtype=like.dtype)
        return cached

    def _make(self, name: str, device: torch.device) -> Tensor:
        return self.matrices[name]

    def notify(self, name: str, error: Tensor) -> None:
        """Show the observer an error that a layer is about to get.

        Raises:
            FeedbackError: if the matrices have to follow an optimiser, and follow none.
        """
        if self.observer is not None:
            self.observer(name, error)

    def target_weights(self, name: str) -> Tensor:
        r"""Return the product [C, \*S] of the weights after a layer, as they are at this moment.

        Raises:
            FeedbackError: if other layers than dense ones follow.
        """
        layers = self.forward.names(name, self.path)
        weights = [self.forward.weight(layer).detach() for layer in layers]
        return product(weights).reshape(self.path[name])

    # -- the ways of samples -----------------------------------------------------------------------

    @property
    def by_sample(self) -> bool:
        """Whether :meth:`send` is to be called, with how each sample has passed the network."""
        return False

    @property
    def needs_ways(self) -> list[str]:
        """Layers into which a function leads that has a derivative for each sample alone."""
        return []

    @property
    def cells(self) -> dict[str, str]:
        """Layers that are gated cells, with the names of their input weights."""
        return {}

    def values_of(self, layer: str) -> list[str]:
        """Return which values of a layer :meth:`send` sends errors to: its spikes, or its states.

        They have the names of :func:`~snn_dfa.feedback.sample_ways.value_name`.
        """
        return [layer]

    def send(
        self, error: Tensor, rest: Tensor | None, ways: Ways, *, steady: bool
    ) -> dict[str, Sent]:
        r"""Return what each layer's values are sent for the errors of all steps.

        Args:
            error: [B, C], the mean error of each sample.
            rest: [T * B, C], by what the error of each step differs from it, where that is taken
                as large as the errors of the step; ``None`` for nothing.
            ways: How samples have passed the network.
            steady: Whether the loss is the same function of each step. Then a layer before others
                is sent the mean alone.
        """
        raise NotImplementedError

    # -- learning ----------------------------------------------------------------------------------

    @property
    def without_way(self) -> dict[str, str]:
        """Layers into which a function leads that passes no error, with its name."""
        return {}

    @property
    def with_own_matrix(self) -> tuple[str, ...]:
        """Hidden layers whose B is no product of factors, where it is one of others."""
        return ()

    @property
    def accumulates(self) -> bool:
        """Whether the backward pass has to call :meth:`accumulate`, which needs the spikes."""
        return False

    @property
    def has_optimizer(self) -> bool:
        """Whether an optimiser of the weights is followed and alive."""
        return self.optimizer() is not None

    def accumulate(self, name: str, signal: Tensor, spikes: Tensor) -> None:
        r"""Add the correlation of signal and spikes to the gradient of a layer's matrix.

        Args:
            name: Of the layer.
            signal: [..., C], the broadcast signal.
            spikes: [..., \*S], the layer's own spikes.
        """
        self.accumulate_gradient(name, correlation(signal, spikes))

    def accumulate_gradient(self, name: str, gradient: Tensor) -> None:
        """Add to the gradient of a layer's matrix, which has the matrix's shape."""

    def learn(self, stepped: Iterable[Tensor] = ()) -> None:
        """Update the matrices by their gradients, if this type learns.

        Args:
            stepped: The parameters that the followed optimiser has just changed.
        """

    def measure_like(self, original: FeedbackWeights) -> None:
        """Let this feedback of a copied network take the next passes as the original would.

        It then works in this process alone, and needs no optimiser where the original has one.
        """

    # -- saving ------------------------------------------------------------------------------------

    @property
    def argument(self) -> Any:
        """The value of ``DFA(feedback=...)`` that, with :meth:`state_dict`, makes a copy."""
        return self.type_name

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, loadable with ``torch.load(weights_only=True)``."""
        return {
            "kind": self.type_name,
            "scale": self.scale,
            "seed": self.seed,
            "matrices": self._copied(),
            "learner": None,
        }

    def _copied(self) -> dict[str, Tensor]:
        return {name: matrix.clone() for name, matrix in self.matrices.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], current: FeedbackWeights) -> FeedbackWeights:
        """Return feedback of this type with the matrices of a state.

        Args:
            state: What :meth:`state_dict` of this type returned.
            current: The feedback that it replaces, of any type; it stays unchanged. Its shapes,
                observer and optimiser are taken over.

        Raises:
            FeedbackError: if the state is of another network.
        """
        given = cls._given(current)
        loaded = cls(state["kind"], state["scale"], state["seed"], current.forward, given)
        loaded.shapes, loaded.path = dict(current.shapes), dict(current.path)
        loaded.observer, loaded.optimizer = current.observer, current.optimizer
        for name, matrix in state["matrices"].items():
            check_tensor(name, matrix)
            loaded._check_saved(name, matrix, current)
        try:
            loaded._load(state)
        except KeyError as error:
            raise FeedbackError(
                f"state_dict: expected a state of {state['kind']!r} as this version of snn_dfa "
                f"saves it, got one without {error}; save it anew, or load it with the version "
                f"that has saved it"
            ) from error
        return loaded

    @classmethod
    def _given(cls, current: FeedbackWeights) -> Any:
        """Return what the constructor needs and no state can hold."""
        return None

    def _load(self, state: Mapping[str, Any]) -> None:
        self.matrices = {n: matrix.detach().clone() for n, matrix in state["matrices"].items()}

    def _check_saved(self, name: str, matrix: Tensor, current: FeedbackWeights) -> None:
        """Raise an error if a saved matrix is of another network."""
        known = None if current.by_weight else current.matrices.get(name)
        if known is not None and known.shape != matrix.shape:
            raise FeedbackError(
                f"state_dict: layer {name!r} has feedback of shape {list(known.shape)}, got "
                f"{list(matrix.shape)}: the checkpoint is of another network"
            )


def check_tensor(name: str, matrix: object) -> None:
    """Check that a user's matrix is a tensor of floating point numbers.

    Raises:
        FeedbackError: if not.
    """
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        raise FeedbackError(
            f"feedback[{name!r}]: expected a floating point tensor [C, *spike shape], got "
            f"{matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__}"
        )


def _fits(matrix: torch.Size, wanted: tuple[int, ...]) -> bool:
    """Whether a matrix has the shape, or 1 in place of dimensions after the second."""
    return (
        len(matrix) == len(wanted)
        and tuple(matrix[:2]) == wanted[:2]
        and all(m in (1, w) for m, w in zip(matrix[2:], wanted[2:], strict=True))
    )


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def unfollowed() -> None:
    """Return no optimiser: none was ever followed."""
