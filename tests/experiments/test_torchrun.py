"""``snn-dfa`` under torchrun: two processes that share each batch, beside one that has it whole."""

import json
import os
import subprocess
import sys

import pytest
import torch

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.files import load_checkpoint

pytestmark = pytest.mark.slow

#: 33 samples a batch: the processes' parts differ by one.
SETTINGS = ["--hidden", "24,16", "--steps", "6", "--batch-size", "33", "--epochs", "2"]


def under_torchrun(*args, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--standalone", "-m", "snn_dfa", *map(str, args)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (code == 0), done.stderr
    return done


def history(folder):
    return json.loads((folder / "metrics.json").read_text())["dfa"]["history"]


def weights(folder):
    return load_checkpoint(folder / "checkpoint.pt")["net"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run by two processes, without normalisation, which is over a process's part of a batch."""
    folder = tmp_path_factory.mktemp("shared")
    done = under_torchrun(
        "train", *SETTINGS, "--no-normalize", "--feedback", "kolen-pollack", "--out", folder
    )
    return folder, done


def test_two_processes_end_as_one_does(shared, tmp_path, capsys):
    folder, _ = shared
    same = [*SETTINGS, "--no-normalize", "--feedback", "kolen-pollack"]
    assert main(["train", *same, "--out", str(tmp_path)]) == 0
    for mine, alone in zip(history(folder), history(tmp_path), strict=True):
        assert mine["train_loss"] == pytest.approx(alone["train_loss"], abs=1e-3)
        assert mine["train_accuracy"] == pytest.approx(alone["train_accuracy"], abs=0.01)
    wanted = weights(tmp_path)
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=5e-3, msg=name)


def test_one_of_them_writes_and_speaks(shared):
    folder, done = shared
    assert done.stdout.count("wrote ") == 1
    assert done.stdout.count("gap to BPTT") == 1
    assert done.stderr.count("2/2") >= 1
    assert sorted(p.name for p in folder.iterdir() if p.suffix not in (".pdf", ".svg")) == [
        "checkpoint.pt", "confusion_dfa.png", "curves.png", "experiment.yaml", "log.csv",
        "metrics.json", "report.html", "spikes_dfa.png",
    ]  # fmt: skip


def test_with_normalisation_they_go_on_together_from_a_checkpoint(tmp_path):
    """Cut off after an epoch and taken up again, they end at the numbers of the unbroken run."""
    one, whole = tmp_path / "one", tmp_path / "whole"
    options = [*SETTINGS[:-2], "--schedule", "step", "--dropout", "0.1", "--credit", "trace"]
    under_torchrun("train", *options, "--epochs", "2", "--out", whole)
    under_torchrun("train", *options, "--epochs", "1", "--out", one)
    under_torchrun("train", *options, "--epochs", "2", "--resume", "--out", one)
    assert history(one) == history(whole)
    wanted = weights(whole)
    for name, value in weights(one).items():
        assert torch.equal(value, wanted[name]), name
    assert history(whole)[1]["train_loss"] < history(whole)[0]["train_loss"]


def test_a_mistake_is_told_once(tmp_path):
    done = under_torchrun("train", "--epochs", "0", "--out", tmp_path / "out", code=2)
    assert done.stderr.count("snn-dfa: --epochs: expected one or more, got 0") == 1
    assert not (tmp_path / "out").exists()


def test_half_of_what_torchrun_sets_is_refused(tmp_path, capsys, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("snn-dfa: WORLD_SIZE=2: expected the variables that torchrun sets")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
