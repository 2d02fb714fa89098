"""A spec's network before it runs: its modules, first weights and hooks."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from programs.choices import CHANNELS, CLASSES, SIDE, WIDTH, Layer, Spec
from programs.parts import Block, FromPacket, Squeezed, neuron


class Built(nn.Module):
    """The modules and parameters of a spec, with their hooks, and what ``DFA`` is told of them."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        for i, layer in enumerate(spec.layers):
            self._add_hidden(i, layer)
        side = SIDE // 2 if spec.pool else SIDE
        self.features = 1 if spec.conv else -1
        self.n_features = CHANNELS * side * side if spec.conv else WIDTH
        n_in = self.n_features * (2 if spec.branch == "cat" else 1)
        self._add_readout(n_in)
        if spec.plain_head:
            self.head = nn.Linear(self.n_features, 2)
        if spec.listed:  # a plain list, beside the names by which they are registered
            self.order = [self.layer(name) for name in self.hidden_names()]
        self.kept: dict[str, list[Tensor]] = {}
        self._make_spike()
        self._freeze()
        self._hang_hooks()

    # -- parts

    def _weights(self, n_in: int, n_out: int) -> nn.Module:
        if self.spec.conv:
            return nn.Conv2d(n_in, n_out, 3, padding=1)
        return nn.Linear(n_in, n_out)

    def _add_hidden(self, i: int, layer: Layer) -> None:
        n = CHANNELS if self.spec.conv else WIDTH
        weights = self._weights(2 * n if layer.membrane_below == "cat" else n, n)
        if layer.synapse == "functional":
            weight = nn.Parameter(weights.weight.detach().clone())
            if not (self.spec.shared_weights and i == 1):
                self.register_parameter(f"weight{i}", weight)
            self.register_parameter(f"bias{i}", nn.Parameter(torch.zeros(n)))
        elif self.spec.hidden_kind == "blocks":
            setattr(self, f"block{i}", Block(weights, neuron(layer, WIDTH, self.spec.conv)))
        elif layer.synapse == "object":
            setattr(self, f"fc{i}", FromPacket(weights))
        else:
            setattr(self, f"fc{i}", weights)
        if layer.synapse == "scaled":
            self.register_parameter(f"scale{i}", nn.Parameter(torch.tensor(1.2)))
        if layer.synapse == "normalised":
            kind = nn.BatchNorm2d if self.spec.conv else nn.BatchNorm1d
            setattr(self, f"norm{i}", kind(n))
        if layer.state_change == "gate":
            self.register_parameter(f"gate{i}", nn.Parameter(torch.tensor(0.9)))
        if layer.between == "scale":
            self.register_parameter(f"gain{i}", nn.Parameter(torch.tensor(1.1)))
        if layer.residual == "leaf_current":
            self.register_parameter(f"offset{i}", nn.Parameter(torch.full((n,), 0.1)))
        if layer.recurrent in ("own", "own_gated"):
            setattr(self, f"rec{i}", nn.Linear(n, n, bias=False))
        if layer.recurrent == "top_down":
            setattr(self, f"down{i}", nn.Linear(CLASSES, n, bias=False))
        self._add_initial(f"init{i}", layer, (n, SIDE, SIDE) if self.spec.conv else (n,))
        if self.spec.hidden_kind == "nested":
            setattr(self, f"stage{i}", Block(None, neuron(layer, WIDTH, self.spec.conv)))
        elif self.spec.hidden_kind != "blocks":
            setattr(self, f"lif{i}", neuron(layer, WIDTH, self.spec.conv))

    def _add_initial(self, name: str, layer: Layer, shape: tuple[int, ...]) -> None:
        explicit = layer.states in ("explicit", "keyword") and layer.neuron != "DeltaLeaky"
        if self.spec.initial == "learned" and explicit:
            self.register_parameter(name, nn.Parameter(torch.full(shape, 0.2)))

    def _add_readout(self, n_in: int) -> None:
        spec = self.spec
        if spec.skip_to_readout == "first":
            self.skip = nn.Linear(self.n_features, n_in, bias=False)
        if spec.skip_to_readout == "input":
            self.skip = nn.Linear(self.n_features, n_in)
        if spec.readout == "conv":
            channels = CHANNELS * (2 if spec.branch == "cat" else 1)
            self.readout = nn.Conv2d(channels, 2, 2, stride=2)
        elif spec.readout == "scalar":
            self.readout = Squeezed(n_in, 1)
        elif spec.readout == "block":
            self.readout = Block(nn.Linear(n_in, CLASSES), neuron(spec.output, CLASSES, False))
        elif spec.readout in ("two", "two_neurons"):
            self.policy_fc, self.value_fc = nn.Linear(n_in, CLASSES), nn.Linear(n_in, 1)
            if spec.readout == "two_neurons":
                self.policy, self.value = (neuron(spec.output, n, False) for n in (CLASSES, 1))
                self._add_initial("init_policy", spec.output, (CLASSES,))
                self._add_initial("init_value", spec.output, (1,))
        else:
            self.readout = nn.Linear(n_in, CLASSES)
            if spec.readout in ("neuron", "linear_neuron"):
                self.lif_out = neuron(spec.output, CLASSES, False)
                self._add_initial("init_out", spec.output, (CLASSES,))

    @torch.no_grad()
    def _make_spike(self) -> None:
        """Scale weights up, and biases too, so that neurons fire now and then."""
        for name, p in self.named_parameters():
            if name.endswith(("beta", "threshold", "factor")):
                continue
            if p.dim() > 1:
                p.mul_(2.5)
            elif p.dim() == 1 and p.numel() > 1 and "norm" not in name:
                p.add_(0.25)

    def _freeze(self) -> None:
        frozen = {
            "": (), "first": ("fc0", "weight0", "bias0"), "synapses": ("fc", "weight", "bias"),
            "output": ("readout", "policy", "value"),
        }[self.spec.frozen]  # fmt: skip
        for name, p in self.named_parameters():
            if frozen and name.startswith(tuple(frozen)):
                p.requires_grad_(False)

    def _hang_hooks(self) -> None:
        for name, module in self.named_modules():
            neuron_or_weights = isinstance(module, (snn.SpikingNeuron, nn.Linear, nn.Conv2d))
            if not neuron_or_weights:
                continue
            if self.spec.hooks == "look":
                module.register_forward_hook(lambda m, i, o: None)
            elif self.spec.hooks == "before":
                module.register_forward_pre_hook(lambda m, i: None)
            elif self.spec.hooks == "full_backward" and not isinstance(module, snn.SpikingNeuron):
                module.register_full_backward_hook(lambda m, i, o: None)
            elif self.spec.hooks == "tensor":
                module.register_forward_hook(_look_at_gradient)
            if self.spec.recorded == "hooks" and isinstance(module, snn.SpikingNeuron):
                module.register_forward_hook(self._recorder(name.replace(".", "_")))

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: Any, result: Any) -> None:
            spikes = result if isinstance(result, Tensor) else result[0]
            self.kept.setdefault(f"{name}.spikes", []).append(spikes)

        return record

    def __deepcopy__(self, memo: dict[int, Any]) -> Built:
        raise TypeError("build the network twice")

    # -- what DFA is told

    def output_names(self) -> list[str]:
        """Return the names of the outputs, in order."""
        return {
            "neuron": ["lif_out"], "two": ["policy_fc", "value_fc"], "two_neurons": ["policy", "value"],
        }.get(self.spec.readout, ["readout"])  # fmt: skip

    def hidden_names(self) -> list[str]:
        """Return the names of the hidden layers."""
        form = {"nested": "stage{}.lif", "blocks": "block{}"}.get(self.spec.hidden_kind, "lif{}")
        return [form.format(i) for i in range(len(self.spec.layers))]

    def layer(self, name: str) -> Any:
        """Return a layer by its qualified name."""
        return self.get_submodule(name)

    def arguments(self) -> dict[str, Any]:
        """Return what ``DFA`` has to be told, and no more unless the spec says so."""
        spec, outputs = self.spec, self.output_names()
        given: dict[str, Any] = {}
        if spec.readout != "neuron" or spec.named or spec.hidden_kind == "blocks":
            given["output"] = outputs[0] if len(outputs) == 1 else outputs
        other = spec.hidden_kind in ("blocks", "tanh")
        if spec.readout in ("linear_neuron", "block") or spec.named or other:
            given["hidden"] = self.hidden_names()
        return given


def _look_at_gradient(module: nn.Module, args: Any, result: Any) -> None:
    value = result if isinstance(result, Tensor) else result[0]
    if value.requires_grad:
        value.register_hook(lambda g: None)
