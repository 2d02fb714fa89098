"""How fast it is on this device, and what memory it takes."""

from __future__ import annotations

import itertools
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step import (
    CONTESTANTS,
    HALF,
    Case,
    interleaved,
    peak_megabytes,
    spikingjelly_bptt,
    spread,
    started,
)
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_parts.visit import ROOT, Visit, allow_tf32
from snn_dfa import DFA, over_time, reset
from snn_dfa.encoding import constant
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.train.feedback import attach
from snn_dfa.experiments.train.network import build
from snn_dfa.experiments.train.optimization import make_loss, make_optimizer
from snn_dfa.feedback import LEARNED
from snn_dfa.sequence.scan import Dynamics, leaky_scan
from snn_dfa.sequence.scan import cuda as scan_kernels
from snn_dfa.surrogate import fast_sigmoid


def _with_tf32(make: Callable[[Case], Callable], case: Case) -> Callable[[], None]:
    step = make(case)

    def run() -> None:
        allow_tf32(True)
        step()
        allow_tf32(False)

    return run


def _steps(visit: Visit, case: Case, names: list[str], repeats: int) -> None:
    """Time training steps by name, interleaved, and take their peak memory."""
    known = {**CONTESTANTS, "spikingjelly bptt bf16": partial(spikingjelly_bptt, half=True)}
    makers = {}
    for name in names:
        make = known[name.removesuffix(" tf32")]
        makers[name] = partial(_with_tf32, make, case) if name not in known else partial(make, case)
    about = {"network": case.network, "steps": case.steps, "batch": case.batch}
    runs = started(makers, lambda name, error: visit.failed(name, error, **about))
    times = interleaved(runs, case.device, repeats)
    slow = spread(times.get("snntorch bptt", [float("nan")]))["ms"]
    for name, run in runs.items():
        row = spread(times[name])
        megabytes = peak_megabytes(run) if visit.on_gpu else None  # no such counter on a CPU
        visit.say(contestant=name, **about, **row, x_snntorch=row["ms"] / slow, mb=megabytes)


FORMS = ("snntorch bptt", "spikingjelly bptt", "bptt", "dfa", "dfa current")
HALVES = tuple(f"{name} bf16" for name in FORMS[1:])
PRODUCTS = ("products bptt", "products dfa", "products dfa bf16", "products dfa tf32")


def step(visit: Visit, network: str) -> None:
    """A training step: snnTorch's loop, SpikingJelly, over_time; float32, TF32 and bfloat16."""
    names = [*FORMS, *(f"{name} tf32" for name in FORMS), *HALVES]
    names += PRODUCTS if network == "dense" else ()
    sizes = visit.sizes
    for steps in sizes.steps:
        case = Case(steps, sizes.batch, sizes.dense, visit.device, "poisson", network)
        _steps(visit, case, names, max(2, sizes.repeats * 50 // (50 + steps)))


def own(visit: Visit) -> None:
    """A whole update of a network as people bring it: fixed and learned feedback, in both forms."""
    sizes = visit.sizes
    for network, steps in itertools.product(("dense", "conv"), sizes.steps[:2]):
        case = Case(steps, sizes.batch, sizes.dense, visit.device, "poisson", network)
        about = {"network": network, "steps": steps, "batch": case.batch}
        makers = {
            f"{form} {rule}": partial(_update, case, rule, form)
            for form, rule in itertools.product(("loop", "over_time"), ("bptt", "dfa", "learned"))
        }
        runs = started(makers, partial(visit.failed, **about))
        for name, ms in interleaved(runs, visit.device, sizes.repeats).items():
            mb = peak_megabytes(runs[name]) if visit.on_gpu else None
            visit.say(contestant=name, **about, **spread(ms), mb=mb)


def _update(case: Case, rule: str, form: str) -> Callable[[], None]:
    """Return an update; ``learned`` is ``DFA(net, optimizer=optimizer)``."""
    net, (x, y) = case.snntorch(), case.inputs()
    run: Any = net if form == "loop" else over_time(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    if rule != "bptt":
        DFA(run, output=str(len(net) - 1), optimizer=optimizer if rule == "learned" else None)

    def update() -> None:
        optimizer.zero_grad()
        reset(net)
        spk = torch.stack([net(step) for step in x]) if form == "loop" else run(x)
        functional.cross_entropy(spk.sum(0), y).backward()
        optimizer.step()

    return update


#: Cells of a program, warps and stages that are tried.
FORMS_OF_KERNELS = (
    (256, 4, 1), (512, 4, 1), (1024, 4, 1), (1024, 8, 1), (512, 4, 3), (1024, 4, 3), (1024, 8, 3),
    (1024, 4, 5),
)  # fmt: skip


def neuron(visit: Visit) -> None:
    """The neuron alone, against the bandwidth that a copy has."""
    count = visit.sizes.copied
    source = torch.ones(count, dtype=torch.uint8, device=visit.device)
    copy = partial(torch.empty_like(source).copy_, source)
    copied = spread(interleaved({"copy": copy}, visit.device, 1 + visit.sizes.repeats)["copy"])
    bandwidth = 2 * count / copied["ms"] * 1e3  # bytes a second, read and written
    visit.say(contestant="copy", **copied, bytes=2 * count, gb_per_s=bandwidth / 1e9)
    del source, copy
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name, rows = str(dtype), _neurons(visit, dtype)
        makers = {key: partial(lambda run: run, run) for key, (run, _) in rows.items()}
        runs = started(makers, partial(visit.failed, dtype=name))
        for key, ms in interleaved(runs, visit.device, visit.sizes.repeats).items():
            row, moved = spread(ms), rows[key][1]
            share = moved / row["ms"] * 1e3 / bandwidth
            visit.say(contestant=key, dtype=name, **row, bytes=moved, share_of_copy=share)


def _neurons(visit: Visit, dtype: torch.dtype) -> dict[str, tuple[Callable, int]]:
    """Return passes through the neuron, each with the bytes that it must move at least."""
    x = torch.randn(visit.sizes.neuron, device=visit.device).to(dtype).requires_grad_()
    grad = torch.randn(visit.sizes.neuron, device=visit.device).to(dtype)
    one = torch.tensor(1.0, device=visit.device)
    dyn = Dynamics(0.9 * one, one, fast_sigmoid(25))

    def formed(shape: tuple[int, int, int]) -> None:
        scan_kernels._BLOCK, scan_kernels._WARPS, scan_kernels._STAGES = shape

    def both(shape: tuple[int, int, int]) -> Tensor:
        formed(shape)
        return torch.autograd.grad(leaky_scan(x, dyn)[0], x, grad)[0]

    def alone(shape: tuple[int, int, int]) -> None:
        formed(shape)
        with torch.no_grad():
            leaky_scan(x, dyn)

    def spikingjelly() -> None:
        from spikingjelly.activation_based import neuron as sj
        from spikingjelly.activation_based import surrogate

        node = sj.LIFNode(10.0, decay_input=False, v_reset=None, detach_reset=True, step_mode="m",
                          surrogate_function=surrogate.ATan())  # fmt: skip
        torch.autograd.grad(node(x), x, grad)

    # Current, spikes and margins; then margins, gradients that come and gradients that go.
    margin = 2 if dtype == torch.bfloat16 else 4
    whole = x.numel() * (4 * x.element_size() + 2 * margin)
    passes: dict[str, tuple[Callable, int]] = {"spikingjelly": (spikingjelly, whole)}
    for shape in FORMS_OF_KERNELS:
        block, warps, stages = shape
        form = f"block {block}, {warps} warps, {stages} stages"
        passes[f"both passes, {form}"] = (partial(both, shape), whole)
        passes[f"forward alone, {form}"] = (partial(alone, shape), 2 * x.numel() * x.element_size())
    return passes


def wide(visit: Visit) -> None:
    """The public benchmark: one linear layer and its neurons, both passes."""
    steps, batch, width = visit.sizes.wide
    case = Case(steps, batch, (width, width), visit.device, "poisson")
    plain = ("snntorch bptt", "spikingjelly bptt", "bptt", "products dfa")
    names = [*plain, *(f"{n} tf32" for n in plain[1:]), *(f"{n} bf16" for n in plain[2:])]
    _steps(visit, case, names, max(2, visit.sizes.repeats // 3))


class HostReads(TorchDispatchMode):
    """Counts where a step reads a number off a tensor: there a GPU waits, and a capture fails."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note the line here that asked for a number."""
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            seen = traceback.extract_stack()[:-1]  # without this function
            ours = [frame for frame in seen if frame.filename.startswith(str(ROOT / "snn_dfa"))]
            where = f"{Path(ours[-1].filename).name}: {ours[-1].line}" if ours else "elsewhere"
            self.places[where] += 1
        return func(*args, **(kwargs or {}))


def graph(visit: Visit, rule: str, feedback: str) -> None:
    """A whole step of the recipe deep, its optimiser's included, as it is and as a CUDA graph."""
    for precision in ("float32", "tf32", "bfloat16"):
        allow_tf32(precision == "tf32")
        try:
            _graph(visit, rule, feedback, precision)
        except Exception as error:
            visit.failed(f"{rule} {precision}", error)
    allow_tf32(False)


def _graph(visit: Visit, rule: str, feedback: str, precision: str) -> None:
    sizes = visit.sizes
    settings = replace(
        RECIPES["deep"].settings, device=visit.device, steps=sizes.deep_steps, hidden=sizes.deep,
        feedback=feedback,
    )  # fmt: skip
    net = build(settings, (1, 28, 28), 10).to(visit.device)
    form, optimizer = over_time(net), make_optimizer(settings, net)
    dfa = attach(settings, rule, form)
    if dfa is not None and feedback in LEARNED:
        dfa.follow(optimizer)
    for group in optimizer.param_groups:
        group["capturable"] = visit.on_gpu
    x = constant(torch.rand(sizes.batch, 784), settings.steps).to(visit.device)
    y, loss_of = torch.arange(sizes.batch, device=visit.device) % 10, make_loss(settings)

    def update() -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(visit.device).type, HALF, precision == "bfloat16"):
            spikes = form(x)
        loss_of(spikes, y).backward()
        optimizer.step()

    about = {"rule": rule, "feedback": feedback, "precision": precision,
             "steps": settings.steps, "batch": sizes.batch}  # fmt: skip
    runs = started({"eager": lambda: update}, visit.failed)
    visit.say(contestant="eager", **about,
              **spread(interleaved(runs, visit.device, sizes.repeats)["eager"]))  # fmt: skip
    with HostReads() as reads:
        update()
    visit.say(contestant="host reads", **about, places=dict(reads.places))
    if not visit.on_gpu:
        visit.say(contestant="graph", **about, left_out="no CUDA graphs without a GPU")
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        update()
    runs = started({"graph": lambda: captured.replay}, visit.failed)
    times = interleaved(runs, visit.device, 10 * sizes.repeats)["graph"]
    seen = _operations(captured.replay, visit.on_gpu, most=60)
    visit.say(contestant="graph", **about, **spread(times), **seen)


def profile(visit: Visit) -> None:
    """Where the time of a step goes: the operations that take most of it, and their number."""
    sizes = visit.sizes
    for network, name in itertools.product(("dense", "conv"), ("bptt", "dfa", "dfa bf16")):
        case = Case(sizes.steps[0], sizes.batch, sizes.dense, visit.device, "poisson", network)
        run = CONTESTANTS[name](case)
        for _ in range(3):
            run()
        visit.say(contestant=name, network=network, **_operations(run, visit.on_gpu, most=12))


def _operations(run: Callable[[], object], on_gpu: bool, most: int) -> dict[str, Any]:
    """Return microseconds of a call, and its operations that take most: name, count, time."""
    with torch.profiler.profile() as seen:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    table = seen.key_averages()
    of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(table, key=lambda row: -getattr(row, of))[:most]
    return {
        "us": sum(getattr(row, of) for row in table),
        "cpu_us": sum(row.self_cpu_time_total for row in table),
        "most": [(row.key[:60], row.count, getattr(row, of)) for row in rows],
    }
