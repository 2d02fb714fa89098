"""All losses and the regulariser of snnTorch, alone and summed."""

import pytest
import snntorch.functional as SF
import torch
from shapes import B, C, T, compare, made
from snntorch.functional import l1_rate_sparsity
from torch.nn import functional as F

Y = torch.tensor([0, 1, 2, 0])
LOSSES = {
    "ce_rate": lambda spk, mem: SF.ce_rate_loss()(spk, Y),
    "ce_count": lambda spk, mem: SF.ce_count_loss()(spk, Y),
    "ce_max_membrane": lambda spk, mem: SF.ce_max_membrane_loss()(mem, Y),
    "mse_count": lambda spk, mem: SF.mse_count_loss(0.8, 0.2)(spk, Y),
    "mse_membrane": lambda spk, mem: SF.mse_membrane_loss()(mem, Y),
    "ce_rate weighted": lambda spk, mem: SF.ce_rate_loss(weight=torch.tensor([1.0, 2.0, 3.0]))(spk, Y),
    "ce_count population": lambda spk, mem: SF.ce_count_loss(population_code=True, num_classes=3)(spk, Y),
    "mse_temporal": lambda spk, mem: SF.mse_temporal_loss(target_is_time=False)(spk, Y),
    "ce_temporal": lambda spk, mem: SF.ce_temporal_loss()(spk, Y),
    "regression": lambda spk, mem: F.mse_loss(mem, torch.linspace(0, 1, T)[:, None, None].expand(T, B, C)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("regularised", [False, True])
def test_losses(name, regularised):
    def loss_of(spk, mem, below):
        loss = LOSSES[name](spk.float(), mem.float()).double()
        if regularised:
            loss = loss + sum(l1_rate_sparsity(0.1)(each) for each in below.values())
        return loss

    net, x = made()
    plain = compare(net, x, lambda s, m, b: LOSSES[name](s.float(), m.float()).double())
    got = compare(net, x, loss_of)
    assert torch.equal(got["fc3.weight"], plain["fc3.weight"])
    assert torch.equal(got["fc1.weight"], plain["fc1.weight"]) != regularised
