"""Constants in place of random numbers while a network in training is compared with its loop."""

import pytest
import torch
from own_networks import Hidden, inputs
from sequences import B, C, T
from torch import nn
from torch.nn import functional

from snn_dfa import over_time
from snn_dfa.sequence.fixed_draws import DrawsError, FixedDraws


class Draws(Hidden):
    """Draws in training in many ways, each sample for itself."""

    def forward(self, x):
        if self.training:
            x = functional.dropout(x, 0.2) + 0.1 * torch.randn_like(x)
            x = torch.where(torch.rand(len(x), 1) < 0.9, x, torch.normal(0.0, torch.ones_like(x)))
            x = functional.alpha_dropout(x, 0.1, True) * torch.bernoulli(torch.full_like(x, 0.9))
            if torch.rand(1) < 0.1:
                return self.lif_out(self.out(self.lif(self.fc(0 * x))))
        return super().forward(x)


class Attends(Hidden):
    def forward(self, x):
        q = self.fc(x)[:, :, None]
        rate = 0.1 if self.training else 0.0
        return self.lif_out(self.out(self.lif(functional.scaled_dot_product_attention(
            q, q, q, dropout_p=rate
        )[:, :, 0])))  # fmt: skip


class Randomised(Hidden):
    """Takes slopes at random, and normalises the batch: compared in evaluation alone."""

    def forward(self, x):
        x = functional.rrelu(x - 0.5, training=self.training)
        mean, var = torch.zeros(2, x.shape[1], dtype=x.dtype) + torch.tensor([[0.0], [1.0]])
        return super().forward(functional.batch_norm(x, mean, var, training=self.training))


@pytest.mark.parametrize("program", [Draws, Attends, Randomised])
def test_a_network_that_draws_in_training_runs(program):
    net, x = program(), inputs()
    state = torch.get_rng_state()
    over_time(net).eval()(x)
    assert torch.equal(torch.get_rng_state(), state)
    form = over_time(net.train())
    assert form(x).shape == (T, B, C)
    assert form(x).any()


def test_what_is_fixed_and_what_is_not():
    x = torch.ones(4, 3)
    with FixedDraws() as fixed:
        q = torch.ones(1, 1, 2, 4)
        functional.scaled_dot_product_attention(q, q, q)
        torch.native_dropout(x, 0.5, False)
        assert not fixed.drew
        assert torch.equal(functional.dropout(x, 0.5), 2 * x)
        assert torch.equal(torch.native_dropout(x, 0.5, True)[0], 2 * x)
        assert torch.equal(nn.init.uniform_(x), torch.full((4, 3), 0.7))
        assert torch.randperm(3).tolist() == [2, 1, 0]
        assert fixed.drew
        with pytest.raises(DrawsError):
            functional.rrelu(x, training=True)
