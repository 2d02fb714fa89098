"""A spec's network: what it does in a step, what it keeps and returns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from programs.built import Built
from programs.choices import RECURRENT, SEQUENCE, STATES, Layer
from programs.parts import Packet, Softened


class Network(Built):
    """The network of a spec; ``forward`` takes [T, B, ...], or one step where the loop is around it."""

    def _synapse(self, i: int, x: Tensor) -> Tensor:
        kind = self.spec.layers[i].synapse
        if self.spec.hidden_kind == "blocks":
            return x
        if kind == "functional":
            weight = getattr(
                self, "weight0" if self.spec.shared_weights and i == 1 else f"weight{i}"
            )
            return functional.linear(x, weight, getattr(self, f"bias{i}"))
        if kind == "object":
            return getattr(self, f"fc{i}")(Packet(x))
        current = getattr(self, f"fc{i}")(x)
        if kind == "scaled":
            return current * getattr(self, f"scale{i}")
        if kind == "normalised":
            return getattr(self, f"norm{i}")(current)
        return current

    def _fire(
        self, name: str, at: str, layer: Layer, current: Tensor, states: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Call a neuron with its states; return spikes and membrane."""
        module = self.layer(name)
        call = module.forward if layer.call == "forward" else module
        if layer.neuron == "Tanh":
            spikes = call(current)
            return spikes, spikes
        if layer.neuron in SEQUENCE:
            result = call(current)
            return result if isinstance(result, tuple) else (result, result)
        if layer.states in ("hidden", "returned", "kept"):
            result = call(current)
            spikes = result if isinstance(result, Tensor) else result[0]
            return spikes, self._change_kept(getattr(module, "lif", module), at, layer)
        names = (("spk",) if layer.neuron in RECURRENT else ()) + STATES[layer.neuron]
        if name not in states:
            states[name] = self._first(layer, names, at, current)
        now = states[name]
        if layer.neuron == "DeltaLeaky":
            spikes, now = call(current, now)
            mem = self._changed(now[0], at, layer)
            states[name] = (mem, now[1])
            return spikes, mem
        if layer.states == "keyword":
            result = call(current, **dict(zip(names, now, strict=True)))
        else:
            result = call(current, *now)
        spikes = result[0]
        kept = list(result if layer.neuron in RECURRENT else result[1:])
        kept[-1] = self._changed(kept[-1], at, layer)
        states[name] = tuple(kept)
        return spikes, kept[-1]

    def _first(
        self, layer: Layer, names: tuple[str, ...], at: str, current: Tensor
    ) -> tuple[Any, ...]:
        if layer.neuron == "DeltaLeaky":
            return None, None
        shape = current.shape
        first = [current.new_zeros(shape) for _ in names]
        if hasattr(self, f"init{at}"):
            first[-1] = getattr(self, f"init{at}").expand(shape)
        return tuple(first)

    def _change_kept(self, lif: Any, at: str, layer: Layer) -> Tensor:
        if layer.state_change:
            lif.mem = self._changed(lif.mem, at, layer)
        return lif.mem

    def _changed(self, mem: Tensor, at: str, layer: Layer) -> Tensor:
        """Return the membrane as the program changes it before the next step."""
        change = layer.state_change
        mask = (torch.arange(mem.shape[1]) % 3 != 0).view(-1, *[1] * (mem.dim() - 2)).to(mem)
        halfway = self.t == self.spec.steps // 2
        if change == "mask":
            return mem * mask
        if change == "mask_":
            return mem.mul_(mask)
        if change == "where":
            return torch.where(mask > 0, mem, 0.3 * mem)
        if change == "masked_fill_":
            return mem.masked_fill_((mask == 0).expand_as(mem), 0.1)
        if change == "clone":
            return mem.clone()
        if change == "detach" and halfway:
            return mem.detach()
        if change == "detach_" and halfway:
            return mem.detach_()
        if change == "gate":
            return mem * getattr(self, f"gate{at}", 0.9)
        if change == "from_below":
            return mem + 0.2 * self.below
        if change == "slice_":
            mem[:, :2].mul_(0.5)
        return mem

    def _between(self, i: int, spikes: Tensor) -> Tensor:
        kind = self.spec.layers[i].between
        if kind == "relu_":
            return spikes.relu_()
        if kind == "dropout":
            return functional.dropout(spikes, 0.3)
        if kind == "view":
            return spikes.view(spikes.shape[0], -1).reshape(spikes.shape)
        if kind == "slice_":
            spikes[:, :2].mul_(0.5)
        if kind == "scale":
            return spikes * getattr(self, f"gain{i}")
        if kind == "mask_":
            return spikes.mul_((torch.arange(spikes.shape[-1]) % 3 != 1).to(spikes))
        if kind == "tanh":
            return torch.tanh(2 * spikes)
        if kind == "function":
            return Softened.apply(spikes, 0.8)
        if kind == "chunks":
            first, second = spikes.split([1, spikes.shape[1] - 1], 1)
            return torch.cat([0.5 * first, second], 1)
        return spikes

    def _hidden(self, i: int, x: Tensor, below: Tensor | None, states: dict[str, Any]) -> Tensor:
        """Return a hidden layer's spikes, as they go on."""
        layer, name = self.spec.layers[i], self.hidden_names()[i]
        enters, self.below = x, below
        if layer.membrane_below == "add":
            enters = x + 0.5 * below
        elif layer.membrane_below == "cat":
            enters = torch.cat([x, below], self.features)
        current = self._synapse(i, enters)
        current = self._with_recurrence(i, current, states)
        if layer.residual == "current":
            current = current + 0.5 * x
        elif layer.residual == "current_":
            current += 0.5 * x
        elif layer.residual == "leaf_current":
            offset = getattr(self, f"offset{i}")
            current = current + (offset.view(-1, 1, 1) if self.spec.conv else offset)
        if self.spec.between_value and i == len(self.spec.layers) - 1:
            self._keep("between", current)
        spikes, mem = self._fire(name, str(i), layer, current, states)
        self.membrane = mem
        if layer.residual == "spikes":
            spikes = spikes + x
        elif layer.residual == "spikes_":
            spikes += x
        spikes = self._between(i, spikes)
        states[f"{name}.last"] = spikes
        if layer.penalty in ("spikes", "both") and self.spec.recorded != "hooks":
            self._keep(f"{name}.spikes", spikes)
        if layer.penalty in ("membranes", "both"):
            self._keep(f"{name}.membrane", mem)
        return spikes

    def _with_recurrence(self, i: int, current: Tensor, states: dict[str, Any]) -> Tensor:
        layer = self.spec.layers[i]
        last = states.get(
            "out.last" if layer.recurrent == "top_down" else f"{self.hidden_names()[i]}.last"
        )
        if not layer.recurrent or last is None:
            return current
        if layer.recurrent == "top_down":
            return current + getattr(self, f"down{i}")(last)
        back = getattr(self, f"rec{i}")(last)
        return current + (torch.sigmoid(back) * 0.5 if layer.recurrent == "own_gated" else back)

    def _keep(self, name: str, value: Tensor) -> None:
        if self.spec.recorded == "reduced" and not name.startswith("out"):
            value = (value - 0.1).pow(2).sum()
        self.kept.setdefault(name, []).append(value)

    def _step(self, x: Tensor, states: dict[str, Any]) -> None:
        spec, first = self.spec, x
        below: Tensor | None = None
        n = len(spec.layers)
        for i in range(n - 1 if spec.branch else n):
            x = self._hidden(i, x, below, states)
            below = self.membrane
            if i == 0:
                after_first = x
        if spec.branch:
            other = self._hidden(n - 1, first, None, states)
            if spec.branch == "cat":
                x = torch.cat([x, other], self.features)
            elif spec.branch == "add":
                x = x + other
            else:
                x = x * 1.0
                x += other
        if spec.plain_head:
            at = other if spec.branch else x
            at = at if spec.plain_head == "spikes" else self.membrane
            at = functional.avg_pool2d(at, 2) if spec.pool else at
            self._keep("head", self.head(self._flat(at)))
        if spec.reads != "last" or self.t == spec.steps - 1:
            self._read(x, first, after_first, states)

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.spec.conv else x

    def _read(self, x: Tensor, first: Tensor, after_first: Tensor, states: dict[str, Any]) -> None:
        spec = self.spec
        if spec.pool:
            pool = functional.avg_pool2d if spec.pool == "avg" else functional.max_pool2d
            x, first, after_first = (pool(each, 2) for each in (x, first, after_first))
        if spec.readout != "conv":
            x = self._flat(x)
            if spec.skip_to_readout:
                x = x + self.skip(
                    self._flat(first if spec.skip_to_readout == "input" else after_first)
                )
        if spec.reads == "all":
            self._read_all(x)
            return
        if spec.readout in ("two", "two_neurons"):
            for name in ("policy", "value"):
                current = getattr(self, f"{name}_fc")(x)
                if spec.readout == "two":
                    self._keep(f"out.{name}", current)
                else:
                    self._keep_output(name, f"_{name}", current, states, f"{name}.")
            return
        out = self.readout(x)
        if spec.readout in ("neuron", "linear_neuron"):
            out = self._keep_output("lif_out", "_out", out, states, "")
        elif spec.readout == "block":
            for k, value in enumerate(out if isinstance(out, tuple) else (out,)):
                if isinstance(value, Tensor) and (k == 0 or spec.sees != "spikes"):
                    self._keep(f"out.{k}", value)
        else:
            self._keep("out", out)
        states["out.last"] = out

    def _read_all(self, x: Tensor) -> None:
        """Call the heads on all steps side by side, when the last one is there."""
        self.steps_read = [] if self.t == 0 else self.steps_read
        self.steps_read.append(x)
        if self.t < self.spec.steps - 1:
            return
        dim = self.spec.seed % 2
        every = torch.stack(self.steps_read, dim)
        if self.spec.seed % 3 == 0:
            every = torch.zeros_like(every)
            for t, step in enumerate(self.steps_read):
                every.select(dim, t).copy_(step)
        two = self.spec.readout == "two"
        heads = {f"out.{n}": f"{n}_fc" for n in ("policy", "value")} if two else {"out": "readout"}
        for name, head in heads.items():
            for value in getattr(self, head)(every).unbind(dim):
                self._keep(name, value)

    def _keep_output(
        self, name: str, at: str, current: Tensor, states: dict[str, Any], prefix: str
    ) -> Tensor:
        spikes, mem = self._fire(name, at, self.spec.output, current, states)
        if self.spec.sees in ("spikes", "both"):
            self._keep(f"out.{prefix}spikes", spikes)
        if self.spec.sees in ("membrane", "both"):
            self._keep(f"out.{prefix}membrane", mem)
        if self.spec.sees == "attribute":
            self._keep(f"out.{prefix}attribute", self.layer(name).mem)
        return spikes

    def forward(self, x: Tensor, states: dict[str, Any] | None = None, t: int | None = None) -> Any:
        """Take a sequence, or a step and the states; return the records by name, and the states."""
        if t in (None, 0):
            self.kept = {}
        if states is None:
            states = {}
        elif self.spec.returns != "written":
            states = dict(states)
        steps = list(enumerate(x)) if t is None else [(t, x)]
        if self.spec.loop == "sequence":
            steps = [(0, x)]
        for self.t, x_t in steps:
            grad = torch.is_grad_enabled() and not (self.spec.burn_in and self.t == 0)
            with torch.set_grad_enabled(grad):
                self._step(x_t, states)
        mine = {k: v for k, v in self.kept.items() if k.startswith("out")}
        rest = {k: v for k, v in self.kept.items() if not k.startswith("out")}
        if t is not None:
            mine, rest = ({k: [v[-1]] for k, v in each.items()} for each in (mine, rest))
        values = mine if self.spec.recorded != "returned" else {**mine, **rest}
        return self._returned(
            {k: v if t is not None else tuple(v) for k, v in values.items()}, states
        )

    def _returned(self, values: dict[str, Any], states: dict[str, Any]) -> Any:
        self.names = list(values)
        if self.spec.returns == "dict":
            return {"values": values, "states": states}
        if self.spec.returns == "object":
            return SimpleNamespace(values=values, states=states)
        if self.spec.returns == "written":
            return tuple(values.values())
        return tuple(values.values()), states
