"""What the README shows works as it stands there."""

import re
from pathlib import Path

import torch

from snn_dfa.experiments.data import load
from snn_dfa.experiments.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def block(label):
    found = re.search(rf"<!-- {label} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"README.md has no block labelled {label!r}"
    return found[1]


def test_the_example_learns():
    code = block("example")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    train = load(Settings()).train
    batches = list(zip(train.x.flatten(1).split(64), train.y.split(64), strict=True))
    names = {"batches": batches * 6}
    exec(compile(code, "README.md", "exec"), names)
    net = names["net"].eval()
    names["reset"](net)
    x = names["encoding"].poisson(train.x.flatten(1), num_steps=25)
    with torch.no_grad():
        spk = torch.stack([net(step) for step in x])
    assert (spk.sum(0).argmax(1) == train.y).float().mean() > 0.8


def test_the_commands_name_what_exists():
    assert ".venv/bin/snn-dfa compare" in block("command: compare")
    assert ".venv/bin/python -m pytest" in block("command: tests")
