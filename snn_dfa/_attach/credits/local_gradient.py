"""The credit `current`: from the error at a layer's spikes to the gradient at its current."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from snn_dfa._attach.credits.functions import AtCurrent, CurrentCredit
from snn_dfa._attach.layers import is_spiking
from snn_dfa.errors import AttachError
from snn_dfa.rules import RULES
from snn_dfa.sequence import Scan
from snn_dfa.sequence.scan import credit_at_current
from snn_dfa.surrogate import derivative_of, recognise

__all__ = ["LocalGradient", "check_choices"]


_CREDITS = ("current", "membrane", "trace")


def check_choices(rule: str, credit: str, derivative: Callable[[Tensor], Tensor] | None) -> None:
    """Refuse names that are unknown, and a derivative that nothing would use.

    Raises:
        AttachError: naming the argument.
    """
    if rule not in RULES:
        raise AttachError(f"rule: expected one of {sorted(RULES)}, got {rule!r}")
    if credit not in _CREDITS:
        raise AttachError(
            f"credit: expected one of {list(_CREDITS)} ('trace' is 'online', too), got {credit!r}"
        )
    if derivative is not None and credit != "current":
        raise AttachError(
            f"derivative: expected credit='current' with it, got credit={credit!r}; with "
            f"credit='membrane' give the neuron another spike_grad instead"
        )


class LocalGradient:
    """Makes a layer's values functions of the current of the same step alone.

    Args:
        modules: The layers by name.
        outputs: Those that are outputs.
        derivative: The slope; ``None`` for that of each neuron's surrogate.

    Raises:
        AttachError: if a layer has no slope to give, or parameters that would get no gradient.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        outputs: Sequence[str],
        derivative: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._layers = _layers(modules, outputs)
        self._derivative = derivative
        self.cuts: Container[str] = self._layers  # a plain readout keeps its own graph
        self._current: Tensor | None = None
        self._at_current: AtCurrent
        # What each layer's module left last: a neuron may hold its membrane by a weak reference.
        self._kept: dict[str, list[Tensor]] = {}

    def before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Note the current, and how the neuron is now: the program may change it for a later step.

        Raises:
            AttachError: if a parameter of the neuron learns by now, which would get no gradient.
        """
        neuron = self._layers.get(name)
        if neuron is not None:
            _see_that_none_learns(name, neuron)
            self._current = args[0]
            self._at_current = _credit(neuron, isinstance(module, Scan), self._derivative)
        return args, kwargs

    def after(self, name: str, module: nn.Module, values: list[Tensor]) -> list[Tensor]:
        """Return the values as functions of the current."""
        current, self._current = self._current, None
        self._kept[name] = values
        if current is None or not current.requires_grad:
            return values
        alike = [v for v in values if v.shape == values[0].shape]
        bare = [v.detach() for v in alike]  # the module goes on with its own as they are
        made = CurrentCredit.apply(self._at_current, current, *bare)
        by_id = {id(old): new for old, new in zip(alike, made, strict=True)}
        return [by_id.get(id(v), v) for v in values]


def _layers(modules: Mapping[str, nn.Module], outputs: Sequence[str]) -> dict[str, Any]:
    """Return the neurons by layer, but for a plain readout."""
    found = {}
    for name, module in modules.items():
        if not is_spiking(module):
            if name in outputs:
                continue  # a plain readout keeps its own graph
            raise AttachError(
                f"credit='current': hidden layer {name!r} is a {type(module).__name__}, expected a "
                f"snntorch.SpikingNeuron, whose threshold and surrogate it needs; use 'membrane'"
            )
        neuron: Any = module.neuron if isinstance(module, Scan) else module
        _see_that_none_learns(name, neuron)
        found[name] = neuron
    return found


def _see_that_none_learns(name: str, neuron: nn.Module) -> None:
    if not any([p.requires_grad for p in neuron.parameters()]):
        return
    learns = next(n for n, p in neuron.named_parameters() if p.requires_grad)
    raise AttachError(
        f"credit='current' gives no gradient to parameters of the neuron itself, but "
        f"{f'{name}.{learns}'!r} has requires_grad=True; set it to False, or use credit='membrane'"
    )


def _credit(
    neuron: Any, in_one_pass: bool, derivative: Callable[[Tensor], Tensor] | None
) -> AtCurrent:
    """Return (error at the spikes, current) -> error * g(current - threshold) * size of a spike.

    It has the numbers that the neuron has now.

    Args:
        neuron: The neuron.
        in_one_pass: Whether it runs over whole sequences.
        derivative: The slope g; ``None`` for that of the neuron's surrogate.
    """
    surrogate = recognise(neuron.spike_grad) if in_one_pass and derivative is None else None
    if surrogate is not None:
        height, size = (t.detach().clone() for t in (neuron.threshold, neuron.graded_spikes_factor))

        def of_sequence(at_spikes: Tensor, current: Tensor) -> Tensor:
            at_spikes = at_spikes if bool((size == 1).all()) else at_spikes * size
            return credit_at_current(at_spikes, current, height, surrogate)

        return of_sequence
    threshold, factor = _kept(neuron.threshold), _kept(neuron.graded_spikes_factor)
    slope = derivative or derivative_of(neuron.spike_grad)

    def of_step(at_spikes: Tensor, current: Tensor) -> Tensor:
        return at_spikes * slope(current - threshold) * factor

    return of_step


def _kept(t: Tensor) -> Any:
    """Return what a tensor holds now; a number takes a tenth of the time of a copy."""
    return t.detach().clone() if t.dim() or t.device.type != "cpu" else t.item()
