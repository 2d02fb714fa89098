"""The command line as a new user meets it."""

import pytest
from cut_runs import run

from snn_dfa.experiments.parser import make_parser
from snn_dfa.experiments.train.metrics import interval


def test_the_command_alone_shows_its_help(capsys):
    assert run() == 0
    out, err = capsys.readouterr()
    assert "usage: snn-dfa" in out
    assert "examples:" in out
    assert err == ""


@pytest.mark.parametrize("command", ["compare", "train"])
def test_help_has_groups_choices_and_defaults(command, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([command, "--help"])
    out = capsys.readouterr().out
    for part in ("what to train:", "output:", "network:", "neuron:", "feedback:", "examples:",
                 "--tau MS", "--encoding {poisson,constant,events}", "(default: 0.003)",
                 "--input-dropout SHARE"):  # fmt: skip
        assert part in out


@pytest.mark.parametrize("arguments", [["train", "--epoch", "3"], ["compare", "--see", "3"]])
def test_an_option_is_written_out(arguments, capsys):
    assert run(*arguments) == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_interval_is_wilsons():
    assert interval(0.0, 10)[0] == 0.0
    assert interval(1.0, 10)[1] == pytest.approx(1.0)
    # Newcombe 1998, Stat. Med. 17, 857, table I: 81 of 263 and 0 of 20.
    assert interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert interval(0 / 20, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
