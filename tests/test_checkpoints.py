"""A run that is cut off, at any moment and in any way, and what is left of it."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snn_dfa.experiments import files
from snn_dfa.experiments.cli import main
from snn_dfa.experiments.data import load
from snn_dfa.experiments.files import Checkpoint, load_checkpoint
from snn_dfa.experiments.recordings import SMALL, nmnist
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.training import Trainer

TINY = ["train", "--hidden", "12", "--steps", "3", "--epochs", "2", "--batch-size", "256"]
SETTINGS = Settings(hidden=(12,), steps=3, epochs=2, batch_size=256, dropout=0.2)


def run(*args):
    return main([str(a) for a in args])


@pytest.fixture(scope="module")
def digits():
    return load(SETTINGS)


class Cut(Exception):
    """The end of a life."""


def cut_at(trainer, batch, diagnosed=False):
    """Train up to a batch of the run; return the state that is saved there."""

    def after_batch():
        if trainer.behind == batch:
            raise Cut

    with pytest.raises(Cut):
        list(trainer.fit(after_batch, diagnosed=diagnosed))
    return trainer.state_dict()


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


@pytest.mark.parametrize(("every", "within"), [("0", True), ("1000", False)])
def test_save_every_saves_within_epochs(tmp_path, monkeypatch, every, within):
    saved, save = [], Checkpoint.save

    def note(self, state):
        saved.append(state["under_way"] is not None)
        save(self, state)

    monkeypatch.setattr(Checkpoint, "save", note)
    assert run(*TINY, "--save-every", every, "--out", tmp_path) == 0
    assert saved == ([True] * 6 + [False]) * 2 if within else [False, False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
def test_killed_again_and_again_it_ends_as_an_unbroken_one():
    script = Path(__file__).parents[1] / "benchmarks" / "kill.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--kills", "4"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 4\n" in done.stdout
    assert "runs unlike the unbroken one: 0\n" in done.stdout
    assert "runs ended: 0\n" not in done.stdout


# -- interrupted -----------------------------------------------------------------------------------


def test_control_c_leaves_a_checkpoint_and_names_how_to_go_on(tmp_path, digits):
    path = tmp_path / "checkpoint.pt"
    command = [sys.executable, "-m", "snn_dfa", *TINY, "--epochs", "100000", "--save-every", "0",
               "--out", tmp_path]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not path.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last == f"snn-dfa: interrupted; the same command with --resume goes on from {path}"
    assert load_checkpoint(path)["rule"] == "dfa"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_a_killed_run_left_half_written_is_taken_out(tmp_path):
    (tmp_path / ".checkpoint.pt.1234.part").write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"whole")
    assert run(*TINY, "--epochs", "1", "--out", tmp_path) == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert {".mine", "checkpoint.pt", "metrics.json"} <= names
    assert not any(name.endswith(".part") for name in names)


# -- no room ---------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path, capsys, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    assert run(*TINY, "--out", tmp_path) == 0
    before = path.read_bytes()
    capsys.readouterr()

    def full(state, file):
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.torch, "save", full)
    assert run(*TINY, "--out", tmp_path) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        f"snn-dfa: {path}: could not be written ([Errno 28] No space left on device); free some "
        f"space or name another --out"
    )
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_the_system_refuses_to_let_grow_is_one_line(tmp_path):
    """What torch itself makes of a write that fails, in a process with a real limit."""
    assert run(*TINY, "--epochs", "1", "--out", tmp_path) == 0
    path = tmp_path / "checkpoint.pt"
    before = path.read_bytes()
    limit = len(before) // 2
    done = subprocess.run(
        [sys.executable, "-m", "snn_dfa", *TINY, "--save-every", "0", "--out", tmp_path],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_DISABLE_JIT": "0"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"snn-dfa: {path}: could not be written (")
    assert last.endswith("free some space or name another --out")
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


# -- files that are not what they should be --------------------------------------------------------


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory, digits):
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    Checkpoint(path, 0).save(cut_at(Trainer(SETTINGS, "dfa", digits), 2))
    return path.read_bytes()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def outcome_of(read):
    """What reading gives, and what it is refused with."""
    try:
        return read(), None
    except UsageError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", ["cut short", "a bit flipped", "a run of zeros"])
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path, whole_file, kind):
    draw, path, refused = random.Random(kind), tmp_path / "c.pt", 0
    path.write_bytes(whole_file)
    wanted = load_checkpoint(path)
    for _ in range(60):
        at, damaged = draw.randrange(len(whole_file)), bytearray(whole_file)
        if kind == "cut short":
            damaged = damaged[:at]
        elif kind == "a bit flipped":
            damaged[at] ^= 1 << draw.randrange(8)
        else:
            damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
        path.write_bytes(damaged)
        got, error = outcome_of(lambda: load_checkpoint(path))
        refused += error is not None
        if error is None:
            assert same(got, wanted)  # it hit what no one reads
        else:
            assert error.startswith(f"--resume: {path} ")
            assert "\n" not in error
    assert refused > 20


def test_a_file_with_code_in_it_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"settings": Evil()}, tmp_path / "checkpoint.pt")
    assert run(*TINY, "--resume", "--out", tmp_path) == 2
    assert "is not a checkpoint, or damaged" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["settings"].update(hidden=[13]), "made with hidden=[13], expected [12]"),
        (lambda s: s.update(rule="fa"), "made with rule='fa', expected 'dfa'"),
        (lambda s: s.update(samples=7), "made with samples=7, expected"),
        (lambda s: s.pop("under_way"), "of this version of snn-dfa, got one without 'under_way'"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, digits, whole_file, change, message):
    (tmp_path / "c.pt").write_bytes(whole_file)
    state = load_checkpoint(tmp_path / "c.pt")
    change(state)
    trainer = Trainer(SETTINGS, "dfa", digits)
    before = {k: v.clone() for k, v in trainer.net.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        trainer.load_state_dict(state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in trainer.net.state_dict().items())


def idx(values):
    """A file of MNIST's kind."""
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.mark.parametrize("size", [0, 3, 10, 16, 100, -1])
def test_a_truncated_image_file_is_one_line(tmp_path, capsys, size):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    settings = replace(SETTINGS, dataset="mnist", data_root=str(tmp_path))
    assert len(load(settings).test) == 20
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(images)[:size])
    args = ["--dataset", "mnist", "--data-root", tmp_path, "--out", tmp_path / "out"]
    assert run(*TINY, *args) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"snn-dfa: --data-root: no readable MNIST in {folder}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["cut short", "a bit flipped"])
def test_a_damaged_file_of_recordings_is_refused_or_read_as_it_was(tmp_path, kind):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        for name, most in (("x", 34), ("y", 34), ("p", 2), ("t_us", 340_000)):
            arrays[f"{part}_{name}"] = rng.integers(0, most, 60).astype(np.int32)
        arrays[f"{part}_offsets"] = np.array([0, 20, 60])
        arrays[f"{part}_labels"] = np.array([3, 8])
    path = tmp_path / SMALL
    np.savez_compressed(path, **arrays)
    whole, wanted = path.read_bytes(), nmnist(tmp_path, 3)
    draw, refused = random.Random(kind), 0
    for _ in range(60):
        at, damaged = draw.randrange(len(whole)), bytearray(whole)
        if kind == "cut short":
            damaged = damaged[:at]
        else:
            damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        got, error = outcome_of(lambda: nmnist(tmp_path, 3))
        refused += error is not None
        if error is None:
            assert same(got, wanted)
        else:
            assert str(path) in error
            assert "\n" not in error
    assert refused > 20
