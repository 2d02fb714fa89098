"""Fill the tables of the pages from the files of numbers that scripts and commands wrote.

    python docs/tables.py

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. `TABLES` has the file
and the function of each name. A page says beside its table which command wrote the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

__all__ = ["PAGES", "TABLES", "filled", "main"]

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md", "docs/rules.md", "docs/learning.md", "docs/experiments.md", "benchmarks/README.md",
)  # fmt: skip
#: What rules are called in the tables of benchmarks.
_NAMES = {
    "dfa": "DFA with a weight mirror, `DFA(net, optimizer=optimizer)`",
    "fixed": "DFA with fixed feedback, `DFA(net)`",
    "kolen-pollack": 'a learned matrix a layer, `feedback="kolen-pollack"`',
    "linear": "weight mirror without gates, `WeightMirror(by_sample=0)`",
    "half": "half of each neuron's own gate, `WeightMirror(by_sample=0.5)`",
    "by-sample": "each neuron's own gate, `WeightMirror(by_sample=1)`",
    "fa": 'layer by layer, `rule="fa"` with learned factors',
    "bptt": "back-propagation through time",
    "shallow": "output layer alone",
}


def _short(rule: str) -> str:
    """Return what a rule is called where there is no place for how it is written."""
    return _NAMES[rule].split(", `")[0]


def _table(head: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table; ``align`` has ``l`` or ``r`` for each column."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def rules(found: Any) -> str:
    """Return accuracy, memory and angles of ``snn-dfa rules``."""
    head = ("rule", "test accuracy", "kept, MB", "peak, MB", "angle to back-propagation, degrees")
    return _table(head, "lrrrr", (_rule(row) for row in found["rows"]))


def _rule(row: Mapping[str, Any]) -> tuple[str, ...]:
    last = row["diagnostics"][-1]["gradient_angles"] if row["diagnostics"] else {}
    angles = [f"{angle:.0f}" for angle in list(last.values())[:-1] if math.isfinite(angle)]
    return (
        row["name"] + "\\*" * ("earlier" in row),
        f"{100 * row['test_accuracy']:.2f} %",
        f"{row['kept_megabytes']:.1f}",
        f"{row['peak_megabytes']:.0f}",
        ", ".join(angles) or "-",
    )


def ladder(found: Any) -> str:
    """Return the test accuracy of each rung of ``snn-dfa ladder``."""
    rows = ((r["name"], f"{100 * r['test_accuracy']:.2f} %") for r in found["rungs"])
    return _table(("change", "test accuracy"), "lr", rows)


def seeds(found: Any) -> str:
    """Return the accuracy of each seed, and mean and worst of a rule."""
    count = max(map(len, found["accuracy"].values()))
    head = ("test accuracy, %", *(f"seed {seed}" for seed in range(count)), "mean", "worst")
    rows = []
    for rule, each in found["accuracy"].items():
        cells = [f"{accuracy:g}" for accuracy in each] + [""] * (count - len(each))
        digits = max(len(cell.partition(".")[2]) for cell in cells)
        rows.append((_NAMES[rule], *cells, f"{fmean(each):.{digits}f}", f"{min(each):g}"))
    return _table(head, "l" + "r" * (count + 2), rows)


#: A run of ``benchmarks/recipes.py`` to its network, or recording of events, and its rule.
_RUNS = {
    "deep": ("`deep`, 784-1000-250-100-10", "DFA with a weight mirror"),
    "deep-fixed": ("the same", "DFA, fixed random feedback"),
    "deep-bptt": ("the same", "back-propagation through time"),
    "wide": ("`wide`, 784-1000-10", "DFA with a weight mirror"),
    "wide-fixed": ("the same", "DFA, fixed random feedback"),
    "wide-bptt": ("the same", "back-propagation through time"),
    "conv": ("`conv`, 12C5-MP2-64C5-MP2-10", "DFA with a weight mirror"),
    "conv-bptt": ("the same", "back-propagation through time"),
    "events": ("`events`", "DFA with a weight mirror, whole sequences"),
    "events-fixed": ("`events`", "DFA, fixed random feedback"),
    "events-bptt": ("`events`", "back-propagation through time"),
    "events-shallow": ("`events`", "output layer alone"),
    "events-matrix": ("`events`", "the same with running statistics and a learned matrix a layer"),
    "events-online": ("`events`", "DFA online, `--credit trace`, a learned matrix a layer"),
}


def recipes(found: Any) -> str:
    """Return the accuracy of each seed of the recipes for images, and their minutes."""
    rows = []
    for name, run in found.items():
        if name.startswith("events"):
            continue
        each, minutes = run["accuracy"], [seconds / 60 for seconds in run["seconds"]]
        cells = [f"{accuracy:.2f}" for accuracy in (*each, fmean(each), min(each))]
        ends = (str(run["epochs"]), f"{min(minutes):.0f} to {max(minutes):.0f}")
        rows.append((*_RUNS[name], *cells, *ends))
    head = ("recipe", "rule", "seed 0", "1", "2", "mean", "worst", "epochs", "minutes")
    return _table(head, "llrrrrrrr", rows)


def nmnist(found: Any) -> str:
    """Return the accuracy of each fold of N-MNIST, and the mean."""
    rows = []
    for name, run in found.items():
        if name.startswith("events"):
            folds = ", ".join(f"{accuracy:.2f}" for accuracy in run["accuracy"])
            rows.append((_RUNS[name][1], f"{fmean(run['accuracy']):.2f}", folds))
    return _table(("test accuracy, %", "mean", "folds"), "lrl", rows)


#: Networks of the README to where its rules' numbers are found, in the order of the columns.
_NETWORKS = (
    ("[tutorial 5](benchmarks/README.md#snntorchs-fifth-tutorial-on-mnist), 784-1000-10, MNIST",
     "tutorial", ("bptt", "dfa", "fixed", "shallow")),
    ("[five convolutions](docs/learning.md#a-deep-convolutional-network-on-15000-images), CIFAR-10",
     "convolutions", ("bptt", "dfa", "fixed", "shallow")),
    ("[`deep`](docs/learning.md), 784-1000-250-100-10, MNIST",
     "recipes", ("deep-bptt", "deep", "deep-fixed", "")),
    ("the same, [two epochs](docs/rules.md)",
     "two epochs", ("bptt", "dfa, error at the current, kolen-pollack-product", "dfa", "shallow")),
    ("`wide`, 784-1000-10, MNIST", "recipes", ("wide-bptt", "wide", "wide-fixed", "")),
    ("`conv`, 12C5-MP2-64C5-MP2-10, MNIST", "recipes", ("conv-bptt", "conv", "", "")),
    ("the same, [two epochs](docs/rules.md)", "two epochs",
     ("conv: bptt", "conv: dfa, error at the current, kolen-pollack", "conv: dfa", "")),
    ("[`events`](docs/learning.md#events-of-a-camera), 2312-400-10, N-MNIST",
     "recipes", ("events-bptt", "events", "events-fixed", "events-shallow")),
)  # fmt: skip


def results(mnist: Any, convolutions: Any, runs: Any, two_epochs: Any) -> str:
    """Return mean and worst accuracy of each rule, with a row for each network."""
    found = {
        "tutorial": mnist["accuracy"],
        "convolutions": convolutions["accuracy"],
        "recipes": {name: run["accuracy"] for name, run in runs.items()},
        "two epochs": {row["name"]: [100 * row["test_accuracy"]] for row in two_epochs["rows"]},
    }
    rows = (
        (network, *(_mean_and_worst(found[source].get(rule, ())) for rule in rules))
        for network, source, rules in _NETWORKS
        if any(rule in found[source] for rule in rules)
    )
    head = ("network and data", "back-propagation", "DFA, matrices that learn")
    return _table((*head, "DFA, fixed matrices", "output layer alone"), "lrrrr", rows)


def _mean_and_worst(each: Sequence[float]) -> str:
    """Return the mean and, in brackets, the worst; one number of one run, a dash of none."""
    if len(each) < 2:
        return f"{each[0]:.2f}" if each else "-"
    return f"{fmean(each):.2f} ({min(each):.2f})"


def angles(found: Any) -> str:
    """Return the angles of ``benchmarks/angles.py``, as means over seeds."""
    epochs = len(next(iter(found.values()))[0]) - 1
    head = ("rule", "start", *(f"epoch {n}" for n in range(1, epochs + 1)))
    rows = (
        (
            _short(rule),
            *(
                ", ".join(f"{fmean(layer):.0f}" for layer in zip(*each, strict=True))
                for each in zip(*runs, strict=True)
            ),
        )
        for rule, runs in found.items()
    )
    return _table(head, "l" + "r" * (len(head) - 1), rows)


def learned_cost(found: Any) -> str:
    """Return the times of ``benchmarks/learned_cost.py``, as shares of fixed feedback's."""
    rules = list(next(iter(found["ms"].values())))
    rows = (
        (network, *(f"{ms[rule] / ms['fixed']:.2f}" for rule in rules if rule != "fixed"))
        for network, ms in found["ms"].items()
    )
    head = ("network", *(_short(rule) for rule in rules if rule != "fixed"))
    return _table(head, "l" + "r" * (len(head) - 1), rows)


def loop(found: Any) -> str:
    """Return the times of ``benchmarks/loop.py``, apart from networks in two forms of states."""
    rows = (
        (name, *(f"{row[key]:.1f}" for key in ("bptt ms", "dfa ms")), f"{row['ratio']:.2f}")
        for name, row in found.items()
        if name != "torch" and not name.endswith(" states")
    )
    return _table(("network", "BPTT, ms", "DFA, ms", "DFA / BPTT"), "lrrr", rows)


def loop_neurons(found: Any) -> str:
    """Return the times of DFA there as shares of back-propagation's, by neuron."""
    forms = ("explicit", "hidden")
    neurons = dict.fromkeys(n.partition(", ")[0] for n in found if n.endswith(" states"))
    rows = (
        (neuron, *(f"{found[f'{neuron}, {form} states']['ratio']:.2f}" for form in forms))
        for neuron in neurons
    )
    return _table(("neuron", *(f"{form} states" for form in forms)), "lrr", rows)


def one_line(found: Any) -> str:
    """Return what one line reaches in ``benchmarks/learning.py`` at a rate of 1e-3."""
    return _beside(_tests(run for run in found if run["rate"] == 1e-3))


def rates(found: Any) -> str:
    """Return the same with the rate that is best on validation, for each rule, and that rate."""
    runs, best = _at_best_rate(found)
    return _beside(_tests(runs), lambda *names: f"; {best[names]:g}")


def _at_best_rate(found: Any) -> tuple[list[Any], dict[tuple[str, str, str], float]]:
    """Return the runs at the rate that is best on validation; that rate by what was run."""
    runs: dict[tuple[str, str, str], dict[float, list[Any]]] = {}
    for run in found:
        its = runs.setdefault((run["network"], run["loss"], run["rule"]), {})
        its.setdefault(run["rate"], []).append(run)
    best = {}
    for names, its in runs.items():
        seeds = min(3, max(map(len, its.values())))
        enough = [rate for rate, each in its.items() if len(each) >= seeds]
        best[names] = max(enough, key=lambda rate: fmean(r["validation"] for r in its[rate]))
    return [run for names, its in runs.items() for run in its[best[names]]], best


def _beside(
    tests: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    more: Callable[[str, str, str], str] = lambda *names: "",
) -> str:
    """Return accuracy as mean (and worst), and one line's above back-propagation's.

    The last column has the standard error of that difference, too.
    """
    some = dict.fromkeys(rule for its in tests.values() for rule in its)
    rules = ("dfa", "bptt", "shallow", *(["fa"] if "fa" in some else []))
    rows = []
    for names, its in tests.items():
        cells = (
            f"{fmean(its[r]):.1f} ({min(its[r]):.1f}{more(*names, r)})" if r in its else ""
            for r in rules
        )
        above = fmean(its["dfa"]) - fmean(its["bptt"])
        each = [its[r] for r in rules[:2]]
        if min(map(len, each)) > 1:
            error = math.hypot(*(stdev(tests) / len(tests) ** 0.5 for tests in each))
            rows.append((*names, *cells, f"{above:+.1f} ± {error:.1f}"))
        else:
            rows.append((*names, *cells, f"{above:+.1f}"))
    head = ("network", "loss on", *map(_short, rules), "points above back-propagation")
    return _table(head, "ll" + "r" * (len(head) - 2), rows)


def _tests(found: Iterable[Any]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Return the test accuracies of runs by network and loss, and by rule."""
    tests: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in found:
        network = tests.setdefault((run["network"], run["loss"]), {})
        network.setdefault(run["rule"], []).append(run["test"])
    return tests


def depth(found: Any, first: str = "hidden layers of 100") -> str:
    """Return mean and worst accuracy against the number of hidden layers."""
    rules = ("dfa", "fixed", "fa", "bptt", "shallow")
    rows = (
        (name.rpartition("-")[2], *(f"{fmean(its[r]):.1f} ({min(its[r]):.1f})" for r in rules))
        for (name, _), its in _tests(found).items()
    )
    return _table((first, *map(_short, rules)), "rrrrrr", rows)


#: What contestants of ``step.py`` are called.
_STEPS = {
    "snntorch bptt": "snnTorch, BPTT, loop over time",
    "snntorch dfa": "snnTorch, DFA, loop over time",
    "spikingjelly bptt": "SpikingJelly, BPTT, multi-step",
    "bptt": "`over_time`, BPTT",
    "dfa": "`over_time`, DFA",
    "dfa current": "`over_time`, DFA, current",
    "bptt bf16": "`over_time`, BPTT, bfloat16",
    "dfa bf16": "`over_time`, DFA, bfloat16",
    "dfa current bf16": "`over_time`, DFA, current, bfloat16",
    "products bptt": "dense products, BPTT",
    "products dfa": "dense products, DFA",
    "products dfa bf16": "dense products, DFA, bfloat16",
    "convs": "convolutions",
    "convs channels last": "convolutions, channels last",
}


def steps(found: Any, number: int) -> str:
    """Return times and memory of ``benchmarks/step.py`` with a number of time steps."""
    (each,) = (r["contestants"] for r in found["results"] if r["steps"] == number)
    first = each["snntorch bptt"]["ms"]
    rows = []
    for name, its in each.items():
        products = each["products dfa" + " bf16" * name.endswith("bf16")]["ms"]
        ratios = (f"{its['ms'] / whole:.2f}" for whole in (first, products))
        rows.append((_STEPS[name], f"{its['ms']:.1f}", *ratios, f"{its['mb']:.0f}"))
    return _table(("", "ms", "x snnTorch", "x products", "MB"), "lrrrr", rows)


def convolutions(found: Any) -> str:
    """Return the times of ``benchmarks/step.py --network conv``, as shares of snnTorch's."""
    (result,) = found["results"]
    first = result["contestants"]["snntorch bptt"]["ms"]
    rows = (
        (_STEPS[name], f"{its['ms'] / first:.2f}") for name, its in result["contestants"].items()
    )
    return _table(("", "x snnTorch"), "lr", rows)


def cost(found: Any) -> str:
    """Return the ratios of the times of ``benchmarks/cost.py``."""
    loop, over = "BPTT in the loop", "`over_time`"
    pairs = {
        "DFA / BPTT, loop": ("snntorch dfa", "snntorch bptt"),
        f"DFA / BPTT, {over}": ("dfa", "bptt"),
        f"BPTT in {over} / {loop}": ("bptt", "snntorch bptt"),
        f"DFA in {over} / {loop}": ("dfa", "snntorch bptt"),
    }
    rows = (
        (
            f"{row['axis']} = {row['size']}",
            *(
                f"{row['contestants'][one]['ms'] / row['contestants'][other]['ms']:.2f}"
                for one, other in pairs.values()
            ),
        )
        for row in found["results"]
    )
    return _table(("", *pairs), "lrrrr", rows)


def own_network(found: Any) -> str:
    """Return the times of ``benchmarks/own_network.py`` as shares of back-propagation's."""
    ms = found["ms"]
    rows = (
        (way, *(f"{its[way] / its['loop, BPTT']:.2f}" for its in ms.values()))
        for way in ms["dense"]
    )
    return _table(("", *ms), "lrr", rows)


def memory(found: Any) -> str:
    """Return peak and growth of ``benchmarks/memory.py``, in megabytes."""
    ways = found["megabytes"]
    head = ("", *(f"T={its['steps']}: peak MB (grown)" for its in ways["BPTT"]))
    rows = (
        (way, *(f"{its['peak']} ({its['grown']})" for its in each)) for way, each in ways.items()
    )
    return _table(head, "lrrr", rows)


def gpu_steps(found: Any) -> str:
    """Return the times of training steps on a GPU, in milliseconds, and their peak memory."""
    forms = ("snntorch bptt", "spikingjelly bptt", "bptt", "dfa")
    names = [f"{form}{kind}" for kind in ("", " tf32") for form in forms] + [
        "bptt bf16",
        "dfa bf16",
    ]
    cells: dict[str, list[str]] = {name: [] for name in names}
    heads = []
    for row in (r for r in found if r["part"].startswith("step")):
        if row["contestant"] in cells:
            cells[row["contestant"]].append(f"{row['ms']:.1f} ({row['mb']:.0f})")
        if row["contestant"] == forms[0]:
            heads.append(f"{row['network']}, T={row['steps']}")
    rows = ((name, *its) for name, its in cells.items())
    return _table(("step", *heads), "l" + "r" * len(heads), rows)


def gpu_graphs(found: Any) -> str:
    """Return the times of whole updates, as they are and as a CUDA graph."""
    ms = {
        (row["rule"], row["precision"], row["contestant"]): row["ms"]
        for row in found
        if row["part"].startswith("graph")
    }
    rows = (
        (rule, precision, f"{time:.1f}", f"{ms[rule, precision, 'graph']:.2f}")
        for (rule, precision, kind), time in ms.items()
        if kind == "eager"
    )
    return _table(("rule", "precision", "as it is, ms", "CUDA graph, ms"), "llrr", rows)


def gpu_neuron(found: Any) -> str:
    """Return the times of both passes through neurons, and their share of a copy's bandwidth."""
    rows = (
        (r["contestant"], r["dtype"].removeprefix("torch."), f"{r['ms']:.2f}",
         f"{100 * r['share_of_copy']:.0f} %")
        for r in found
        if r["part"] == "neuron" and not r["contestant"].startswith(("copy", "forward"))
    )  # fmt: skip
    return _table(("neurons", "dtype", "ms", "of the bandwidth"), "llrr", rows)


def gpu_wide(found: Any) -> str:
    """Return the times of one wide layer and its neurons."""
    rows = ((r["contestant"], f"{r['ms']:.1f}") for r in found if r["part"] == "wide")
    return _table(("step", "ms"), "lr", rows)


def gates(digits: Any, unseen: Any) -> str:
    """Return what shares of a neuron's own gate reach.

    Args:
        digits: In ``benchmarks/learning.py``, at a rate of 1e-3.
        unseen: In ``benchmarks/unseen.py``, at the rate that is best on validation.
    """
    rules = ("linear", "half", "dfa", "by-sample", "bptt")
    runs = [run for run in digits if run["rate"] == 1e-3] + _at_best_rate(unseen)[0]
    rows = (
        (name, loss, *(f"{fmean(its[rule]):.1f}" if rule in its else "" for rule in rules))
        for (name, loss), its in _tests(runs).items()
        if "by-sample" in its
    )
    head = ("network", "loss on", *(f"`by_sample={share}`" for share in ("0", "0.5", "0.8", "1")))
    return _table((*head, "back-propagation"), "llrrrrr", rows)


def scores(found: Any, first: str = "task") -> str:
    """Return the scores of tasks or networks by each rule, as means over seeds."""
    rules = list(dict.fromkeys(rule for task in found.values() for rule in task))
    rows = (
        (task, *(f"{fmean(its[rule]):.1f}" if rule in its else "" for rule in rules))
        for task, its in found.items()
    )
    return _table((first, *map(_short, rules)), "l" + "r" * len(rules), rows)


def zhang(found: Any) -> str:
    """Return what each slope reaches on validation in ``benchmarks/zhang.py``, with seed 0."""
    runs = ((*run.split(":"), its["0"]) for run, its in found.items())
    ordered = sorted(runs, key=lambda run: [float(number) for number in run[1:4]])
    looks = ("right output silent", "hidden below", "angle")
    rows = (
        (*setting, slope, f"{max(its['validation']):.1f}", *(f"{its[look]:.1f}" for look in looks))
        for slope, *setting, its in ordered
    )
    head = ("temperature", "feedback", "rate", "slope", "validation", *looks)
    return _table(head, "rrrlrrrr", rows)


def zhang_seeds(found: Any) -> str:
    """Return the test accuracies there of the runs that have several seeds."""
    rows = []
    for run, its in found.items():
        slope, *setting = run.split(":")
        tests = [seed["test"] for seed in its.values() if len(its) > 1]
        if tests:
            each = ", ".join(f"{accuracy:.2f}" for accuracy in tests)
            figures = (f"{of(tests):.2f}" for of in (fmean, stdev, max, min))
            rows.append((slope, ", ".join(setting), each, *figures))
    head = ("slope", "temperature, feedback, rate", "seeds", "mean", "deviation", "best", "worst")
    return _table(head, "llrrrrr", rows)


#: Name of a table to what makes it from which files.
TABLES: dict[str, tuple[str | tuple[str, ...], Callable[..., str]]] = {
    "results": (
        (
            "benchmarks/results/mnist.json",
            "benchmarks/results/deep_convolutions_whole.json",
            "benchmarks/results/recipes.json",
            "docs/rules/rules.json",
        ),
        results,
    ),
    "rules": ("docs/rules/rules.json", rules),
    "ladder": ("docs/ladder/ladder.json", ladder),
    "mnist": ("benchmarks/results/mnist.json", seeds),
    "deep_convolutions": ("benchmarks/results/deep_convolutions.json", seeds),
    "deep_convolutions_whole": ("benchmarks/results/deep_convolutions_whole.json", seeds),
    "poisson_25": ("benchmarks/results/poisson.json", partial(steps, number=25)),
    "poisson_100": ("benchmarks/results/poisson.json", partial(steps, number=100)),
    "constant_100": ("benchmarks/results/constant.json", partial(steps, number=100)),
    "convolutions": ("benchmarks/results/conv.json", convolutions),
    "cost": ("benchmarks/results/cost.json", cost),
    "own_network": ("benchmarks/results/own_network.json", own_network),
    "memory": ("benchmarks/results/memory.json", memory),
    "gpu_steps": ("benchmarks/results/gpu.json", gpu_steps),
    "gpu_graphs": ("benchmarks/results/gpu.json", gpu_graphs),
    "gpu_neuron": ("benchmarks/results/gpu.json", gpu_neuron),
    "gpu_wide": ("benchmarks/results/gpu.json", gpu_wide),
    "one_line": ("benchmarks/results/one_line.json", one_line),
    "rates": ("benchmarks/results/one_line.json", rates),
    "unseen": ("benchmarks/results/unseen.json", rates),
    "events": ("benchmarks/results/events.json", one_line),
    "recipes": ("benchmarks/results/recipes.json", recipes),
    "nmnist": ("benchmarks/results/recipes.json", nmnist),
    "depth": ("benchmarks/results/depth.json", depth),
    "conv_depth": (
        "benchmarks/results/conv_depth.json",
        partial(depth, first="convolutions"),
    ),
    "angles": ("benchmarks/results/angles.json", angles),
    "gates": (("benchmarks/results/learning.json", "benchmarks/results/shares.json"), gates),
    "other_tasks": ("benchmarks/results/other_tasks.json", scores),
    "other_networks": (
        "benchmarks/results/other_networks.json",
        partial(scores, first="network"),
    ),
    "learned_cost": ("benchmarks/results/learned_cost.json", learned_cost),
    "zhang": ("benchmarks/results/zhang.json", zhang),
    "zhang_seeds": ("benchmarks/results/zhang.json", zhang_seeds),
    "loop": ("benchmarks/results/loop.json", loop),
    "loop_neurons": ("benchmarks/results/loop.json", loop_neurons),
}


def filled(page: str) -> str:
    """Return the page with its tables as their files have them."""

    def made(match: re.Match[str]) -> str:
        files, make = TABLES[match["name"]]
        names = (files,) if isinstance(files, str) else files
        found = (json.loads((ROOT / name).read_text()) for name in names)
        return f"{match['start']}\n{make(*found)}\n{match['end']}"

    pattern = r"(?P<start><!-- table: (?P<name>\w+) -->\n).*?(?P<end>\n<!-- end of table -->)"
    return re.sub(pattern, made, page, flags=re.S)


def main() -> None:
    """Fill the tables of all pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
