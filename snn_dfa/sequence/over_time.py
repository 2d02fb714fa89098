"""The network whose layers each run over the whole sequence, and how it is made."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.errors import AttachError
from snn_dfa.sequence import spike_linear
from snn_dfa.sequence.any_network import Modules, TimeAsBatch, is_the_users
from snn_dfa.sequence.attached import see_that_no_hook_is_left_out, see_that_none_is_at_work
from snn_dfa.sequence.flat_scan import see_that_it_is_a_sequence, twice
from snn_dfa.sequence.neuron import Scan
from snn_dfa.sequence.products import fast_product

__all__ = ["AtOnce", "OverTime", "over_time"]


# They treat equal steps alike: for a constant current, one step serves all.
_ALIKE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Identity,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
)  # fmt: skip
# Of these oneDNN has its own convolutions; those for doubles gain nothing by another format.
_CHANNELS_LAST = (torch.float32, torch.bfloat16)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TAKE_SEQUENCES = (snn.StateLeaky, snn.AssociativeLeaky, snn.LeakyParallel)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Modules of torch that may mix what is along the first dimension; the user's own may, too.
_MAY_MIX = (
    nn.LogSoftmax, nn.MultiheadAttention, nn.RNNBase, nn.Softmax, nn.Softmin,
    nn.TransformerDecoderLayer, nn.TransformerEncoderLayer,
)  # fmt: skip


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
            out = self._run(x[0])
            return out.expand(len(x), *out.shape)
        if isinstance(self.module, _DROPOUTS):
            return x * self.module(torch.ones_like(x[0])) if self.module.training else x
        if isinstance(self.module, nn.Linear) and _is_plain(self.module):
            return spike_linear.linear(x, self.module.weight, self.module.bias)
        before = _attributes(self.module)
        out = self._run(x.flatten(0, 1))
        out = out.reshape(*x.shape[:2], *out.shape[1:])
        _refuse_state(self.module, before)
        return out

    def _run(self, x: Tensor) -> Tensor:
        """Run the module on [B, ...]."""
        if type(self.module) is nn.Conv2d:
            x = _channels_last(x)
        elif type(self.module) not in _ALIKE:
            x = x.contiguous()  # a module may ask for a view of what it gets
        weight = getattr(self.module, "weight", None)
        if isinstance(self.module, _PRODUCTS) and isinstance(weight, Tensor):
            return fast_product(self.module, x, weight)
        result: Tensor = self.module(x)
        return result


def _channels_last(x: Tensor) -> Tensor:
    """Return [B, C, H, W] with its channels last in memory, where convolutions are faster so.

    What a convolution gets so it gives so, and pooling and neurons leave it so: there are no
    copies between layers.
    """
    if x.dim() != 4 or x.device.type != "cpu" or x.dtype not in _CHANNELS_LAST:
        return x
    if x.shape[1] == 1:  # a view: strides alone tell this format of one channel from the other
        if x.requires_grad:
            return x  # between layers DFA reads the graph, in which views keep numbers in order
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


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
    hooked = any(getattr(module, h) for h in hooks) or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked


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
        self._made_of = Modules(net)
        self._compared: tuple[TimeAsBatch, ...] = ()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, input: Any = None, *, x: Any = None) -> Any:
        """Run all layers over the sequence [T, B, ...], which has the name of ``nn.Sequential``."""
        x = input if x is None else x
        see_that_it_is_a_sequence(x)
        self._made_of.check()
        see_that_none_is_at_work(self._source[0])
        see_that_no_hook_is_left_out(self._source[0])
        for form in self._compared:
            form.compare(x)
        return super().forward(x)  # type: ignore[no-untyped-call]

    def compare_by(self, form: TimeAsBatch) -> None:
        """Compare with the loop as another form of the network does, which is not run."""
        self._compared = (form,)  # in a tuple: it is no layer

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the network that this was made of."""
        return self._source[0].state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the network that this was made of, with which parameters are shared."""
        return self._source[0].load_state_dict(*args, **kwargs)


def over_time(
    net: nn.Module, *, stateful: bool = False, check: bool = True
) -> OverTime | TimeAsBatch:
    r"""Return ``net`` in a form that takes whole sequences and shares its parameters and buffers.

    The loop over time around or inside the network becomes a loop inside each neuron: all else
    sees the T * B samples in one call. Values and gradients are those of the loop, from rest. A
    module that mixes the samples of a batch, such as batch normalisation in training, mixes over
    T * B: its statistics are over time and batch. A dropout module draws one mask for the whole
    sequence.

    An ``nn.Sequential`` of neurons and stateless modules is run layer by layer. In any other
    network ``forward`` itself is run once. It may be one step, or loop over its input's first
    dimension; it may use functions, branches, tuples, hidden states, and explicit states that it
    hands from step to step. It must not mix samples, depend on the number of the step, or keep a
    state outside its neurons.

    Layers keep their names, so that :class:`snn_dfa.DFA` draws the same feedback for both forms.
    Attach it to the form that is run.

    Args:
        net: The network. All neurons must be those of snnTorch that take a step a call, or derived
            from ``snntorch.SpikingNeuron``.
        stateful: Begin each call with the states that the last one has left, until
            :func:`snn_dfa.reset`; no gradient goes from one call into another. A loop inside the
            network that begins with ``reset_mem()`` begins with these states, too.
        check: At the first call of a network that is no ``nn.Sequential`` of torch's modules and
            neurons, compare up to 100 steps of four samples with the loop, values and gradients, on
            copies with shaken parameters. That costs about as much time as two training steps of
            the loop on four samples in double precision, and memory for copies of the network. It
            is done again for a longer sequence, in another mode, and where an argument or an
            attribute that is a switch has another value: a bool, a text, None, a member of an Enum,
            or a whole number, which counts for the first 16 ways. It cannot see what depends on
            other values, what shows only after 100 steps, or what random numbers the network draws
            in training.

    Returns:
        A module that maps [T, B, ...] to the output spikes [T, B, C], or to what else the network
        returns at a step, stacked over T. Further arguments go to the network as they are: states
        [B, ...] are those before the first step.

    Raises:
        AttachError: if a neuron takes sequences itself, or is used twice; at the first call, if the
            network cannot be run so; at any call, if its modules are others than they were.
        InputError: when it is called, if the input is not such a sequence.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), snn.Leaky(beta=0.9, init_hidden=True))
        >>> over_time(net)(torch.rand(25, 3, 4)).shape
        torch.Size([25, 3, 2])
        >>> class Residual(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc, self.lif = nn.Linear(4, 4), snn.Leaky(beta=0.9, init_hidden=True)
        ...     def forward(self, x):
        ...         return x + self.lif(torch.relu(self.fc(x)))
        >>> over_time(Residual())(torch.rand(25, 3, 4)).shape
        torch.Size([25, 3, 4])
    """
    if not isinstance(net, nn.Module) or isinstance(net, snn.SpikingNeuron):
        raise AttachError(f"over_time: expected a network, got a {type(net).__name__}")
    whole = next((n for n, m in net.named_modules() if isinstance(m, _TAKE_SEQUENCES)), None)
    if whole is not None:
        raise AttachError(
            f"over_time: neuron {whole!r} of type {type(net.get_submodule(whole)).__name__} takes "
            f"a whole sequence [T, B, ...] already, expected neurons that take one time step; "
            f"leave over_time out, and call the network with the sequence"
        )
    if not _is_sequential(net):
        return TimeAsBatch(net, stateful, check)
    form = OverTime(net, _layers(net, stateful))
    scans = [m for m in form.modules() if isinstance(m, Scan)]
    neurons = [scan.neuron for scan in scans]
    shared = next((n for n in neurons if neurons.count(n) > 1), None)
    if shared is not None:
        raise twice(shared)
    for scan in scans[-1:]:
        scan.is_last = True
    if check and any(map(_may_mix, net.modules())):
        form.compare_by(TimeAsBatch(net, stateful))
    return form


def _may_mix(module: nn.Module) -> bool:
    """Return whether a module may mix samples, keep a state, or depend on the step."""
    own = is_the_users(module) and type(module).forward is not nn.Sequential.forward
    return own or isinstance(module, _MAY_MIX)


def _spikes(module: nn.Module) -> bool:
    return any(isinstance(m, snn.SpikingNeuron) for m in module.modules())


def _is_sequential(module: nn.Module) -> bool:
    """Return whether no module that holds neurons has a ``forward`` of its own."""
    if type(module).forward is not nn.Sequential.forward:
        return False
    inner = (child for child in module.children() if _spikes(child))
    return all(isinstance(m, snn.SpikingNeuron) or _is_sequential(m) for m in inner)


def _layers(net: nn.Module, stateful: bool) -> dict[str, nn.Module]:
    # Not named_children(), which gives a module that is used twice, such as a pooling, once.
    children = ((name, child) for name, child in net._modules.items() if child is not None)
    return {name: _layer(child, stateful) for name, child in children}


def _layer(module: nn.Module, stateful: bool) -> nn.Module:
    if isinstance(module, snn.SpikingNeuron):
        return Scan(module, stateful)
    if _spikes(module):
        return OverTime(module, _layers(module, stateful))
    return AtOnce(module)
