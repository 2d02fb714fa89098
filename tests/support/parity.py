"""A network's gradients beside those of the reference."""

import problems
import reference as ref
import snntorch as snn
import torch
from problems import C
from torch import nn

from snn_dfa import DFA, reset


def loss_weights(spk, mem):
    g = torch.Generator().manual_seed(5)
    return (torch.randn(t.shape, generator=g, dtype=t.dtype) for t in (spk, mem))


def assert_grads(net, blocks):
    """Compare every parameter of the network with the reference's."""
    modules = problems.in_order(net)
    pieces = [p for block in blocks for p in block if not isinstance(p, ref.Pool)]
    modules = [m for m in modules if not isinstance(m, (nn.Flatten, nn.AvgPool2d))]
    assert len(modules) == len(pieces)
    compared = 0
    for module, piece in zip(modules, pieces, strict=True):
        wanted = dict(piece.grads)
        for key, name in (("V", "recurrent.weight"), ("Vb", "recurrent.bias")):
            if key in wanted:
                wanted[name] = wanted.pop(key)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(
                parameter.grad, torch.as_tensor(wanted[name], dtype=torch.float64),
                rtol=1e-10, atol=1e-10, msg=lambda m, n=name, k=module: f"{type(k).__name__}.{n}: {m}",
            )  # fmt: skip
            assert parameter.grad.abs().sum() > 0, f"{name}: a gradient of zero shows nothing"
            compared += 1
    assert compared == len(list(net.parameters()))


Y = torch.tensor([2, 0, 1])


def pass_back(p, dfa):
    """Run the network forward and backward; return spikes, membranes and the errors at them."""
    p.net.zero_grad()
    reset(p.net)
    spk, mem = p.forward(p.net, p.x)
    ws, wm = loss_weights(spk, mem)
    with dfa.targets(Y):
        ((spk * ws).sum() + (mem * wm).sum()).backward()
    return spk, mem, ws, wm


def check(p, neuron_class, rule="error", **options):
    """Compare all gradients; return the DFA, still attached."""
    dfa = DFA(p.net, rule=rule, **options)
    if type_of_feedback(options) in (
        "kolen-pollack-product", "product-feedback-alignment", "WeightMirror",
    ):  # fmt: skip
        optimizer = torch.optim.SGD(p.net.parameters(), lr=0.1)  # which takes no step here
        dfa.follow(optimizer)
    for round_ in range(2):  # the first pass finds the output, the second knows it
        spk, mem, ws, wm = pass_back(p, dfa)
        blocks = p.blocks(neuron_class)
        out, mems = ref.run(blocks, p.x)
        torch.testing.assert_close(spk.detach(), torch.stack(out), rtol=0, atol=0)
        torch.testing.assert_close(mem.detach(), torch.stack(mems), rtol=1e-12, atol=1e-12)
        for block in blocks:
            rate = torch.stack([s[3] for s in block[-1].steps]).mean()
            assert 0.02 < rate < 0.98, f"round {round_}: a layer at rate {rate} tests nothing"
        order = [p.net.get_submodule(n) for n in (*dfa.hidden, dfa.output)]
        layers = [m for m in problems.in_order(p.net) if isinstance(m, snn.SpikingNeuron)]
        names = {m: n for m, n in zip(order, (*dfa.hidden, dfa.output), strict=True)}
        feedback = [dfa.feedback[names[m]] for m in layers[:-1]]
        ref.dfa(blocks, feedback, ws, wm, getattr(ref, rule), Y)
        assert_grads(p.net, blocks)
    return dfa


def two_layers(**options):
    net = nn.Sequential(
        nn.Linear(5, 7), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True, **options),
        nn.Linear(7, C), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True, **options),
    ).double()  # fmt: skip
    with torch.no_grad():
        net[0].weight.mul_(2)
    return net


def run(net, x):
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    net.zero_grad()
    return torch.stack([net(step) for step in x])


def type_of_feedback(options):
    """The name of a feedback type, or of the class of its options."""
    given = options.get("feedback")
    return given if isinstance(given, str) else type(given).__name__
