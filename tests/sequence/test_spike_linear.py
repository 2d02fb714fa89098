"""A linear layer on spikes: the dense product's values and gradients, from additions alone."""

import os
import subprocess
import sys

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn import functional

from snn_dfa import over_time
from snn_dfa.sequence import numba_tools, spike_linear
from snn_dfa.sequence.spike_linear import linear

numba = pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Layers of any size are worth a look."""
    monkeypatch.setattr(spike_linear, "_SMALL", 0)


def spikes(*shape, rate=0.1, dtype=torch.float64):
    x = torch.rand(*shape) < rate
    x[..., 1, :] = False  # a sample that is silent
    x[..., 2] = False  # an input that is
    return x.to(dtype)


def layer(features, size, dtype=torch.float64):
    weight = torch.randn(size, features, dtype=dtype, requires_grad=True)
    return weight, torch.randn(size, dtype=dtype, requires_grad=True)


def adds(out):
    """Whether the product was made of additions."""
    return "SpikeLinear" in type(out.grad_fn).__name__


def slow(x, weight, bias, error):
    """Loops: the output, and the gradients at weight and bias."""
    out = bias.detach().repeat(len(x), 1)
    at_weight, at_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for r, row in enumerate(x):
        for f in row.nonzero().flatten():
            out[r] += weight.detach()[:, f]
            at_weight[:, f] += error[r]
        at_bias += error[r]
    return out, at_weight, at_bias


@pytest.mark.slow
def test_values_and_gradients_are_sums_over_the_inputs_that_fired():
    x, (weight, bias) = spikes(40, 7), layer(7, 5)
    out = linear(x, weight, bias)
    error = torch.randn_like(out)
    out.backward(error)
    assert adds(out)
    for a, b in zip((out, weight.grad, bias.grad), slow(x, weight, bias, error), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# More rows than a chunk of the backward pass, more columns than a job's, one of each.
SHAPES = [((3, 900, 30), 300), ((2500, 9), 128), ((3, 3), 1), ((5, 200, 3), 129)]


@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_dense_product(shape, size, with_bias):
    x, (weight, bias) = spikes(*shape).requires_grad_(), layer(shape[-1], size)
    inputs = (x, weight, bias) if with_bias else (x, weight)
    bias = bias if with_bias else None
    got, wanted = linear(x, weight, bias), functional.linear(x, weight, bias)
    assert adds(got)
    error = torch.randn_like(wanted)
    grads = (torch.autograd.grad(out, inputs, error) for out in (got, wanted))
    for a, b in zip((got, *next(grads)), (wanted, *next(grads)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_sums_in_single(x_dtype):
    x, (weight, bias) = spikes(300, 40, rate=0.03, dtype=x_dtype), layer(40, 9, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear(x, weight, bias)
    exact = functional.linear(x.float(), weight, bias)
    assert adds(out)
    torch.testing.assert_close(out.float(), exact, rtol=2**-8, atol=1e-6)  # rounded once
    error = torch.randn_like(out)
    out.backward(error)
    torch.testing.assert_close(weight.grad, error.float().T @ x.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, error.float().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_spike_goes_through_the_dense_product(value, dtype):
    x = spikes(40, 30, dtype=dtype)
    x[3, 4] = value
    assert spike_linear.events_of(x, 1.0) is None
    weight, bias = (t.detach().to(dtype).requires_grad_() for t in layer(30, 5))
    got, wanted = linear(x, weight, bias), functional.linear(x, weight, bias)
    assert not adds(got)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def test_events_are_the_ones_row_by_row():
    x = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, -0.0, 0.0]])
    found = spike_linear.events_of(x, 0.5)
    assert found.starts.tolist() == [0, 2, 2, 3]
    assert found.columns.tolist() == [1, 2, 0]
    assert spike_linear.events_of(x, 0.2) is None  # a third is too many


def test_many_spikes_go_through_the_dense_product():
    weight, bias = layer(30, 5)
    assert not adds(linear(torch.ones(40, 30, dtype=torch.float64), weight, bias))


def test_dtypes_that_torch_refuses_are_refused():
    with pytest.raises(RuntimeError, match="dtype"):
        linear(spikes(40, 30), *layer(30, 5, torch.float32))


def test_doubles_stay_doubles_under_autocast():
    x, (weight, bias) = spikes(40, 30), layer(30, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear(x, weight, bias)
    torch.testing.assert_close(out, functional.linear(x, weight, bias), rtol=1e-10, atol=1e-10)


def test_a_weight_changed_before_the_backward_pass_is_told():
    weight, bias = layer(30, 5)
    x = spikes(40, 30).requires_grad_()
    out = linear(x, weight, bias)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        out.sum().backward()


def test_without_numba_it_is_the_dense_product(monkeypatch):
    monkeypatch.setattr(numba_tools.importlib.util, "find_spec", lambda _: None)
    assert not adds(linear(spikes(40, 30), *layer(30, 5)))


@pytest.mark.parametrize("hooked", [True, False])
def test_a_hook_on_the_layer_is_run(hooked):
    net = nn.Sequential(nn.Linear(30, 5)).double()
    seen = []
    if hooked:
        net[0].register_forward_hook(lambda *_: seen.append(1))
    out = over_time(net)(spikes(4, 10, 30))
    assert bool(seen) == hooked
    assert out.shape == (4, 10, 5)


PROCESS = """
import snntorch, torch
from torch import nn
from snn_dfa import over_time
from snn_dfa.sequence import numba_tools, spike_linear
from snn_dfa.sequence.scan import cpu_backward, cpu_forward

kernels, compile_parallel = [], numba_tools.compile_parallel
def noting(kernel):
    kernels.append(compile_parallel(kernel))
    return kernels[-1]
for module in (spike_linear.kernels, cpu_forward, cpu_backward):
    module.compile_parallel = noting
spike_linear._SMALL = 0

net = nn.Sequential(nn.Linear(64, 8), snntorch.Leaky(beta=0.9, init_hidden=True))
x = torch.arange(5 * 64 * 64).view(5, 64, 64) % 97 == 0
with torch.autocast("cpu", torch.bfloat16):
    over_time(net)(x.bfloat16()).sum().backward()
print(len(kernels), sum(sum(k.compiled.stats.cache_misses.values()) for k in kernels))
"""


@pytest.mark.slow
def test_a_later_process_compiles_nothing(tmp_path):
    command = [sys.executable, "-c", PROCESS]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    (used, missed), (used_later, missed_later) = [
        map(int, subprocess.run(command, env=env, check=True, capture_output=True).stdout.split())
        for _ in range(2)
    ]
    assert used_later == used > 3
    assert missed == used
    assert missed_later == 0


THREADS = """
import numba, snntorch, torch
from torch import nn
from snn_dfa import over_time
from snn_dfa.sequence import spike_linear

spike_linear._SMALL = 0
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(64, 8), snntorch.Leaky(beta=0.9, init_hidden=True))
x = (torch.arange(5 * 64 * 64).view(5, 64, 64) % 97 == 0).float()
seen = []
for _ in range(2):
    over_time(net)(x).sum().backward()
    seen.append(torch.get_num_threads())
print(*seen, numba.get_num_threads())
"""


@pytest.mark.slow
def test_kernels_leave_the_numbers_of_threads_alone():
    """Numba's start sets OpenMP's number, torch's, to that of all cores, and kept it there."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "1", "2"]


class Looping(nn.Module):
    """A class with a loop over its input."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(7, 5), snn.Leaky(0.9)

    def forward(self, x):
        mem, out = self.lif.reset_mem(), []
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
            out.append(spk)
        return torch.stack(out)


@pytest.mark.slow  # kernels are compiled
def test_over_time_does_not_take_the_kernels_for_a_number_that_the_network_reads():
    torch.manual_seed(0)
    net, x = Looping(), (torch.rand(3, 4, 7) < 0.05).float()
    torch.testing.assert_close(over_time(net)(x), net(x))
