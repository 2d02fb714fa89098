"""Whether it is right on this device: versions, tests, gradients beside those of the CPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import snntorch as snn
import torch
from step import Case
from torch import Tensor, nn
from torch.nn import functional

from gpu_parts.visit import ROOT, Visit
from snn_dfa import DFA, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

TESTS = ["tests/sequence/test_scan_cuda.py", "tests/attach/test_gpu.py"]
PACKAGES = ("torch", "triton", "snntorch", "spikingjelly", "cupy-cuda13x", "numba")


def machine(visit: Visit) -> None:
    """Device and versions."""
    about: dict[str, Any] = {"device": visit.device, "cpu": platform.processor()}
    if visit.on_gpu:
        has = torch.cuda.get_device_properties(visit.device)
        about |= {"gpu": has.name, "gb": has.total_memory / 1e9, "cuda": torch.version.cuda,
                  "multiprocessors": has.multi_processor_count}  # fmt: skip
    for package in PACKAGES:
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = None
    visit.say(**about, python=platform.python_version(), small=visit.args.small)


def tests(visit: Visit) -> None:
    """The tests of the CUDA kernels; without a GPU they say that they are skipped."""
    import pytest

    counts: Counter[str] = Counter()

    class Outcomes:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                counts[report.outcome] += 1
            if report.failed:
                visit.say(test=report.nodeid, error=str(report.longrepr)[-600:])

    os.chdir(ROOT)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-m", "not slow"]
    options += ["-n", str(visit.sizes.jobs)] if visit.sizes.jobs > 1 else []
    status = pytest.main([*options, *TESTS], plugins=[Outcomes()])
    visit.say(tests=TESTS, exit_status=int(status), **counts)


def programs(visit: Visit) -> None:
    """Random programs of users on the device, whose gradients are compared with the oracle's."""
    given = ["--programs", str(visit.sizes.programs), "--jobs", str(visit.sizes.jobs)]
    script = str(ROOT / "benchmarks" / "random_programs.py")
    command = [sys.executable, script, "--device", visit.device, "--seed", "30000000", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr[-3000:], flush=True)
    counts = dict(re.findall(r"(\w+): (\d+)", done.stdout.split("\n\n")[0]))
    visit.say(**{kind: int(count) for kind, count in counts.items()}, exit_status=done.returncode)


RULES: dict[str, dict[str, Any] | None] = {
    "bptt": None,
    "dfa": {},
    "dfa current": {"credit": "current"},
    "dfa trace": {"credit": "trace"},
    "fa": {"rule": "fa"},
    "kolen-pollack": {"feedback": "kolen-pollack"},
}
#: Precision to its dtype, that of autocast, and how far gradients may be from those of float64,
#: relative to their norm. In half precision some spikes come or go,
#: and a bound can only tell gradients from unrelated ones, whose distance is above one.
PRECISIONS = {
    "float64": (torch.float64, None, 1e-9),
    "float32": (torch.float32, None, 1e-2),
    "bfloat16": (torch.float32, torch.bfloat16, 0.8),
    "float16": (torch.float32, torch.float16, 0.8),
}


def parity(visit: Visit) -> None:
    """Gradients on the device beside those of snnTorch's loop in float64 on the CPU."""
    # The kernels of float64 are compiled for nothing else: that takes longest on a CPU.
    dense = ("float32", "bfloat16") if visit.args.small else tuple(PRECISIONS)
    for rule in RULES:
        forms = ["loop"] if rule == "dfa trace" else ["loop", "over_time"]
        _compare(visit, "dense", rule, [(f, p) for f in forms for p in dense])
    for rule in ("dfa",) if visit.args.small else ("bptt", "dfa"):
        _compare(visit, "conv", rule, [(f, p) for f in ("loop", "over_time") for p in dense])


def compiled(visit: Visit) -> None:
    """The same after ``torch.compile``."""
    single = [("over_time", "float32")]
    _compare(visit, "dense", "dfa", single, compiled=True)
    if not visit.args.small:
        more = [("over_time", "bfloat16"), ("loop", "float32")]
        _compare(visit, "dense", "dfa", more, compiled=True)
        _compare(visit, "dense", "bptt", [*single, ("loop", "float32")], compiled=True)


def _compare(
    visit: Visit, network: str, rule: str, ways: list[tuple[str, str]], compiled: bool = False
) -> None:
    batch = 4 if network == "conv" else 16
    case = Case(4, batch, (784, 64, 32, 10), "cpu", "poisson", network)
    wanted = _gradients(case, "loop", rule, "cpu", "float64")
    for form, precision in ways:
        about = {"network": network, "form": form, "precision": precision, "compiled": compiled}
        try:
            got = _gradients(case, form, rule, visit.device, precision, compiled)
        except Exception as error:
            visit.failed(rule, error, **about)
            continue
        away = ((got - wanted).norm() / wanted.norm()).item()
        # Matrices that learn are in float32, and their steps are rounded differently.
        bound = max(PRECISIONS[precision][2], 1e-6 if rule == "kolen-pollack" else 0.0)
        right = away <= bound  # NaN is not
        visit.say(contestant=rule, **about, distance=away, right=right)


def _gradients(
    case: Case, form: str, rule: str, device: str, precision: str, compiled: bool = False
) -> Tensor:
    """Return all gradients of a step as one vector, in float64 on the CPU."""
    dtype, half, _ = PRECISIONS[precision]
    surrogate = fast_sigmoid(5)  # not steep, so that a spike more or less changes little
    net = case.build(nn, lambda: snn.Leaky(0.9, 0.3, spike_grad=surrogate, init_hidden=True))
    net, (x, y) = net.to(device, dtype), case.inputs()
    x, y = x.to(device, dtype), y.to(device)
    run: Any = net if form == "loop" else over_time(net)
    options = RULES[rule]
    dfa = None if options is None else DFA(run, output=str(len(net) - 1), **options)
    if compiled:
        run = torch.compile(run, backend="inductor" if device.startswith("cuda") else "eager")
    for _ in range(2):  # the first batch of a network has ways of its own
        net.zero_grad()
        reset(net)
        with torch.autocast(y.device.type, half, enabled=half is not None):
            spk = torch.stack([run(step) for step in x]) if form == "loop" else run(x)
        functional.cross_entropy(spk.sum(0).to(dtype), y).backward()
    if dfa is not None:
        dfa.remove()
    return torch.cat([p.grad.flatten() for p in net.parameters()]).double().cpu()
