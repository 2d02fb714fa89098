"""Online training, diagnosis in training, and the table of all rules."""

import json
import math
from dataclasses import replace

import pytest
import torch

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.recipes import Recipe
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.studies.comparison import CONVOLUTIONAL, ROWS, kept_megabytes, runs
from snn_dfa.experiments.studies.ladder import rungs
from snn_dfa.experiments.studies.peak import peak_megabytes
from snn_dfa.experiments.train.feedback import RULES
from snn_dfa.experiments.train.metrics import metrics
from snn_dfa.experiments.train.trainer import Trainer

TINY = Settings(hidden=(12, 8), steps=4, epochs=1)
TINY_CONV = replace(TINY, hidden=("2c3", "mp2", 8), feedback="gaussian")


def run(*args):
    return main([str(a) for a in args])


@pytest.mark.slow
def test_online_learning_has_a_pass_a_step_and_learns(digits):
    settings = replace(TINY, credit="trace", hidden=(64, 32), epochs=3, batch_size=16)
    trainer = Trainer(settings, "dfa", digits)
    losses = list(iter_passes(trainer))
    assert len(losses) == 4
    list(trainer.fit())
    assert trainer.history[-1]["val_accuracy"] > 0.6


def iter_passes(trainer):
    for loss in trainer.passes(16):
        loss.backward()
        yield loss.item()


def test_steps_that_do_not_count_have_no_pass(digits):
    trainer = Trainer(replace(TINY, credit="trace", run_in=3), "dfa", digits)
    assert len(list(iter_passes(trainer))) == 1


def test_the_losses_of_steps_end_at_the_loss_of_the_sequence(digits):
    """Of the last step's counts, which are all counts, over T."""
    online, whole = (
        Trainer(replace(TINY, credit=credit, normalize=False), "shallow", digits)
        for credit in ("trace", "membrane")
    )
    assert list(iter_passes(online))[-1] == pytest.approx(next(iter_passes(whole)) / 4)


def test_backpropagation_is_the_same_whatever_the_credit(digits):
    grads = []
    for credit in ("trace", "membrane"):
        settings = replace(TINY, credit=credit, normalize=False)  # which differs online
        trainer = Trainer(settings, "bptt", digits)
        assert len(list(iter_passes(trainer))) == 1
        grads.append([p.grad.clone() for p in trainer.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
def test_what_is_kept_online_does_not_grow_with_time(digits):
    def kept(credit, steps):
        return kept_megabytes(Trainer(replace(TINY, credit=credit, steps=steps), "dfa", digits))

    assert kept("trace", 40) < 1.1 * kept("trace", 10)
    assert kept("membrane", 40) > 2 * kept("membrane", 10)
    assert kept("current", 10) < kept("membrane", 10)


@pytest.mark.slow
def test_the_peak_of_a_step_grows_with_time_but_not_online(digits):
    def peak(credit, steps):
        wide = replace(TINY, credit=credit, steps=steps, hidden=(400,), batch_size=128)
        return peak_megabytes(wide, "dfa", digits.image, digits.classes)

    held = torch.ones(2**28)  # 1 GB, so that the other process begins below this one's peak
    # Each step keeps a membrane of 0.2 MB and spikes of as much; online the input stays.
    assert peak("membrane", 400) > 60
    assert peak("trace", 400) < 30
    assert held.sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_diagnosis_changes_nothing_and_says_something(digits, rule):
    trainers = [Trainer(replace(TINY, dropout=0.1), rule, digits) for _ in range(2)]
    for trainer, diagnosed in zip(trainers, (False, True), strict=True):
        list(trainer.fit(diagnosed=diagnosed))
    assert trainers[0].history == trainers[1].history
    entries = metrics(trainers[1])["diagnostics"]
    assert bool(entries) == (rule != "bptt")
    if entries and rule != "shallow":
        (entry,) = entries
        assert list(entry["gradient_angles"]) == ["linear1", "linear2", "linear3"]
        assert entry["gradient_angles"]["linear3"] < 1e-3
        assert len(entry["feedback_angles"]) == 2
        assert all(value > 0 for value in entry["projected_errors"].values())


@pytest.mark.slow
@pytest.mark.parametrize("where", ["spikes", "current"])
def test_where_the_error_is_taken(digits, where):
    trainer = Trainer(replace(TINY, error_at=where), "dfa", digits)
    assert trainer.dfa.hidden == ("neuron1", "neuron2")
    assert trainer.dfa.output == {"spikes": "neuron3", "current": "linear3"}[where]
    list(trainer.fit())


@pytest.mark.slow
def test_feedback_that_learns_follows_the_schedule(digits):
    settings = replace(TINY, feedback="kolen-pollack", feedback_lr=0.1, lr=1e-3, schedule="step",
                       lr_decay=0.5)  # fmt: skip
    trainer = Trainer(settings, "dfa", digits)
    assert trainer.dfa.feedback_lr == pytest.approx(0.1)
    list(trainer.fit())
    assert trainer.dfa.feedback_lr == pytest.approx(0.05)


@pytest.mark.slow
def test_a_product_of_factors_serves_convolutions(digits):
    settings = replace(TINY_CONV, feedback="kolen-pollack-product")
    for rule in ("dfa", "fa", "shallow"):
        trainer = Trainer(settings, rule, digits)
        assert len(list(trainer.fit())) == 1
        shapes = {name: tuple(matrix.shape) for name, matrix in trainer.dfa.feedback.items()}
        if rule == "dfa":
            assert shapes == {"neuron1": (10, 2, 3, 3), "neuron2": (10, 8)}


def test_rows_and_rungs_keep_the_features_of_samples_that_are_no_images():
    features, image = (1, 1, 16), (1, 28, 28)
    row = next(runs())
    assert row.fitted(15_000, features, ()).settings.input_dropout == 0
    assert row.fitted(15_000, features, ["input_dropout"]).settings.input_dropout == 0.4
    assert row.fitted(15_000, image, ()).settings.input_dropout == 0.4
    *_, before, last = rungs(epochs=2)
    for rung, epochs in ((before, 2), (last, 40)):
        for shape, share in ((features, 0), (image, 0.4)):
            settings = rung.fitted(57_000, shape).settings
            assert (settings.input_dropout, settings.epochs) == (share, epochs)


def test_costs_of_a_sample(digits):
    trainer = Trainer(TINY, "bptt", digits)
    list(trainer.fit())
    got = metrics(trainer)
    assert got["multiplications_per_sample"] == 64 * 12  # the constant current, once
    most = 4 * (12 * 8 + 8 * 10)
    assert 0 < got["synaptic_operations_per_sample"] < most
    assert 0 < got["spikes_per_sample"] <= 4 * (12 + 8 + 10)


@pytest.mark.slow
def test_the_table_of_all_rules(tmp_path, capsys, monkeypatch):
    # 30 updates are three epochs of the digits' 11 batches.
    tiny = {"deep": Recipe("", TINY, least_updates=30), "conv": Recipe("", TINY_CONV, 30)}
    monkeypatch.setattr("snn_dfa.experiments.studies.comparison.RECIPES", tiny)
    monkeypatch.setattr("snn_dfa.experiments.recipes.RECIPES", tiny)
    # Each takes a process of its own, and is tested above.
    monkeypatch.setattr("snn_dfa.experiments.cli.peak_megabytes", lambda *of: 12.3)
    assert run("rules", "--out", tmp_path) == 0
    table = (tmp_path / "rules.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert len(table.splitlines()) == 2 + len(ROWS) + len(CONVOLUTIONAL)
    found = json.loads((tmp_path / "rules.json").read_text())
    assert [row["name"] for row in found["rows"]] == [m.name for m in runs()]
    assert all("data_root" not in row["settings"] for row in found["rows"])
    for row in found["rows"]:
        assert row["settings"]["epochs"] == 3
        assert math.isfinite(row["kept_megabytes"])
        assert row["peak_megabytes"] == 12.3
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md", ".png", ".pdf", ".svg"}
