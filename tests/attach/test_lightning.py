"""DFA in a ``LightningModule``: attached when training begins, its feedback in the checkpoint."""

import warnings

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, reset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports is its own affair
    lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning's: workers, loggers


class Classifier(lightning.LightningModule):
    """A snnTorch network that learns by direct feedback alignment."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
            nn.Linear(8, 2), snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
        )  # fmt: skip
        self.dfa = DFA(self.net, output="3", feedback="kolen-pollack")

    def forward(self, x):
        reset(self.net)
        return torch.stack([self.net(step) for step in x.transpose(0, 1)])

    def training_step(self, batch):
        x, y = batch  # [B, T, 4], [B]
        return nn.functional.cross_entropy(self(x).sum(0), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["feedback"] = self.dfa.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.dfa.load_state_dict(checkpoint["feedback"])


def batches():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(16, 5, 4, generator=g), torch.randint(2, (16,), generator=g)
    return [(x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)]


def fit(model, folder, epochs, resume=None):
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(batches(), batch_size=None), ckpt_path=resume)
    return trainer


def test_it_trains_as_the_loop_by_hand_and_goes_on_from_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Classifier()
    start = {k: v.clone() for k, v in model.net.state_dict().items()}
    fit(model, tmp_path, 2)

    by_hand = Classifier()
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

    broken = Classifier()
    broken.net.load_state_dict(start)
    fit(broken, tmp_path, 1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = Classifier()
    fit(resumed, tmp_path, 2, tmp_path / "one.ckpt")
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name])
    assert torch.equal(model.dfa.feedback["1"], resumed.dfa.feedback["1"])
