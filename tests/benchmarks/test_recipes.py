"""The runs of the recipes: their commands, and the file that is made of their reports."""

import csv
import importlib.util
import json
import shutil
import sys

import pytest
from paths import ROOT

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.parser import make_parser

spec = importlib.util.spec_from_file_location("recipe_runs", ROOT / "benchmarks" / "recipes.py")
recipes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipes)


@pytest.mark.parametrize("name", recipes.RUNS)
def test_the_command_line_knows_each_command(name):
    args = make_parser().parse_args(recipes.command(name))
    assert args.command == "compare"
    assert len(args.rules) == 1


@pytest.mark.slow
def test_the_file_has_what_the_reports_have(tmp_path, monkeypatch):
    digits = "compare --dataset digits --epochs 2 --hidden 16 --seeds 2 --rules dfa"
    more = digits.replace("--seeds 2", "--seeds 3")
    monkeypatch.setattr(recipes, "RUNS", {"digits": digits, "not run": digits, "begun": more})
    assert main([*recipes.command("digits"), "--out", str(tmp_path / "digits")]) == 0
    shutil.copytree(tmp_path / "digits", tmp_path / "begun")  # two seeds of three
    file = tmp_path / "recipes.json"
    options = ["--out", str(tmp_path), "--collect", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["recipes.py", *options])
    recipes.main()
    found = json.loads(file.read_text())
    assert list(found) == ["digits"]
    run = found["digits"]
    assert run["command"] == "snn-dfa " + digits
    assert run["epochs"] == 2

    with (tmp_path / "digits" / "log.csv").open() as log:
        rows = list(csv.DictReader(log))
    for seed in range(2):
        epochs = [row for row in rows if row["seed"] == str(seed)]
        best = max(epochs, key=lambda row: float(row["val_accuracy"]))
        assert run["best epoch"][seed] == int(best["epoch"])
        tested = 100 * float(best["test_accuracy"])
        assert run["accuracy"][seed] == pytest.approx(tested, abs=0.005)
        seconds = sum(float(row["seconds"]) for row in epochs)
        assert run["seconds"][seed] == pytest.approx(seconds, abs=0.5)


def test_a_run_that_fails_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", {"bad": "compare --dataset nothing"})
    monkeypatch.setattr(recipes, "PROGRAM", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(SystemExit, match="bad: snn-dfa ended with exit status 3"):
        recipes.run("bad", tmp_path, tmp_path)
