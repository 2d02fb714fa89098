"""Recipes, what they set, and what comes of them on the digits."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from torch import nn

from snn_dfa import KolenPollack, fold_normalization, over_time
from snn_dfa.experiments.cli import main
from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.data.inputs import encode
from snn_dfa.experiments.files import Checkpoint, load_checkpoint
from snn_dfa.experiments.recipes import RECIPES, Recipe, default_for
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.train.feedback import feedback_of
from snn_dfa.experiments.train.metrics import seconds_to
from snn_dfa.experiments.train.network import build
from snn_dfa.experiments.train.optimization import make_loss, make_optimizer, make_scheduler
from snn_dfa.experiments.train.trainer import Trainer
from snn_dfa.surrogate import exact_derivative, fast_sigmoid_derivative


def run(*args):
    return main([str(a) for a in args])


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_of_a_recipe_makes_it(name, capsys, tmp_path, monkeypatch):
    """The options that `recipes` prints, given to the default recipe, give the same settings."""
    assert run("recipes") == 0
    (shown,) = (p for p in capsys.readouterr().out.split("\n\n") if p.startswith(f"{name}: "))
    options = shlex.split("\n".join(shown.splitlines()[1:]), comments=True)
    seen = []

    def stop(settings, rule, data, frozen=()):
        seen.append(settings)
        raise UsageError("stopped")

    monkeypatch.setattr("snn_dfa.experiments.cli.Trainer", stop)
    images = Part(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    monkeypatch.setattr("snn_dfa.experiments.cli.load", lambda _: Splits(images, images, images))
    for args in (["--recipe", "deep", *options], ["--recipe", name]):
        assert run("train", *args, "--epochs", 2, "--out", tmp_path / "none") == 2
    capsys.readouterr()
    made, named = seen
    assert made == named
    assert named.epochs == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_few_samples_are_passed_over_more_often(tmp_path, monkeypatch, command):
    """Else a recipe made for 60,000 images ends before a small data set has taught it anything."""
    small = Recipe("tiny", Settings(hidden=(8,), steps=2, epochs=3), least_updates=60)
    monkeypatch.setattr("snn_dfa.experiments.cli.RECIPES", {"wide": small})
    monkeypatch.setattr("snn_dfa.experiments.recipes.RECIPES", {"wide": small})
    rules = ["--rules", "dfa"] if command == "compare" else []

    def epochs(*options):
        out = tmp_path / "-".join(("out", *map(str, options)))
        assert run(command, "--recipe", "wide", *rules, *options, "--out", out) == 0
        found = json.loads((out / "metrics.json").read_text())
        assert found["settings"]["epochs"] == len(found["dfa"]["history"])
        return len(found["dfa"]["history"])

    # 1,365 images in training: 11 batches of 128, 43 of 32.
    assert epochs() == 6
    assert epochs("--batch-size", 32) == 3
    assert epochs("--epochs", 1) == 1


def test_the_recipes_have_the_sizes_that_they_are_known_by():
    images = {"vgg": (3, 32, 32), "gesture": (2, 128, 128), "objects": (2, 45, 60)}
    sizes = {}
    for name, recipe in RECIPES.items():
        net = build(recipe.settings, images.get(name, (1, 28, 28)), 10)
        sizes[name] = [tuple(m.weight.shape) for m in net if hasattr(m, "weight") and m.weight.dim() > 1]  # fmt: skip
    deep = [(1000, 784), (250, 1000), (100, 250), (10, 100)]
    assert sizes["deep"] == sizes["notebook"] == deep
    assert sizes["wide"] == sizes["zhang2024"] == [(1000, 784), (10, 1000)]
    assert sizes["conv"] == [(12, 1, 5, 5), (64, 12, 5, 5), (10, 1024)]
    assert [size[0] for size in sizes["gesture"]] == [128] * 5 + [512, 10]
    assert [size[0] for size in sizes["vgg"]] == [64, 64, 128, 128, 256, 256, 10]
    assert [size[0] for size in sizes["shd"]] == [100, 100, 10]
    assert default_for("mnist") == "deep"
    assert default_for("digits") == "small"
    assert default_for("cifar10") == "vgg"
    assert RECIPES["deep"].settings.steps <= 25


@pytest.mark.slow
def test_the_notebook_is_at_chance_and_told_why(tmp_path, capsys):
    assert run("train", "--recipe", "notebook", "--out", tmp_path) == 0
    err = capsys.readouterr().err
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["recipe"] == "notebook"
    assert found["settings"]["biases"] == [0.5, 0.5, 0.5, 1.0]
    assert 0.08 < found["dfa"]["test_accuracy"] < 0.15
    saturated = [name for name, share in found["dfa"]["saturated"].items() if share > 0.5]
    assert saturated
    for name in saturated:
        assert f": layer '{name}': " in err
    assert "warning: dfa, epoch 1: layer" in err
    assert "fire whenever they can" in err


@pytest.mark.slow
def test_small_images_are_padded_for_the_convolutional_recipe(tmp_path):
    options = ("--hidden", "4c5,mp2,6c5,mp2", "--epochs", 4, "--steps", 6, "--batch-size", 16)
    assert run("train", "--recipe", "conv", *options, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["dfa"]
    assert found["test_accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["zhang2024", "zhang2024-augmented"])
def test_zhangs_set_up_learns(tmp_path, recipe):
    options = ("--steps", 120, "--run-in", 40, "--epochs", 2, "--batch-size", 20)
    assert run("train", "--recipe", recipe, *options, "--out", tmp_path) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["dfa"]["test_accuracy"] > 0.8


def test_zhangs_recipes_take_equal_steps_above_the_threshold_and_one_below_it():
    exact, augmented = (RECIPES[f"zhang2024{end}"].settings for end in ("", "-augmented"))
    x = torch.tensor([2.0, 20.0, 200.0])
    steps = [
        settings.lr * slope
        for settings, slope in (
            (exact, exact_derivative(x, exact.threshold[0], exact.tau, exact.t_ref)),
            (augmented, fast_sigmoid_derivative(x, augmented.slope)),
        )
    ]
    torch.testing.assert_close(*steps, rtol=0.05, atol=0)
    assert not exact_derivative(-x, exact.threshold[0], exact.tau, exact.t_ref).any()
    assert (fast_sigmoid_derivative(-x, augmented.slope) > 0).all()


# -- several seeds ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_compare_over_seeds(tmp_path, capsys):
    options = ("--hidden", 16, "--steps", 5, "--epochs", 2, "--rules", "dfa,shallow")
    assert run("compare", *options, "--seeds", 3, "--seed", 4, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "worst" in out
    found = json.loads((tmp_path / "metrics.json").read_text())
    for rule in ("dfa", "shallow"):
        over = found["over_seeds"][rule]
        accuracies = [r["test_accuracy"] for r in over["runs"]]
        assert over["seeds"] == [4, 5, 6]
        assert over["mean"] == pytest.approx(sum(accuracies) / 3)
        assert over["worst"] == min(accuracies)
        spread = sum((a - over["mean"]) ** 2 for a in accuracies) / 2
        assert over["std"] == pytest.approx(spread**0.5)
        assert found[rule]["test_accuracy"] == accuracies[0]
    assert run("compare", *options, "--seed", 5, "--out", tmp_path / "one") == 0
    alone = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert alone["dfa"]["history"] == found["over_seeds"]["dfa"]["runs"][1]["history"]
    assert alone["over_seeds"] == {}


def test_time_to_an_accuracy(digits):
    trainer = Trainer(Settings(hidden=(8,), steps=2, epochs=1), "shallow", digits)
    trainer.history = [{"val_accuracy": a} for a in (0.9, 0.972, 0.96)]
    trainer.epoch_seconds = [{"epoch": 2.0}, {"epoch": 3.0}, {"epoch": 4.0}]
    assert seconds_to(trainer, 0.97) == 5.0
    assert seconds_to(trainer, 0.99) is None


# -- settings at work ------------------------------------------------------------------------------


def test_rates_and_decay_by_layer():
    settings = Settings(hidden=(8,), lr=0.5, per_input=True, weight_decay=0.1)
    net = build(settings, (1, 2, 2), 3)
    optimizer = make_optimizer(settings, net)
    rate = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert set(rate) == set(net.parameters())
    linear, norm, _, out, _ = net
    assert rate[linear.weight] == (0.5 / 4, 0.1)
    assert rate[linear.bias] == rate[norm.weight] == rate[norm.bias] == (0.5 / 4, 0.0)
    assert rate[out.weight] == (0.5 / 8, 0.1)


def test_one_cycle_ends_near_zero():
    settings = Settings(hidden=(8,), lr=0.5, schedule="one-cycle", epochs=3)
    optimizer = make_optimizer(settings, build(settings, (1, 2, 2), 3))
    scheduler = make_scheduler(settings, optimizer, batches=10)
    rates = []
    for _ in range(30):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert rates[-1] == min(rates) < 1e-4


@pytest.mark.slow
def test_an_end_moved_while_the_rate_goes_down_is_refused(tmp_path, capsys):
    options = ("train", "--hidden", 8, "--steps", 3, "--schedule", "one-cycle", "--out", tmp_path)
    assert run(*options, "--epochs", 2) == 0
    assert run(*options, "--epochs", 3, "--resume") == 2
    assert "the checkpoint was made with epochs=2, expected 3" in capsys.readouterr().err


def test_dropout_leaves_the_global_generator_alone(digits):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    settings = Settings(hidden=(16,), steps=3, epochs=1, dropout=0.3)
    next(Trainer(settings, "dfa", digits).fit())
    assert torch.equal(torch.get_rng_state(), before)


def test_feedback_by_name():
    assert feedback_of(Settings(feedback="orthogonal")) == "orthogonal"
    learned = feedback_of(Settings(feedback="kolen-pollack", feedback_lr=0.1))
    assert learned == KolenPollack(lr=0.1, weight_decay=0.3)
    draw = feedback_of(Settings(feedback="gaussian", feedback_std=0.5))
    assert abs(draw((10, 4000), torch.Generator().manual_seed(0)).std() - 0.5) < 0.01


@pytest.mark.slow
def test_a_trained_network_folds(digits):
    trainer = Trainer(Settings(hidden=(32, 16), epochs=3, batch_size=16), "dfa", digits)
    list(trainer.fit())
    folded = fold_normalization(trainer.net)
    assert [type(m) for m in folded[::2]] == [nn.Linear] * 3
    x = encode(digits.val.x, trainer.settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = (over_time(net.eval())(x).sum(0) for net in (trainer.net, folded))
    assert wanted.sum() > 0
    assert (wanted != got).double().mean() < 0.01  # a spike may flip on rounding


def test_each_layer_gets_its_own_numbers():
    settings = replace(
        RECIPES["notebook"].settings,
        hidden=(7, 6), threshold=(0.05, 0.02, 0.15), biases=(0.5, 0.25, 1.0), spike_size=4.0,
    )  # fmt: skip
    net = build(settings, (1, 2, 2), 3)
    linears = [m for m in net if isinstance(m, nn.Linear)]
    neurons = [m for m in net if hasattr(m, "threshold")]
    assert [m.bias.unique().tolist() for m in linears] == [[0.5], [0.25], [1.0]]
    assert [m.threshold.item() for m in neurons] == pytest.approx([0.05, 0.02, 0.15])
    assert [m.graded_spikes_factor.item() for m in neurons] == [4.0, 4.0, 1.0]
    assert all(m.refractory_steps == 3 for m in neurons)
    for m in linears:  # xavier's bound
        assert m.weight.abs().max() <= (6 / sum(m.weight.shape)) ** 0.5
    zhang = build(replace(settings, weights="zhang", hidden=(500, 6)), (1, 10, 10), 3)
    assert zhang.linear1.weight.mean().item() == pytest.approx(7.2 / (0.066 * 100 * 8), rel=0.1)


def test_the_losses_by_hand():
    spk = (torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    y = torch.tensor([2, 0])
    p = (spk.sum(0) / 0.7).softmax(1)
    target = torch.full((2, 3), 0.1 / 3)
    target[torch.arange(2), y] += 0.9
    wanted = -(target * p.log()).sum(1).mean()
    loss = make_loss(Settings(temperature=0.7, label_smoothing=0.1))
    torch.testing.assert_close(loss(spk, y), wanted)
    shares = spk.sum(0) / spk.sum((0, 2))[:, None]
    wanted = -(shares / 0.5).log_softmax(1)[torch.arange(2), y].mean()
    torch.testing.assert_close(make_loss(Settings(loss="share", temperature=0.5))(spk, y), wanted)


@pytest.mark.parametrize("rule", ["bptt", "dfa", "fa", "shallow"])
def test_the_output_may_be_a_current_without_neurons(digits, rule):
    settings = Settings(hidden=(16,), steps=4, epochs=1, readout="current", temperature=4.0)
    trainer = Trainer(settings, rule, digits)
    assert isinstance(trainer.net[-1], nn.Linear)
    (line,) = trainer.fit()
    x = encode(digits.val.x, settings, torch.Generator().manual_seed(1))
    with torch.no_grad():
        spikes = over_time(trainer.net[:-1])(x)
        mean = torch.stack([trainer.net[-1](spk) for spk in spikes]).mean(0)
    assert spikes.sum() > 0
    wanted = nn.functional.cross_entropy(mean, digits.val.y).item()
    assert line["val_loss"] == pytest.approx(wanted, rel=1e-5)
    assert set(trainer.blocks()) == {"neuron1"}


@pytest.mark.slow
def test_a_run_of_one_cycle_resumes_from_its_file(tmp_path, digits):
    """Killed after its first epoch, with feedback that learns, it ends as an unbroken run."""
    settings = Settings(hidden=(16,), steps=4, epochs=2, feedback="kolen-pollack", dropout=0.2)
    whole = Trainer(settings, "dfa", digits)
    fit = whole.fit()
    next(fit)
    Checkpoint(tmp_path / "checkpoint.pt", 0).save(whole.state_dict())
    next(fit)
    resumed = Trainer(settings, "dfa", digits)
    resumed.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    next(resumed.fit())
    assert resumed.history == whole.history
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name


def test_building_the_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b = (build(Settings(hidden=(3,), seed=s), (1, 2, 2), 2) for s in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(a[0].weight, b[0].weight)
