"""What every test starts from: one thread's arithmetic, a known seed, no matplotlib window."""

import os
from pathlib import Path

import matplotlib
import pytest

# Before torch is imported, here and in the commands that tests run: workers share the cores.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import snntorch as snn
import torch

from snn_dfa.experiments.data import load
from snn_dfa.experiments.settings import Settings

matplotlib.use("Agg")


def pytest_configure(config):
    """Let the asserts of tests/support say what they compared, too."""
    support = Path(__file__).parent / "support"
    pytest.register_assert_rewrite(*(file.stem for file in support.glob("*.py")))


@pytest.fixture(autouse=True)
def _known_state():
    torch.manual_seed(0)
    # snnTorch's reset goes over all neurons there have ever been, and fails on some of them.
    neurons = snn.SpikingNeuron.instances
    before = len(neurons)
    yield
    del neurons[before:]
    assert torch.get_default_dtype() == torch.float32, "a test left another default dtype behind"


@pytest.fixture
def generator():
    """A generator of its own for a test's inputs."""
    return torch.Generator().manual_seed(1)


@pytest.fixture(scope="session")
def digits():
    """The embedded digits, with the validation part of the default settings."""
    return load(Settings())
