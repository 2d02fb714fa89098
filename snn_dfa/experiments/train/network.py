"""The experiments' networks: plain snnTorch."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

import snntorch as snn
import torch
from torch import nn

from snn_dfa.experiments.settings import Block, Settings, UsageError
from snn_dfa.neurons import RefractoryLeaky
from snn_dfa.normalization import SteadyNorm
from snn_dfa.surrogate import exact, fast_sigmoid
from snn_dfa.zhang import zhang_weights

__all__ = ["build"]


def build(settings: Settings, image: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build weights, normalisation of the current, neurons for each layer; the last one plain.

    The last one has no neurons where the readout is the current.

    Inputs of a spiking layer are never negative, so that a mean error pushes all weights of a
    neuron the same way, until it is silent or fires at every step and learning ends.
    Normalising the current before the neuron removes that direction.

    Args:
        settings: Of the experiment; the weights depend on its seed, and the global generator is
            left as it was.
        image: Shape [C, H, W] of a sample.
        classes: How many outputs.
    """
    blocks = [*settings.blocks, Block(classes)]
    pad = not _fits(blocks, image)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        shape = image if blocks[0].kernel else (math.prod(image),)
        for number, block in enumerate(blocks):
            for kind, layer in _layers(settings, block, shape, number, len(blocks), pad):
                # Named by kind and block: a layer more leaves the others' feedback as it is.
                layers[f"{kind}{number + 1}"] = layer
            shape = _shape_after(block, shape, pad)
            if min(shape) < 1:
                raise UsageError(
                    f"--hidden: nothing is left of an image of {'x'.join(map(str, image[1:]))} "
                    f"after so much pooling"
                )
    return nn.Sequential(layers)


def _fits(blocks: list[Block], image: tuple[int, ...]) -> bool:
    """Whether something is left of the image without padding; else convolutions keep its size."""
    shape = image
    for block in blocks:
        shape = _shape_after(block, shape, pad=False)
        if min(shape) < 1:
            return False
    return True


def _layers(
    settings: Settings, block: Block, shape: tuple[int, ...], number: int, count: int, pad: bool
) -> Iterator[tuple[str, nn.Module]]:
    if number and settings.dropout:
        yield "dropout", nn.Dropout(settings.dropout)
    if block.kernel is None and len(shape) > 1:
        yield "flatten", nn.Flatten()
    weights = (
        nn.Linear(math.prod(shape), block.width)
        if block.kernel is None
        else nn.Conv2d(shape[0], block.width, block.kernel, padding="same" if pad else 0)
    )
    _initialise(weights, settings, number)
    yield "linear" if block.kernel is None else "conv", weights
    if settings.normalize and number < count - 1:
        yield "norm", _normalisation(settings, block)
    if block.pool:
        yield "pool", nn.MaxPool2d(block.pool)
    if number == count - 1 and settings.readout == "current":
        return
    threshold = settings.threshold[number if len(settings.threshold) > 1 else 0]
    size = settings.spike_size if number < count - 1 else 1.0
    recurrent = settings.neuron == "recurrent" and number < count - 1
    yield "neuron", _neuron(settings, threshold, size, block.width, recurrent)


def _normalisation(settings: Settings, block: Block) -> nn.Module:
    if settings.online and settings.encoding == "events":  # whose steps are unlike each other
        return SteadyNorm(block.width)
    return nn.BatchNorm1d(block.width) if block.kernel is None else nn.BatchNorm2d(block.width)


def _shape_after(block: Block, shape: tuple[int, ...], pad: bool) -> tuple[int, ...]:
    if block.kernel is None:
        return (block.width,)
    lost = 0 if pad else block.kernel - 1
    return (block.width, *((side - lost) // (block.pool or 1) for side in shape[1:]))


def _neuron(
    settings: Settings, threshold: float, spike_size: float, width: int, recurrent: bool
) -> nn.Module:
    surrogate = (
        fast_sigmoid(settings.slope)
        if settings.surrogate == "fast-sigmoid"
        else exact(threshold, settings.tau, settings.t_ref)
    )
    options = {
        "spike_grad": surrogate, "init_hidden": True, "graded_spikes_factor": spike_size,
    }  # fmt: skip
    if recurrent:
        del options["graded_spikes_factor"]  # it has none
        return snn.RLeaky(settings.beta, threshold=threshold, linear_features=width, **options)
    if settings.neuron in ("leaky", "recurrent"):
        return snn.Leaky(settings.beta, threshold, **options)
    return RefractoryLeaky.from_time_constants(
        settings.tau, settings.dt, settings.t_ref, threshold, **options
    )


def _initialise(layer: nn.Linear | nn.Conv2d, settings: Settings, number: int) -> None:
    with torch.no_grad():
        if settings.weights == "xavier":
            nn.init.xavier_uniform_(layer.weight)
        elif settings.weights == "zhang":
            layer.weight.copy_(zhang_weights(layer.weight.shape))
        if settings.biases and layer.bias is not None:
            layer.bias.fill_(settings.biases[number if len(settings.biases) > 1 else 0])
