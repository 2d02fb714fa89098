"""Time a training step of the same network in several forms, interleaved in one run.

    python benchmarks/step.py --json step.json

Every repeat runs each contestant once, one after the other, so that a machine whose speed drifts
drifts for all of them; figures are medians over the repeats, to be read as ratios. Peak memory is
taken from a process of its own for each contestant.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional

from snn_dfa import DFA, encoding, over_time, reset
from snn_dfa.experiments.memory import keep_freed_memory, resident_megabytes
from snn_dfa.surrogate import fast_sigmoid

HALF, SINGLE = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Case:
    """What is timed, but for the contestant."""

    steps: int
    batch: int
    sizes: tuple[int, ...]
    device: str
    encoding: str

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return pixels of which a fifth is on, coded [T, B, F], and targets [B]."""
        g = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, self.sizes[0], generator=g)
        x = torch.where(torch.rand(x.shape, generator=g) < 0.2, x, 0.0).to(self.device)
        y = torch.randint(self.sizes[-1], (self.batch,), generator=g).to(self.device)
        code = encoding.poisson if self.encoding == "poisson" else encoding.constant
        return code(x, self.steps), y

    def network(self) -> nn.Sequential:
        """Return the plain snnTorch network."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(self.sizes):
            neuron = snn.Leaky(0.9, spike_grad=fast_sigmoid(25), init_hidden=True)
            layers += [nn.Linear(n_in, n_out), neuron]
        return nn.Sequential(*layers).to(self.device)


def _update(net: nn.Module, forward: Callable[[], Tensor], y: Tensor, half: bool) -> None:
    """Forward, loss on spike counts, backward; the optimiser is the same for all and left out."""
    net.zero_grad()
    with torch.autocast(y.device.type, dtype=HALF, enabled=half):
        spk = forward()
    functional.cross_entropy(spk.sum(0), y).backward()


def snntorch_bptt(case: Case) -> Callable[[], None]:
    """SnnTorch as its tutorials have it: a loop over time around the network."""
    net, (x, y) = case.network(), case.inputs()

    def forward() -> Tensor:
        reset(net)
        return torch.stack([net(step) for step in x])

    return lambda: _update(net, forward, y, half=False)


def spikingjelly_bptt(case: Case) -> Callable[[], None]:
    """SpikingJelly in its multi-step mode."""
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import layer, neuron, surrogate

    (x, y), layers = case.inputs(), []
    torch.manual_seed(0)
    for n_in, n_out in pairwise(case.sizes):
        spike = neuron.LIFNode(tau=10.0, decay_input=False, v_reset=None,
                               surrogate_function=surrogate.ATan(), detach_reset=True)  # fmt: skip
        layers += [layer.Linear(n_in, n_out), spike]
    net = nn.Sequential(*layers).to(case.device)
    sj.set_step_mode(net, "m")

    def forward() -> Tensor:
        sj.reset_net(net)
        return net(x)

    return lambda: _update(net, forward, y, half=False)


def _sequence(dfa: bool, half: bool, credit: str = "membrane") -> Callable[[Case], Callable]:
    def contestant(case: Case) -> Callable[[], None]:
        net, (x, y) = case.network(), case.inputs()
        if half:
            once = x.stride(0) == 0
            x = x[0].to(HALF).expand(x.shape) if once else x.to(HALF)  # spikes are exact in it
        form = over_time(net)
        if dfa:
            DFA(form, output=str(len(net) - 1), credit=credit)
        return lambda: _update(net, lambda: form(x), y, half)

    return contestant


def _products(dtype: torch.dtype, bptt: bool = False) -> Callable[[Case], Callable]:
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


CONTESTANTS: dict[str, Callable[[Case], Callable]] = {
    "snntorch bptt": snntorch_bptt,
    "spikingjelly bptt": spikingjelly_bptt,
    "bptt": _sequence(dfa=False, half=False),
    "dfa": _sequence(dfa=True, half=False),
    "dfa current": _sequence(dfa=True, half=False, credit="current"),
    "bptt bf16": _sequence(dfa=False, half=True),
    "dfa bf16": _sequence(dfa=True, half=True),
    "dfa current bf16": _sequence(dfa=True, half=True, credit="current"),
    "products bptt": _products(SINGLE, bptt=True),
    "products dfa": _products(SINGLE),
    "products dfa bf16": _products(HALF),
}


def _sync(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _time(case: Case, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant's steps."""
    runs = {}
    for name, make in CONTESTANTS.items():
        try:
            runs[name] = make(case)
        except ImportError as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
    for run in runs.values():
        for _ in range(3):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            _sync(case.device)
            started = time.perf_counter()
            run()
            _sync(case.device)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _own_memory(case: Case, name: str) -> float:
    """MB that three steps add to the process; on a GPU, the peak of the allocator."""
    run = CONTESTANTS[name](case)
    if case.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    small = Case(2, 32, case.sizes, case.device, case.encoding)
    CONTESTANTS[name](small)()  # libraries load and kernels compile here
    before = resident_megabytes(now=True)
    for _ in range(3):
        run()
    return resident_megabytes() - before


def _memory(args: argparse.Namespace, steps: int, name: str) -> float:
    """Ask a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--steps", str(steps)]
    for option in ("batch", "sizes", "device", "encoding"):
        value = getattr(args, option)
        value = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        command += [f"--{option}", value]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _table(result: dict) -> str:
    base, products = (result["contestants"].get(n) for n in ("snntorch bptt", "products dfa"))
    lines = [f"T={result['steps']}  {'ms':>9} {'x snntorch':>11} {'x products':>11} {'MB':>8}"]
    for name, row in result["contestants"].items():
        own = result["contestants"]["products dfa bf16"] if "bf16" in name else products
        lines.append(
            f"{name:<18} {row['ms']:8.1f} {row['ms'] / base['ms']:11.3f} "
            f"{row['ms'] / own['ms']:11.3f} {row.get('mb', float('nan')):8.0f}"
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
    p.add_argument("--encoding", choices=["poisson", "constant"], default="poisson")
    p.add_argument("--repeats", type=int, default=15)
    p.add_argument("--no-memory", action="store_true", help="skip the processes for memory")
    p.add_argument("--json", type=Path)
    p.add_argument("--plot", type=Path)
    p.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = p.parse_args()

    def case(steps: int) -> Case:
        return Case(steps, args.batch, args.sizes, args.device, args.encoding)

    if args.memory_of:
        print(_own_memory(case(args.steps[0]), args.memory_of))
        return
    keep_freed_memory()  # for every contestant; in the memory's processes blocks are given back
    results = []
    for steps in args.steps:
        rows = {}
        for name, seconds in _time(case(steps), args.repeats).items():
            ms = sorted(1e3 * s for s in seconds)
            rows[name] = {"ms": statistics.median(ms), "min": ms[0], "max": ms[-1]}
            if not args.no_memory:
                rows[name]["mb"] = _memory(args, steps, name)
        result = {"steps": steps, "batch": args.batch, "sizes": args.sizes, "device": args.device,
                  "encoding": args.encoding, "contestants": rows}  # fmt: skip
        print(_table(result), flush=True)
        results.append(result)
    versions = {"torch": torch.__version__, "snntorch": snn.__version__,
                "python": platform.python_version(), "threads": torch.get_num_threads(),
                "cpu": _cpu()}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"versions": versions, "results": results}, indent=1))
    if args.plot:
        _plot(results, args.plot)


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
