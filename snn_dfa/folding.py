"""Taking normalisation out of a trained network."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import snntorch as snn
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from snn_dfa.errors import AttachError

__all__ = ["fold_normalization"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_normalization(net: nn.Sequential) -> nn.Sequential:
    """Return a copy in which batch normalisations are part of the weights and biases before them.

    With the statistics that training has left, normalising is a factor and a shift for each neuron
    or channel. The copy is in evaluation mode and computes what ``net.eval()`` computes, but for
    rounding; it is plain linear or convolutional layers and neurons. The other layers keep their
    names, and ``net`` is as it was. ``snntorch.utils.reset`` clears the copy's neurons, too.

    Args:
        net: ``nn.Sequential``, nested too, in which every batch normalisation follows straight on
            an ``nn.Linear`` or a convolution.

    Raises:
        AttachError: if a normalisation follows on something else, keeps no statistics or has no
            weights, or ``net`` is no ``nn.Sequential`` or its neurons hold states with a graph.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), snn.Leaky(0.9))
        >>> [type(layer).__name__ for layer in fold_normalization(net)]
        ['Linear', 'Leaky']
    """
    if type(net) is not nn.Sequential:
        raise AttachError(
            f"fold_normalization: expected an nn.Sequential, got {type(net).__name__}"
        )
    if any(state.grad_fn is not None for state in net.buffers()):
        raise AttachError(
            "fold_normalization: a neuron's state has a graph; call snn_dfa.reset(net) first"
        )
    folded = _fold(copy.deepcopy(net).eval(), "")
    # snnTorch's reset clears the neurons in this list. Their constructor puts them there, a copy
    # does not.
    snn.SpikingNeuron.instances.extend(
        n for n in folded.modules() if isinstance(n, snn.SpikingNeuron)
    )
    return folded


def _fold(net: nn.Module, prefix: str) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in net._modules.items():  # named_children() gives a shared module once
        if module is None:
            continue
        if isinstance(module, _NORMALIZATIONS):
            _fold_into_last(layers, module, f"{prefix}{name}")
        elif isinstance(module, nn.Sequential):
            layers[name] = _fold(module, f"{prefix}{name}.")
        elif any(isinstance(inner, _NORMALIZATIONS) for inner in module.modules()):
            raise AttachError(
                f"fold_normalization: expected only nn.Sequential to hold a normalisation, got one "
                f"in {prefix}{name} of type {type(module).__name__}"
            )
        else:
            layers[name] = module
    return nn.Sequential(layers).eval()


def _fold_into_last(layers: OrderedDict[str, nn.Module], norm: Any, name: str) -> None:
    last, before = next(reversed(layers.items()), ("", None))
    if norm.running_mean is None or norm.weight is None:
        raise AttachError(
            f"fold_normalization: {name!r} has no running statistics or no weights, expected "
            f"track_running_stats=True and affine=True"
        )
    if isinstance(before, nn.Linear):
        layers[last] = fuse_linear_bn_eval(before, norm)
    elif isinstance(before, _CONVOLUTIONS):
        layers[last] = fuse_conv_bn_eval(before, norm)
    else:
        raise AttachError(
            f"fold_normalization: expected {name!r} straight after an nn.Linear or a convolution, "
            f"got it after {type(before).__name__}; only there it is a factor and a shift"
        )
