"""PyTorch's machinery around a network with DFA: the same gradient, or a refusal."""

import copy

import pytest
import torch
from distributed import FORMS, OverSteps, data, network
from plain_gradients import X, Y, assert_close, attached, grads, loss_of, plain_gradients
from torch import nn

from snn_dfa import (
    DFA,
    AttachError,
    DFAError,
    KolenPollack,
    NonFiniteError,
    reset,
)

# torch 2.4 warns of what its own checkpointing calls.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")


# -- accumulation, clipping, mixed precision -------------------------------------------------------


def test_accumulated_gradients_are_those_of_the_joint_batch():
    form, _ = attached()
    for part in (slice(0, 4), slice(4, 8)):
        (loss_of(form(X[:, part]), Y[part]) / 2).backward()
    assert_close(grads(form), plain_gradients())


def test_feedback_that_learns_takes_a_step_for_each_accumulated_pass():
    form, dfa = attached(feedback=KolenPollack(lr=0.1))
    seen = []
    for _ in range(3):
        loss_of(form(X)).backward()
        seen.append(dfa.feedback["net.1"].clone())
    assert (seen[0] != seen[1]).any()
    assert (seen[1] != seen[2]).any()


def test_clipped_gradients_have_the_direction_and_the_norm_asked_for():
    form, _ = attached()
    loss_of(form(X)).backward()
    norm = nn.utils.clip_grad_norm_(form.parameters(), 0.1)
    wanted = plain_gradients()
    total = torch.cat([g.flatten() for g in wanted]).norm()
    torch.testing.assert_close(norm, total)
    assert_close(grads(form), [g * 0.1 / total for g in wanted])


def test_a_grad_scaler_leaves_the_gradient_as_it_is():
    form, _ = attached()
    optimizer = torch.optim.SGD(form.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(form(X))).backward()
    scaler.unscale_(optimizer)
    assert_close(grads(form), plain_gradients())
    before = [p.detach().clone() for p in form.parameters()]
    scaler.step(optimizer)
    wanted = [p - 0.1 * g for p, g in zip(before, plain_gradients(), strict=True)]
    assert_close(form.parameters(), wanted)


def learned(scale, steps=5):
    """Feedback after some steps whose losses were multiplied; weights stay."""
    form, dfa = attached(feedback=KolenPollack(lr=0.1))
    for step in range(steps):
        x, y = data(step)
        (loss_of(form(x), y) * scale).backward()
    form(X)
    return dfa.feedback["net.3"].clone()


@pytest.mark.slow
def test_feedback_learns_alike_under_a_scale_that_stays():
    torch.testing.assert_close(learned(1024.0), learned(1.0), rtol=0, atol=1e-4)
    assert (learned(1.0, steps=1) - learned(1.0)).abs().max() > 0.05


def test_feedback_takes_no_step_from_an_error_that_overflows():
    form, dfa = attached(feedback=KolenPollack(lr=0.1))
    form(X).sum().backward()
    form(X)
    before = dfa.feedback["net.1"].clone()
    with pytest.raises(NonFiniteError):
        (loss_of(form(X)) * torch.inf).backward()
    form(X)
    assert torch.equal(dfa.feedback["net.1"], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_output_its_true_gradient_and_hidden_layers_one_like_it(dtype):
    def run(with_dfa):
        form = OverSteps(network())
        # With the product of the weights as feedback the last hidden layer's is the true one, too,
        # but for the slopes of the output neuron, which the readout's own current has not.
        dfa = DFA(form, output="net.4", hidden=["net.1", "net.3"], feedback="transpose")
        if not with_dfa:
            dfa.remove()
        with torch.autocast("cpu", dtype):
            out = form(X)
        loss_of(out).backward()
        return dict(form.net.named_parameters())

    mine, true = run(True), run(False)
    for name in ("2.weight", "2.bias", "4.weight", "4.bias"):
        assert true[name].grad.abs().max() > 0
        torch.testing.assert_close(mine[name].grad, true[name].grad, rtol=2e-2, atol=2e-3)


# -- compiling -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's own
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.6's
@pytest.mark.parametrize("options", [{}, {"credit": "trace"}])
def test_attached_and_then_compiled_gives_the_same_gradients(options):
    net = network()[2:]  # as small as it gets: compiling takes its time
    x = torch.rand(2, 4, 9)
    y = torch.tensor([0, 1, 2, 0])

    def gradients(form):
        net.zero_grad()
        reset(net)
        loss_of(torch.stack([form(step) for step in x]), y).backward()
        return grads(net)

    true = gradients(net)
    dfa = DFA(net, output="5", **options)
    wanted = gradients(net)
    compiled = torch.compile(net, backend="eager")
    for _ in range(2):
        assert_close(gradients(compiled), wanted)
    with dfa.paused():
        assert_close(gradients(compiled), true)
    dfa.remove()
    assert_close(gradients(compiled), true)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(true, wanted, strict=True))


@pytest.mark.slow
def test_what_is_compiled_already_is_refused():
    net = network()
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(
        AttachError, match="got it compiled, and compiled code does not run the hooks"
    ):
        DFA(compiled)
    with pytest.raises(AttachError, match="got '0' compiled"):
        DFA(nn.Sequential(compiled))
    net[2].compile(backend="eager")
    with pytest.raises(AttachError, match="got '2' compiled"):
        DFA(net)


# -- derivatives of other kinds --------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_functional_call_gives_the_same_gradient(form):
    build, run = FORMS[form]
    net = network()
    module = build(net)
    out = {"inside": "net.5"}.get(form, "5")
    DFA(module, output=out)
    parameters = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}

    def call(x):
        return torch.func.functional_call(module, parameters, (x,))

    got = torch.autograd.grad(loss_of(run(call, net, X)), list(parameters.values()))
    loss_of(run(module, net, X)).backward()
    assert_close(got, grads(net))


@pytest.mark.parametrize(
    "options", [{}, {"rule": "fa"}, {"credit": "current"}, {"rule": "shallow"}]
)
def test_a_second_derivative_is_refused(options):
    form, dfa = attached(**options)
    loss = loss_of(form(X))
    parameters = [p for p in form.parameters() if options.get("rule") != "shallow"]
    parameters = parameters or list(form.net[4].parameters())
    with pytest.raises(DFAError, match=r"create_graph=True: .* in `with dfa\.paused\(\):`"):
        torch.autograd.grad(loss, parameters, create_graph=True)
    with dfa.paused():
        first = torch.autograd.grad(loss_of(form(X)), parameters, create_graph=True)
    assert all(g.requires_grad for g in first)


def test_a_graph_that_is_kept_may_be_passed_twice():
    form, _ = attached()
    loss = loss_of(form(X))
    loss.backward(retain_graph=True)
    loss.backward()
    assert_close(grads(form), [2 * g for g in plain_gradients()])


def test_weight_averaging_copies_a_plain_network():
    form, dfa = attached()
    loss_of(form(X)).backward()
    reset(form)
    averaged = torch.optim.swa_utils.AveragedModel(copy.deepcopy(form))
    averaged.update_parameters(form)
    assert_close(averaged.module.parameters(), form.parameters())
    dfa.remove()
