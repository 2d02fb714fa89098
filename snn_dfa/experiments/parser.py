"""The command line's options: their groups, values and help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from snn_dfa import __version__
from snn_dfa.experiments.arguments import layers, numbers, one_or_more, rule, rules, seconds
from snn_dfa.experiments.data import SHOWN
from snn_dfa.experiments.recipes import DEFAULT, RECIPES, default_for
from snn_dfa.experiments.settings import GROUPS, Settings, UsageError, metavar, option, shown
from snn_dfa.experiments.train.feedback import RULES

__all__ = ["STUDY_SETTINGS", "make_parser"]

#: Settings that ``ladder`` and ``rules`` take.
STUDY_SETTINGS = ("dataset", "data_root", "seed", "device", "epochs", "amp")
_TWO = ("compare", "train")

_EXAMPLES = """
examples:
  snn-dfa compare --out runs/digits
  snn-dfa compare --rules bptt,dfa,fa --seeds 3 --out runs/three-seeds
  snn-dfa compare --recipe deep --dataset mnist --data-root data --out runs/deep
  snn-dfa compare --config runs/deep/experiment.yaml --out runs/deep-again
  snn-dfa train --rule dfa --recipe conv --dataset mnist --data-root data --out runs/conv
  snn-dfa train --dataset FILE.npz --out runs/own
"""
_COMPARE_EXAMPLES = """
examples:
  snn-dfa compare --out runs/digits
  snn-dfa compare --rules bptt,dfa --seeds 3 --lr 0.001 --out runs/slow
  snn-dfa compare --dataset mnist --data-root data --diagnose --tensorboard runs/tb --out runs/mnist
  snn-dfa compare --config runs/mnist/experiment.yaml --seeds 5 --out runs/mnist-5
"""
_TRAIN_EXAMPLES = """
examples:
  snn-dfa train --rule dfa --out runs/train
  snn-dfa train --rule dfa --out runs/train --resume
  snn-dfa train --dataset nmnist --data-root data --credit trace --out runs/online
"""


class Parser(argparse.ArgumentParser):
    """A parser that takes whole options only, and whose complaint is one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise an error that the command line says in one line."""
        raise UsageError(f"{message}; see {self.prog} --help")


def make_parser() -> Parser:
    """Return the parser; what is not given on the command line is not in its namespace."""
    parser = Parser(
        prog="snn-dfa",
        description="Direct feedback alignment for snnTorch networks.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"snn-dfa {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    compare = commands.add_parser(
        "compare", help="train the same network by several rules", epilog=_COMPARE_EXAMPLES,
        description="Train the same network by several rules, from the same weights on the same "
        "batches.",
    )  # fmt: skip
    train = commands.add_parser(
        "train", help="train a network by one rule, with checkpoints", epilog=_TRAIN_EXAMPLES,
        description="Train a network by one rule.",
    )  # fmt: skip
    _add_run(compare, train)
    ladder = commands.add_parser(
        "ladder", help="go from the recipe notebook to deep, one change at a time"
    )
    family = commands.add_parser(
        "rules", help="compare all rules, feedbacks and credits on the recipe deep"
    )
    for command, name in ((ladder, "ladder"), (family, "rules")):
        _add_output(command.add_argument_group("output"), name)
        _add_settings(command, STUDY_SETTINGS)
    commands.add_parser("recipes", help="show the settings of all recipes")
    return parser


def _add_run(compare: argparse.ArgumentParser, train: argparse.ArgumentParser) -> None:
    """Give the two commands that train a recipe their options."""
    what = [command.add_argument_group("what to train") for command in (compare, train)]
    what[0].add_argument(
        "--rules", type=rules, metavar=",".join(RULES), default=argparse.SUPPRESS,
        help="rules to compare (default: bptt,dfa,shallow)",
    )  # fmt: skip
    what[0].add_argument(
        "--seeds", type=one_or_more, metavar="N", default=argparse.SUPPRESS,
        help="number of seeds; the first one is --seed (default: 1)",
    )  # fmt: skip
    what[0].add_argument(
        "--freeze-blocks", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="train each rule once more for each hidden block, with that block frozen "
        "(default: no)",
    )  # fmt: skip
    what[1].add_argument(
        "--rule", type=rule, metavar="{" + ",".join(RULES) + "}", default=argparse.SUPPRESS,
        help="rule to train by (default: dfa)",
    )  # fmt: skip
    for group in what:
        group.add_argument(
            "--recipe", choices=RECIPES, default=argparse.SUPPRESS,
            metavar="{" + ",".join(RECIPES) + "}",
            help=f"start from the settings of this recipe (default: {DEFAULT}, or for the digits "
            f"{default_for('digits')}); snn-dfa recipes shows them",
        )  # fmt: skip
        group.add_argument(
            "--config",
            type=Path,
            metavar="FILE.yaml",
            default=argparse.SUPPRESS,
            help="repeat a run from its experiment.yaml; options on the command line override "
            "the file",
        )
    for command, name in ((compare, "compare"), (train, "train")):
        group = command.add_argument_group("output")
        _add_output(group, name)
        group.add_argument(
            "--resume", action="store_true", help="continue from the checkpoints in --out"
        )
        group.add_argument(
            "--save-every", type=seconds, default=60.0, metavar="SECONDS",
            help="time between two checkpoints within an epoch; 0: one after every step "
            "(default: %(default)g)",
        )  # fmt: skip
        group.add_argument(
            "--tensorboard", type=Path, metavar="DIR",
            help="log each epoch into this folder, for TensorBoard",
        )  # fmt: skip
        group.add_argument(
            "--diagnose", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
            help="after each epoch, measure angles to back-propagation, firing rates and the "
            "errors that are sent (default: no)",
        )  # fmt: skip
        _add_settings(command, [f.name for f in fields(Settings)])


def _add_output(group: Any, name: str) -> None:
    default = Path("runs") / name
    group.add_argument(
        "--out", type=Path, default=default, metavar="DIR",
        help="write the results into this folder (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--overwrite", action="store_true", help="replace the results in --out")


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Give fields of :class:`Settings` an option each, in their groups."""
    titles, group = {first: title for title, first in GROUPS.items()}, None
    for field in fields(Settings):
        if field.name in titles:
            group = titles[field.name]
        if field.name in names and group is not None:
            _add_setting(_group(parser, group), field)


def _group(parser: argparse.ArgumentParser, title: str) -> Any:
    found = next((g for g in parser._action_groups if g.title == title), None)
    return found or parser.add_argument_group(title)


def _add_setting(group: Any, field: Field[Any]) -> None:
    text, kind = SHOWN if field.name == "dataset" else field.metadata["help"], _kind(field)
    default = ("yes" if field.default else "no") if kind is bool else shown(field.default) or "-"
    said = f"{text} (default: {default})".replace("%", "%%")
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": said}
    if kind is bool:
        group.add_argument(option(field), action=argparse.BooleanOptionalAction, **options)
    else:
        group.add_argument(option(field), type=kind, metavar=metavar(field), **options)


def _kind(field: Field[Any]) -> Any:
    """Return what makes an option's text a value."""
    if field.name == "hidden":
        return layers
    return numbers if isinstance(field.default, tuple) else type(field.default)
