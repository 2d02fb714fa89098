"""The one class that a user needs: direct feedback alignment, attached and taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snn_dfa._credit import credits_at_current
from snn_dfa._discover import Layers, find_layers
from snn_dfa._hooks import is_attached
from snn_dfa._wiring import Wiring
from snn_dfa.errors import AttachError, FeedbackError
from snn_dfa.feedback import Feedback, FeedbackBank
from snn_dfa.rules import RULES

__all__ = ["DFA"]

_CREDITS = ("membrane", "current")


class DFA:
    r"""Direct feedback alignment (DFA) on a snnTorch network, from here on and until ``remove()``.

    Forward values do not change. In ``loss.backward()`` the output block (everything after the
    last hidden spikes) gets its true gradient, and each hidden block (from the spikes of the
    layer below to its own) the gradient of its own graph with e B at its spikes, where
    e = dL/d(output), per time step, is whatever the loss gives, and B is the layer's fixed random
    matrix. No error passes through a transposed forward weight, and no such product is computed.

    Args:
        net: Any network of snnTorch neurons; the loop over time may be around it or inside.
        output: Name or module of the output layer, where it is not the spiking neuron that is
            called last; may be a plain readout such as ``nn.Linear``.
        hidden: Names or modules of the hidden layers, where they are not all other
            ``snntorch.SpikingNeuron``.
        rule: What is broadcast: ``"error"``, or ``"shallow"`` for nothing (only the output block
            learns; hidden parameters keep ``grad=None``).
        feedback: ``"gaussian"``, fixed; ``"kolen-pollack"``, or a :class:`KolenPollack` with its
            options, for matrices that learn; or a mapping of layer name to a fixed tensor [C, \*S]:
            C outputs, S the shape of one sample's spikes in that layer.
        scale: Factor on the feedback's standard deviation 1 / sqrt(N), N neurons in the layer.
        credit: How a layer turns e B at its spikes into a gradient at its input. ``"membrane"``:
            by the neuron's own surrogate and its membrane through time, as autograd does inside
            the layer. ``"current"``: times g at the input current of the same step; input,
            current and spikes are all that is kept. The output neuron then uses g, too.
        derivative: g for ``credit="current"``, a function of current - threshold; ``None`` for
            the derivative of the neuron's surrogate. An arbitrary g is augmented DFA.
        seed: Of the feedback. A layer's matrix depends on the seed, its name and its shape.

    Raises:
        AttachError: if the network or an argument cannot be used; the network is then untouched.
        FeedbackError: if ``feedback`` is of a wrong kind, or, at the first forward pass, shape.

    Sources: Nøkland 2016, arXiv 1609.01596 (DFA); Zhang et al. 2024, arXiv 2409.07776, and
    Nakajima et al. 2022, Nat. Commun. 13 (augmented DFA, spiking).

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True),
        ...     nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True),
        ... )
        >>> dfa = DFA(net)
        >>> spk = torch.stack([net(x) for x in torch.rand(5, 3, 4)])  # T=5, B=3
        >>> spk.sum().backward()
        >>> {name: tuple(B.shape) for name, B in dfa.feedback.items()}
        {'1': (2, 8)}
        >>> dfa.remove()
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        output: str | nn.Module | None = None,
        hidden: Iterable[str | nn.Module] | None = None,
        rule: str = "error",
        feedback: Feedback = "gaussian",
        scale: float = 1.0,
        credit: str = "membrane",
        derivative: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if rule not in RULES:
            raise AttachError(f"rule: expected one of {sorted(RULES)}, got {rule!r}")
        if credit not in _CREDITS:
            raise AttachError(f"credit: expected one of {sorted(_CREDITS)}, got {credit!r}")
        if derivative is not None and credit != "current":
            raise AttachError(
                f"derivative: expected credit='current' with it, got credit={credit!r}; with "
                f"credit='membrane' give the neuron another spike_grad instead"
            )
        layers = find_layers(net, output, hidden)
        if is_attached(net):
            raise AttachError(
                "net: expected a network without DFA, got one that has it; call remove() on the "
                "DFA that is attached"
            )
        if isinstance(feedback, Mapping):
            _check_names(feedback, layers, "feedback")
        self._bank = FeedbackBank(feedback, scale, seed)
        at_current = credits_at_current(layers, derivative) if credit == "current" else {}
        self._net = net
        self._options = {"rule": rule, "credit": credit, "derivative": derivative}
        # What hidden= gave, by name, so that a copy or an unpickled DFA can be attached alike.
        self._named_hidden = None if hidden is None else layers.hidden
        self._attached = True
        self._wiring = Wiring(net, layers, self._bank, RULES[rule], at_current)

    @property
    def output(self) -> str | None:
        """Name of the output layer; ``None`` until the first forward pass has shown which it is."""
        return self._wiring.layers.output

    @property
    def hidden(self) -> tuple[str, ...]:
        """Names of the hidden layers; empty until the output is known."""
        return tuple(self._wiring.layers.hidden)

    @property
    def feedback(self) -> Mapping[str, Tensor]:
        r"""Layer name to feedback matrix [C, \*S], in the network's dtype and on its device.

        A drawn matrix is there once a forward pass has shown the layer's shape.
        """
        tensors = chain(self._net.parameters(), self._net.buffers())
        like = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
        names = [n for n in self._wiring.layers.modules if n in self._bank.matrices]
        return MappingProxyType({name: self._bank.moved(name, like) for name in names})

    def remove(self) -> None:
        """Take everything off: the network is the plain snnTorch network that it was."""
        self._wiring.remove()
        self._attached = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Back-propagation through time inside the ``with`` block, DFA again after it.

        It acts on the forward passes inside the block: a graph keeps the kind that it was built
        with.
        """
        before, self._wiring.active = self._wiring.active, False
        try:
            yield
        finally:
            self._wiring.active = before

    def __enter__(self) -> DFA:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the feedback, tensors and plain values, to be saved beside the network's state."""
        return self._bank.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved feedback.

        Raises:
            FeedbackError: if it is of another network; nothing is changed then.
        """
        _check_names(state.get("matrices", {}), self._wiring.layers, "state_dict")
        self._bank.load_state_dict(state)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the network with it, and attach anew to that."""
        options = {**self._options, "output": self.output, "hidden": self._named_hidden}
        return _rebuild, (self._net, options, self.state_dict(), self._attached)

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self._options.items() if v is not None)
        state = f"output={self.output!r}, hidden={self.hidden}" if self._attached else "removed"
        return f"DFA({options}, feedback={self._bank.kind!r}, {state})"


def _rebuild(net: nn.Module, options: dict[str, Any], state: dict[str, Any], attached: bool) -> DFA:
    dfa = DFA(net, **options)
    dfa.load_state_dict(state)
    if not attached:
        dfa.remove()
    return dfa


def _check_names(names: Iterable[str], layers: Layers, argument: str) -> None:
    """Refuse matrices for layers that are not hidden ones of this network."""
    known = [n for n in layers.modules if n != layers.output]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise FeedbackError(
            f"{argument}: expected matrices for hidden layers, among {known}, got one for "
            f"{unknown[0]!r}"
        )
