"""DFA in a ``LightningModule``, and a callback; importing Lightning costs seconds."""

import lightning
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, reset
from snn_dfa.diagnostics import activity, gradient_angles


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


class Angles(lightning.Callback):
    """Logs the angle of each layer's gradient to back-propagation's, and rates, on one batch."""

    def __init__(self, batch):
        self.x, self.y = batch

    def on_train_epoch_end(self, trainer, module):
        def loss(net):
            reset(net)
            spk = torch.stack([net(step) for step in self.x.transpose(0, 1)])
            return nn.functional.cross_entropy(spk.sum(0), self.y)

        angles = gradient_angles(module.dfa, loss)
        with torch.no_grad(), activity(module.net) as layers:
            loss(module.net)
        module.log_dict({f"angle/{name}": angle for name, angle in angles.items()})
        module.log_dict({f"rate/{name}": seen.rate for name, seen in layers.items()})
