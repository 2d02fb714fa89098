"""The command line and what it leaves behind, on small runs."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from snn_dfa.experiments import files
from snn_dfa.experiments.cli import main
from snn_dfa.experiments.data import load
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.train.trainer import Trainer

TINY = ["--hidden", "24,16", "--steps", "6", "--epochs", "2"]


def run(*args):
    return main([str(a) for a in args])


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


# -- compare ---------------------------------------------------------------------------------------


@pytest.mark.slow
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
    assert {p.suffix for p in tmp_path.iterdir()} == {
        ".png", ".pdf", ".svg", ".json", ".html", ".csv", ".yaml", ".pt"
    }  # fmt: skip


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_repeats_itself(tmp_path):
    for name in "ab":
        assert run("compare", *TINY, "--rules", "dfa", "--out", tmp_path / name) == 0
    a, b = (metrics(tmp_path / name)["dfa"]["history"] for name in "ab")
    assert a == b


@pytest.mark.slow
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
    assert [set(e) for e in half["dfa"]["epoch_seconds"]] == [{"epoch", "steps", "samples"}] * 3


@pytest.mark.slow
def test_learning_rate_decays_as_asked():
    settings = Settings(
        hidden=(8,), steps=2, epochs=5, schedule="step", lr=0.1, lr_decay=0.5, decay_every=2
    )
    trainer = Trainer(settings, "shallow", load(Settings(dataset="digits")))
    rates = [line["lr"] for line in trainer.fit()]
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025])


# -- train and resume ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dfa", "bptt"])
def test_a_resumed_run_ends_at_the_numbers_of_an_unbroken_one(tmp_path, rule):
    common = ["train", "--rule", rule, "--hidden", "24,16", "--steps", "6", "--decay-every", "1"]
    assert run(*common, "--epochs", 4, "--out", tmp_path / "whole") == 0
    assert run(*common, "--epochs", 2, "--out", tmp_path / "broken") == 0
    assert run(*common, "--epochs", 4, "--out", tmp_path / "broken", "--resume") == 0
    whole, broken = (metrics(tmp_path / name)[rule] for name in ("whole", "broken"))
    for timed in (whole, broken):
        for name in ("seconds_per_step", "epoch_seconds", "seconds_to_97", "samples_per_second"):
            del timed[name]
    assert whole == broken
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000
    states = [files.load_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("whole", "broken")]
    for key, value in states[0]["net"].items():
        assert torch.equal(value, states[1]["net"][key]), key


@pytest.mark.slow
def test_resume_refuses_another_experiment(tmp_path, capsys):
    assert run("train", *TINY, "--out", tmp_path) == 0
    capsys.readouterr()
    assert run("train", *TINY, "--lr", "0.5", "--out", tmp_path, "--resume") == 2
    assert "made with lr=0.003, expected 0.5" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.atomic_write(path, lambda f: f.write(b"old"))

    def fail(f):
        f.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"):
        files.atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_interrupted_is_no_full_disk(tmp_path):
    """torch.save closes its file, and reports that instead."""
    path = tmp_path / "file"
    files.atomic_write(path, lambda f: f.write(b"old"))

    class Interrupted:
        """A file, at whose second write the user stops the program."""

        def __init__(self, file):
            self.file, self.writes = file, 0

        def write(self, data):
            self.writes += 1
            if self.writes == 2:
                raise KeyboardInterrupt
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(path, lambda f: torch.save(torch.ones(3), Interrupted(f)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m snn_dfa recipes | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("deep:")
    assert done.stderr == ""


@pytest.mark.slow
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "snn_dfa", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("snn-dfa 0.")
