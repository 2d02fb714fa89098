"""Networks and the machinery that they meet, and what becomes of each pair.

``outcome`` runs a pair; ``python tests/support/matrix.py`` runs all and writes ``docs/matrix.md``.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from paths import ROOT
from torch import nn
from zoo import NETWORKS, Around

from snn_dfa import DFA, DFAError, over_time, reset

PAGE = ROOT / "docs" / "matrix.md"


class Refused(Exception):
    """What a user reads where a pair cannot work."""


# -- machinery: from network and input to gradients, or to a refusal -------------------------------

Grads = dict[str, torch.Tensor | None]


def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(net, Around):
        reset(net)
        return torch.stack([net(step) for step in x])
    return net(x)


def loss_of(out: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, out[0, 0].numel()).view(out[0, 0].shape)
    return (out.float() * weights).sum(0).square().mean()


def grads_of(net: nn.Module) -> Grads:
    return {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}


def _plain(net: nn.Module, x: torch.Tensor, **options: object) -> Grads:
    with DFA(net, **options):
        forward(net, x)  # by now the output is known
        loss_of(forward(net, x)).backward()
    return grads_of(net)


def _over_time(net: nn.Module, x: torch.Tensor) -> Grads:
    form = over_time(net)
    with DFA(form):
        form(x)
        loss_of(form(x)).backward()
    return grads_of(net)


def _deepcopy(net: nn.Module, x: torch.Tensor) -> Grads:
    with DFA(net) as dfa:
        with torch.no_grad():
            forward(net, x)
        reset(net)
        other = copy.deepcopy(dfa).net
        loss_of(forward(other, x)).backward()
    return grads_of(other)


def _saved(net: nn.Module, x: torch.Tensor) -> Grads:
    with DFA(net) as dfa:
        with torch.no_grad():
            forward(net, x)
        reset(net)
        file = io.BytesIO()
        try:
            torch.save(dfa, file)
        except (AttributeError, pickle.PicklingError) as error:
            raise Refused("a surrogate of snnTorch, a local function, cannot be pickled") from error
        file.seek(0)
        other = torch.load(file, weights_only=False).net
        loss_of(forward(other, x)).backward()
    return grads_of(other)


def _accumulated(net: nn.Module, x: torch.Tensor) -> Grads:
    with DFA(net):
        forward(net, x)
        for _ in range(2):
            (loss_of(forward(net, x)) / 2).backward()
    return grads_of(net)


def _scaled(net: nn.Module, x: torch.Tensor) -> Grads:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with DFA(net):
        forward(net, x)
        scaler.scale(loss_of(forward(net, x))).backward()
        scaler.unscale_(optimizer)
    return grads_of(net)


def _compiled(net: nn.Module, x: torch.Tensor) -> Grads:
    with DFA(net), warnings.catch_warnings():
        # PyTorch says it of snnTorch's hidden states, with DFA and without.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a")
        warnings.filterwarnings("ignore", message=".*should not be instantiated")  # torch 2.6
        forward(net, x)
        run = torch.compile(net, backend="eager")
        if isinstance(net, Around):
            reset(net)
            out = torch.stack([run(step) for step in x])
        else:
            out = run(x)
        loss_of(out).backward()
    torch._dynamo.reset()
    return grads_of(net)


@contextmanager
def _group() -> Iterator[None]:
    import torch.distributed as dist

    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _distributed(net: nn.Module, x: torch.Tensor) -> Grads:
    from torch.nn.parallel import DistributedDataParallel

    with _group(), DFA(net):
        forward(net, x)
        reset(net)
        ddp = DistributedDataParallel(net)
        out = torch.stack([ddp(step) for step in x]) if isinstance(net, Around) else ddp(x)
        loss_of(out).backward()
        return grads_of(net)


def _checkpointed(net: nn.Module, x: torch.Tensor) -> Grads:
    from torch.utils.checkpoint import checkpoint

    with DFA(net):
        forward(net, x)
        loss_of(checkpoint(lambda x: forward(net, x), x, use_reentrant=False)).backward()
    return grads_of(net)


def _functional(net: nn.Module, x: torch.Tensor) -> Grads:
    values = {
        k: p.detach().clone().requires_grad_(p.requires_grad) for k, p in net.named_parameters()
    }
    with DFA(net):
        forward(net, x)
        reset(net)
        if isinstance(net, Around):
            out = torch.stack([torch.func.functional_call(net, values, (step,)) for step in x])
        else:
            out = torch.func.functional_call(net, values, (x,))
        loss_of(out).backward()
    return {k: p.grad for k, p in values.items()}


def _product(net: nn.Module, x: torch.Tensor) -> Grads:
    with DFA(net, feedback="kolen-pollack-product") as dfa:
        forward(net, x)  # lazy modules have parameters from here on
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        dfa.follow(optimizer)
        net.zero_grad()
        loss_of(forward(net, x)).backward()
    return grads_of(net)


SAME: dict[str, Callable[[nn.Module, torch.Tensor], Grads]] = {
    "over_time": _over_time,
    "deepcopy": _deepcopy,
    "torch.save": _saved,
    "accumulation": _accumulated,
    "GradScaler": _scaled,
    "checkpoint": _checkpointed,
    "compile": _compiled,
    "DDP": _distributed,
    "functional_call": _functional,
}
#: Other gradients than those of the plain DFA, which have references of their own in the tests:
#: here it is seen that every layer gets some.
OTHER: dict[str, Callable[[nn.Module, torch.Tensor], Grads]] = {
    "credit current": lambda net, x: _plain(net, x, credit="current"),
    "credit trace": lambda net, x: _plain(net, x, credit="trace"),
    "rule fa": lambda net, x: _plain(net, x, rule="fa"),
    "kolen-pollack": lambda net, x: _plain(net, x, feedback="kolen-pollack"),
    "kolen-pollack-product": _product,
}
MACHINERY = [*SAME, *OTHER]


def outcome(network: str, machinery: str) -> str:
    """Return "works", or why not in the words that the user reads; raise where it is wrong."""
    net, x = NETWORKS[network]()
    reference = _plain(net, x)
    net, x = NETWORKS[network]()
    try:
        got = (SAME | OTHER)[machinery](net, x)
    except (DFAError, Refused) as error:
        return str(error)
    for name, expected in reference.items():
        if name.endswith("weight") and expected is not None:
            assert expected.any(), f"{network}: {name} learns nothing, which shows nothing"
        if expected is None:
            assert got[name] is None or not got[name].any(), name
        elif machinery in SAME:
            torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert got[name] is not None, name
            assert got[name].isfinite().all(), name
            assert got[name].any() or not expected.any(), name
    assert any(g is not None and g.any() for g in got.values())
    return "works"


# -- the page ------------------------------------------------------------------------------------

#: Endings of two networks that differ in where they keep their states, and share a row.
HIDDEN, EXPLICIT = ", hidden states", ", explicit states"
Results = dict[tuple[str, str], str]


def in_general(error: str) -> str:
    """Return an error without the names of one network's layers and of their types."""
    error = re.sub(r"'(?:net|blocks)\.[\w.]+'|\blayer '\d+'", "LAYER", error)
    error = error.replace("layer LAYER", "LAYER")
    return re.sub(r"(passes |\btype )'?([A-Z]\w+)'?", r"\1TYPE", error)


def page(results: Results) -> str:
    """Return the page of the documentation."""
    errors: dict[str, int] = {}
    told = {
        pair: "✓"
        if found == "works"
        else f"({errors.setdefault(in_general(found), len(errors) + 1)})"
        for pair, found in results.items()
    }
    columns = [m for m in MACHINERY if any(told[n, m] != "✓" for n in NETWORKS)]
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in _merged(NETWORKS):
        rows.setdefault(tuple(_cell(told, name, m) for m in columns), []).append(name)
    table = [
        f"| network | {' | '.join(columns)} |",
        f"| --- |{' :-: |' * len(columns)}",
        *(f"| {'; '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items()),
    ]
    always = ", ".join(f"`{m}`" for m in MACHINERY if m not in columns)
    notes = [f"{number}. {error}" for error, number in errors.items()]
    parts = [HEAD, *missing(results), MIDDLE.format(always=always), *table, TAIL, *notes, ""]
    return "\n".join(parts)


def missing(results: Results) -> list[str]:
    """Return a row for each machinery that does not work with all networks: with which ones."""
    lines = []
    for machinery in MACHINERY:
        fails = [n for n in NETWORKS if results[n, machinery] != "works"]
        names = "; ".join(_merged(fails))
        if len(fails) == sum(n.endswith(HIDDEN) for n in NETWORKS) + 1:
            names = "neurons with hidden states"
        if fails:
            lines.append(f"| `{machinery}` | {names} | {ADVICE[machinery]} |")
    return lines


def _merged(networks: Iterable[str]) -> list[str]:
    """Name a neuron once that is there with hidden and with explicit states."""
    networks = list(networks)
    names = []
    for network in networks:
        name = network.removesuffix(HIDDEN).removesuffix(EXPLICIT)
        merged = {name + HIDDEN, name + EXPLICIT} <= set(networks)
        if (found := name if merged else network) not in names:
            names.append(found)
    return names


def _cell(told: Results, name: str, machinery: str) -> str:
    """Return what the table says of a network, or of a neuron with both kinds of states."""
    if name in NETWORKS:
        return told[name, machinery]
    hidden, explicit = told[name + HIDDEN, machinery], told[name + EXPLICIT, machinery]
    return hidden if hidden == explicit else f"{explicit} explicit, {hidden} hidden"


def read(text: str) -> Results:
    """Return what a page says of each pair."""
    lines = text.partition("\n## The table\n")[2].splitlines()
    always = re.findall(r"`(.+?)`", next(line for line in lines if line.startswith("These work")))[
        1:
    ]
    head, _, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    numbered = (line.split(". ", 1) for line in lines if line[:1].isdigit())
    words = {f"({number})": error for number, error in numbered} | {"✓": "works"}
    said: Results = {}
    for names, *cells in rows:
        for name, (machinery, cell) in itertools.product(
            names.split("; "), zip(head[1:], cells, strict=True)
        ):
            said |= {(n, machinery): words[c] for n, c in _apart(name, cell)}
    return said | {(n, m): "works" for n in NETWORKS for m in always}


def _apart(name: str, cell: str) -> list[tuple[str, str]]:
    """Return the networks of a row with their parts of a cell."""
    if name in NETWORKS:
        return [(name, cell)]
    explicit, _, hidden = cell.partition(" explicit, ")
    return [(name + EXPLICIT, explicit), (name + HIDDEN, hidden.removesuffix(" hidden") or cell)]


ADVICE = {
    "over_time": "Write the layers as an `nn.Sequential`, or keep the loop over time.",
    "torch.save": "Take a surrogate of `snn_dfa.surrogate`, which can be pickled.",
    "checkpoint": "Pass states explicitly, or checkpoint layers without spiking neurons.",
    "credit current": 'Freeze the parameters inside the neuron, or take `credit="membrane"`.',
    "credit trace": 'Take `credit="membrane"`.',
    "rule fa": "Put the weights into an `nn.Linear` or a convolution, or take another rule.",
    "kolen-pollack-product": 'Take `feedback="weight-mirror"`.',
}
HEAD = """# What works with what

## What does not work

Each of these pairs raises an error that says what to do, before a gradient is written. All other pairs below work.

| | does not work with | what to do |
| --- | --- | --- |"""
MIDDLE = """
## The table

These work with every network: `DFA` with its default arguments, {always}.

- ✓: it works. `over_time`, `torch.save` and `checkpoint` give the same gradients as without them. With the other columns
  every layer gets a gradient; other tests compare these gradients with loops.
- A number is an error; its words are below the table.
- Explicit states are passed by the program, hidden states are kept in the neuron (`init_hidden=True`). 'A subclass' is a neuron of
  one's own, derived from snnTorch's `SpikingNeuron`.
"""
TAIL = """
The tests run each pair on three layers and compare the result with this page (`python tests/support/matrix.py` writes the page).
`DDP` is one process here; `tests/attach/test_distributed.py` compares two with one.

## The errors

`LAYER` and `TYPE` stand for a layer's name and type.
"""


def main() -> None:
    """Run all pairs and write the page."""
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", message="feedback: 'kolen-pollack' learns at a rate of its own"
    )
    results = {(n, m): outcome(n, m) for n in NETWORKS for m in MACHINERY}
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
