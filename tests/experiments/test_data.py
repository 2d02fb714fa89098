"""Data sets: read, split, binned, and what is said of files that are none."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.data import load
from snn_dfa.experiments.data.inputs import drop_pixels, random_flip, random_shift
from snn_dfa.experiments.data.recordings import nmnist
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.settings import Settings, UsageError


def run(*args):
    return main([str(a) for a in args])


# -- images ----------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap():
    splits = load(Settings(validation=0.1))
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [1293, 144, 360]
    assert splits.train.x.min() == 0
    assert splits.train.x.max() == 1
    other = load(Settings(seed=1))
    assert torch.equal(other.test.x, splits.test.x)
    assert not torch.equal(other.val.x, splits.val.x)


def write_idx(folder, images, labels):
    """Write a data set as its publishers do, in all four files."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = np.array([2051, *images.shape], dtype=">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = np.array([2049, len(labels)], dtype=">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")],
)
def test_torchvisions_files_are_read(tmp_path, name, kind):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    labels = np.arange(50, dtype=np.uint8) % 10
    write_idx(tmp_path / kind / "raw", images, labels)
    splits = load(Settings(dataset=name, data_root=str(tmp_path), validation=0.1))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (45, 5, 50)
    assert (splits.image, splits.classes) == ((1, 28, 28), 10)
    torch.testing.assert_close(splits.test.x[7, 0].numpy() * 255, images[7].astype(np.float32))
    assert splits.test.y.tolist() == labels.tolist()
    everything = torch.cat([splits.train.x, splits.val.x]).sort(0).values
    assert torch.equal(everything, splits.test.x.sort(0).values)  # no sample twice, none lost


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_torchvisions_images_of_three_colours_are_read(tmp_path, monkeypatch, name, kind):
    data = getattr(datasets, kind)
    monkeypatch.setattr(data, "_check_integrity", lambda self: True)  # these are not the real ones
    monkeypatch.setattr(data, "_load_meta", lambda self: None)
    rng = np.random.default_rng(0)
    (tmp_path / data.base_folder).mkdir()
    rows = {}
    for file, _ in data.train_list + data.test_list:
        rows = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (tmp_path / data.base_folder / file).write_bytes(pickle.dumps(rows))
    splits = load(Settings(dataset=name, data_root=str(tmp_path), validation=0.2))
    assert len(splits.train) + len(splits.val) == 10 * len(data.train_list)
    assert (splits.image, splits.classes) == ((3, 32, 32), 10)
    assert splits.test.y.tolist() == list(range(10))
    wanted = rows["data"].reshape(10, 3, 32, 32).astype(np.float32) / 255  # red, green, blue planes
    np.testing.assert_allclose(splits.test.x.numpy(), wanted, rtol=1e-6)


def test_a_folder_without_images_of_three_colours_is_named(tmp_path, monkeypatch):
    def gone(self):
        raise OSError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", gone)
    with pytest.raises(UsageError, match=r"no readable CIFAR10 in .*cifar-10-batches-py and no"):
        load(Settings(dataset="cifar10", data_root=str(tmp_path)))


def test_a_truncated_file_is_named(tmp_path, capsys):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, np.zeros((50, 28, 28), np.uint8), np.zeros(50, np.uint8))
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    assert run("compare", "--dataset", "mnist", "--data-root", tmp_path, "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert "no readable MNIST" in err
    assert err.count("\n") == 1


def mnist_root():
    """MNIST where this machine has it, beside the checkout or by an environment variable."""
    roots = [os.environ.get("SNN_DFA_DATA", ""), "data"]
    return next((r for r in roots if r and (Path(r) / "MNIST" / "raw").is_dir()), None)


@pytest.mark.skipif(mnist_root() is None, reason="no MNIST; set SNN_DFA_DATA to torchvision's root")
def test_real_mnist_is_read():
    splits = load(Settings(dataset="mnist", data_root=mnist_root(), validation=0.1))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54_000, 6_000, 10_000)
    assert splits.train.x.mean().item() == pytest.approx(0.1307, abs=0.001)


def test_the_validation_part_is_as_large_as_asked():
    splits = load(Settings(validation=0.25))
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [1078, 359, 360]


@pytest.mark.slow
def test_folds_are_each_sample_once():
    tests = [load(Settings(folds=4, seed=seed)) for seed in range(5)]
    sizes = [len(t.test) for t in tests]
    assert sum(sizes[:4]) == 1797
    assert max(sizes) - min(sizes) <= 1
    rows = torch.cat([t.test.x.flatten(1) for t in tests[:4]]).unique(dim=0)
    assert len(rows) == len(torch.cat([load(Settings()).train.x, load(Settings()).val.x,
                                       load(Settings()).test.x]).flatten(1).unique(dim=0))  # fmt: skip
    assert torch.equal(tests[4].test.x, tests[0].test.x)  # seed 4 is fold 0 again


def test_folds_that_cannot_be_are_refused(capsys, tmp_path):
    assert run("compare", "--folds", 500, "--out", tmp_path / "out") == 2
    assert "--folds: expected at most 183, the samples of the" in capsys.readouterr().err


def test_a_shift_out_of_the_frame_is_refused(capsys, tmp_path):
    assert run("train", "--shift", 8, "--out", tmp_path / "out") == 2
    assert "--shift: expected fewer pixels than the 8 of a sample's" in capsys.readouterr().err


# -- recordings ------------------------------------------------------------------------------------

STEPS = 17
#: x, y, polarity, microseconds: at the edges of sensor, of a step, and of all time.
EVENTS = [
    (0, 0, 0, 0),
    (33, 5, 1, 19_999),
    (33, 5, 1, 20_000),
    (7, 33, 0, 339_999),
    (1, 2, 1, 350_000),
]
WANTED = [(0, 0, 0, 0), (0, 1, 5, 33), (1, 1, 5, 33), (16, 0, 33, 7), (16, 1, 2, 1)]  # t, p, y, x


def packed(events):
    """Forty bits an event, one bit after the other."""
    bits = "".join(f"{x:08b}{y:08b}{p:01b}{t:023b}" for x, y, p, t in events)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def write_published(root, events=EVENTS, per_class=3):
    for part in ("Train", "Test"):
        for digit in range(10):
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for i in range(per_class):
                (folder / f"{i:05}.bin").write_bytes(packed(events))


def write_small(root, events=EVENTS, per_class=3):
    x, y, p, t = (np.array(c * 10 * per_class) for c in zip(*events, strict=True))
    n = len(events)
    arrays = {"x": x, "y": y, "p": p, "t_us": t, "labels": np.repeat(np.arange(10), per_class),
              "offsets": np.arange(0, 10 * per_class * n + 1, n)}  # fmt: skip
    np.savez(root / "nmnist-small.npz", **{f"{s}_{k}": v for s in ("train", "test")
                                           for k, v in arrays.items()})  # fmt: skip


@pytest.mark.parametrize("write", [write_published, write_small])
def test_events_fall_into_their_steps(tmp_path, write):
    write(tmp_path)
    for spikes, labels in nmnist(tmp_path, STEPS):
        assert spikes.shape == (30, STEPS, 2, 34, 34)
        assert labels.tolist() == sorted([*range(10)] * 3)
        assert [tuple(place) for place in spikes[4].nonzero().tolist()] == sorted(WANTED)


def test_the_clocks_overflow_is_undone(tmp_path):
    write_published(tmp_path, [(3, 4, 1, 100), (0, 240, 0, 0), (3, 4, 1, 11_808)])
    (spikes, _), _ = nmnist(tmp_path, STEPS)
    assert spikes[0].nonzero().tolist() == [[0, 1, 4, 3], [1, 1, 4, 3]]  # 11,808 + 8,192 = 20,000


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [[], ["--credit", "trace"], ["--hidden", "4c5,mp4"], ["--folds", "3"]]
)
def test_training_on_recordings(tmp_path, capsys, extra):
    write_small(tmp_path)
    tiny = ["--steps", 4, "--hidden", 8, "--epochs", 1, "--batch-size", 8]
    assert run("train", "--dataset", "nmnist", "--data-root", tmp_path, *tiny, *extra,
               "--out", tmp_path / "out") == 0  # fmt: skip
    assert "test accuracy" in capsys.readouterr().out


def test_pixels_are_dropped_for_all_of_a_recording():
    x = torch.ones(2, 5, 2, 30, 30, dtype=torch.uint8)
    kept = drop_pixels(x, 0.5)
    assert kept.unique().tolist() == [0.0, 2.0]
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert 0.4 < (kept == 0).float().mean() < 0.6
    assert drop_pixels(x, 0.0) is x


def test_dropped_pixels_become_the_usual_ones():
    torch.manual_seed(0)
    x, usual = torch.rand(400, 1, 3, 4), torch.rand(1, 3, 4)
    got = drop_pixels(x, 0.25, usual)
    dropped = got == usual
    assert 0.2 < dropped.float().mean() < 0.3
    torch.testing.assert_close(got, torch.where(dropped, usual, usual + (x - usual) / 0.75))
    same = drop_pixels(usual.expand(5, -1, -1, -1), 0.25, usual)
    assert torch.equal(same, usual.expand(5, -1, -1, -1))  # what all have in common is no noise


def test_a_sample_is_moved_as_a_whole_and_comes_in_black():
    torch.manual_seed(0)
    x = (torch.rand(40, 3, 2, 6, 5) > 0.5).to(torch.uint8)
    got, seen = random_shift(x, 2), set()
    assert got.dtype == x.dtype
    for sample, moved in zip(x, got, strict=True):
        found = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                wanted = torch.zeros_like(sample)
                for row in range(6):
                    for column in range(5):
                        if 0 <= row - down < 6 and 0 <= column - right < 5:
                            wanted[..., row, column] = sample[..., row - down, column - right]
                if torch.equal(moved, wanted):
                    found.append((down, right))
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 12  # of 25
    assert {abs(down) for down, _ in seen} == {abs(right) for _, right in seen} == {0, 1, 2}
    assert random_shift(x, 0) is x


def test_half_of_the_samples_are_mirrored_as_a_whole():
    torch.manual_seed(0)
    x = torch.rand(200, 3, 2, 4, 5)
    got = random_flip(x)
    turned = [torch.equal(a, b.flip(-1)) for a, b in zip(got, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(got, x, strict=True)]
    assert [not t for t in turned] == same
    assert 70 < sum(turned) < 130


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: None, "expected nmnist-small.npz or the folders Train and Test"),
        (lambda r: (r / "nmnist-small.npz").write_bytes(b"PK\x03\x04 no"), "no readable recordings"),
        (lambda r: (r / "Train").mkdir(), r"expected .*Train/0/\*.bin"),
        (lambda r: write_published(r, [(34, 0, 0, 5)]), "expected events of 34x34 pixels"),
    ],
)  # fmt: skip
def test_recordings_that_are_none(tmp_path, damage, message):
    damage(tmp_path)
    with pytest.raises(UsageError, match=message):
        nmnist(tmp_path, STEPS)


def test_a_truncated_recording_is_named(tmp_path, capsys):
    write_published(tmp_path)
    file = tmp_path / "Test" / "3" / "00001.bin"
    file.write_bytes(file.read_bytes()[:-1])
    assert run("train", "--dataset", "nmnist", "--data-root", tmp_path, "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert str(file) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("dataset", "recipe", "message"),
    [("nmnist", "deep", "expected events with --dataset nmnist, got constant"),
     ("digits", "events", "expected poisson or constant with --dataset digits, got events")],
)  # fmt: skip
def test_an_encoding_that_does_not_fit(dataset, recipe, message):
    with pytest.raises(UsageError, match=message):
        load(replace(RECIPES[recipe].settings, dataset=dataset))


def small_root():
    """The extract of N-MNIST where this machine has it."""
    roots = [os.environ.get("SNN_DFA_EVENTS", ""), "data"]
    return next((Path(r) for r in roots if r and (Path(r) / "nmnist-small.npz").is_file()), None)


@pytest.mark.skipif(small_root() is None, reason="no N-MNIST; set SNN_DFA_EVENTS to its folder")
def test_real_recordings_are_read():
    (spikes, labels), (test, _) = nmnist(small_root(), 10)
    assert (len(spikes), len(test), len(labels)) == (1000, 100, 1000)
    assert labels.bincount().min() > 80
    per_step = spikes.sum((2, 3, 4)).float().mean(0)
    assert (per_step[:9] > 100).all(), "three movements of the camera, over 0.3 s"
