"""``snn_dfa.compare``: rules on a network and data of one's own."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import snn_dfa
from snn_dfa import DFA, InputError, compare


class Net(nn.Module):
    """With explicit states and the loop over time inside, as in snnTorch's fifth tutorial."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 12), nn.Linear(12, 3)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9, threshold=0.3), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1, mem2, spikes, mems = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for _ in range(3):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            mems.append(mem2)
        return torch.stack(spikes), torch.stack(mems)


class Normal(Net):
    """With batch normalisation."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Sequential(self.fc1, nn.BatchNorm1d(12))


class Lazy(Net):
    """Its first layers learn their sizes from a batch."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Sequential(nn.LazyLinear(12), nn.LazyBatchNorm1d(), nn.Dropout(0.1))


def samples(count=48):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(count, 4, generator=generator)
    return x, x[:, :3].argmax(1)


X, Y = samples()
QUICK = {"epochs": 1, "silent": True}


# -- the fifteen lines -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("own"), []
    train = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    test = DataLoader(TensorDataset(X, Y), batch_size=16)
    comparison = snn_dfa.compare(
        Net,
        (train, test),
        rules=["bptt", "dfa"],
        seeds=2,
        epochs=2,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        loss=lambda output, y: SF.ce_rate_loss()(output[0], y),
        out=out,
        on_epoch=lines.append,
    )
    return comparison, out, lines


@pytest.mark.slow
def test_a_network_of_ones_own_leaves_what_the_command_line_leaves(found):
    comparison, out, _ = found
    assert "gap to BPTT" in comparison.table
    assert comparison.files[0] == out / "report.html"
    assert all(path.stat().st_size for path in comparison.files)
    for kind in ("png", "pdf", "svg"):
        assert (out / f"curves.{kind}").stat().st_size > 1000
    written = json.loads((out / "metrics.json").read_text())
    for rule in ("bptt", "dfa"):
        first, second = comparison.results[rule]
        assert written[rule]["test_accuracy"] == first["test_accuracy"]
        assert np.trace(first["confusion"]) / 48 == pytest.approx(first["test_accuracy"])
        assert first["test_interval"][0] <= first["test_accuracy"] <= first["test_interval"][1]
        assert first["test_top5"] == 1.0
        assert comparison.accuracy(rule) == pytest.approx(
            (first["test_accuracy"] + second["test_accuracy"]) / 2
        )
        for seed in (0, 1):
            assert (out / f"checkpoint_{rule}_seed{seed}.pt").exists()
    assert comparison.summary()["dfa"]["seeds"] == [0, 1]


@pytest.mark.slow
def test_the_log_has_a_line_an_epoch_and_rule_and_loggers_get_it(found):
    _, out, lines = found
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = [(r, s, e) for s in "01" for r in ("bptt", "dfa") for e in "12"]
    assert [(row["rule"], row["seed"], row["epoch"]) for row in rows] == wanted
    assert [float(row["test_loss"]) for row in rows] == [line["test_loss"] for line in lines]


@pytest.mark.slow
def test_it_goes_on_from_checkpoints_and_overwrites_nothing_unasked(found):
    _, out, _ = found
    loaders = (DataLoader(TensorDataset(X, Y), 16, shuffle=True),
               DataLoader(TensorDataset(X, Y), 16))  # fmt: skip
    same = {"rules": ["bptt", "dfa"], "epochs": 2, "out": out, "silent": True}
    with pytest.raises(InputError, match=r"out: .* holds the results of another run"):
        compare(Net, loaders, **same)
    with pytest.raises(InputError, match=r"resume: the checkpoint was made with .*optimizer"):
        compare(Net, loaders, **same, resume=True)
    assert (out / "metrics.json").exists()


# -- the same for every rule -----------------------------------------------------------------------


@pytest.mark.slow
def test_all_rules_start_from_the_same_weights_and_see_the_same_batches():
    seen = {}

    class Watched(Net):
        def forward(self, x):
            if self.training:
                seen.setdefault(self, []).append((self.fc1.weight.detach().clone(), x.clone()))
            return super().forward(x)

    data = TensorDataset(X, Y)
    loader = DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(9))
    before = torch.get_rng_state()
    own = loader.generator.get_state()
    compare(Watched, (loader, loader), rules=["bptt", "shallow"], **QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loader.generator.get_state(), own)
    bptt, shallow = (runs for runs in seen.values() if len(runs) == 3)
    assert torch.equal(bptt[0][0], shallow[0][0])
    for (_, a), (_, b) in zip(bptt, shallow, strict=True):
        assert torch.equal(a, b)


def test_batches_that_differ_between_rules_are_an_error():
    class Other(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.from_numpy(np.random.default_rng().random(4, np.float32)), int(Y[i])

    with pytest.raises(InputError, match="expected the same batches for every rule"):
        compare(Net, (Other(), (X, Y)), rules=["bptt", "shallow"], **QUICK)


@pytest.mark.slow
def test_weights_are_those_of_the_epoch_that_was_best_on_the_validation_part():
    three = compare(Net, [(X, Y)] * 3, rules="dfa", epochs=3, silent=True)
    (run,) = three.results["dfa"]
    best = max(run["history"], key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert run["best_epoch"] == best["epoch"]
    two = compare(Net, [(X.numpy(), Y.numpy())] * 2, rules="dfa", epochs=3, silent=True)
    assert two.results["dfa"][0]["best_epoch"] == 3


def test_a_name_of_ones_own_stands_for_arguments_of_dfa_and_a_loop_goes_outside():
    def make():
        return nn.Sequential(
            nn.Linear(4, 8), snn.Leaky(beta=0.9, init_hidden=True), nn.Linear(8, 3)
        )

    rules = {"BPTT": None, "product, 0.1": {"feedback": "kolen-pollack-product"}}
    found = compare(
        make, [(X, Y)] * 2, rules=rules, dfa={"output": "2"}, **QUICK, diagnose=True,
        forward=lambda net, x: torch.stack([net(x) for _ in range(3)]),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )  # fmt: skip
    assert list(found.results) == list(rules)
    (entry,) = found.results["product, 0.1"][0]["diagnostics"]
    assert set(entry["gradient_angles"]) == {"0", "2"}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_network_that_does_not_know_its_sizes():
    seen = []

    class Watched(Lazy):
        def forward(self, x):
            if self.training and not seen:
                seen.append((x.clone(), self.fc1[1].num_batches_tracked.item()))
            return super().forward(x)

    rules = {"a": {}, "b": {"rule": "error"}, "c": None}
    found = compare(Watched, [(X, Y)] * 2, rules=rules, batch_size=16, epochs=2, silent=True)
    a, b, c = (found.results[name][0]["history"] for name in rules)
    assert a == b
    assert a != c
    assert seen[0][1] == 0  # what gave the sizes has moved no statistics


def test_a_last_batch_of_one_sample_needs_no_normalisation(tmp_path):
    with pytest.raises(InputError, match="expected two samples or more"):
        compare(Normal, [(X, Y)] * 2, batch_size=47, out=tmp_path / "none", **QUICK)
    assert not (tmp_path / "none").exists()  # it is told before a training begins
    assert compare(Net, [(X, Y)] * 2, rules="dfa", batch_size=47, **QUICK).accuracy("dfa") > 0
    loaders = [DataLoader(TensorDataset(X, Y), 47, drop_last=True)] * 2
    assert compare(Normal, loaders, rules="dfa", **QUICK).accuracy("dfa") > 0


def test_feedback_that_learns_is_that_of_the_one_line():
    every = {"rule": "error", "feedback": "weight-mirror", "error_at": "current"}
    rules = {"short": {"feedback": "weight-mirror"}, "in full": every}
    found = compare(Net, [(X, Y)] * 2, rules=rules, epochs=3, silent=True)
    short, full = ([line["train_loss"] for line in found.results[name][0]["history"]]
                   for name in rules)  # fmt: skip
    assert short == full
    assert len(set(short)) > 1


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (X, Y, X, Y)}, r"data: expected \(train, test\) or \(train, val, test\), got"),
        ({"data": [(X, Y), iter([])]}, "that can be walked again as the test part"),
        ({"data": [(X, Y), []]}, "expected one batch or more in the test part, got none"),
        ({"data": [(X, Y[:3]), (X, Y)]}, "expected as many classes as samples in the train part"),
        ({"data": [(X, X), (X, Y)]}, r"whole numbers \[B\] as classes y in the train part"),
        ({"data": [[X], (X, Y)]}, r"expected pairs \(x, y\) as batches of the train part"),
        ({"data": [(X, Y + 7), (X, Y)]}, r"scores: expected \[B, C\] .* more than 9 classes"),
        ({"rules": ["dfa", "hebb"]}, "rules: expected some of bptt, dfa, .*, got 'hebb'"),
        ({"rules": []}, "rules: expected one or more"),
        ({"rules": {"settings": None}}, "rules: expected another name"),
        ({"rules": {"a b": None, "a-b": None}}, "rules: expected names that differ as file names"),
        ({"seeds": 0}, "seeds: expected one or more"),
        ({"epochs": 0}, "epochs: expected one or more, got 0"),
        ({"device": "abacus"}, "device: expected a device of this machine, got 'abacus'"),
        ({"resume": True}, "resume: expected a folder out="),
        ({"make_network": lambda: 3}, "make_network: expected a function that returns a module"),
        ({"make_network": lambda: DFA(Net()).net}, "expected a plain network, got one with a DFA"),
        ({"make_network": Net().requires_grad_}, "got the same one twice"),
        ({"forward": lambda net, x: 3}, "forward: expected spikes"),
        (
            {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau},
            "scheduler: expected a schedule that goes by the number of epochs, such as StepLR, got",
        ),
        (
            {"make_network": Normal, "batch_size": 47},
            r"data: expected two samples or more in each batch .* got one alone; give another",
        ),
        ({"loss": lambda out, y: out[0].sum() * float("nan")}, "the loss is nan in epoch 1"),
    ],
)
def test_mistakes_are_told(change, message):
    usual = {"make_network": Net, "data": [(X, Y)] * 2, "rules": ["bptt", "shallow"], **QUICK}
    with pytest.raises(InputError, match=message):
        compare(**{**usual, **change})


@pytest.mark.slow
def test_importing_the_library_imports_no_figures_and_no_data_sets():
    code = (
        "import sys, snn_dfa; assert 'matplotlib' not in sys.modules; "
        "assert 'sklearn' not in sys.modules and 'yaml' not in sys.modules; "
        "assert 'snn_dfa.experiments' not in sys.modules; "
        "assert 'torch._dynamo' not in sys.modules"  # the compiler, for as long as torch itself
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['jinja2'] = None; import snn_dfa; snn_dfa.compare"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "install them with pip install 'snn-dfa[experiments]'" in done.stderr


# -- frozen blocks ---------------------------------------------------------------------------------


def test_each_rule_is_trained_with_one_block_frozen_at_a_time():
    found = compare(Net, [(X, Y), (X, Y)], rules=["dfa", "shallow"], freeze_blocks=True, **QUICK)
    assert list(found.results) == ["dfa", "dfa (lif1 frozen)", "shallow"]
    assert list(found.costs) == ["dfa", "shallow"]
    # With its only block frozen the rule is the output layer alone.
    frozen, shallow = (found.results[name][0]["history"] for name in list(found.results)[1:])
    assert frozen == shallow
    assert "points that its learning adds" in found.table
    gain = 100 * (found.accuracy("dfa") - found.accuracy("shallow"))
    assert f"{gain:+.2f}" in found.table.splitlines()[-1]
