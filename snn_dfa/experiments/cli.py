"""The command line: arguments in, files and a table out; no logic of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

from snn_dfa._version import __version__
from snn_dfa.experiments import report
from snn_dfa.experiments.data import DATASETS, load
from snn_dfa.experiments.files import load_checkpoint, make_folder, save_checkpoint
from snn_dfa.experiments.memory import keep_freed_memory
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.training import RULES, Trainer

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _rules(text: str) -> list[str]:
    rules = text.split(",")
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(RULES)}, got {unknown[0]!r}")
    return list(dict.fromkeys(rules))


_sizes.__name__, _rules.__name__ = "list of sizes", "list of rules"  # what argparse calls them


def _parser() -> _Parser:
    parser = _Parser(prog="snn-dfa", description="Direct feedback alignment for snnTorch networks.")
    parser.add_argument("--version", action="version", version=f"snn-dfa {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    compare = commands.add_parser("compare", help="train the same network with several rules")
    compare.add_argument("--rules", type=_rules, default=list(RULES), metavar=",".join(RULES))
    compare.add_argument("--out", type=Path, default=Path("runs/compare"), help="%(default)s")
    train = commands.add_parser("train", help="train one rule, with a checkpoint after each epoch")
    train.add_argument("--rule", choices=RULES, default="dfa", help="%(default)s")
    train.add_argument("--out", type=Path, default=Path("runs/train"), help="%(default)s")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    for command in (compare, train):
        _add_settings(command)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Give each field of :class:`Settings` an option; defaults and their types are there."""
    helps = {
        "dataset": f"one of {', '.join(DATASETS)}",
        "data_root": "folder in which torchvision keeps or puts the data set",
        "hidden": "sizes of the hidden layers",
        "steps": "time steps T",
        "lr": "learning rate of Adam",
        "lr_decay": "factor on the learning rate after every --decay-every epochs",
        "device": "torch device, such as cpu or cuda",
        "max_rate": "spikes a step of a white pixel",
        "beta": "decay of the membranes a step",
        "slope": "of the fast-sigmoid surrogate",
        "amp": "bfloat16 autocast, with the membranes in float32",
        "temperature": "divides the output spike counts before the softmax",
    }
    for field in fields(Settings):
        default = field.default
        kind = _sizes if field.name == "hidden" else type(default)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{helps.get(field.name, '')} (default: {shown})".strip()
        option = "--" + field.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(option, action="store_true", help=helps[field.name])
            continue
        parser.add_argument(option, type=kind, default=default, metavar="X", help=text)


def _settings(args: argparse.Namespace) -> Settings:
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device: expected a device of this machine, got {settings.device!r} ({reason})"
        ) from error
    return settings


def _fit(trainer: Trainer, checkpoint: Path | None = None) -> None:
    """Train to the end under a progress bar, saving after each epoch where asked to."""
    settings = trainer.settings
    batches = -(-len(trainer.data.train) // settings.batch_size)
    total = settings.epochs * batches
    with tqdm(total=total, initial=trainer.epoch * batches, desc=trainer.rule, unit="step") as bar:
        for line in trainer.fit(after_batch=bar.update):
            bar.set_postfix_str(
                f"epoch {int(line['epoch'])}/{settings.epochs}, "
                f"validation {100 * line['val_accuracy']:.1f} %"
            )
            if checkpoint is not None:
                save_checkpoint(checkpoint, trainer.state_dict())


def _compare(args: argparse.Namespace, settings: Settings) -> None:
    folder = make_folder(args.out)
    data = load(settings.dataset, settings.data_root, settings.seed)
    results = {}
    for rule in args.rules:
        trainer = Trainer(settings, rule, data)
        _fit(trainer)
        results[rule] = trainer.result()
    _finish(folder, settings, results)


def _train(args: argparse.Namespace, settings: Settings) -> None:
    checkpoint = args.out / "checkpoint.pt"
    state = load_checkpoint(checkpoint) if args.resume else None
    folder = make_folder(args.out)
    data = load(settings.dataset, settings.data_root, settings.seed)
    trainer = Trainer(settings, args.rule, data)
    if state is not None:
        trainer.load_state_dict(state)
    _fit(trainer, checkpoint)
    _finish(folder, settings, {args.rule: trainer.result()})


def _finish(folder: Path, settings: Settings, results: report.Results) -> None:
    paths = report.write(folder, settings, results)
    print(report.table(results))
    print("wrote " + " ".join(str(path) for path in paths))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 2 for what the user can mend, 130 for ^C."""
    keep_freed_memory()
    try:
        args = _parser().parse_args(argv)
        settings = _settings(args)
        {"compare": _compare, "train": _train}[args.command](args, settings)
    except UsageError as error:
        print(f"snn-dfa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("snn-dfa: interrupted; snn-dfa train goes on with --resume", file=sys.stderr)
        return 130
    return 0
