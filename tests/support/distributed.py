"""What two processes do together; :mod:`test_distributed` starts them and reads what they say.

python tests/support/distributed.py RANK FOLDER
"""

import sys
from datetime import timedelta
from pathlib import Path

import snntorch as snn
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snn_dfa import DFA, KolenPollack, KolenPollackProduct, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

T, B, F, C = 5, 8, 6, 3


def network():
    torch.manual_seed(0)
    neuron = {"beta": 0.8, "threshold": 0.2, "spike_grad": fast_sigmoid(5), "init_hidden": True}
    return nn.Sequential(
        nn.Linear(F, 9), snn.Leaky(**neuron), nn.Linear(9, 7), snn.Leaky(**neuron),
        nn.Linear(7, C), snn.Leaky(**neuron),
    )  # fmt: skip


class OverSteps(nn.Module):
    """The loop over time inside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        reset(self.net)
        return torch.stack([self.net(step) for step in x])


def data(step):
    """The joint batch of a training step."""
    g = torch.Generator().manual_seed(100 + step)
    return torch.rand(T, B, F, generator=g), torch.randint(C, (B,), generator=g)


def loop_around(form, net, x):
    reset(net)
    return torch.stack([form(step) for step in x])


FORMS = {
    "inside": (OverSteps, lambda form, net, x: form(x)),
    "around": (lambda net: net, loop_around),
    "at once": (over_time, lambda form, net, x: form(x)),
}


#: What is trained: the loop over time, when DFA is attached, to what, DDP's options.
CASES = {
    "first": {},
    "after": {"order": "after"},
    "at-once": {"form": "at once"},
    "around": {"form": "around"},
    "around-named": {"form": "around", "output": "5"},
    "around-no-buffers": {"form": "around", "ddp": {"broadcast_buffers": False}},
    "no-buffers": {"ddp": {"broadcast_buffers": False}},
    "static": {"ddp": {"static_graph": True}},
    "unused": {"ddp": {"find_unused_parameters": True}},
    "kolen-pollack": {"feedback": "kolen-pollack"},
    "kolen-pollack-at-once": {"feedback": "kolen-pollack", "form": "at once", "order": "after"},
    "kolen-pollack-alone": {"feedback": "kolen-pollack", "ddp": "alone"},
    "kolen-pollack-product": {"feedback": "kolen-pollack-product"},
    "fa": {"rule": "fa"},
    "fa-kolen-pollack": {"rule": "fa", "feedback": "kolen-pollack"},
    "sign": {"rule": "sign"},
    "target": {"rule": "target"},
    "current": {"credit": "current"},
    "fsdp": {"fsdp": True},
    "fsdp-kolen-pollack": {"fsdp": True, "feedback": "kolen-pollack", "order": "after"},
    "fsdp-kolen-pollack-product": {
        "fsdp": True,
        "feedback": "kolen-pollack-product",
        "order": "after",
    },
    "wrapper": {"order": "wrapper"},
    "shallow": {"rule": "shallow"},
    "shallow-unused": {"rule": "shallow", "ddp": {"find_unused_parameters": True}},
}


def whole(t):
    """A tensor, of shards where it is in shards."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t.clone()


def train(case, wrap, part, steps=10):
    """Train a network; return its first gradients, last weights and feedback."""
    net = network()
    build, run = FORMS[case.get("form", "inside")]
    form = build(net)
    learns = case.get("feedback", "").startswith("kolen-pollack")
    options = {"rule": case.get("rule", "error"), "output": case.get("output"),
               "credit": case.get("credit", "membrane")}  # fmt: skip
    options["feedback"] = (
        KolenPollackProduct(0.05)
        if case.get("feedback") == "kolen-pollack-product"
        else KolenPollack(0.05, over_ranks=case.get("ddp") != "alone")
        if learns
        else case.get("feedback", "gaussian")
    )
    if case.get("order", "first") == "first":
        dfa = DFA(form, **options)
        wrapped = wrap(form)
    else:
        wrapped = wrap(form)
        inner = getattr(wrapped, "module", wrapped)
        dfa = DFA(wrapped if case["order"] == "wrapper" else inner, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    if case.get("feedback") == "kolen-pollack-product":
        dfa.follow(optimizer)
    first = None
    for step in range(steps):
        x, y = data(step)
        spk = run(wrapped, net, x[:, part])
        optimizer.zero_grad()
        with dfa.targets(y[part]):
            nn.functional.cross_entropy(spk.sum(0), y[part]).backward()
        if first is None:
            first = {n: whole(p.grad) for n, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
    run(wrapped, net, data(99)[0][:, part])  # feedback that learns follows in the next pass
    return {
        "first": first,
        "weights": {n: whole(p.detach()) for n, p in net.named_parameters()},
        "feedback": {n: m.clone() for n, m in dfa.feedback.items()},
        "mem": [m.mem.detach().clone() for m in net if hasattr(m, "mem")],
    }


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    part = slice(rank * B // 2, (rank + 1) * B // 2)
    for name, case in CASES.items():
        torch.manual_seed(rank)  # what ranks draw of their own differs
        try:
            result = train(case, wrapper(case), part)
        except Exception as error:  # which one is what the test asks
            result = {"error": f"{type(error).__name__}: {error}"}
        torch.save(result, Path(folder) / f"{name}.{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


def shard(form):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in form.modules():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(form, mesh=mesh)


def wrapper(case):
    if case.get("ddp") == "alone":
        return lambda form: form
    if "fsdp" in case:
        return shard
    return lambda form: DistributedDataParallel(form, **case.get("ddp", {}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
