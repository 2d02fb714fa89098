"""No room on the disk, and files that are not what they should be."""

import errno
import os
import random
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cut_runs import SETTINGS, TINY, cut_at, run

from snn_dfa.experiments import files
from snn_dfa.experiments.data import load
from snn_dfa.experiments.data.recordings import SMALL, nmnist
from snn_dfa.experiments.files import Checkpoint, load_checkpoint
from snn_dfa.experiments.settings import UsageError
from snn_dfa.experiments.train.trainer import Trainer

# -- no room ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path, capsys, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    assert run(*TINY, "--out", tmp_path) == 0
    (tmp_path / "metrics.json").unlink()  # without results, another run may follow
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


@pytest.mark.slow
def test_a_file_that_the_system_refuses_to_let_grow_is_one_line(tmp_path):
    """What torch itself makes of a write that fails, in a process with a real limit."""
    assert run(*TINY, "--epochs", "1", "--out", tmp_path) == 0
    (tmp_path / "metrics.json").unlink()
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
        (lambda s: s.update(data=7), "made with other data, of digits, than digits has now"),
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
