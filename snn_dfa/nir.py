"""A trained network in the Neuromorphic Intermediate Representation (NIR), or why not."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_dfa._attach.layers import is_attached
from snn_dfa.errors import ExportError
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.state import reset

__all__ = ["export_nir"]

_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def export_nir(net: nn.Module, sample: Tensor) -> Any:
    """Return the NIR graph that snnTorch makes of a network, if the graph describes the network.

    snnTorch exports a subclass of ``snn.Leaky`` as a plain ``snn.Leaky``, and gives no warning. NIR
    has no refractory period, no gain of the neuron's own and no normalisation: networks with one of
    these raise an error. NIR's neuron resets to zero: a reset by subtraction gives a warning.

    Args:
        net: Without DFA, its neurons at rest.
        sample: An input of one step, without a batch dimension.

    Raises:
        ExportError: naming the layer and what would be lost, or if ``nir`` and ``nirtorch`` are
            not installed.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), RefractoryLeaky(0.9, refractory_steps=2))
        >>> try:
        ...     export_nir(net, Tensor(4))
        ... except ExportError as error:
        ...     print(str(error)[:60])
        layer '1': expected a neuron without refractory period, whic
    """
    _check(net)
    missing = [name for name in ("nir", "nirtorch") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"export_nir: expected the package {missing[0]!r}, which is not installed; "
            f"pip install 'snn-dfa[nir]', or in a checkout pip install '.[nir]'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that these import
        from snntorch.export_nir import export_to_nir
    resets = {n: _reset(m) for n, m in net.named_modules() if _reset(m) not in (None, "zero")}
    for name, reset_mechanism in list(resets.items())[:1]:
        warnings.warn(
            f"export_nir: layer {name!r} has reset_mechanism={reset_mechanism!r}, and NIR's neuron "
            f"resets to zero; train with reset_mechanism='zero', so that the exported network does "
            f"the same",
            stacklevel=2,
        )
    return export_to_nir(_spelt_out(net, sample), sample)


def _check(net: nn.Module) -> None:
    if is_attached(net):
        raise ExportError("net: expected a network without DFA; call remove() on the DFA first")
    for name, module in net.named_modules():
        if isinstance(module, RefractoryLeaky) and module.refractory_steps:
            raise ExportError(
                f"layer {name!r}: expected a neuron without refractory period, which NIR cannot "
                f"say, got refractory_steps={module.refractory_steps}; train with snn.Leaky, or "
                f"set it to 0 and test what that costs"
            )
        if isinstance(module, RefractoryLeaky) and module.input_gain != 1:
            raise ExportError(
                f"layer {name!r}: expected input_gain=1, which NIR cannot say, got "
                f"{module.input_gain}; multiply the weights before it instead"
            )
        if isinstance(module, snn.SpikingNeuron):
            _check_neuron(name, module)
        if isinstance(module, _NORMALIZATIONS):
            raise ExportError(
                f"layer {name!r}: expected no batch normalisation, which NIR cannot say; call "
                f"fold_normalization(net) first"
            )


def _check_neuron(name: str, neuron: Any) -> None:
    if not type(neuron).__module__.startswith(("snntorch.", "snn_dfa.")):
        raise ExportError(
            f"layer {name!r}: expected a neuron of snnTorch, got a {type(neuron).__name__}, whose "
            f"own computation NIR cannot say; train with a neuron of snnTorch"
        )
    plain = {"graded_spikes_factor": 1, "inhibition": False, "state_quant": False}
    for option, value in plain.items():
        got = getattr(neuron, option, value)
        if bool(torch.as_tensor(got != value).any()):
            raise ExportError(
                f"layer {name!r}: expected {option}={value}, since NIR cannot say another one, got "
                f"{got}"
            )


def _spelt_out(net: nn.Module, sample: Tensor) -> nn.Module:
    """Return a copy whose neurons have a constant each: one for all has no shape to export."""
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        twin(sample)
    for module in twin.modules():
        mem: Any = getattr(module, "mem", None)
        for name in ("alpha", "beta", "threshold") if isinstance(mem, Tensor) else ():
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                delattr(module, name)  # a parameter where it is learnt, else a buffer
                module.register_buffer(name, value.detach().expand(mem.shape).clone())
    reset(twin)
    return twin


def _reset(module: nn.Module) -> Any:
    return getattr(module, "reset_mechanism", None)
