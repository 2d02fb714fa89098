"""``compare(..., resume=True)`` goes on with the same training, and with no other one."""

import random
import subprocess
import sys

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from snn_dfa import InputError, compare
from snn_dfa.experiments.data.batches import Batches
from snn_dfa.experiments.settings import UsageError
from snn_dfa.experiments.train.identity import of_network
from snn_dfa.experiments.train.own import OwnTask, OwnTraining

X = torch.rand(24, 4, generator=torch.Generator().manual_seed(5))
Y = X[:, :3].argmax(1)


class Net(nn.Module):
    def __init__(self, beta=0.9, hidden=8, steps=2, slope=25, extra=False):
        super().__init__()
        self.steps = steps
        self.fc1, self.fc2 = nn.Linear(4, hidden), nn.Linear(hidden, 3)
        spike_grad = surrogate.fast_sigmoid(slope=slope)
        self.lif1 = snn.Leaky(beta, 0.3, spike_grad)
        self.lif2 = snn.Leaky(beta)
        self.extra = nn.Linear(2, 2) if extra else None

    def forward(self, x):
        mem1, mem2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(self.steps):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
        return torch.stack(spikes)


class Mean(Net):
    def forward(self, x):
        return super().forward(x - x.mean())


class Smooth:
    def __init__(self, smoothing):
        self.smoothing = smoothing

    def __call__(self, output, y):
        return nn.functional.cross_entropy(output.sum(0), y, label_smoothing=self.smoothing)


def adam(lr=1e-3, **options):
    return lambda parameters: torch.optim.Adam(parameters, lr, **options)


def cross_entropy(smoothing):
    return lambda output, y: nn.functional.cross_entropy(
        output.sum(0), y, label_smoothing=smoothing
    )


def training(net=Net, data=((X, Y), (X, Y)), options=None, epochs=1, batch_size=8, **task):
    batches = Batches(list(data), batch_size, "cpu")
    described = {"schedule": "none", "epochs": epochs, "dataset": "digits"}
    return OwnTraining(
        OwnTask(net, batches, epochs, described=described, **task), "dfa", options, 0
    )


def behind(**arguments):
    """Return the state of a training that is over."""
    trained = training(**arguments)
    assert len(list(trained.fit())) == 1
    return trained.state_dict()


OTHERS = [
    ({"net": lambda: Net(beta=0.5)}, r"network lif1.beta='0.9', expected '0.5'"),
    ({"net": lambda: Net(hidden=9)}, r"network fc1.out_features='8', expected '9'"),
    ({"net": lambda: Net(steps=3)}, "network steps='2', expected '3'"),
    ({"net": lambda: Net(slope=5)}, r"network lif1.spike_grad=.*\[25\]', expected .*\[5\]'"),
    ({"net": lambda: Net(extra=True)}, "network extra='None', expected 'Linear'"),
    ({"net": Mean}, "network itself='Net', expected 'Mean'"),
    ({"net": lambda: Net().double()}, r"network fc1.weight='\[8, 4\] torch.float32', expected"),
    ({"make_optimizer": adam(0.1)}, "optimizer lr of group 0='0.001', expected '0.1'"),
    ({"make_optimizer": adam(weight_decay=1)}, "optimizer weight_decay of group 0='0'"),
    ({"make_optimizer": torch.optim.SGD}, "optimizer class='Adam', expected 'SGD'"),
    ({"make_scheduler": lambda o: StepLR(o, 2)}, "scheduler"),
    ({"loss": lambda output, y: output.sum()}, "loss="),
    ({"loss": Smooth(0.1)}, "loss="),
    ({"forward": lambda net, x: net(2 * x)}, "forward="),
    ({"data": ((X[:16], Y[:16]), (X, Y))}, "train part=.*length: 24.*expected .*length: 16"),
    ({"data": ((X, 0 * Y), (X, Y))}, "first training batch="),
    ({"data": ((X, Y), (X + 1, Y))}, "made with other data"),
    ({"batch_size": 4}, "train part=.*batch_size: 8"),
    ({"options": {"output": ["lif2"]}}, "options="),
]


@pytest.fixture(scope="module")
def state():
    return behind()


@pytest.mark.parametrize(("change", "message"), OTHERS)
def test_what_differs_is_named(state, change, message):
    with pytest.raises(UsageError, match=message):
        training(**change).load_state_dict(state)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"loss": Smooth(0.1)}, {"loss": Smooth(0.2)}),
        ({"loss": cross_entropy(0.1)}, {"loss": cross_entropy(0.2)}),
        (
            {"make_scheduler": lambda o: LambdaLR(o, lambda e: 0.9**e)},
            {"make_scheduler": lambda o: LambdaLR(o, lambda e: 0.5**e)},
        ),
        (
            {"make_scheduler": lambda o: StepLR(o, 2, 0.5)},
            {"make_scheduler": lambda o: StepLR(o, 2, 0.1)},
        ),
        ({"options": {"hidden": ["lif1"]}}, {"options": {"hidden": ["lif2"]}}),
    ],
)
def test_what_objects_and_closures_hold_is_compared(first, second):
    with pytest.raises(UsageError, match="the checkpoint was made with"):
        training(**second).load_state_dict({**behind(**first)})


def test_a_run_with_more_epochs_behind_is_another_one():
    state = {**training(epochs=2).state_dict(), "history": [{}, {}]}
    with pytest.raises(UsageError, match="has 2 epochs behind it, expected at most --epochs=1"):
        training().load_state_dict(state)


class Counting(Smooth):
    """A loss with a state of its own."""

    calls = 0

    def __call__(self, output, y):
        self.calls += 1
        return super().__call__(output, y)


class Drawn(torch.utils.data.Dataset):
    """Of other numbers at each walk."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return X[i] + random.SystemRandom().random(), Y[i]


def test_the_same_goes_on():
    every = {
        "net": lambda: Net(slope=5), "data": (Drawn(), (X, Y)), "options": {"output": ["lif2"]},
        "make_optimizer": adam(0.1), "loss": Counting(0.1),
        "make_scheduler": lambda o: LambdaLR(o, lambda e: 0.9**e),
    }  # fmt: skip
    state = behind(**every)
    again = training(**{**every, "loss": Counting(0.1)})
    again.load_state_dict(state)
    assert again.epoch == 1
    assert list(again.fit()) == []
    further = training(**{**every, "loss": Counting(0.1), "epochs": 2})
    further.load_state_dict(state)
    assert len(list(further.fit())) == 1


def test_weights_that_are_drawn_anew_are_the_same_network_and_another_beta_is_not():
    first, second = (nn.Sequential(nn.Linear(3, 1), snn.Leaky(0.9)) for _ in range(2))
    assert first[0].bias != second[0].bias
    assert of_network(first) == of_network(second)
    assert of_network(first) != of_network(nn.Sequential(nn.Linear(3, 1), snn.Leaky(0.8)))


def test_a_loader_of_unknown_length_goes_on():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(X, Y, strict=True))

    every = {"data": (list(DataLoader(Stream(), 8)), DataLoader(TensorDataset(X, Y), 8))}
    training(**every).load_state_dict(behind(**every))


SCRIPT = """
import sys, torch, snntorch as snn
from torch import nn
from snn_dfa import compare

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True), nn.Linear(8, 3))
    def forward(self, x):
        return super().forward(x) if x.dim() in {2, 3, len("abcd")} else "ab" in {"ab", "cd"}

x = torch.rand(24, 4, generator=torch.Generator().manual_seed(5))
compare(Net, [(x, x[:, :3].argmax(1))] * 2, rules={"dfa": {"output": ["2"]}}, epochs=1, silent=True,
    out=sys.argv[1], resume="resume" in sys.argv, loss=lambda o, y: nn.functional.mse_loss(o, 1.0 * o))
"""


@pytest.mark.slow
def test_a_script_goes_on_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("mse_loss(o, 1.0 * o)", "cross_entropy(o, y)"))
    for seed, given in (("1", []), ("2", ["resume"])):
        subprocess.run(
            [sys.executable, str(script), str(tmp_path / "out"), *given],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
        )


@pytest.mark.slow
def test_compare_names_its_arguments(tmp_path):
    every = {"rules": "bptt", "out": tmp_path, "silent": True}
    compare(Net, [(X, Y)] * 2, epochs=2, **every)
    with pytest.raises(InputError, match=r"resume: .* at most epochs=1; give epochs=2 or more"):
        compare(Net, [(X, Y)] * 2, epochs=1, resume=True, **every)
    with pytest.raises(InputError, match=r"resume: .*network itself='Net', expected 'Mean'"):
        compare(Mean, [(X, Y)] * 2, epochs=2, resume=True, **every)
