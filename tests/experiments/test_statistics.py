"""Statistics of batch normalisation, taken anew for evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from snn_dfa.experiments.data import Part, Splits
from snn_dfa.experiments.settings import Settings
from snn_dfa.experiments.train.statistics import batch_norms, recalibrate_batch_norm
from snn_dfa.experiments.train.trainer import Trainer
from snn_dfa.normalization import SteadyNorm

SETTINGS = Settings(
    hidden=(16, 12), threshold=(0.3,), steps=4, epochs=4, batch_size=20, lr=0.02, schedule="step"
)


def offset_data(features=12, samples=300):
    """Three classes that differ by little beside what all have in common."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, samples)
    x = 0.6 + 0.1 * np.eye(3)[y].repeat(features // 3, axis=1)
    x = x + rng.uniform(0, 0.1, (samples, features))
    part = Part(torch.tensor(x, dtype=torch.float32)[:, None, None], torch.tensor(y))
    return Splits(*(Part(part.x[a:b], part.y[a:b]) for a, b in ((0, 201), (201, 250), (250, 300))))


def test_they_are_the_mean_over_the_passes_of_the_block():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 2), SteadyNorm(2))
    net(10 * torch.randn(50, 3))  # what was before is not in them
    steady = net[3].running_mean.clone()
    batches = [torch.randn(20, 3), 2 * torch.randn(20, 3) + 5]
    with recalibrate_batch_norm(net, batch_norms(net)):
        for batch in batches:
            net(batch)
    torch.testing.assert_close(net[1].running_mean, sum(b.mean(0) for b in batches) / 2)
    torch.testing.assert_close(net[1].running_var, sum(b.var(0) for b in batches) / 2)
    assert torch.equal(net[3].running_mean, steady)
    assert net[1].momentum == 0.1
    assert not any(module.training for module in net.modules())


def test_an_error_within_leaves_the_momentum():
    net = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(KeyError), recalibrate_batch_norm(net, batch_norms(net)):
        raise KeyError
    assert net[0].momentum == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dfa", "target", "fa", "bptt"])
@pytest.mark.parametrize("encoding", ["constant", "poisson"])
def test_training_is_the_same_with_and_without(rule, encoding):
    dropped = {"input_dropout": 0.0, "dropout": 0.3} if encoding == "poisson" else {}
    settings = replace(SETTINGS, encoding=encoding, **dropped)
    trainers = [
        Trainer(replace(settings, clean_statistics=clean), rule, offset_data())
        for clean in (True, False)
    ]
    lines = [list(trainer.fit()) for trainer in trainers]
    assert [a["train_loss"] for a in lines[0]] == [b["train_loss"] for b in lines[1]]
    clean, running = (trainer.net.norm2.running_var for trainer in trainers)
    assert not torch.equal(clean, running)


@pytest.mark.slow
def test_online_they_are_of_passes_as_in_training():
    settings = replace(SETTINGS, credit="trace", feedback="gaussian", clean_statistics=True)
    trainer = Trainer(settings, "dfa", offset_data())
    list(trainer.fit())
    norm = trainer.net.norm1
    current = trainer.net.linear1(trainer.data.train.x.flatten(1))
    assert len(current) % 20 == 1  # which is not given the weight of a whole batch
    parts = current.tensor_split(-(-len(current) // 20))
    mean = torch.stack([batch.mean(0) for batch in parts]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_after_few_updates_the_running_ones_lag_behind():
    settings = replace(SETTINGS, input_dropout=0.0, epochs=1)
    clean, running = (
        next(Trainer(replace(settings, clean_statistics=each), "dfa", offset_data()).fit())
        for each in (True, False)
    )
    assert clean["train_loss"] == running["train_loss"]
    assert clean["test_loss"] < 0.9 * running["test_loss"]
