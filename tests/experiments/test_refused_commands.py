"""What the command line refuses, each in one line that says what to mend."""

import math

import pytest
import torch

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.train import trainer as training
from snn_dfa.experiments.train.trainer import Trainer

TINY = ["--hidden", "24,16", "--steps", "6", "--epochs", "2"]


def run(*args):
    return main([str(a) for a in args])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (
            ["compare", "--rules", "dfa,hebb"],
            "--rules: expected some of bptt,dfa,sign,target,local,fa,shallow, got 'hebb'",
        ),
        (
            ["compare", "--hidden", "10,x"],
            "--hidden: expected layers such as 256,128,64 or 12c5,mp2",
        ),
        (
            ["compare", "--hidden", "10,0"],
            "--hidden: expected layers such as 256,128,64 or 12c5,mp2",
        ),
        (["compare", "--hidden", "10,12c5"], "--hidden: expected 12c5 before the dense layers"),
        (["compare", "--hidden", "mp2,10"], "--hidden: expected mp2 straight after a convolution"),
        (
            ["compare", "--hidden", "4c3,mp3,4c3,mp3"],
            "--hidden: nothing is left of an image of 8x8",
        ),
        (
            ["compare", "--threshold", "1,2"],
            "--threshold: expected one number for all layers or one for each of the 4, got '1.0,2.0'",
        ),
        (
            ["compare", "--recipe", "deep", "--encoding", "poisson"],
            "--input-dropout: expected at most 1 - --max-rate = 0 with Poisson spikes",
        ),
        (
            ["compare", "--recipe", "conv", "--feedback", "zhang", "--rules", "dfa"],
            "feedback: 'zhang' is for dense layers",
        ),
        (
            ["compare", "--feedback", "uniform", "--feedback-std", "0.1"],
            "--feedback-std: expected 0 with another feedback than gaussian",
        ),
        (
            ["train", "--recipe", "zhang2024", "--dt", "30"],
            "--dt: expected at most the 20 ms of --tau, got 30.0",
        ),
        (
            ["train", "--loss", "share", "--readout", "current"],
            "--readout: expected spikes with --loss share, got 'current'",
        ),
        (
            ["train", "--loss", "share", "--label-smoothing", "0.1"],
            "--label-smoothing: expected 0 with --loss share, got 0.1",
        ),
        (
            ["train", "--batch-size", "1"],
            "--batch-size: expected two or more with --normalize, got 1",
        ),
        (["train", "--threshold", "nan"], "--threshold: expected numbers above zero"),
        (["train", "--seed", "-1"], "--seed: expected a whole number from 0"),
        (
            ["ladder", "--device", "abacus"],
            "--device: expected a device of this machine, got 'abacus'",
        ),
        (["compare", "--run-in", "25"], "--run-in: expected fewer than the"),
        (
            ["compare", "--feedback", "cats"],
            "--feedback: expected one of gaussian, uniform, orthogonal, sparse, low-rank, channelwise, sh",
        ),
        (
            ["compare", "--rules", "bptt,fa", "--credit", "trace"],
            "rule fa: credit='trace': expected a rule that sends errors straight to each layer",
        ),
        (
            ["compare", "--rules", "bptt,fa", "--feedback", "shared"],
            "rule fa: feedback: ",
        ),
        (
            ["compare", "--max-rate", "0.5", "--input-dropout", "0.3"],
            "--drop-to: expected zero with --encoding poisson",
        ),
        (["compare", "--recipe", "cake"], "argument --recipe: invalid choice: 'cake'"),
        (["compare", "--seeds", "0"], "--seeds: expected one or more, got 0"),
        (["compare", "--epochs", "0"], "--epochs: expected one or more, got 0"),
        (["compare", "--lr", "-1"], "--lr: expected a number above zero, got -1.0"),
        (
            ["compare", "--encoding", "poisson", "--max-rate", "2"],
            r"--max-rate: expected a number in [0, 1] with Poisson spikes, got 2.0",
        ),
        (["compare", "--dataset", "cats"], "--dataset: expected one of digits, mnist"),
        (
            ["compare", "--device", "abacus"],
            "--device: expected a device of this machine, got 'abacus'",
        ),
        (
            ["compare", "--device", "meta"],
            "--device: expected a device of this machine, got 'meta'",
        ),
        (["compare", "--hidden", "99999999999"], "not enough memory; choose a smaller --hidden"),
        (
            ["compare", "--tensorboard", "/dev/null/tb"],
            "--tensorboard: expected a folder that can be made, got /dev/null/tb",
        ),
        (
            ["compare", "--hidden", "4c3,4c3", "--feedback", "sign-symmetry", "--rules", "dfa"],
            "feedback: a product of weights or factors needs one nn.Linear",
        ),
        (["compare", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["train", "--resume", "--out", "nowhere"], "--resume: expected a checkpoint at nowhere"),
    ],
)
def test_a_broken_argument_is_one_line_and_status_2(args, message, capsys, tmp_path, monkeypatch):
    if "--tensorboard" in args:
        pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("snn-dfa: ")
    assert list(tmp_path.iterdir()) == []  # refused before anything was made


def test_a_missing_data_set_names_the_folder(tmp_path, capsys, monkeypatch):
    from torchvision.datasets import MNIST

    def no_network(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(MNIST, "download", no_network)
    assert run("compare", "--dataset", "mnist", "--data-root", tmp_path, "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "MNIST" / "raw") in err
    assert "Error downloading" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path, capsys, content):
    path = tmp_path / "checkpoint.pt"
    if content is None:
        torch.save({"other": 1}, path)
    else:
        path.write_bytes(content)
    assert run("train", *TINY, "--out", tmp_path, "--resume") == 2
    err = capsys.readouterr().err
    assert str(path) in err
    assert err.count("\n") == 1


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert run("compare", *TINY, "--out", tmp_path / "taken") == 2
    assert "--out: expected a folder that can be made and written to" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_named(tmp_path, capsys, monkeypatch):
    broken = lambda settings: lambda spk, y: spk.sum() * math.nan  # noqa: E731
    monkeypatch.setattr(training, "make_loss", broken)
    assert run("compare", *TINY, "--out", tmp_path) == 2
    assert "bptt: the loss is nan in epoch 1; try a smaller --lr" in capsys.readouterr().err


def test_interrupted(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_train_step", interrupt)
    assert run("train", *TINY, "--out", tmp_path) == 130
    assert "nothing was saved yet" in capsys.readouterr().err
