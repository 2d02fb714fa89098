"""Experiments as files, loggers, and what is not written over."""

import csv
import json

import pytest
import yaml
from cut_runs import run

from snn_dfa.experiments import config
from snn_dfa.experiments.settings import UsageError

TINY = ["--hidden", "8", "--steps", "2", "--epochs", "1", "--batch-size", "256"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    arguments = ["--rules", "dfa", "--lr", "0.01", "--diagnose", "--out", folder]
    assert run("compare", *TINY, *arguments, "--tensorboard", folder / "tb") == 0
    return folder


def history(folder):
    return json.loads((folder / "metrics.json").read_text())["dfa"]["history"]


@pytest.mark.slow
def test_a_run_is_repeated_by_the_file_that_it_wrote(written, tmp_path):
    assert run("compare", "--config", written / config.NAME, "--out", tmp_path) == 0
    assert history(tmp_path) == history(written)
    assert (tmp_path / config.NAME).read_text() == (written / config.NAME).read_text()


@pytest.mark.slow
def test_the_command_line_goes_before_the_file(written, tmp_path):
    options = ["--config", written / config.NAME, "--lr", "0.02", "--no-diagnose"]
    assert run("compare", *options, "--out", tmp_path) == 0
    found = yaml.safe_load((tmp_path / config.NAME).read_text())
    assert (found["settings"]["lr"], found["diagnose"]) == (0.02, False)
    assert found["settings"]["hidden"] == [8]


@pytest.mark.slow
def test_the_log_and_tensorboard_have_the_angles(written):
    with (written / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["gradient_angles/linear1"]) <= 180
    assert float(row["test_accuracy"]) == history(written)[0]["test_accuracy"]
    pytest.importorskip("tensorboard")
    assert list((written / "tb" / "dfa-seed0").glob("events.*"))


@pytest.mark.slow
def test_a_run_of_other_settings_that_is_not_gone_on_from_changes_no_file(written, capsys):
    before = {path: path.read_bytes() for path in written.iterdir() if path.is_file()}
    same = ["--rules", "dfa", "--diagnose", "--out", written, "--resume"]
    assert run("compare", *TINY, *same, "--lr", "0.5") == 2
    assert "--resume: the checkpoint was made with lr=0.01, expected 0.5" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in written.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_results_are_replaced_only_when_asked_for(written, tmp_path, capsys):
    before = (written / "metrics.json").read_bytes()
    assert run("compare", *TINY, "--rules", "shallow", "--out", written) == 2
    err = capsys.readouterr().err
    assert "holds the results of another run (metrics.json); choose another --out" in err
    assert err.count("\n") == 1
    assert (written / "metrics.json").read_bytes() == before
    (written / "notes.txt").write_text("mine")
    assert run("compare", *TINY, "--rules", "shallow", "--out", written, "--overwrite") == 0
    assert not (written / "confusion_dfa.png").exists()
    assert (written / "notes.txt").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a readable YAML file at"),
        ("a: [", "expected a readable YAML file at"),
        ("- 1", "expected names and values"),
        ("settings: 3", "expected names and values (NAME: VALUE) as settings"),
        ("frobnicate: 3", "expected names of options of snn-dfa compare"),
        ("command: train", "is of snn-dfa train, not compare"),
        ("settings: {lr: fast}", "expected a value that --lr takes"),
        ("settings: {epochs: 1.5}", "got 1.5 (expected a whole number)"),
        ("settings: {amp: maybe}", "expected true or false"),
        ("settings: {dataset: 3}", "expected text"),
        ("rules: [dfa, hebb]", "expected some of bptt,dfa"),
        ("recipe: cake", "expected one of deep"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path, text, message):
    path = tmp_path / "experiment.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as told:
        config.read(path, "compare")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_numbers_are_read_as_they_are_meant(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text("rules: bptt\nseeds: 2\nlr: 1e-3\nsettings: {hidden: 12c5, threshold: [1, 2]}")
    assert config.read(path, "compare") == {
        "rules": ["bptt"], "seeds": 2, "lr": 0.001, "hidden": ("12c5",), "threshold": (1.0, 2.0)
    }  # fmt: skip
