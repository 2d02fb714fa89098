"""A network as a model of NeuroBench, the harness that compares neuromorphic algorithms."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa.errors import ExportError, InputError
from snn_dfa.sequence import AtOnce, OverTime, Scan, TimeAsBatch
from snn_dfa.state import reset

if TYPE_CHECKING:
    from neurobench.models import NeuroBenchModel

__all__ = ["neurobench_model"]


def neurobench_model(
    net: nn.Module, forward: Callable[[nn.Module, Tensor], Any] | None = None
) -> NeuroBenchModel:
    """Return a network as a model that ``neurobench.benchmarks.Benchmark`` takes.

    Accuracy, activation sparsity and synaptic operations are those of the network, whether a
    :class:`snn_dfa.DFA` is attached to it, was removed from it, whether it is a copy, the result of
    :func:`snn_dfa.fold_normalization`, or the form of :func:`snn_dfa.over_time`: the form of an
    ``nn.Sequential`` is run step by step here, that of any other network at once. The neurons'
    states are cleared before each batch, those of copies too, which ``snntorch.utils.reset`` does
    not know. No gradient is kept.

    Args:
        net: The network; it is set to evaluation.
        forward: From the network and a batch of NeuroBench [B, T, ...] to spikes [T, B, C], for a
            network that has its loop over time inside. Without it the network is called with each
            step [B, ...], and a form with all steps [T, B, ...]. Of several values that it returns
            the first is meant.

    Raises:
        ExportError: if the package neurobench is not there.
        InputError: when it is called, if the batch has no time steps, or if no spiking layer that
            NeuroBench watches has run: it would report a sparsity of zero.

    Source: Yik et al. 2025, Nat. Commun. 16, 1545 (NeuroBench); the interface is that of
    version 2.3.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), snn.Leaky(beta=0.9, init_hidden=True))
        >>> model = neurobench_model(net)  # doctest: +SKIP
        >>> model(torch.rand(3, 25, 4)).shape  # doctest: +SKIP
        torch.Size([3, 25, 2])
    """
    try:
        from neurobench.models import NeuroBenchModel
    except ImportError as error:
        raise ExportError(
            "neurobench_model: expected the package neurobench, found none; "
            "pip install neurobench --no-deps"
        ) from error

    class Model(NeuroBenchModel):
        """A network of snnTorch as NeuroBench calls it."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net.eval()
            self.add_activation_module(snn.SpikingNeuron)

        def __net__(self) -> nn.Module:
            return self.net

        def __call__(self, batch: Tensor) -> Tensor:
            if not isinstance(batch, Tensor) or batch.dim() < 3:
                got = list(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
                raise InputError(f"neurobench_model: expected a batch [B, T, ...], got {got}")
            with torch.no_grad():
                reset(self.net)
                spikes = _steps(self.net, batch) if forward is None else forward(self.net, batch)
            hooks = self.activation_hooks
            if hooks and not any(hook.activation_outputs for hook in hooks):
                raise InputError(
                    "neurobench_model: none of the neurons that NeuroBench watches has run, so "
                    "that it would report a sparsity of 0; give the network that takes one step "
                    "a call, or a forward that calls its neurons"
                )
            return _first(spikes).transpose(0, 1)

    return Model(_step_by_step(net) if isinstance(net, OverTime) else net)


def _steps(net: nn.Module, batch: Tensor) -> Tensor:
    """Return the spikes [T, B, C] of a network that takes one step a call, or of a form."""
    if isinstance(net, TimeAsBatch):
        return _first(net(batch.transpose(0, 1)))
    return torch.stack([_first(net(batch[:, t])) for t in range(batch.shape[1])])


def _first(output: Any) -> Tensor:
    """Return the spikes: snnTorch's neurons give them alone or before their states."""
    first: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return first


def _step_by_step(form: nn.Module) -> nn.Module:
    """Return the layers of a form over whole sequences as a network that takes one step a call."""
    if isinstance(form, OverTime):
        layers = ((name, _step_by_step(layer)) for name, layer in form.named_children())
        return nn.Sequential(OrderedDict(layers))
    if isinstance(form, AtOnce):
        return form.module
    return form.neuron if isinstance(form, Scan) else form
