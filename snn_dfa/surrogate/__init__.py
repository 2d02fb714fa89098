"""Surrogate derivatives of the spike, for ``spike_grad=`` of any snnTorch neuron.

A surrogate is a small frozen object. Called on ``mem - threshold`` it returns the spike, 1 above
zero and 0 elsewhere, in the dtype that it was given; in the backward pass the step's derivative is
replaced by ``surrogate.derivative``, which is also there to be called as a plain function.
Surrogates can be pickled, compared and printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_dfa.errors import AttachError
from snn_dfa.surrogate.slopes import exact_derivative, fast_sigmoid_derivative

__all__ = [
    "ATan",
    "Exact",
    "FastSigmoid",
    "Surrogate",
    "derivative_of",
    "exact",
    "exact_derivative",
    "fast_sigmoid",
    "fast_sigmoid_derivative",
    "inline_form",
    "recognise",
]


class _Spike(torch.autograd.Function):
    """Heaviside step forward, a surrogate's derivative backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivative = derivative
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * ctx.derivative(x), None


class Surrogate:
    """Base of the surrogates here: a spike whose derivative the subclass gives.

    A frozen dataclass is a good subclass: it is printed, compared and pickled by its numbers.

    Example:
        >>> class Window(Surrogate):
        ...     def derivative(self, x):
        ...         return (x.abs() < 0.5).to(x.dtype)
        >>> x = torch.tensor([-0.2, 0.1, 2.0], requires_grad=True)
        >>> Window()(x).sum().backward()
        >>> x.grad
        tensor([1., 1., 0.])
    """

    def derivative(self, x: Tensor) -> Tensor:
        """Return the stand-in for the step's derivative at ``x = mem - threshold``."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Return the spikes, 1 where ``x > 0`` and 0 elsewhere, in the dtype of ``x``."""
        return _Spike.apply(x, self.derivative)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """Fast sigmoid surrogate; see :func:`fast_sigmoid_derivative` for the formula.

    Args:
        slope: Its steepness, above zero, per unit of the membrane.

    Raises:
        ValueError: if the slope is not above zero.

    Example:
        >>> import pickle, snntorch as snn
        >>> neuron = snn.Leaky(beta=0.9, spike_grad=FastSigmoid(slope=10))
        >>> pickle.loads(pickle.dumps(neuron)).spike_grad
        FastSigmoid(slope=10)
    """

    slope: float = 10.0

    def __post_init__(self) -> None:
        if not self.slope > 0:
            raise ValueError(f"slope: expected a number above zero, got {self.slope!r}")

    def derivative(self, x: Tensor) -> Tensor:
        """Return :func:`fast_sigmoid_derivative` with this slope."""
        return fast_sigmoid_derivative(x, self.slope)


@dataclass(frozen=True)
class Exact(Surrogate):
    """Exact surrogate of a refractory LIF neuron; see :func:`exact_derivative`.

    Its argument is meant to be a current (``credit="current"``). At a membrane it works too, but
    a membrane below the threshold then gets no gradient at all.

    Args:
        threshold: Of the neuron, above zero, in units of the current.
        tau: Membrane time constant, above zero.
        t_ref: Refractory period, zero or more, in the unit of ``tau``.
        eps: Distance to the threshold, in thresholds, below which the slope is held.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> Exact(threshold=0.1, tau=20.0, t_ref=1.0)(torch.tensor([-0.05, 0.05]))
        tensor([0., 1.])
    """

    threshold: float
    tau: float
    t_ref: float
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("threshold", "tau", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name}: expected a number above zero, got {getattr(self, name)!r}"
                )
        if not self.t_ref >= 0:
            raise ValueError(f"t_ref: expected zero or more, got {self.t_ref!r}")

    def derivative(self, x: Tensor) -> Tensor:
        """Return :func:`exact_derivative` with these constants."""
        return exact_derivative(x, self.threshold, self.tau, self.t_ref, self.eps)


@dataclass(frozen=True)
class ATan(Surrogate):
    r"""snnTorch's arctangent surrogate, its default, in this module's form.

    The slope is :math:`\frac{\alpha}{2} / (1 + (\frac{\pi}{2} \alpha x)^2)`, its peak alpha / 2.

    Args:
        alpha: Its steepness, as in ``snntorch.surrogate.atan``.

    Source: Fang et al. 2021, Proc. ICCV, pp. 2661-2671, as snnTorch has it.

    Example:
        >>> ATan(alpha=2.0).derivative(torch.zeros(1))
        tensor([1.])
    """

    alpha: float = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        """Return the slope at ``x = mem - threshold``."""
        width = 2 / self.alpha  # in one piece of memory, since loops over time call it every step
        return (math.pi / width * x).square_().mul_(width).add_(width).reciprocal_()


def recognise(spike_grad: Any) -> Surrogate | None:
    """Return a ``spike_grad`` as a :class:`Surrogate` if it is one or is known to equal one.

    snnTorch's factories return closures; those of ``atan`` and ``fast_sigmoid`` are told by their
    qualified names.

    Args:
        spike_grad: What a snnTorch neuron takes as ``spike_grad=``.

    Returns:
        The surrogate; ``None`` for any other callable.

    Example:
        >>> import snntorch.surrogate
        >>> recognise(snntorch.surrogate.atan(alpha=2.0))
        ATan(alpha=2.0)
    """
    if isinstance(spike_grad, Surrogate):
        return spike_grad
    known = {"atan.<locals>.inner": ATan, "fast_sigmoid.<locals>.inner": FastSigmoid}
    kind = known.get(getattr(spike_grad, "__qualname__", ""))
    if kind is None or getattr(spike_grad, "__module__", "") != "snntorch.surrogate":
        return None
    (parameter,) = (cell.cell_contents for cell in spike_grad.__closure__)
    return kind(parameter)


def inline_form(surrogate: Surrogate) -> tuple[str, float]:
    """Return the name of a slope that the compiled scans compute themselves, and its constant.

    Args:
        surrogate: Any.

    Returns:
        Name and constant; ``("", 0.0)`` for one that they do not know, whose values they are given.

    Example:
        >>> inline_form(ATan(alpha=2.0))
        ('atan', 1.0)
    """
    # A subclass may have a derivative of its own.
    if isinstance(surrogate, FastSigmoid) and type(surrogate) is FastSigmoid:
        return "fast_sigmoid", surrogate.slope
    if isinstance(surrogate, ATan) and type(surrogate) is ATan:
        return "atan", surrogate.alpha / 2
    return "", 0.0


def fast_sigmoid(slope: float = 10.0) -> FastSigmoid:
    """Return a :class:`FastSigmoid`, named as snnTorch names its factories.

    Args:
        slope: Its steepness, above zero.

    Example:
        >>> fast_sigmoid(slope=25)
        FastSigmoid(slope=25)
    """
    return FastSigmoid(slope)


def exact(threshold: float, tau: float, t_ref: float) -> Exact:
    """Return an :class:`Exact`.

    Args:
        threshold: Of the neuron, above zero.
        tau: Membrane time constant.
        t_ref: Refractory period, in the unit of ``tau``.

    Example:
        >>> exact(threshold=0.1, tau=20.0, t_ref=1.0)
        Exact(threshold=0.1, tau=20.0, t_ref=1.0, eps=1e-06)
    """
    return Exact(threshold, tau, t_ref)


def derivative_of(spike_grad: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the derivative of any ``spike_grad`` as a plain function of ``mem - threshold``.

    A surrogate of this module is asked for its own; any other callable, such as those of
    ``snntorch.surrogate``, is differentiated by autograd on a detached copy.

    Args:
        spike_grad: What a snnTorch neuron takes as ``spike_grad=``.

    Raises:
        AttachError: when called, if ``spike_grad`` has no derivative (``surrogate_disable=True``).

    Example:
        >>> import snntorch.surrogate
        >>> derivative_of(snntorch.surrogate.atan(alpha=2.0))(torch.zeros(1))
        tensor([1.])
    """
    own = getattr(spike_grad, "derivative", None)
    if callable(own):
        return own

    def differentiate(x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            spikes = spike_grad(at)
            if not spikes.requires_grad:
                raise AttachError(
                    "credit='current': the neuron's spike function has no derivative (expected a "
                    "surrogate, got surrogate_disable or a plain step); give DFA a derivative="
                )
            (slope,) = torch.autograd.grad(spikes.sum(), at)
        return slope

    return differentiate
