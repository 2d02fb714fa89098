"""The ladder from one recipe to another: what a rung changes, how long it trains, its table."""

import itertools
import json
from dataclasses import replace

import pytest

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.recipes import RECIPES, epochs_for
from snn_dfa.experiments.studies import ladder


def run(*args):
    return main([str(a) for a in args])


def test_the_ladder_leads_from_one_recipe_to_the_other_a_change_at_a_time():
    rungs = [rung.settings for rung in ladder.rungs(epochs=3)]
    assert rungs[0] == replace(RECIPES["notebook"].settings, epochs=3)
    assert rungs[-1] == RECIPES["deep"].settings
    for before, after in itertools.pairwise(rungs):
        assert before != after
    changed = [name for change in ladder.CHANGES for name in change.to_deep]
    assert len(changed) == len(set(changed))


@pytest.mark.slow
def test_each_rung_trains_on_its_own_part_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "CHANGES", (ladder.Change("half", values={"validation": 0.5}),))
    assert run("ladder", "--epochs", 1, "--out", tmp_path) == 0
    rungs = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    seen = [rung["history"][0]["train_accuracy"] for rung in rungs]
    for share, size in zip(seen, (1293, 719), strict=True):  # 0.9 and 0.5 of the training set
        assert share * size == pytest.approx(round(share * size), abs=1e-6)


def test_only_the_rung_that_is_trained_to_the_end_gets_more_epochs_on_little_data():
    *before, last = ladder.rungs(epochs=3)
    assert {rung.fitted(1_000, (1, 28, 28)).settings.epochs for rung in before} == {3}
    assert (
        last.fitted(1_000, (1, 28, 28)).settings.epochs
        == epochs_for("deep", last.settings, 1_000)
        == 125
    )
    assert last.fitted(57_000, (1, 28, 28)).settings == RECIPES["deep"].settings


@pytest.mark.slow
def test_the_ladder_writes_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "CHANGES", ladder.CHANGES[:1])
    assert run("ladder", "--epochs", 1, "--out", tmp_path) == 0
    table = (tmp_path / "ladder.md").read_text()
    assert table in capsys.readouterr().out
    found = json.loads((tmp_path / "ladder.json").read_text())["rungs"]
    assert [rung["name"] for rung in found] == ["the recipe notebook", ladder.CHANGES[0].name]
    assert f"| {100 * found[1]['test_accuracy']:.2f} % |" in table
    assert (tmp_path / "ladder.png").stat().st_size > 1000
