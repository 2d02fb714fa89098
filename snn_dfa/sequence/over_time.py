"""The network whose layers each run over the whole sequence, and how it is made."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.errors import AttachError, InputError
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.sequence import spike_linear
from snn_dfa.sequence.scan import Dynamics, leaky_scan
from snn_dfa.state import reset
from snn_dfa.surrogate import recognise

__all__ = ["AtOnce", "OverTime", "Scan", "over_time"]


# They treat equal steps alike: for a constant current, one step serves all.
_ALIKE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Identity,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Scan(nn.Module):
    """A spiking neuron over a sequence: [T, B, ...] in and out, from rest.

    It gives what the neuron gives at a step, stacked over T.

    Args:
        neuron: Any of snnTorch's that keeps its state inside (``init_hidden=True``).

    Example:
        >>> Scan(snn.Leaky(beta=0.5, init_hidden=True))(torch.full((4, 1, 1), 0.6)).flatten()
        tensor([0., 0., 1., 0.])
    """

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron: Any = neuron
        # In half precision spikes stay half on the way to the next layer; those of the network's
        # last layer, which go into a loss, are in single precision as in the loop over time.
        self.is_last = False

    def forward(self, x: Tensor) -> Any:
        """Run the neuron over the sequence [T, B, ...]."""
        dynamics = dynamics_of(self.neuron)
        if dynamics is None:
            return self._step_by_step(x)
        alone = self.neuron.init_hidden and not self.neuron.output
        dtype = torch.promote_types(x.dtype, torch.float32) if self.is_last else x.dtype
        spikes, *mems = leaky_scan(x, dynamics, not alone, dtype)
        factor = self.neuron.graded_spikes_factor
        if not _is_one(factor):
            spikes = spikes * factor
        return spikes if alone else (spikes, *mems)

    def _step_by_step(self, x: Tensor) -> Any:
        reset(self.neuron)
        steps = [self.neuron(step) for step in x]
        reset(self.neuron)  # its last state would keep the whole graph alive
        if isinstance(steps[0], Tensor):
            return torch.stack(steps)
        return tuple(torch.stack(states) for states in zip(*steps, strict=True))


def dynamics_of(neuron: Any) -> Dynamics | None:
    """Return the equations of a neuron that :func:`leaky_scan` knows; ``None`` for any other.

    Known are ``Leaky`` and ``RefractoryLeaky`` (not their subclasses, which may do anything) with
    the surrogates of this library, ``atan`` or ``fast_sigmoid``, where nothing in the neuron is
    learnt, quantised or inhibited and the threshold is above zero.
    """
    surrogate = recognise(neuron.spike_grad)
    refractory = type(neuron) is RefractoryLeaky
    if type(neuron) not in (snn.Leaky, RefractoryLeaky) or surrogate is None:
        return None
    if neuron.inhibition or neuron.state_quant or any(p.requires_grad for p in neuron.parameters()):
        return None
    if not bool((neuron.threshold > 0).all()):
        return None
    steps = neuron.refractory_steps if refractory else 0
    immediate_reset = not neuron.reset_delay
    if immediate_reset and not steps and neuron.reset_mechanism == "subtract":
        return None  # what is left above the threshold is then reset once more, one step later
    return Dynamics(
        beta=neuron.beta.clamp(0, 1),
        threshold=neuron.threshold,
        surrogate=surrogate,
        gain=neuron.input_gain if refractory else 1.0,
        reset=_mechanism(neuron),
        immediate_reset=immediate_reset,
        refractory_steps=steps,
        clamp=refractory and neuron.refractory == "clamp",
    )


def _mechanism(neuron: Any) -> str:
    """The reset that is at work: ``Leaky`` keeps the one that it was made with."""
    if isinstance(neuron, RefractoryLeaky):
        return neuron.reset_mechanism
    bound = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
    return bound[neuron.state_function.__name__]


def _is_one(factor: Tensor) -> bool:
    return factor.numel() == 1 and bool(factor == 1)


class AtOnce(nn.Module):
    """A stateless module on all T * B samples at once.

    Args:
        module: From [B, ...] to [B, ...], such as ``nn.Linear``.

    Example:
        >>> AtOnce(nn.Flatten())(torch.rand(25, 3, 1, 8, 8)).shape
        torch.Size([25, 3, 64])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Run the module on [T, B, ...]."""
        if x.stride(0) == 0 and isinstance(self.module, (*_ALIKE, *_DROPOUTS)):
            out = self.module(x[0])
            return out.expand(len(x), *out.shape)
        if isinstance(self.module, _DROPOUTS):
            return x * self.module(torch.ones_like(x[0])) if self.module.training else x
        if isinstance(self.module, nn.Linear) and _is_plain(self.module):
            return spike_linear.linear(x, self.module.weight, self.module.bias)
        before = _attributes(self.module)
        out = self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        _refuse_state(self.module, before)
        return out


def _attributes(module: nn.Module) -> dict[str, int]:
    """Return the tensors that modules of a user's own hold, buffers of torch's modules apart."""
    return {
        f"{name}.{key}".lstrip("."): id(value)
        for name, m in module.named_modules()
        if not type(m).__module__.startswith("torch.nn.")
        for key, value in (*m._buffers.items(), *vars(m).items())
        if isinstance(value, Tensor)
    }


def _refuse_state(module: nn.Module, before: dict[str, int]) -> None:
    """Raise an error for a module that has kept something for the next step."""
    kept = [k for k, value in _attributes(module).items() if before.get(k) != value]
    if kept:
        raise AttachError(
            f"over_time: a {type(module).__name__} keeps {kept[0]!r} from step to step, expected a "
            f"module without a state between the neurons, which sees all steps in one call; derive "
            f"the module from snntorch.SpikingNeuron, or loop over time around the network"
        )


def _is_plain(module: nn.Linear) -> bool:
    """Whether calling the module is ``linear(x, weight, bias)`` and nothing more."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is nn.Linear and not any(getattr(module, h) for h in hooks)


class OverTime(nn.Sequential):
    """What :func:`snn_dfa.over_time` returns: the layers of a network over the whole sequence.

    Args:
        net: The network whose state this is.
        layers: Name to layer over a sequence, in order.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), snn.Leaky(beta=0.9, init_hidden=True))
        >>> [type(layer).__name__ for layer in over_time(net)]
        ['AtOnce', 'Scan']
    """

    def __init__(self, net: nn.Module, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self._source = (net,)  # in a tuple: its parameters are registered once, by the layers
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        """Run all layers over the sequence [T, B, ...]."""
        if x.dim() < 3 or not len(x) or not x.is_floating_point():
            raise InputError(
                f"over_time: expected floating point numbers [T, B, ...] of one step or more, got "
                f"{x.dtype} of shape {list(x.shape)}"
            )
        return super().forward(x)  # type: ignore[no-untyped-call]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the network that this was made of."""
        return self._source[0].state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the network that this was made of, with which parameters are shared."""
        return self._source[0].load_state_dict(*args, **kwargs)


def over_time(net: nn.Sequential) -> OverTime:
    r"""Return ``net`` in a form that takes whole sequences and shares its parameters and buffers.

    The loop over time around the network becomes a loop inside each neuron: stateless modules see
    all T * B samples in one call. Values and gradients are those of the loop, from rest. A module
    that mixes the samples of a batch, such as batch normalisation, mixes over T * B: its
    statistics are over time and batch. Dropout draws one mask for the whole sequence.

    Layers keep their names, so that :class:`snn_dfa.DFA` draws the same feedback for both forms.
    Attach it to the form that is run.

    Args:
        net: ``nn.Sequential``, nested too, of snnTorch neurons and stateless modules. A network
            whose ``forward`` is a loop over time is brought into this form by writing its layers
            as an ``nn.Sequential``, with ``init_hidden=True`` in the neurons.

    Returns:
        A module that maps [T, B, ...] to the output spikes [T, B, C], or to what else the last
        neuron returns at a step, stacked over T.

    Raises:
        AttachError: if a module inside is neither, or a neuron is used twice.
        InputError: when it is called, if the input is not such a sequence.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), snn.Leaky(beta=0.9, init_hidden=True))
        >>> over_time(net)(torch.rand(25, 3, 4)).shape
        torch.Size([25, 3, 2])
    """
    form = OverTime(net, _layers(net, ""))
    neurons = [m.neuron for m in form.modules() if isinstance(m, Scan)]
    twice = next((n for n in neurons if neurons.count(n) > 1), None)
    if twice is not None:
        raise AttachError(
            f"over_time: expected each neuron once in the network, got a {type(twice).__name__} "
            f"that is used twice, whose one state would go from place to place at every step; make "
            f"one for each place"
        )
    last = [m for m in form.modules() if isinstance(m, Scan)][-1:]
    for scan in last:
        scan.is_last = True
    return form


def _layers(net: nn.Module, prefix: str) -> dict[str, nn.Module]:
    if not isinstance(net, nn.Sequential):
        raise AttachError(
            f"over_time: expected nn.Sequential, got {prefix or 'net'} of type "
            f"{type(net).__name__}, which holds spiking neurons; write its layers as an "
            f"nn.Sequential, with init_hidden=True in the neurons"
        )
    # Not named_children(), which gives a module that is used twice, such as a pooling, once.
    children = ((name, child) for name, child in net._modules.items() if child is not None)
    return {name: _layer(child, f"{prefix}{name}") for name, child in children}


def _layer(module: nn.Module, name: str) -> nn.Module:
    if isinstance(module, snn.SpikingNeuron):
        return Scan(module)
    if any(isinstance(m, snn.SpikingNeuron) for m in module.modules()):
        return OverTime(module, _layers(module, f"{name}."))
    return AtOnce(module)
