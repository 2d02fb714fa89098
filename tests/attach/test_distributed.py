"""Two processes on the two halves of a batch, beside one process on the whole of it."""

import os
import subprocess
import sys
from pathlib import Path

import distributed
import pytest
import torch
from torch import nn

from snn_dfa import DFA, AttachError

pytestmark = pytest.mark.slow

# Torch 2.6 has fully_shard, which on the CPU asks for what its streams cannot do.
HAS_FSDP = hasattr(torch.cpu.Stream, "record_event")
TRAINED = [
    name for name in distributed.CASES
    if name not in ("around", "around-named", "shallow", "shallow-unused", "wrapper", "sign", "kolen-pollack-alone")
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both processes made of each case; nothing changes it."""
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script = Path(distributed.__file__)
    both = [
        subprocess.Popen(
            [sys.executable, script, str(rank), folder], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "".join(errors)
    return {
        name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(2)]
        for name in distributed.CASES
    }


def alone(name, steps=10):
    return distributed.train(distributed.CASES[name], lambda form: form, slice(None), steps)


def assert_close(a, b, tolerance):
    assert a.keys() == b.keys()
    assert a
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_are_one_on_the_joint_batch(results, name):
    if "fsdp" in name and not HAS_FSDP:
        pytest.skip("this torch has no fully_shard, or none for the CPU")
    wanted, both = alone(name), results[name]
    for got in both:
        assert "error" not in got, got
        assert_close(got["first"], wanted["first"], 1e-6)
        assert_close(got["weights"], wanted["weights"], 5e-4)
        if wanted["feedback"]:  # the rule shallow has none
            assert_close(got["feedback"], wanted["feedback"], 5e-4)
    for kind in ("weights", "feedback"):
        for key, value in both[0][kind].items():
            assert torch.equal(value, both[1][kind][key])
    assert wanted["weights"]["0.weight"].ne(distributed.network()[0].weight).any() or (
        distributed.CASES[name].get("rule") == "shallow"
    )


def test_the_halves_have_membranes_of_their_own(results):
    """Else the first test would pass with the first half's samples alone."""
    first, second = results["no-buffers"]
    assert any((a != b).any() for a, b in zip(first["mem"], second["mem"], strict=True))


@pytest.mark.parametrize("name", ["around", "around-named"])
def test_membranes_that_are_broadcast_between_steps_are_refused(results, name):
    for got in results[name]:
        assert got["error"].startswith(
            "AttachError: layer '1': goes on from its last membrane, but DistributedDataParallel "
            "has copied that of the first process over it; put the loop over time into"
        )
        assert got["error"].endswith("broadcast_buffers=False")


def test_feedback_that_learns_alone_goes_its_own_way(results):
    first, second = (got["feedback"] for got in results["kolen-pollack-alone"])
    assert any((first[name] != second[name]).any() for name in first)


@pytest.mark.parametrize("name", ["shallow", "shallow-unused"])
def test_rule_shallow_raises_an_error(results, name):
    """Its hidden parameters would get gradients of zero, by which weight decay changes them."""
    for got in results[name]:
        assert got["error"].startswith("AttachError: rule='shallow': DistributedDataParallel gives")


def test_rule_sign_is_a_sum_over_the_samples_of_a_process(results):
    """A sign does not shrink with the batch, so that a mean of processes is a share of the sum."""
    wanted = alone("sign", steps=1)["first"]
    for got in results["sign"]:
        for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
            torch.testing.assert_close(2 * got["first"][name], wanted[name], rtol=0, atol=1e-5)
        for name in ("4.weight", "4.bias"):  # the output's own gradient is as ever
            torch.testing.assert_close(got["first"][name], wanted[name], rtol=0, atol=1e-6)


def test_a_wrapper_is_refused(results):
    for got in results["wrapper"]:
        assert got["error"] == (
            "AttachError: net: expected the network itself, got it wrapped in "
            "DistributedDataParallel; give net.module, before or after wrapping"
        )
    with pytest.raises(AttachError, match=r"wrapped in DataParallel; give net\.module"):
        DFA(nn.DataParallel(distributed.network()))
