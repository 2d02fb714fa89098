"""A run that is cut off, at any moment and in any way, and what is left of it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from cut_runs import SETTINGS, TINY, cut_at, run
from paths import ROOT

from snn_dfa.experiments import files
from snn_dfa.experiments.data import load
from snn_dfa.experiments.files import Checkpoint, load_checkpoint
from snn_dfa.experiments.settings import UsageError
from snn_dfa.experiments.train.trainer import Trainer


def assert_same(a, b):
    assert a.history == b.history
    assert a.diagnostics == b.diagnostics
    assert len(a.step_seconds) == len(b.step_seconds)
    for name, value in a.net.state_dict().items():
        assert torch.equal(value, b.net.state_dict()[name]), name
        assert torch.equal(a.best[name], b.best[name]), name
    for x, y in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
        assert all(torch.equal(x[k], y[k]) for k in x)
    for name, matrix in ({} if a.dfa is None else a.dfa.feedback).items():
        assert torch.equal(matrix, b.dfa.feedback[name])


# -- going on in the middle of an epoch ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("dfa", {"encoding": "poisson", "input_dropout": 0.0}),
        ("dfa", {"feedback": "gaussian", "schedule": "step", "optimizer": "sgd", "momentum": 0.9}),
        ("dfa", {"credit": "trace"}),
        ("fa", {}),
        ("bptt", {"amp": True}),
    ],
)
@pytest.mark.parametrize("batch", [1, 6, 9])  # the epochs have six: within, at an end, within
def test_a_run_cut_within_an_epoch_ends_as_an_unbroken_one(tmp_path, digits, rule, changed, batch):
    settings = replace(SETTINGS, **changed)
    whole = Trainer(settings, rule, digits)
    assert whole.batches == 6
    list(whole.fit())
    Checkpoint(tmp_path / "c.pt", 0).save(cut_at(Trainer(settings, rule, digits), batch))
    resumed = Trainer(settings, rule, digits)
    resumed.load_state_dict(load_checkpoint(tmp_path / "c.pt"))
    assert resumed.behind == batch
    list(resumed.fit())
    assert_same(resumed, whole)


@pytest.mark.slow
def test_what_is_diagnosed_of_a_broken_epoch_is_that_of_the_whole(tmp_path, digits):
    whole = Trainer(SETTINGS, "dfa", digits)
    list(whole.fit(diagnosed=True))
    torch.manual_seed(123)  # the process that goes on has another past
    state = cut_at(Trainer(SETTINGS, "dfa", digits), 9, diagnosed=True)
    Checkpoint(tmp_path / "c.pt", 0).save(state)
    resumed = Trainer(SETTINGS, "dfa", digits)
    resumed.load_state_dict(load_checkpoint(tmp_path / "c.pt"))
    list(resumed.fit(diagnosed=True))
    assert resumed.diagnostics[1]["projected_errors"]
    assert_same(resumed, whole)


def test_checkpoints_are_due_by_time(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(files.time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path / "c.pt", every=60)
    now = 159.9
    assert not checkpoint.is_due
    now = 160.0
    assert checkpoint.is_due
    checkpoint.save({})
    assert not checkpoint.is_due


@pytest.mark.slow
@pytest.mark.parametrize(("every", "within"), [("0", True), ("1000", False)])
def test_save_every_saves_within_epochs(tmp_path, monkeypatch, every, within):
    saved, save = [], Checkpoint.save

    def note(self, state):
        saved.append(state["under_way"] is not None)
        save(self, state)

    monkeypatch.setattr(Checkpoint, "save", note)
    assert run(*TINY, "--save-every", every, "--out", tmp_path) == 0
    assert saved == ([True] * 6 + [False]) * 2 if within else [False, False]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
def test_killed_again_and_again_it_ends_as_an_unbroken_one():
    script = ROOT / "benchmarks" / "kill.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--kills", "4"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 4\n" in done.stdout
    assert "runs unlike the unbroken one: 0\n" in done.stdout
    assert "runs ended: 0\n" not in done.stdout


# -- interrupted -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_does_not_go_on_with_other_data_under_the_same_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def written(name, first):
        x, y = np.linspace(0, 1, 1200).reshape(300, 4), np.arange(300) % 3
        x[0, 0] = first
        np.savez(name, x_train=x, y_train=y, x_test=x, y_test=y)

    written("own.npz", 0.0)
    command = [*TINY, "--recipe", "wide", "--schedule", "step", "--out", "out"]
    assert run(*command, "--dataset", "own.npz") == 0
    written("own.npz", 0.5)
    assert run(*command, "--dataset", "own.npz", "--resume") == 2
    assert "made with other data, of own.npz, than own.npz has now" in capsys.readouterr().err
    written("moved.npz", 0.0)
    command[command.index("--epochs") + 1] = "3"
    assert run(*command, "--dataset", "moved.npz", "--resume") == 0


@pytest.mark.slow
def test_control_c_leaves_a_checkpoint_and_names_how_to_go_on(tmp_path, digits):
    path = tmp_path / "checkpoint.pt"
    command = [sys.executable, "-m", "snn_dfa", *TINY, "--epochs", "100000", "--save-every", "0",
               "--out", tmp_path]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        # A job in the background inherits that it is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        until = time.monotonic() + 120
        while not path.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last == f"snn-dfa: interrupted; the same command with --resume goes on from {path}"
    assert load_checkpoint(path)["rule"] == "dfa"
    names = {p.name for p in tmp_path.iterdir()}
    assert {"checkpoint.pt", "experiment.yaml"} <= names <= {
        "checkpoint.pt", "experiment.yaml", "log.csv"
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_was_cut_off_is_not_written_over(tmp_path, capsys, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    command = [*TINY, "--epochs", "3", "--out", tmp_path]
    save = Checkpoint.save

    def once(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", once)
    assert run(*command) == 130
    monkeypatch.undo()
    before = path.read_bytes()
    assert run(*command) == 2
    err = capsys.readouterr().err
    assert f"--out: {path} is of a run that was cut off after 1 of 3 epochs; go on with" in err
    assert path.read_bytes() == before
    assert run(*command, "--resume") == 0
    assert run(*command) == 2  # it has come to its end
    assert run(*command, "--overwrite") == 0


@pytest.mark.slow
def test_what_a_killed_run_left_half_written_is_taken_out(tmp_path):
    (tmp_path / ".checkpoint.pt.1234.part").write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"whole")
    assert run(*TINY, "--epochs", "1", "--out", tmp_path) == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert {".mine", "checkpoint.pt", "metrics.json"} <= names
    assert not any(name.endswith(".part") for name in names)


# -- a second run that begins with the weights of the first ----------------------------------------


@pytest.fixture
def first_run(tmp_path, digits):
    trainer = Trainer(SETTINGS, "dfa", digits)
    list(trainer.fit())
    Checkpoint(tmp_path / "c.pt", 0).save(trainer.state_dict())
    return trainer, str(tmp_path / "c.pt")


def test_a_run_starts_with_the_weights_and_the_feedback_of_another(first_run, digits):
    before, path = first_run
    later = Trainer(replace(SETTINGS, start=path, lr=1e-4, steps=SETTINGS.steps + 1), "dfa", digits)
    for name, value in later.net.state_dict().items():
        assert torch.equal(value, before.best[name]), name
    assert all(
        torch.equal(matrix, before.dfa.feedback[n]) for n, matrix in later.dfa.feedback.items()
    )
    assert later.epoch == 0
    assert not later.optimizer.state
    (line, *_) = later.fit()
    assert line["train_accuracy"] > before.history[0]["train_accuracy"]


def test_another_rule_starts_with_the_weights_alone(first_run, digits):
    before, path = first_run
    later = Trainer(replace(SETTINGS, start=path), "fa", digits)
    fresh = Trainer(SETTINGS, "fa", digits)
    for name, value in later.net.state_dict().items():
        assert torch.equal(value, before.best[name]), name
    assert all(
        torch.equal(matrix, fresh.dfa.feedback[n]) for n, matrix in later.dfa.feedback.items()
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"hidden": (7,)}, "the same network"), ({"seed": 1}, "the same validation part")],
)
def test_a_start_that_does_not_fit_is_an_error(first_run, digits, changed, said):
    data = load(replace(SETTINGS, **changed)) if "seed" in changed else digits
    with pytest.raises(UsageError, match=said):
        Trainer(replace(SETTINGS, start=first_run[1], **changed), "dfa", data)


def test_a_start_that_is_not_there_is_an_error(tmp_path, digits):
    with pytest.raises(UsageError, match=r"--start: expected .*found none"):
        Trainer(replace(SETTINGS, start=str(tmp_path / "none.pt")), "dfa", digits)
