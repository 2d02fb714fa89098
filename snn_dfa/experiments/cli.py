"""The command line: arguments in, files and a table out; no logic of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch
from tqdm import tqdm

from snn_dfa import __version__
from snn_dfa.experiments.arguments import layers, numbers, one_or_more, rule, rules, seconds
from snn_dfa.experiments.data import SHOWN, Splits, load
from snn_dfa.experiments.files import Checkpoint, load_checkpoint, make_folder, refuse_overwrite
from snn_dfa.experiments.memory import keep_freed_memory
from snn_dfa.experiments.ranks import first_alone, is_rank_zero, joined
from snn_dfa.experiments.recipes import DEFAULT, RECIPES, default_for, describe, fitted
from snn_dfa.experiments.report import results as report
from snn_dfa.experiments.settings import Settings, UsageError, option
from snn_dfa.experiments.studies.comparison import kept_megabytes, runs, write_comparison
from snn_dfa.experiments.studies.ladder import rungs, write_ladder
from snn_dfa.experiments.studies.peak import peak_megabytes
from snn_dfa.experiments.train.feedback import RULES
from snn_dfa.experiments.train.metrics import metrics
from snn_dfa.experiments.train.trainer import Trainer

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser() -> _Parser:
    parser = _Parser(prog="snn-dfa", description="Direct feedback alignment for snnTorch networks.")
    parser.add_argument("--version", action="version", version=f"snn-dfa {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    compare = commands.add_parser("compare", help="train the same network with several rules")
    compare.add_argument(
        "--rules", type=rules, default=["bptt", "dfa", "shallow"], metavar=",".join(RULES),
        help="which (default: bptt,dfa,shallow)",
    )  # fmt: skip
    compare.add_argument(
        "--seeds", type=one_or_more, default=1, metavar="N",
        help="how many seeds, from --seed on (default: 1)",
    )  # fmt: skip
    compare.add_argument("--out", type=Path, default=Path("runs/compare"), help="%(default)s")
    train = commands.add_parser("train", help="train one rule, with checkpoints to go on from")
    train.add_argument(
        "--rule", type=rule, default="dfa", metavar="{" + ",".join(RULES) + "}", help="%(default)s"
    )  # fmt: skip
    train.add_argument("--out", type=Path, default=Path("runs/train"), help="%(default)s")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    train.add_argument(
        "--save-every", type=seconds, default=60.0, metavar="SECONDS",
        help="save within an epoch, too, at most so often; 0: after every step (%(default)g)",
    )  # fmt: skip
    for command in (compare, train):
        command.add_argument(
            "--recipe", choices=RECIPES,
            help=f"what the options below start from ({DEFAULT}, or for the digits "
            f"{default_for('digits')}); snn-dfa recipes shows them",
        )  # fmt: skip
        command.add_argument(
            "--diagnose", action="store_true",
            help="after each epoch note angles to back-propagation, rates and errors sent",
        )  # fmt: skip
        _add_settings(command, [f.name for f in fields(Settings)])
    ladder = commands.add_parser(
        "ladder", help="from the recipe notebook to deep, one change at a time"
    )
    ladder.add_argument("--out", type=Path, default=Path("runs/ladder"), help="%(default)s")
    _add_settings(ladder, ["dataset", "data_root", "seed", "device", "epochs", "amp"])
    family = commands.add_parser(
        "rules", help="every rule, feedback and credit on the recipe deep, side by side"
    )
    family.add_argument("--out", type=Path, default=Path("runs/rules"), help="%(default)s")
    _add_settings(family, ["dataset", "data_root", "seed", "device", "epochs", "amp"])
    commands.add_parser("recipes", help="show the recipes, as options")
    return parser


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Give fields of :class:`Settings` an option each; one that is not given leaves no trace."""
    for field in fields(Settings):
        if field.name not in names:
            continue
        text, kind = field.metadata["help"], _kind(field)
        if field.name == "dataset":
            text = SHOWN
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(option(field), action=argparse.BooleanOptionalAction, **options)
        else:
            parser.add_argument(option(field), type=kind, metavar="X", **options)


def _kind(field: Field[Any]) -> Any:
    """Return what makes an option's text a value."""
    if field.name == "hidden":
        return layers
    return numbers if isinstance(field.default, tuple) else type(field.default)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}


def _settings(args: argparse.Namespace) -> Settings:
    if args.recipe is None:
        args.recipe = default_for(getattr(args, "dataset", Settings.dataset))
    settings = replace(RECIPES[args.recipe].settings, **_given(args))
    _check_device(settings)
    return settings


def _fitted(settings: Settings, args: argparse.Namespace, data: Splits) -> Settings:
    """Give what the recipe has for such data, where nothing else is asked for."""
    recipe = getattr(args, "recipe", DEFAULT)
    return fitted(recipe, settings, len(data.train), data.image, given=vars(args))


def _check_device(settings: Settings) -> None:
    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device: expected a device of this machine, got {settings.device!r} ({reason})"
        ) from error


def _data(settings: Settings) -> Splits:
    with first_alone():
        return load(settings)


def _say(text: str, to: TextIO | None = None) -> None:
    """Print once, however many processes there are, and above a progress bar."""
    if is_rank_zero():
        tqdm.write(text, file=to or sys.stdout)


def _fit(
    trainer: Trainer, name: str, checkpoint: Checkpoint | None = None, *, diagnosed: bool = False
) -> None:
    """Train to the end under a progress bar, saving after epochs and when it is due."""
    settings, said = trainer.settings, set[str]()
    total = settings.epochs * trainer.batches
    with tqdm(
        total=total, initial=trainer.behind, desc=name, unit="step", disable=not is_rank_zero()
    ) as bar:

        def after_batch() -> None:
            bar.update()
            if checkpoint is not None and checkpoint.is_due:
                checkpoint.save(trainer.state_dict())

        for line in trainer.fit(after_batch, diagnosed=diagnosed):
            bar.set_postfix_str(
                f"epoch {int(line['epoch'])}/{settings.epochs}, "
                f"validation {100 * line['val_accuracy']:.1f} %"
            )
            for layer, text in trainer.warnings.items():
                if layer not in said:
                    epoch = int(line["epoch"])
                    _say(f"snn-dfa: warning: {name}, epoch {epoch}: {text}", sys.stderr)
                    said.add(layer)
            if checkpoint is not None:
                checkpoint.save(trainer.state_dict())


def _compare(args: argparse.Namespace) -> None:
    settings = _settings(args)
    results: report.Results = {rule: [] for rule in args.rules}
    for seed in range(settings.seed, settings.seed + args.seeds):
        data = _data(replace(settings, seed=seed))
        settings = _fitted(settings, args, data)
        one = replace(settings, seed=seed)
        if seed == settings.seed:
            for rule in args.rules:  # what cannot be made is refused before any is trained
                Trainer(one, rule, data)
        for rule in args.rules:
            trainer = Trainer(one, rule, data)
            folder = make_folder(args.out)  # once nothing is left to be refused
            name = rule if args.seeds == 1 else f"{rule}, seed {seed}"
            _fit(trainer, name, diagnosed=args.diagnose)
            results[rule].append(metrics(trainer))
            # Written after each run: a long comparison that is interrupted leaves its parts.
            done = {r: runs for r, runs in results.items() if runs}
            paths = report.write(folder, args.recipe, settings, done)
    _print(results, paths)


def _train(args: argparse.Namespace) -> None:
    settings = _settings(args)
    checkpoint = Checkpoint(args.out / "checkpoint.pt", args.save_every)
    state = load_checkpoint(checkpoint.path) if args.resume else None
    if state is None:
        refuse_overwrite(checkpoint.path)
    data = _data(settings)
    settings = _fitted(settings, args, data)
    trainer = Trainer(settings, args.rule, data)
    if state is not None:
        trainer.load_state_dict(state)
    folder = make_folder(args.out)
    try:
        _fit(trainer, args.rule, checkpoint, diagnosed=args.diagnose)
        results = {args.rule: [metrics(trainer)]}
        paths = report.write(folder, args.recipe, settings, results)
    except KeyboardInterrupt:
        kept = args.resume or checkpoint.saved
        raise KeyboardInterrupt(
            f"the same command with --resume goes on from {checkpoint.path}"
            if kept
            else "nothing was saved yet"
        ) from None
    _print(results, paths)


def _print(results: report.Results, paths: Sequence[Path]) -> None:
    _say(report.table(results))
    _say("wrote " + " ".join(str(path) for path in paths))


def _ladder(args: argparse.Namespace) -> None:
    steps = list(rungs(**_given(args)))
    _check_device(steps[0].settings)
    folder, results = make_folder(args.out), []
    for rung in steps:
        data = _data(rung.settings)
        rung = rung.fitted(len(data.train), data.image)
        trainer = Trainer(rung.settings, "dfa", data)
        _fit(trainer, rung.name)
        results.append((rung, metrics(trainer)))
        table = write_ladder(folder, results)
    _say(table)


def _family(args: argparse.Namespace) -> None:
    given = {"epochs": 2, **_given(args)}
    first = next(runs(**given)).settings
    _check_device(first)
    data = _data(first)
    rows = [row.fitted(len(data.train), data.image, vars(args)) for row in runs(**given)]
    for row in rows:  # what cannot be made is refused before any is trained
        Trainer(row.settings, row.rule, data)
    folder, results = make_folder(args.out), []
    for row in rows:
        trainer = Trainer(row.settings, row.rule, data)
        memory = {
            "kept_megabytes": kept_megabytes(Trainer(row.settings, row.rule, data)),
            "peak_megabytes": peak_megabytes(row.settings, row.rule, data.image, data.classes),
        }
        _fit(trainer, row.name, diagnosed=True)
        results.append((row, {**metrics(trainer), **memory}))
        table = write_comparison(folder, results)
    _say(table)


def _recipes(_: argparse.Namespace) -> None:
    print("\n\n".join(describe(name) for name in RECIPES))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 for what the user can mend, 130 for ^C, 141."""
    keep_freed_memory()
    commands = {
        "compare": _compare,
        "train": _train,
        "ladder": _ladder,
        "rules": _family,
        "recipes": _recipes,
    }
    try:
        with joined():
            args = _parser().parse_args(argv)
            commands[args.command](args)
            sys.stdout.flush()
    except UsageError as error:
        _say(f"snn-dfa: {error}", sys.stderr)
        return 2
    except BrokenPipeError:  # what reads the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stop:
        left = str(stop) or "what was finished by then is in --out"
        _say(f"snn-dfa: interrupted; {left}", sys.stderr)
        return 130
    return 0
