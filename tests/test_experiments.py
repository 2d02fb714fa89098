"""The command line and what it leaves behind, on small runs."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from snn_dfa.experiments import files, training
from snn_dfa.experiments.cli import main
from snn_dfa.experiments.data import load
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.training import Trainer

TINY = ["--hidden", "24,16", "--steps", "6", "--epochs", "2"]


def run(*args):
    return main([str(a) for a in args])


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


# -- compare ---------------------------------------------------------------------------------------


def test_compare_writes_everything(tmp_path, capsys):
    assert run("compare", *TINY, "--out", tmp_path) == 0
    out, err = capsys.readouterr()
    assert "gap to BPTT" in out
    assert "epoch 2/2" in err
    found = metrics(tmp_path)
    assert found["settings"]["hidden"] == [24, 16]
    assert found["versions"]["torch"] == torch.__version__
    for rule in ("bptt", "dfa", "shallow"):
        r = found[rule]
        assert 0 < r["test_accuracy"] < 1
        assert r["seconds_per_step"] > 0
        assert 0 < r["spikes_per_neuron_and_step"] < 1
        assert len(r["history"]) == 2
        for part in ("train", "val", "test"):
            assert math.isfinite(r["history"][0][f"{part}_loss"])
        counts = np.array(r["confusion"])
        assert counts.shape == (10, 10)
        assert counts.sum() == 360
        assert np.trace(counts) / 360 == pytest.approx(r["test_accuracy"])
        best = max(r["history"], key=lambda line: (line["val_accuracy"], -line["val_loss"]))
        assert r["best_epoch"] == best["epoch"]
        assert r["test_accuracy"] == pytest.approx(best["test_accuracy"])
    for name in ("curves", "confusion_bptt", "confusion_dfa", "confusion_shallow"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 500
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".json", ".html"}  # no part is left


def test_rules_start_alike_and_train_apart():
    settings = Settings(hidden=(24, 16), steps=6, epochs=1)
    data = load(Settings(dataset="digits"))
    trainers = {rule: Trainer(settings, rule, data) for rule in ("bptt", "dfa", "shallow")}
    first = [p.clone() for p in trainers["bptt"].net.parameters()]
    for t in trainers.values():
        assert all(torch.equal(p, q) for p, q in zip(t.net.parameters(), first, strict=True))
        list(t.fit())
    hidden = {rule: t.net[0].weight for rule, t in trainers.items()}
    assert torch.equal(hidden["shallow"], first[0])
    assert not torch.equal(hidden["dfa"], first[0])
    assert not torch.equal(hidden["dfa"], hidden["bptt"])


def test_a_run_repeats_itself(tmp_path):
    for name in "ab":
        assert run("compare", *TINY, "--rules", "dfa", "--out", tmp_path / name) == 0
    a, b = (metrics(tmp_path / name)["dfa"]["history"] for name in "ab")
    assert a == b


def test_mixed_precision_learns(tmp_path):
    common = ["compare", *TINY, "--epochs", "3", "--batch-size", "32", "--lr", "0.005"]
    common += ["--rules", "dfa"]
    for options in ([], ["--amp"]):
        assert run(*common, *options, "--out", tmp_path / "".join(options)) == 0
    single, half = (metrics(tmp_path / name) for name in ("", "--amp"))
    assert half["settings"]["amp"]
    assert not single["settings"]["amp"]
    assert abs(single["dfa"]["test_accuracy"] - half["dfa"]["test_accuracy"]) < 0.1
    assert half["dfa"]["test_accuracy"] > 0.4
    assert [set(e) for e in half["dfa"]["epoch_seconds"]] == [{"epoch", "steps"}] * 3


def test_learning_rate_decays_as_asked():
    settings = Settings(
        hidden=(8,), steps=2, epochs=5, schedule="step", lr=0.1, lr_decay=0.5, decay_every=2
    )
    trainer = Trainer(settings, "shallow", load(Settings(dataset="digits")))
    rates = [line["lr"] for line in trainer.fit()]
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025])


# -- train and resume ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["dfa", "bptt"])
def test_a_resumed_run_ends_at_the_numbers_of_an_unbroken_one(tmp_path, rule):
    common = ["train", "--rule", rule, "--hidden", "24,16", "--steps", "6", "--decay-every", "1"]
    assert run(*common, "--epochs", 4, "--out", tmp_path / "whole") == 0
    assert run(*common, "--epochs", 2, "--out", tmp_path / "broken") == 0
    assert run(*common, "--epochs", 4, "--out", tmp_path / "broken", "--resume") == 0
    whole, broken = (metrics(tmp_path / name)[rule] for name in ("whole", "broken"))
    for timed in (whole, broken):
        del timed["seconds_per_step"], timed["epoch_seconds"], timed["seconds_to_97"]
    assert whole == broken
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000
    states = [files.load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "broken")]
    for key, value in states[0]["net"].items():
        assert torch.equal(value, states[1]["net"][key]), key


def test_resume_refuses_another_experiment(tmp_path, capsys):
    assert run("train", *TINY, "--out", tmp_path) == 0
    capsys.readouterr()
    assert run("train", *TINY, "--lr", "0.5", "--out", tmp_path, "--resume") == 2
    assert "made with lr=0.003, expected 0.5" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, lambda f: f.write(b"old"))

    def fail(f):
        f.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        files.write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# -- what the user can mend ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (
            ["compare", "--rules", "dfa,hebb"],
            "--rules: expected some of bptt,dfa,sign,target,fa,shallow, got 'hebb'",
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
            ["compare", "--recipe", "conv", "--feedback", "zhang"],
            "--feedback: expected gaussian, channelwise or kolen-pollack with convolutions, got",
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
            "--feedback: expected one of gaussian, uniform, orthogonal, sparse, channelwise, sh",
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
        (["compare", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["train", "--resume", "--out", "nowhere"], "--resume: expected a checkpoint at nowhere"),
    ],
)
def test_a_broken_argument_is_one_line_and_status_2(args, message, capsys, tmp_path, monkeypatch):
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


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m snn_dfa recipes | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("deep:")
    assert done.stderr == ""


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "snn_dfa", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("snn-dfa 0.")
