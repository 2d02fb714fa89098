"""Networks and the machinery that they meet, and what becomes of each pair.

``outcome`` runs a pair; ``python tests/support/matrix.py`` runs all and writes ``docs/matrix.md``.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
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


def page(results: dict[tuple[str, str], str]) -> str:
    """Return the page of the documentation."""
    reasons: dict[str, int] = {}
    rows = [f"| network | {' | '.join(MACHINERY)} |", f"| --- |{' :-: |' * len(MACHINERY)}"]
    for network in NETWORKS:
        cells = []
        for machinery in MACHINERY:
            found = results[network, machinery]
            if found != "works":
                found = str(reasons.setdefault(found, len(reasons) + 1))
            cells.append("✓" if found == "works" else f"({found})")
        rows.append(f"| {network} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([HEAD, *missing(results), MIDDLE, *rows, "", TAIL, *notes, ""])


def missing(results: dict[tuple[str, str], str]) -> list[str]:
    """Return a line for each machinery that does not work with all networks: with which ones."""
    lines = []
    for machinery in MACHINERY:
        works = [n for n in NETWORKS if results[n, machinery] == "works"]
        fails = [n for n in NETWORKS if n not in works]
        if fails:
            alone = len(works) < len(fails)
            names = "; ".join(_merged(works if alone else fails))
            lines.append(
                f"- **{machinery}** {'works with these alone' if alone else 'does not work with'}: "
                f"{names}. {ADVICE.get(machinery, '')}".rstrip()
            )
    return lines


def _merged(networks: list[str]) -> list[str]:
    """Name a neuron once that is there with hidden and with explicit states."""
    both = {", hidden states", ", explicit states"}
    names = []
    for network in networks:
        ending = next((end for end in both if network.endswith(end)), "")
        name = network.removesuffix(ending)
        merged = bool(ending) and {name + end for end in both} <= set(networks)
        if (found := name if merged else network) not in names:
            names.append(found)
    return names


def read(text: str) -> dict[tuple[str, str], str]:
    """Return what a page says of each pair."""
    lines = text.splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    numbered = (line.split(". ", 1) for line in lines if line[:1].isdigit())
    reasons = {f"({number})": reason for number, reason in numbered} | {"✓": "works"}
    head, _, *rows = table
    return {(row[0], m): reasons[c] for row in rows for m, c in zip(head[1:], row[1:], strict=True)}


ADVICE = {
    "over_time": "Others: write the layers as an `nn.Sequential`, or keep the loop over time.",
    "torch.save": "Use a surrogate of `snn_dfa.surrogate`, which can be pickled.",
    "checkpoint": "Pass states explicitly, or checkpoint layers without spiking neurons.",
    "credit current": 'Freeze the parameters inside the neuron, or use `credit="membrane"`.',
    "credit trace": 'Others: use `credit="membrane"`.',
    "rule fa": "Put the weights into an `nn.Linear` or a convolution, or use another rule.",
    "kolen-pollack-product": 'Use `feedback="kolen-pollack"`.',
}
HEAD = """# What works with what

What does not work raises an error that says what to do, before a gradient is written. In short:
"""
MIDDLE = """
All else in the table works. The tests run every pair of a network and what it meets, on three layers, and this page is
what they found (`python tests/support/matrix.py` writes it, the tests compare it).

- ✓: it works. From `over_time` to `functional_call` that means the same gradients as without it. For the others, whose
  gradients are not those of the default, it means that every layer gets a gradient; other tests compare these with loops.
- A number is an error; its words are below the table.
"""
TAIL = """`DDP` is one process here; two are compared with one in `tests/attach/test_distributed.py`.

## The errors
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
