"""What tests of ways back share: a neuron, two forms of a network, factors that are the weights."""

import snntorch as snn
import torch

from snn_dfa import DFA, WeightMirror, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

B = 3


def leaky(kind=snn.Leaky, **options):
    return kind(beta=0.7, threshold=0.2, spike_grad=fast_sigmoid(5), init_hidden=True, **options)


def loop(net, x):
    reset(net)
    return torch.stack([net(step) for step in x])


def at_once(net):
    return over_time(net, check=False)


FORMS = (lambda net: net, at_once)


def grads_of(net, run, x, loss):
    net.zero_grad()
    loss(run(x)).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def with_weights(dfa, net):
    """Let the factors be the weights."""
    state = dfa.state_dict()
    modules = dict(net.named_modules())
    for name in state["matrices"]:
        state["matrices"][name] = modules[name].weight.detach().clone()
    dfa.load_state_dict(state)


def grads_with_the_weights(form, net, x, **options):
    """Gradients of one form, with each neuron's own gate, where the factors are the weights."""
    run, optimizer = form(net), torch.optim.SGD(net.parameters(), lr=0.1)
    dfa = DFA(run, optimizer=optimizer, feedback=WeightMirror(by_sample=1), **options)
    call = run if form is at_once else lambda x: loop(net, x)
    score(call(x)).backward()
    with_weights(dfa, net)
    found = grads_of(net, call, x, score)
    dfa.remove()
    return found


def score(spk):
    return (spk.sum(0) * torch.arange(1.0, 4)).sin().sum()


def relative(x):
    """Return how large the numbers of each step are, beside those of all."""
    sizes = torch.stack([step.abs().sum() for step in x])
    return sizes / sizes.mean()


LOSSES = {
    "the same at all steps": (score, True),
    "another one at each step": (
        lambda spk: (spk.sin() * torch.arange(1.0, 1 + len(spk))[:, None, None]).sum(),
        False,
    ),
}
