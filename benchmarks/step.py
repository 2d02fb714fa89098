"""Time a training step of the same network in several forms, interleaved in one run.

    python benchmarks/step.py --json step.json

Every repeat runs each contestant once, one after the other, so that a machine whose speed drifts
drifts for all of them; figures are medians over the repeats, to be read as ratios. Peak memory is
taken from a process of its own for each contestant. On a GPU its events are the clock. ``gpu.py``
runs the same contestants there.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import DFA, encoding, over_time, reset
from snn_dfa.experiments.memory import keep_freed_memory, resident_megabytes
from snn_dfa.surrogate import fast_sigmoid

HALF, SINGLE = torch.bfloat16, torch.float32
_IMAGE = (1, 28, 28)


#: From a case to a training step.
#: Returns seconds.
Clock: TypeAlias = Callable[[], float]
Contestant: TypeAlias = Callable[["Case"], Callable[[], None]]


@dataclass(frozen=True)
class Case:
    """What is timed, but for the contestant."""

    steps: int
    batch: int
    sizes: tuple[int, ...]
    device: str
    encoding: str
    network: str = "dense"

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return pixels of which a fifth is on, coded [T, B, ...], and targets [B]."""
        g = torch.Generator().manual_seed(0)
        shape = _IMAGE if self.network == "conv" else self.sizes[:1]
        x = torch.rand(self.batch, *shape, generator=g)
        x = torch.where(torch.rand(x.shape, generator=g) < 0.2, x, 0.0).to(self.device)
        y = torch.randint(self.sizes[-1], (self.batch,), generator=g).to(self.device)
        code = encoding.poisson if self.encoding == "poisson" else encoding.constant
        return code(x, self.steps), y

    def build(self, kit: ModuleType, neuron: Callable[[], nn.Module]) -> nn.Sequential:
        """Return the network, its layers from ``torch.nn`` or a module with the same names."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        if self.network == "conv":  # that of snnTorch's sixth tutorial
            layers += [kit.Conv2d(1, 12, 5), kit.MaxPool2d(2), neuron()]
            layers += [kit.Conv2d(12, 64, 5), kit.MaxPool2d(2), neuron(), kit.Flatten()]
        sizes = (1024, self.sizes[-1]) if self.network == "conv" else self.sizes
        for n_in, n_out in pairwise(sizes):
            layers += [kit.Linear(n_in, n_out), neuron()]
        return nn.Sequential(*layers).to(self.device)

    def snntorch(self) -> nn.Sequential:
        """Return the plain snnTorch network."""
        surrogate = fast_sigmoid(25)
        return self.build(nn, lambda: snn.Leaky(0.9, spike_grad=surrogate, init_hidden=True))


def _update(net: nn.Module, forward: Callable[[], Tensor], y: Tensor, half: bool) -> None:
    """Forward, loss on spike counts, backward; the optimiser is the same for all and left out."""
    net.zero_grad()
    with torch.autocast(y.device.type, dtype=HALF, enabled=half):
        spk = forward()
    functional.cross_entropy(spk.sum(0), y).backward()


def _loop(dfa: bool) -> Contestant:
    """SnnTorch as its tutorials have it: a loop over time around the network."""

    def contestant(case: Case) -> Callable[[], None]:
        net, (x, y) = case.snntorch(), case.inputs()
        if dfa:
            DFA(net, output=str(len(net) - 1))

        def forward() -> Tensor:
            reset(net)
            return torch.stack([net(step) for step in x])

        return lambda: _update(net, forward, y, half=False)

    return contestant


def spikingjelly_bptt(case: Case, half: bool = False) -> Callable[[], None]:
    """SpikingJelly in its multi-step mode."""
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import layer, neuron, surrogate

    def lif() -> nn.Module:
        return neuron.LIFNode(tau=10.0, decay_input=False, v_reset=None,
                              surrogate_function=surrogate.ATan(), detach_reset=True)  # fmt: skip

    (x, y), net = case.inputs(), case.build(layer, lif)
    sj.set_step_mode(net, "m")

    def forward() -> Tensor:
        sj.reset_net(net)
        return net(x.to(HALF) if half else x)

    return lambda: _update(net, forward, y, half)


def _sequence(dfa: bool, half: bool, credit: str = "membrane") -> Contestant:
    def contestant(case: Case) -> Callable[[], None]:
        net, (x, y) = case.snntorch(), case.inputs()
        if half:
            once = x.stride(0) == 0
            x = x[0].to(HALF).expand(x.shape) if once else x.to(HALF)  # spikes are exact in it
        form = over_time(net)
        if dfa:
            DFA(form, output=str(len(net) - 1), credit=credit)
        return lambda: _update(net, lambda: form(x), y, half)

    return contestant


def _products(dtype: torch.dtype, bptt: bool = False) -> Contestant:
    """The bare matrix products: forward, weight gradient, and for BPTT the input's gradient."""

    def contestant(case: Case) -> Callable[[], None]:
        g = torch.Generator().manual_seed(0)
        rows = case.steps * case.batch
        layers = []
        for i, (n_in, n_out) in enumerate(pairwise(case.sizes)):
            # A constant current needs the first layer's products for one step only.
            m = case.batch if i == 0 and case.encoding == "constant" else rows
            x = (torch.rand(m, n_in, generator=g) < 0.2).to(case.device, dtype)
            delta = torch.randn(m, n_out, generator=g).to(case.device, dtype)
            weight = torch.randn(n_out, n_in, generator=g).to(case.device, dtype)
            layers.append((x, delta, weight))

        def run() -> None:
            for i, (x, delta, weight) in enumerate(layers):
                x @ weight.T
                delta.T @ x
                if bptt and i:
                    delta @ weight

        return run

    return contestant


def _convolutions(memory_format: torch.memory_format) -> Contestant:
    """The bare convolutions and the last product: forward and weight gradient, as DFA has them."""

    def contestant(case: Case) -> Callable[[], None]:
        g, rows = torch.Generator().manual_seed(0), case.steps * case.batch
        net, shape, layers = case.build(nn, nn.Identity), (case.batch, *_IMAGE), []
        for i, module in enumerate(net):
            x = (torch.rand(shape, generator=g) < 0.2).to(case.device, SINGLE)
            shape = module(x).shape
            if not list(module.parameters()):
                continue
            # A constant current needs the first layer's convolutions for one step only.
            m = case.batch if i == 0 and case.encoding == "constant" else rows
            x = x.repeat(m // case.batch, *[1] * (x.dim() - 1))
            delta = torch.randn(m, *shape[1:], generator=g).to(case.device)
            if x.dim() == 4:
                x, delta = (_in_format(t, memory_format) for t in (x, delta))
            layers.append((module, x, delta))

        def run() -> None:
            for module, x, delta in layers:
                module.zero_grad()
                module(x).backward(delta)

        return run

    return contestant


def _in_format(t: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return [B, C, H, W] in a format, which for one channel its strides alone tell."""
    if memory_format is torch.channels_last:
        return (
            t.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
        )
    return t.contiguous()


CONTESTANTS: dict[str, Contestant] = {
    "snntorch bptt": _loop(dfa=False),
    "snntorch dfa": _loop(dfa=True),
    "spikingjelly bptt": spikingjelly_bptt,
    "bptt": _sequence(dfa=False, half=False),
    "dfa": _sequence(dfa=True, half=False),
    "dfa current": _sequence(dfa=True, half=False, credit="current"),
    "bptt bf16": _sequence(dfa=False, half=True),
    "dfa bf16": _sequence(dfa=True, half=True),
    "dfa current bf16": _sequence(dfa=True, half=True, credit="current"),
    "convs": _convolutions(torch.contiguous_format),
    "convs channels last": _convolutions(torch.channels_last),
    "products bptt": _products(SINGLE, bptt=True),
    "products dfa": _products(SINGLE),
    "products dfa bf16": _products(HALF),
}


def seconds_of(run: Callable[[], object], device: str, clock: Clock = time.perf_counter) -> float:
    """Time a call: by the events of a GPU, or by the clock."""
    if not device.startswith("cuda"):
        started = clock()
        run()
        return clock() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def started(
    makers: Mapping[str, Callable[[], Callable]], failed: Callable[[str, Exception], None]
) -> dict[str, Callable[[], object]]:
    """Make each contestant and warm it up; of one that raises an error, say so and go on."""
    runs = {}
    for name, make in makers.items():
        try:
            run = make()
            for _ in range(3):
                run()
            runs[name] = run
        except Exception as error:  # whatever it is, the others are measured
            failed(name, error)
    return runs


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    device: str,
    repeats: int,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the milliseconds of each contestant, one after the other in every repeat."""
    ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            ms[name].append(1e3 * seconds_of(run, device, clock))
    return ms


def spread(ms: list[float]) -> dict[str, float]:
    """Return the median and the ends of what was measured."""
    return {"ms": statistics.median(ms), "min": min(ms), "max": max(ms)}


def contestants(case: Case) -> dict[str, Callable[[], Callable]]:
    """Return those that there are for a case, each ready to be made."""
    others = "convs" if case.network == "dense" else "products"
    names = [name for name in CONTESTANTS if not name.startswith(others)]
    return {name: partial(CONTESTANTS[name], case) for name in names}


def peak_megabytes(run: Callable[[], object]) -> float:
    """MB that three steps add on a GPU, at the peak of the allocator."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _own_memory(case: Case, name: str) -> float:
    """MB that three steps add to the process; on a GPU, the peak of the allocator."""
    run = CONTESTANTS[name](case)
    if case.device.startswith("cuda"):
        return peak_megabytes(run)
    small = replace(case, steps=2, batch=32)
    CONTESTANTS[name](small)()  # libraries load and kernels compile here
    before = resident_megabytes(now=True)
    for _ in range(3):
        run()
    return resident_megabytes() - before


def _memory(args: argparse.Namespace, steps: int, name: str) -> float:
    """Ask a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--steps", str(steps)]
    for option in ("batch", "sizes", "device", "encoding", "network"):
        value = getattr(args, option)
        value = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        command += [f"--{option}", value]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _table(result: dict) -> str:
    rows = result["contestants"]
    base = rows.get("snntorch bptt")
    lines = [f"T={result['steps']}  {'ms':>9} {'x snntorch':>11} {'x products':>11} {'MB':>8}"]
    for name, row in rows.items():
        floor = "products dfa bf16" if "bf16" in name else "products dfa"
        own = rows.get(floor, rows.get("convs"))
        ratios = (row["ms"] / other["ms"] if other else math.nan for other in (base, own))
        lines.append(
            f"{name:<18} {row['ms']:8.1f} {next(ratios):11.3f} "
            f"{next(ratios):11.3f} {row.get('mb', math.nan):8.0f}"
        )
    return "\n".join(lines)


def _plot(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results), 4), layout="constrained")
    for axes, result in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results, strict=True
    ):
        names = list(result["contestants"])
        axes.barh(names, [result["contestants"][n]["ms"] for n in names], color="#3d6fb6")
        axes.invert_yaxis()
        axes.set(xlabel="ms a step (median)", title=f"T={result['steps']}, {result['encoding']}")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the options, measure, print, write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=lambda s: [int(v) for v in s.split(",")], default=[25])
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--sizes", type=lambda s: tuple(map(int, s.split(","))),
                   default=(784, 1000, 250, 100, 10))  # fmt: skip
    p.add_argument("--device", default="cpu")
    p.add_argument("--network", choices=["dense", "conv"], default="dense",
                   help="dense, of --sizes, or that of snnTorch's sixth tutorial")  # fmt: skip
    p.add_argument("--encoding", choices=["poisson", "constant"], default="poisson")
    p.add_argument("--repeats", type=int, default=15)
    p.add_argument("--no-memory", action="store_true", help="skip the processes for memory")
    p.add_argument("--json", type=Path)
    p.add_argument("--plot", type=Path)
    p.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = p.parse_args()

    def case(steps: int) -> Case:
        return Case(steps, args.batch, args.sizes, args.device, args.encoding, args.network)

    if args.memory_of:
        print(_own_memory(case(args.steps[0]), args.memory_of))
        return
    keep_freed_memory()  # for every contestant; in the memory's processes blocks are given back
    results = []
    for steps in args.steps:
        rows = {}
        runs = started(contestants(case(steps)), _say_skipped)
        for name, ms in interleaved(runs, args.device, args.repeats).items():
            rows[name] = spread(ms)
            if not args.no_memory:
                rows[name]["mb"] = _memory(args, steps, name)
        result = {"steps": steps, "batch": args.batch, "sizes": args.sizes, "device": args.device,
                  "encoding": args.encoding, "network": args.network,
                  "contestants": rows}  # fmt: skip
        print(_table(result), flush=True)
        results.append(result)
    versions = {"torch": torch.__version__, "snntorch": snn.__version__,
                "python": platform.python_version(), "threads": torch.get_num_threads(),
                "cpu": _cpu()}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))
    if args.plot:
        _plot(results, args.plot)


def _say_skipped(name: str, error: Exception) -> None:
    if not isinstance(error, ImportError):
        raise error
    print(f"{name}: skipped, {error}", file=sys.stderr)


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
