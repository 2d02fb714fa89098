"""The modules of which networks are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from programs.choices import CHANNELS, SEQUENCE, Layer
from snn_dfa import RefractoryLeaky
from snn_dfa.surrogate import ATan, fast_sigmoid


def _surrogate(name: str) -> Any:
    return fast_sigmoid(2.0) if name == "fast_sigmoid" else ATan(alpha=2.0)


def neuron(layer: Layer, width: int, conv: bool) -> nn.Module:
    """Return the snnTorch neuron of a layer."""
    inside = layer.states in ("hidden", "returned")
    options: dict[str, Any] = {
        "spike_grad": _surrogate(layer.surrogate),
        "init_hidden": inside,
        "output": inside and layer.states == "returned",
        "inhibition": layer.inhibition,
        "reset_mechanism": layer.reset,
        "threshold": 0.6,
        "learn_threshold": layer.learns in ("threshold", "both"),
    }
    kind = layer.neuron
    learned = {"learn_beta": layer.learns in ("beta", "both")}
    if kind == "Tanh":
        return nn.Tanh()
    if kind in SEQUENCE:
        return _sequence_neuron(layer, width)
    if layer.learns == "graded":
        options["learn_graded_spikes_factor"] = True
    if kind == "SConv2dLSTM":
        return snn.SConv2dLSTM(CHANNELS, CHANNELS, 3, **{**options, "threshold": 0.1})
    if kind == "SLSTM":
        return snn.SLSTM(width, width, **{**options, "threshold": 0.1})
    if kind == "Alpha":
        return snn.Alpha(alpha=0.9, beta=0.7, **{**options, **learned, "threshold": 0.3})
    if kind == "DeltaLeaky":
        return snn.DeltaLeaky(0.5, beta=0.8, **{**options, **learned, "output": False})
    if kind == "Synaptic":
        return snn.Synaptic(alpha=0.6, beta=0.8, **options, **learned)
    if kind == "RSynaptic":
        return snn.RSynaptic(alpha=0.6, beta=0.8, linear_features=width, **options, **learned)
    if kind in ("Leaky", "RLeaky", "RefractoryLeaky"):
        options["reset_delay"] = layer.reset_delay
    if kind == "RLeaky":
        return snn.RLeaky(beta=0.8, linear_features=width, **options, **learned)
    if kind == "RefractoryLeaky":
        return RefractoryLeaky(beta=0.8, refractory_steps=1, **options, **learned)
    return getattr(snn, kind)(beta=0.8, **options, **learned)


def _sequence_neuron(layer: Layer, width: int) -> nn.Module:
    options: dict[str, Any] = {
        "spike_grad": _surrogate(layer.surrogate),
        "threshold": 0.6,
        "learn_threshold": layer.learns in ("threshold", "both"),
        "learn_beta": layer.learns in ("beta", "both"),
    }
    if layer.neuron == "StateLeaky":
        return snn.StateLeaky(0.8, width, **options)
    if layer.neuron == "LinearLeaky":
        return snn.LinearLeaky(0.8, width, width, **options)
    return snn.LeakyParallel(width, width, beta=0.8, **options)


@dataclass
class Packet:
    """An object that carries spikes from one module to the next."""

    spikes: Tensor
    note: str = ""


class FromPacket(nn.Module):
    """A synapse that takes its spikes out of an object."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, packet: Packet) -> Tensor:
        return self.weights(packet.spikes)


class Squeezed(nn.Linear):
    """A readout of one number, without a dimension of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


class Block(nn.Module):
    """Weights and their neuron as one module, or a neuron in a module of its own."""

    def __init__(self, weights: nn.Module | None, lif: nn.Module) -> None:
        super().__init__()
        self.fc, self.lif = weights, lif

    def forward(self, x: Tensor) -> Any:
        return self.lif(x if self.fc is None else self.fc(x))


class Softened(torch.autograd.Function):
    """A function of the user's own, with an argument that is no tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.sign() * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grads[0], None
