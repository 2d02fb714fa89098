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


def fast_sigmoid_derivative(x: Tensor, slope: float = 10.0) -> Tensor:
    r"""Slope of the fast sigmoid, :math:`1 / (1 + k |x|)^2`; its peak, at 0, is 1.

    Args:
        x: Distance to the threshold, any shape.
        slope: The steepness k, per unit of ``x``.

    Returns:
        The derivative, same shape and dtype as ``x``.

    Source: Zenke and Ganguli 2018, SuperSpike, Neural Computation 30(6).

    Example:
        >>> fast_sigmoid_derivative(torch.tensor([0.0, 0.1]), slope=10.0)
        tensor([1.0000, 0.2500])
    """
    return (slope * x.abs() + 1).square().reciprocal()


def exact_derivative(
    x: Tensor, threshold: float, tau: float, t_ref: float, eps: float = 1e-6
) -> Tensor:
    r"""Slope of the stationary rate of a refractory LIF neuron, as a function of its current.

    With the current a and :math:`x = a - \theta > 0` the rate, in units of its maximum
    :math:`1 / t_\mathrm{ref}`, has the slope (Zhang et al. 2024, arXiv 2409.07776, eq. A.9)

    .. math::
        f'(a) = \frac{\theta\, t_\mathrm{ref}\, \tau}{a\, x}
                \left[t_\mathrm{ref} + \tau \ln(1 + \theta / x)\right]^{-2}

    and 0 for a <= threshold. It is written with ``log1p`` of theta / x, which keeps its digits at
    both ends, where the published log(a / (a - theta)) loses them.

    The slope diverges as a falls to the threshold. It is held at the value that it has at
    x = ``eps`` * threshold. What is cut off is small: the slope's integral up to there is the
    rate there, ``t_ref / (t_ref + tau log(1 + 1/eps))``, 0.4 % of the maximal rate for
    tau / t_ref = 20 and the default ``eps``.

    Args:
        x: Current minus threshold, any shape, in units of the threshold.
        threshold: The threshold theta, above zero.
        tau: Membrane time constant, in the same unit of time as ``t_ref``.
        t_ref: Refractory period; with 0 the slope is zero everywhere.
        eps: Distance to the threshold, in thresholds, below which the slope is held.

    Returns:
        The derivative, same shape and dtype as ``x``.

    Example:
        >>> exact_derivative(torch.tensor([-0.1, 0.1]), threshold=0.1, tau=20.0, t_ref=1.0)
        tensor([0.0000, 0.4527])
    """
    near = x.clamp(min=eps * threshold)
    interval = t_ref + tau * torch.log1p(threshold / near)
    slope = threshold * t_ref * tau / (near * (near + threshold) * interval.square())
    return torch.where(x > 0, slope, torch.zeros_like(slope))


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
    """Base of the surrogates here: a spike whose derivative the subclass gives."""

    def derivative(self, x: Tensor) -> Tensor:
        """Return the stand-in for the step's derivative at ``x = mem - threshold``."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Return the spikes, 1 where ``x > 0`` and 0 elsewhere, in the dtype of ``x``."""
        return _Spike.apply(x, self.derivative)


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """Fast sigmoid surrogate; see :func:`fast_sigmoid_derivative` for the formula.

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

    Example:
        >>> ATan(alpha=2.0).derivative(torch.zeros(1))
        tensor([1.])
    """

    alpha: float = 2.0

    def derivative(self, x: Tensor) -> Tensor:
        """Return the slope at ``x = mem - threshold``."""
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x).square())


def recognise(spike_grad: Any) -> Surrogate | None:
    """Return a ``spike_grad`` as a :class:`Surrogate` if it is one or is known to equal one.

    snnTorch's factories return closures; those of ``atan`` and ``fast_sigmoid`` are told by their
    qualified names.

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

    ``("", 0.0)`` for any other: they are then given its values.

    Example:
        >>> inline_form(ATan(alpha=2.0))
        ('atan', 1.0)
    """
    if isinstance(surrogate, FastSigmoid):
        return "fast_sigmoid", surrogate.slope
    if isinstance(surrogate, ATan):
        return "atan", surrogate.alpha / 2
    return "", 0.0


def fast_sigmoid(slope: float = 10.0) -> FastSigmoid:
    """Return a :class:`FastSigmoid`, named as snnTorch names its factories.

    Example:
        >>> fast_sigmoid(slope=25)
        FastSigmoid(slope=25)
    """
    return FastSigmoid(slope)


def exact(threshold: float, tau: float, t_ref: float) -> Exact:
    """Return an :class:`Exact`; ``tau`` and ``t_ref`` share a unit of time.

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
