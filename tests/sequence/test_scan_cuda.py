"""The Triton kernels against the plain scan, in Triton's interpreter where there is no GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from paths import ROOT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

# Of Triton 3.2's interpreter itself.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run here as they are")
def test_in_the_interpreter():
    """Triton reads the variable when it is imported: a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "24 passed" in done.stdout, done.stdout[-300:]


def runs_here():
    return INTERPRETED or DEVICE == "cuda"


from scan_kinds import KINDS, dynamics  # noqa: E402

from snn_dfa.sequence.scan import cuda, reference  # noqa: E402
from snn_dfa.surrogate import ATan, exact  # noqa: E402

kernels = pytest.mark.skipif(not runs_here(), reason="no GPU and not in the interpreter")


def on_device(dyn):
    return type(dyn)(**{**dyn.__dict__, "beta": dyn.beta.to(DEVICE),
                        "threshold": dyn.threshold.to(DEVICE)})  # fmt: skip


@kernels
@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("once", [False, True])
def test_kernels_equal_plain(options, once, generator):
    dyn = on_device(dynamics(torch.float64, **options))
    x = torch.rand(1 if once else 7, 3, 130, generator=generator, dtype=torch.float64).to(DEVICE)
    expected = reference.forward(x, dyn, 7, x.dtype, True, True)
    got = cuda.forward(x, dyn, 7, x.dtype, True, True)
    assert 0.05 < expected[0].mean() < 1
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    gs, gm = torch.randn(2, 7, 3, 130, generator=generator, dtype=x.dtype).to(DEVICE)
    for grads in ((gs, gm), (gs, None), (None, gm), (gs[:1].expand_as(gs), None)):
        args = (*grads, expected[1], dyn, x.dtype, once)
        torch.testing.assert_close(cuda.backward(*args), reference.backward(*args))


@kernels
@pytest.mark.parametrize("surrogate", [exact(0.3, 5.0, 1.0), ATan(3.0)])
def test_slopes_and_constants_of_each_neuron(surrogate, generator):
    dyn = on_device(dynamics(torch.float64))
    rows = {"beta": torch.linspace(0.3, 0.9, 50), "threshold": torch.linspace(0.2, 0.4, 50)}
    rows = {k: v.double().to(DEVICE) for k, v in rows.items()}
    dyn = type(dyn)(**{**dyn.__dict__, **rows, "surrogate": surrogate})
    x, gs = torch.rand(2, 7, 2, 50, generator=generator, dtype=torch.float64).to(DEVICE)
    spikes, margin, _ = reference.forward(x, dyn, 7, x.dtype, False, True)
    assert torch.equal(cuda.forward(x, dyn, 7, x.dtype, False, True)[0], spikes)
    args = (gs, None, margin, dyn, x.dtype, False)
    torch.testing.assert_close(cuda.backward(*args), reference.backward(*args))


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_with_the_membrane_in_single(dtype, generator):
    dyn = on_device(dynamics())
    x = torch.rand(7, 2, 50, generator=generator).to(DEVICE, dtype)
    expected = reference.forward(x, dyn, 7, dtype, False, True)
    got = cuda.forward(x, dyn, 7, dtype, False, True)
    assert got[0].dtype == dtype
    assert got[1].dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    assert torch.equal(got[0], expected[0])
    gs = torch.randn(7, 2, 50, generator=generator).to(DEVICE)
    args = (gs, None, expected[1], dyn, dtype, False)
    torch.testing.assert_close(
        cuda.backward(*args), reference.backward(*args), rtol=2e-2, atol=1e-5
    )


@kernels
def test_the_function_chooses_them():
    from snn_dfa.sequence.scan.function import _implementation

    assert _implementation(torch.zeros(1, 1, 1, device=DEVICE), on_device(dynamics())) is cuda


@kernels
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_kernels_equal_plain_from_a_state(options, generator):
    dyn = on_device(dynamics(torch.float64, **options))
    x, mem = torch.rand(4, 3, 50, generator=generator, dtype=torch.float64).to(DEVICE).split([3, 1])
    wait = torch.randint(0, dyn.refractory_steps + 1, (3, 50), dtype=torch.int32).to(DEVICE)
    mem, found = 0.3 * mem[0], []
    for scan in (cuda, reference):
        last = torch.zeros_like(mem), torch.zeros_like(wait)
        counts = (wait, last[1]) if dyn.refractory_steps else (None, None)
        states = reference.States(mem, counts[0], last[0], counts[1])
        found.append([*scan.forward(x, dyn, 3, x.dtype, True, True, states), *last])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
