"""DFA in a ``LightningModule``: attached when training begins, its feedback in the checkpoint."""

import warnings

import pytest
import snntorch as snn
import torch
from torch import nn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Lightning's: workers, loggers
]


@pytest.fixture(scope="module")
def models():
    pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports is its own affair
        import lightning_models as models
    return models


def batches():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(16, 5, 4, generator=g), torch.randint(2, (16,), generator=g)
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)]


def fit(models, model, folder, epochs, resume=None):
    trainer = models.lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(batches(), batch_size=None), ckpt_path=resume)
    return trainer


def test_it_trains_as_the_loop_by_hand_and_goes_on_from_its_checkpoint(models, tmp_path):
    torch.manual_seed(0)
    model = models.Classifier()
    start = {k: v.clone() for k, v in model.net.state_dict().items()}
    fit(models, model, tmp_path, 2)

    by_hand = models.Classifier()
    by_hand.net.load_state_dict(start)
    optimizer = by_hand.configure_optimizers()
    for _ in range(2):
        for batch in batches():
            optimizer.zero_grad()
            by_hand.training_step(batch).backward()
            optimizer.step()
    for name, value in by_hand.net.state_dict().items():
        assert torch.equal(value, model.net.state_dict()[name])
    assert torch.equal(by_hand.dfa.feedback["1"], model.dfa.feedback["1"])
    assert (by_hand.net[0].weight != start["0.weight"]).any()

    broken = models.Classifier()
    broken.net.load_state_dict(start)
    fit(models, broken, tmp_path, 1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = models.Classifier()
    fit(models, resumed, tmp_path, 2, tmp_path / "one.ckpt")
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name])
    assert torch.equal(model.dfa.feedback["1"], resumed.dfa.feedback["1"])


def test_a_callback_logs_angles_and_rates(models, tmp_path):
    model = models.Classifier()
    trainer = models.lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, enable_checkpointing=False,
        callbacks=[models.Angles(batches()[0])],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(batches(), batch_size=None))
    logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
    assert 0 <= logged["angle/0"] <= 180
    assert logged["angle/2"] < 1e-3
    assert 0 <= logged["rate/1"] <= 1


@pytest.mark.usefixtures("models")
def test_loggers_of_lightning_take_what_compare_says(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    from snn_dfa import compare

    logger, data = CSVLogger(tmp_path), (torch.rand(16, 4), torch.randint(2, (16,)))

    def log(line):
        logger.log_metrics({k: v for k, v in line.items() if k != "rule"}, line["epoch"])

    def forward(net, x):
        return torch.stack([net(x) for _ in range(3)])

    net = lambda: nn.Sequential(nn.Linear(4, 2), snn.Leaky(beta=0.8, init_hidden=True))  # noqa: E731
    compare(net, [data, data], rules="bptt", epochs=1, silent=True, forward=forward, on_epoch=log)
    logger.save()
    assert (
        "test_accuracy" in (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    )
