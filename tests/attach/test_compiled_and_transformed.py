"""A training step that is compiled whole, and transforms of ``torch.func``."""

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

from snn_dfa import DFA, AttachError, over_time, reset
from snn_dfa.surrogate import fast_sigmoid

X = 1.5 * torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0))


def network(surrogate):
    torch.manual_seed(0)

    def leaky():
        return snn.Leaky(0.8, threshold=0.4, spike_grad=surrogate, init_hidden=True)

    return nn.Sequential(
        nn.Linear(4, 7), leaky(), nn.Linear(7, 6), leaky(), nn.Linear(6, 3), leaky()
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler itself
@pytest.mark.parametrize("options", [
    {}, {"rule": "fa"}, {"credit": "trace"}, {"rule": "shallow"}, "optimizer",
], ids=str)  # fmt: skip
@pytest.mark.parametrize("form", [lambda net: net, over_time], ids=["loop", "over_time"])
def test_a_training_step_that_is_compiled_whole_gives_the_same_gradients(options, form):
    torch._dynamo.reset()
    net = network(fast_sigmoid(5))
    run = form(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0)
    DFA(run, **({"optimizer": optimizer} if options == "optimizer" else options))

    def step(x):
        reset(net)
        spk = run(x) if run is not net else torch.stack([net(each) for each in x])
        loss = (spk.sum(0) - 1).square().sum()
        loss.backward()
        return loss

    step(X)  # with learned feedback factors have no part in the first step
    net.zero_grad()
    step(X)
    wanted = [p.grad for p in net.parameters()]
    net.zero_grad()
    torch.compile(step, backend="eager")(X)
    for p, want in zip(net.parameters(), wanted, strict=True):
        assert (p.grad is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(p.grad, want)
    assert wanted[-1].any()


def loss_of(net):
    def loss(parameters, x=X):
        spk = torch.stack([functional_call(net, parameters, (each,)) for each in x])
        return (spk.sum(0) - 1).square().sum()

    return loss


def forward_mode(net, parameters):
    with forward_ad.dual_level():
        net(forward_ad.make_dual(X[0], torch.ones_like(X[0])))


TRANSFORMS = {
    "grad": lambda net, p: grad(loss_of(net))(p),
    "vjp": lambda net, p: vjp(loss_of(net), p),
    "jacrev": lambda net, p: jacrev(loss_of(net))(p),
    "jvp": lambda net, p: jvp(loss_of(net), (p,), (p,)),
    "vmap": lambda net, p: vmap(lambda x: loss_of(net)(p, x[:, None]), in_dims=1)(X),
    "forward mode": forward_mode,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # which torch calls
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("rule", ["error", "fa"])
def test_a_transform_raises_an_error_that_says_what_to_do(transform, rule):
    net = network(torch.sigmoid)
    dfa = DFA(net, rule=rule)
    parameters = dict(net.named_parameters())
    with pytest.raises(AttachError, match=r"torch\.func .* dfa\.paused\(\)"):
        TRANSFORMS[transform](net, parameters)
    assert all(p.grad is None for p in net.parameters())
    if transform == "grad":
        reset(net)
        with dfa.paused():
            assert all(g.any() for g in TRANSFORMS[transform](net, parameters).values())
    reset(net)
    loss_of(net)(parameters).backward()
    assert net[0].weight.grad.any()


@pytest.mark.parametrize("options", [{}, {"rule": "fa"}, {"credit": "trace"}], ids=str)
def test_a_transform_of_one_layer_is_right_or_an_error(options):
    class Mapped(nn.Module):
        def __init__(self, maps):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.lif, self.head = nn.Linear(6, 5), snn.Leaky(0.8), nn.Linear(5, 2)
            self.run = vmap(self.fc) if maps else self.fc

        def forward(self, x):
            mem, out = self.lif.init_leaky(), []
            for step in x:
                spk, mem = self.lif(self.run(step), mem)
                out.append(self.head(spk))
            return torch.stack(out)

    x, grads = 2 * torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1)), []
    for maps in (False, True):
        net = Mapped(maps)
        DFA(net, output="head", **options)
        if maps and options:
            with pytest.raises(AttachError, match="vmap, runs a layer of type Linear"):
                net(x)
            return
        (net(x) - 1).square().sum().backward()
        grads.append(net.fc.weight.grad)
    assert grads[0].any()
    torch.testing.assert_close(*grads)
