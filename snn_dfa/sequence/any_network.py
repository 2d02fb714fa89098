"""Any network over a sequence: its own ``forward`` runs once, on T * B samples.

The network's modules are not changed. A twin of each module that holds neurons shares its
parameters, buffers, hooks and attributes, and has in place of each neuron one that scans over T. So
the network's own code runs as it is, with functions, branches and states between the modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from snn_dfa.errors import AttachError
from snn_dfa.sequence import spike_linear
from snn_dfa.sequence.attached import see_that_none_is_at_work
from snn_dfa.sequence.flat_scan import FlatScan, Layout, see_that_it_is_a_sequence

__all__ = [
    "LONGEST",
    "Modules",
    "OneMask",
    "SpikeLinear",
    "TimeAsBatch",
    "is_the_users",
    "own_attributes",
]

#: So many steps of a sequence are compared with the loop, at most.
LONGEST = 100
#: After so many ways the numbers are those of a counter, which has another one at each call.
_WAYS = 16
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NORMS: Any = nn.modules.batchnorm._NormBase
_DRAW: Any = nn.modules.dropout._DropoutNd
_BARE = frozenset(vars(nn.Module()))  # the attributes that each module has
_NONE: Mapping[str, Any] = MappingProxyType({})
# Attributes that a twin has for itself: the modules, and what stands in place of its forward.
_OWN = ("_modules", "forward")


def is_the_users(module: nn.Module) -> bool:
    """Return whether a module's class is the user's own, and does not draw or normalise.

    Args:
        module: Of a network.

    Example:
        >>> is_the_users(nn.Linear(2, 2))
        False
    """
    home = type(module).__module__.partition(".")[0]
    known = isinstance(module, (_NORMS, _DRAW, snn.SpikingNeuron))
    return not known and home not in ("torch", "snntorch", "snn_dfa")


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes beside those that each module has.

    Args:
        module: Of a network.

    Example:
        >>> own_attributes(nn.Linear(2, 3))
        {'in_features': 2, 'out_features': 3}
    """
    return {name: value for name, value in vars(module).items() if name not in _BARE}


def _first_argument(net: nn.Module) -> str:
    """Return the name of the first argument of a network's forward."""
    return next(iter(inspect.signature(net.forward).parameters), "")


class SpikeLinear(nn.Linear):
    """A ``nn.Linear`` that is faster where its input is few spikes.

    Args:
        in_features: See ``nn.Linear``, as for all arguments.
        out_features: Size of a sample of the output.
        bias: Whether there is one.
        device: Of the parameters.
        dtype: Of the parameters.

    Example:
        >>> SpikeLinear(2, 3)(torch.eye(2)).shape
        torch.Size([2, 3])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return what ``nn.Linear`` gives, but for rounding."""
        return spike_linear.linear(input, self.weight, self.bias)


class OneMask(nn.Module):
    """A dropout that draws one mask for a sequence, on [T * B, ...].

    Args:
        module: ``nn.Dropout`` or one for channels.
        layout: Shared with the network.

    Example:
        >>> drop = OneMask(nn.Dropout(0.5), Layout(steps=2, batch=3, running=True))
        >>> x = drop(torch.ones(6, 4))
        >>> bool((x[:3] == x[3:]).all())
        True
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.module, self.layout = module, layout

    def forward(self, input: Tensor) -> Tensor:
        """Run the dropout."""
        steps, batch = self.layout.steps, self.layout.batch
        if not self.layout.running or not self.module.training or len(input) != steps * batch:
            result: Tensor = self.module(input)
            return result
        x = self.layout.first_dimension(input)
        return (x * self.module(torch.ones_like(x[0]))).flatten(0, 1)


class Modules:
    """The modules of a network as they were when a form was made of it.

    Args:
        net: The network.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> made_of = Modules(net)
        >>> made_of.check()
    """

    def __init__(self, net: nn.Module) -> None:
        self._seen = [(m, type(m), tuple(m._modules.items())) for m in net.modules()]

    def check(self) -> None:
        """See that they are the same, and of the same classes.

        Raises:
            AttachError: naming one that is not.
        """
        for module, kind, children in self._seen:
            if type(module) is not kind or tuple(module._modules.items()) != children:
                raise AttachError(
                    f"over_time: a {kind.__name__} of the network has been changed since the form "
                    f"over time was made, or one of its layers replaced, and the form would go on "
                    f"with what was there; call over_time(net) anew, and attach DFA to that"
                )


class TimeAsBatch(nn.Module):
    """What :func:`snn_dfa.over_time` returns for a network with a ``forward`` of its own.

    Its modules have the names that they have in the network.

    Args:
        net: The network, whose ``forward`` is one step, or a loop over its input's first dimension.
        stateful: Whether a call begins with the states that the last one has left.
        check: Whether the first call compares this form with the loop.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc, self.lif = nn.Linear(4, 2), snn.Leaky(beta=0.9)
        ...     def forward(self, x):
        ...         mem, spikes = self.lif.reset_mem(), []
        ...         for t in range(x.size(0)):
        ...             spk, mem = self.lif(self.fc(x[t]), mem)
        ...             spikes.append(spk)
        ...         return torch.stack(spikes)
        >>> TimeAsBatch(Net())(torch.rand(25, 3, 4)).shape
        torch.Size([25, 3, 2])
    """

    def __init__(self, net: nn.Module, stateful: bool = False, check: bool = True) -> None:
        super().__init__()
        self._source = (net,)  # in a tuple: parameters are registered once, by the twins
        self._check, self._stateful = check, stateful
        self.layout = Layout()
        self.last_result: Any = None  # before its time had a dimension of its own; of a probe
        self.loops = False  # whether the loop over time is inside
        self._examined: dict[Any, tuple[int, bool]] = {}  # a way to its longest sequence, and loops
        self._pairs: list[tuple[nn.Module, nn.Module]] = []  # a module and its twin
        self._twins: dict[nn.Module, nn.Module] = {}
        self._made_of = Modules(net)
        self._users = tuple(m for m in net.modules() if is_the_users(m))
        root = self._twin(net)
        self._root = (root,)
        for store in ("_modules", "_parameters", "_buffers"):
            vars(self)[store] = vars(root)[store]

    @property
    def scans(self) -> dict[str, FlatScan]:
        """The neurons by name."""
        return {n: m for n, m in self.named_modules() if type(m) is FlatScan}

    def forward(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run the network over the sequence [T, B, ...].

        Args:
            x: The sequence; also by the name of the network's own first argument.
            *args: What else the network takes, as it is, such as states [B, ...].
            **kwargs: The same, by name.

        Returns:
            What the network returns at a step, each tensor stacked over T; of a network with the
            loop inside, what it returns.
        """
        if x is None:
            x = kwargs.pop(_first_argument(self._source[0]), None)
        see_that_it_is_a_sequence(x)
        self.compare(x, args, kwargs)
        return self.run(x, *args, **kwargs)

    def compare(self, x: Tensor, args: Any = (), kwargs: Mapping[str, Any] = _NONE) -> None:
        """See that a call gives what the loop gives, where none was compared that is like it."""
        way = self._way(args, kwargs) if self._check else None
        longest, self.loops = self._examined.get(way, (0, False))
        if longest < (min(len(x), LONGEST) if self._check else 1):
            self._examine(x, args, kwargs)
            self._examined[way] = len(x), self.loops

    def _way(self, args: Any, kwargs: Any) -> Any:
        """Return the switches on which it may depend what the network does.

        Whole numbers are among them, such as a mode or an epoch, till there are many.
        """
        own = [value for m in self._users for value in own_attributes(m).values()]
        leaves, shape = tree_flatten((args, kwargs)) if args or kwargs else ((), "")
        kinds = (int, str, Enum) if len(self._examined) < _WAYS else (bool, str, Enum)
        switches = [v for v in (*leaves, *own) if v is None or isinstance(v, kinds)]
        return (*switches, str(shape), *(m.training for m in self._users))

    def _examine(self, x: Tensor, args: Any, kwargs: Any) -> None:
        """See that the network can run so, and where its loop is."""
        from snn_dfa.sequence.probe import examine

        found = examine(self._source[0], x.detach(), args, kwargs, compare=self._check)
        self.loops = found.loops
        for name, scan in self.scans.items():
            scan.reads = scan.reads | found.reads.get(name, set())
            scan.is_last = scan.is_last or name in found.last

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the network; it is known by now where its loop is."""
        self._made_of.check()
        see_that_none_is_at_work(self._source[0])
        layout, root = self.layout, self._root[0]
        layout.steps, layout.batch = x.shape[:2]
        scans = list(self.scans.values())
        before = self._take_attributes()
        for scan in scans:
            scan.begin()
        layout.running = True
        flat = x.flatten(0, 1)
        try:
            result = root(flat.unsqueeze(0) if self.loops else flat, *args, **kwargs)
        finally:
            layout.running = False
            for scan in scans:
                scan.end()
            self._give_attributes(before)
        if layout.probes:
            self.last_result = result
        return self._unflattened(result)

    def _unflattened(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            return self._sequence(result)
        if isinstance(result, Mapping):
            return type(result)({k: self._unflattened(v) for k, v in result.items()})  # type: ignore[call-arg]
        if isinstance(result, (tuple, list)):
            parts = [self._unflattened(each) for each in result]
            return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
        return result

    def _sequence(self, t: Tensor) -> Tensor:
        """Return [T, B, ...] of what the network returned for all samples."""
        samples = self.layout.steps * self.layout.batch
        if self.loops and t.dim() > 1 and t.shape[:2] == (1, samples):
            return self.layout.first_dimension(t.squeeze(0))
        if not self.loops and t.dim() and len(t) == samples:
            return self.layout.first_dimension(t)
        if self.loops:
            raise AttachError(
                f"over_time: for one step of T * B = {samples} samples the loop inside the network "
                f"returned shape {list(t.shape)}, expected [1, {samples}, ...]; return "
                f"torch.stack(spikes), with time as the first dimension, and take sums over time "
                f"and single steps outside"
            )
        raise AttachError(
            f"over_time: for T * B = {samples} samples the network returned shape "
            f"{list(t.shape)}, expected [{samples}, ...]; leave the first dimension, the samples, "
            f"as it is, and take sums over samples outside"
        )

    # -- twins -------------------------------------------------------------------------------------

    def _twin(self, module: nn.Module) -> nn.Module:
        """Return what stands for a module; a module without neurons stands for itself."""
        if module not in self._twins:
            self._twins[module] = self._new_twin(module)
        return self._twins[module]

    def _new_twin(self, module: nn.Module) -> nn.Module:
        if isinstance(module, snn.SpikingNeuron):
            return FlatScan(module, self.layout, self._stateful)
        if type(module) in _DROPOUTS:
            return OneMask(module, self.layout)
        is_linear = type(module) is nn.Linear
        children = {k: c and self._twin(c) for k, c in module._modules.items()}
        if not is_linear and all(child is module._modules[k] for k, child in children.items()):
            return module
        kind = SpikeLinear if is_linear else type(module)
        twin = kind.__new__(kind)
        vars(twin).update(vars(module))
        vars(twin)["_modules"] = children
        vars(twin).pop("forward", None)
        self._pairs.append((module, twin))
        return twin

    def _take_attributes(self) -> list[dict[str, Any]]:
        """Let the twins have their modules' attributes; return them, and buffers with them."""
        taken = []
        for module, twin in self._pairs:
            values = {k: self._with_twins(v) for k, v in vars(module).items() if k not in _OWN}
            vars(twin).update(values)
            taken.append(values | module._buffers)
        return taken

    def _give_attributes(self, taken: list[dict[str, Any]]) -> None:
        """Hand on the attributes that the network's code has set, as sequences."""
        samples = self.layout.steps * self.layout.batch
        for (module, twin), before in zip(self._pairs, taken, strict=True):
            pairs = (vars(twin), vars(module)), (twin._buffers, module._buffers)
            for key, value, store in [(k, v, to) for left, to in pairs for k, v in left.items()]:
                last = before.get(key)
                if key in _OWN or (key in before and last is value):
                    continue
                is_new = getattr(last, "shape", None) != getattr(value, "shape", None)
                if is_new and isinstance(value, Tensor) and value.shape[:1] == (samples,):
                    value = self.layout.first_dimension(value)
                store[key] = value

    def _with_twins(self, value: Any) -> Any:
        """Return a list, tuple or dict of modules with their twins."""
        if type(value) in (list, tuple):
            new = [self._with_twins(v) for v in value]
            same = all(a is b for a, b in zip(new, value, strict=True))
            return value if same else type(value)(new)
        if type(value) is dict:
            items = {k: self._with_twins(v) for k, v in value.items()}
            return items if any(items[k] is not v for k, v in value.items()) else value
        return self._twins.get(value, value) if isinstance(value, nn.Module) else value

    # -- the network's own -------------------------------------------------------------------------

    def train(self, mode: bool = True) -> TimeAsBatch:
        """Set training mode, of the network too."""
        self._source[0].train(mode)
        super().train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the network that this was made of."""
        return self._source[0].state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the network that this was made of, with which parameters are shared."""
        return self._source[0].load_state_dict(*args, **kwargs)
