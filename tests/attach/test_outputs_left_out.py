"""Several outputs, of which a pass may leave some out."""

import pytest
import snntorch as snn
import torch
from torch import nn

from snn_dfa import DFA, OutOfStepError, reset


def leaky():
    return snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True)


class Tasks(nn.Module):
    """Two hidden layers, and a head for each task, of which a batch may have one."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 8), leaky()
        self.fc2, self.lif2 = nn.Linear(8, 8), leaky()
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x, tasks):
        spk = self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return {task: getattr(self, task)(spk) for task in tasks}


@pytest.mark.parametrize("options", [{}, {"credit": "trace"}, {"rule": "fa"}, {"optimizer": True}])
def test_an_output_that_is_not_called_has_no_error(options):
    """The gradient is that of a pass in which it is called and the loss does not read it."""
    torch.manual_seed(0)
    net = Tasks()
    if "optimizer" in options:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        options = {"optimizer": optimizer, "feedback": "kolen-pollack"}
    DFA(net, output=["a", "b"], **options)

    def grads(called, read):
        reset(net)
        net.zero_grad()
        out = net(3 * torch.ones(4, 5), called)
        sum(out[task].square().sum() for task in read).backward()
        return [p.grad.clone() for n, p in net.named_parameters() if n[0] in ("f", *read)]

    grads("ab", "ab")
    for task in "ab":
        wanted = grads("ab", task)
        assert all(g.any() for g in wanted)
        for found, want in zip(grads(task, task), wanted, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-7)


def test_outputs_are_all_called_first():
    net = Tasks()
    DFA(net, output=["a", "b"])
    with pytest.raises(OutOfStepError, match="'b' was not called, and has not been called before"):
        net(torch.rand(4, 5), "a")
    assert net.fc1.weight.grad is None
