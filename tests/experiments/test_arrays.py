"""A data set of one's own: files of arrays, and what is said of files that are none."""

import json
import zipfile

import numpy as np
import pytest

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.data import load
from snn_dfa.experiments.settings import Settings


def run(*args):
    return main([str(a) for a in args])


def samples(shape, dtype=np.uint8):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (80, *shape), dtype=np.uint8)
    x = x if dtype == np.uint8 else (x / 255).astype(dtype)
    y = np.arange(80, dtype=np.int32) % 4
    return {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]}


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16])
@pytest.mark.parametrize(
    ("shape", "image"), [((5,), (1, 1, 5)), ((4, 6), (1, 4, 6)), ((3, 4, 6), (3, 4, 6))]
)
def test_a_file_of_arrays_is_read(tmp_path, dtype, shape, image):
    given = samples(shape, dtype)
    np.savez_compressed(tmp_path / "own.npz", **given)
    splits = load(Settings(dataset=str(tmp_path / "own.npz"), validation=0.1))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54, 6, 20)
    assert (splits.image, splits.classes) == (image, 4)
    wanted = given["x_test"].astype(np.float32) / (255 if dtype == np.uint8 else 1)
    np.testing.assert_allclose(splits.test.x.numpy().reshape(20, *shape), wanted)
    assert splits.test.y.tolist() == given["y_test"].tolist()


def test_a_class_that_only_the_test_part_has_has_an_output(tmp_path):
    given = samples((5,))
    given["y_test"] = given["y_test"] + 3
    np.savez(tmp_path / "own.npz", **given)
    assert load(Settings(dataset=str(tmp_path / "own.npz"))).classes == 7


def test_classes_in_a_column_are_read(tmp_path):
    given = samples((5,))
    given["y_train"], given["y_test"] = given["y_train"][:, None], given["y_test"][:, None]
    np.savez(tmp_path / "own.npz", **given)
    assert load(Settings(dataset=str(tmp_path / "own.npz"))).test.y.shape == (20,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "asked", "share"),
    [((16,), [], 0.0), ((4, 4), [], 0.4), ((16,), ["--input-dropout", 0.2], 0.2)],
)
def test_a_recipe_drops_pixels_of_images_alone(tmp_path, shape, asked, share):
    np.savez(tmp_path / "own.npz", **samples(shape))
    options = ("--dataset", tmp_path / "own.npz", "--hidden", 8, "--epochs", 1, "--steps", 2)
    assert run("train", "--recipe", "wide", *options, *asked, "--out", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["input_dropout"] == share


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x_test": None}, "expected x_train, y_train, x_test and y_test in"),
        ({"x_train": np.zeros(60, np.uint8)}, "expected x_train of shape [S, features]"),
        ({"x_train": np.zeros((60, 0))}, "expected x_train of shape [S, features]"),
        ({"x_train": np.zeros((60, 8, 8, 3))}, "give x_train.transpose(0, 3, 1, 2)"),
        ({"x_train": np.full((60, 5), 255)}, "numbers from 0 to 1 in x_train, got int64 from 255"),
        ({"x_test": np.full((20, 5), np.nan)}, "numbers from 0 to 1 in x_test, got float64"),
        ({"x_test": np.eye(20, 5, dtype=np.uint8)}, "got only 0 and 1; give x_test.astype(bool)"),
        ({"x_test": np.full((20, 5), "a")}, "expected numbers in x_test, got <U1"),
        ({"x_test": np.zeros((20, 6), np.uint8)}, "expected samples of one shape"),
        ({"y_test": np.zeros((20, 4), np.uint8)}, "expected whole numbers as y_test [S]"),
        ({"y_train": np.zeros(60)}, "expected whole numbers as y_train [S], got float64"),
        ({"y_train": np.full(60, -1)}, "numbered 0, 1, 2, ... in y_train, got -1 to -1"),
        ({"y_train": np.full(60, 2**63, np.uint64)}, "numbered 0, 1, 2, ... in y_train, got 922"),
        ({"y_train": np.arange(60) % 3 + 1, "y_test": np.arange(20) % 3 + 1}, "none of class 0"),
        ({"y_train": np.zeros(60, int), "y_test": np.zeros(20, int)}, "got none of class 1"),
        ({"y_train": np.zeros(59, int)}, "one entry of y_train for each sample of x_train"),
        ({"x_test": np.full((20, 5), None)}, "no readable arrays in"),
        ({"x_train": np.zeros((2, 5)), "y_train": np.arange(2)}, "got 1 of 2"),
    ],
)
def test_bad_arrays_are_named_in_one_line(tmp_path, capsys, change, said):
    given = {k: v for k, v in {**samples((5,)), **change}.items() if v is not None}
    np.savez(tmp_path / "own.npz", **given)
    out = tmp_path / "out"
    assert run("compare", "--dataset", tmp_path / "own.npz", "--out", out) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_a_file_that_holds_no_arrays_is_named(tmp_path, capsys):
    for name, said in [("none", "expected a file at"), ("text", "no readable arrays"),
                       ("single", "a single array"), ("cut", "no readable arrays"),
                       ("others", "something else than arrays")]:  # fmt: skip
        path = tmp_path / f"{name}.npz"
        if name == "text":
            path.write_text("not arrays")
        elif name == "others":
            with zipfile.ZipFile(path, "w") as file:
                for each in ("x_train", "y_train", "x_test", "y_test"):
                    file.writestr(each, "not an array")
        elif name == "single":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        elif name == "cut":
            np.savez(path, **samples((5,)))
            path.write_bytes(path.read_bytes()[:-200])
        assert run("compare", "--dataset", path, "--out", tmp_path) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_a_network_learns_from_a_file_of_arrays(tmp_path):
    """Four classes, each with two features of its own switched on."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    x = (np.eye(4)[y].repeat(2, axis=1) * 0.6 + rng.uniform(0, 0.4, (400, 8))).astype(np.float32)
    path = tmp_path / "own.npz"
    np.savez(path, x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    out = tmp_path / "out"
    options = ("--recipe", "wide", "--hidden", 32, "--epochs", 15, "--batch-size", 16)
    assert run("train", "--dataset", path, *options, "--out", out) == 0
    assert json.loads((out / "metrics.json").read_text())["dfa"]["test_accuracy"] > 0.95
