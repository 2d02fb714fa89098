"""The command line: arguments in, files and a table out; no logic of its own."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from snn_dfa.errors import DFAError
from snn_dfa.experiments import config
from snn_dfa.experiments.data import Splits, load
from snn_dfa.experiments.display import say
from snn_dfa.experiments.files import clear, load_checkpoint, make_folder, refuse_finished
from snn_dfa.experiments.logs import TensorBoard
from snn_dfa.experiments.memory import keep_freed_memory
from snn_dfa.experiments.parser import make_parser
from snn_dfa.experiments.ranks import first_alone, is_rank_zero, joined
from snn_dfa.experiments.recipes import DEFAULT, RECIPES, default_for, describe, fitted
from snn_dfa.experiments.report import results as report
from snn_dfa.experiments.report.description import of_recipe
from snn_dfa.experiments.settings import Settings, UsageError
from snn_dfa.experiments.studies.comparison import kept_megabytes, runs, write_comparison
from snn_dfa.experiments.studies.engine import Folder, Plan, carry_out, fit, with_frozen_blocks
from snn_dfa.experiments.studies.ladder import rungs, write_ladder
from snn_dfa.experiments.studies.peak import peak_megabytes
from snn_dfa.experiments.train.metrics import metrics
from snn_dfa.experiments.train.trainer import Trainer

__all__ = ["main"]

_DEFAULTS: dict[str, Any] = {
    "rules": ["bptt", "dfa", "shallow"], "rule": "dfa", "seeds": 1, "diagnose": False,
    "freeze_blocks": False,
}  # fmt: skip


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}


def _merge(args: argparse.Namespace) -> None:
    """Add what the file of ``--config`` says and the command line does not, then the defaults."""
    read = config.read(args.config, args.command) if hasattr(args, "config") else {}
    for name, value in {**_DEFAULTS, **read}.items():
        if not hasattr(args, name):
            setattr(args, name, value)
    if not hasattr(args, "recipe"):
        args.recipe = default_for(getattr(args, "dataset", Settings.dataset))


def _settings(args: argparse.Namespace) -> Settings:
    settings = replace(RECIPES[args.recipe].settings, **_given(args))
    _check_device(settings)
    return settings


def _fitted(settings: Settings, args: argparse.Namespace, data: Splits) -> Settings:
    """Give what the recipe has for such data, where nothing else is asked for."""
    recipe = getattr(args, "recipe", DEFAULT)
    return fitted(recipe, settings, len(data.train), data.image, given=vars(args))


def _check_device(settings: Settings) -> None:
    try:
        torch.zeros(1, device=settings.device).tolist()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--device: expected a device of this machine, got {settings.device!r} ({reason})"
        ) from error


def _data(settings: Settings) -> Splits:
    with first_alone():
        return load(settings)


def _compare(args: argparse.Namespace) -> None:
    _merge(args)
    folder = Folder(args.out, args.resume, args.overwrite, args.save_every)
    said = {"recipe": args.recipe, "rules": args.rules, "seeds": args.seeds}
    said["freeze_blocks"] = args.freeze_blocks
    _run(args, folder, args.rules, args.seeds, said)


def _train(args: argparse.Namespace) -> None:
    _merge(args)
    folder = Folder(args.out, args.resume, args.overwrite, args.save_every, "checkpoint.pt")
    if args.resume:
        load_checkpoint(args.out / "checkpoint.pt")
    _run(args, folder, [args.rule], 1, {"recipe": args.recipe, "rule": args.rule})


def _run(
    args: argparse.Namespace, folder: Folder, rules: list[str], seeds: int, said: dict[str, Any]
) -> None:
    """Train rules, each with so many seeds, and print what came of it."""
    settings = _settings(args)
    if settings.start and seeds > 1:
        raise UsageError(f"--seeds: expected 1 with --start, whose run had one seed, got {seeds}")
    folder.check()

    @lru_cache(1)
    def data(seed: int) -> Splits:
        return _data(replace(settings, seed=seed))

    settings = _fitted(settings, args, data(settings.seed))
    folder.texts = {
        config.NAME: config.as_yaml(args.command, {**said, "diagnose": args.diagnose}, settings)
    }
    frozen = args.freeze_blocks and Trainer(settings, "bptt", data(settings.seed)).blocks()
    named = with_frozen_blocks(rules, lambda rule: (rule != "shallow" and frozen) or {})
    plan = Plan(
        list(named),
        range(settings.seed, settings.seed + seeds),
        lambda name, seed: Trainer(
            replace(settings, seed=seed), named[name][0], data(seed), named[name][1]
        ),
        of_recipe(args.recipe, settings, args.line),
        settings.batch_size,
    )
    with _loggers(args) as loggers:
        try:
            results, costs, paths = carry_out(
                plan, folder, diagnosed=args.diagnose, loggers=loggers
            )
        except KeyboardInterrupt:
            kept = folder.saved or (args.out if args.resume else None)
            raise KeyboardInterrupt(
                f"the same command with --resume goes on from {kept}"
                if kept
                else "nothing was saved yet"
            ) from None
    say(report.table(results))
    say(f"a training step of {settings.batch_size} samples, computed:")
    say(report.aligned(report.cost_rows(costs)))
    say("wrote " + " ".join(str(path) for path in paths))


@contextmanager
def _loggers(args: argparse.Namespace) -> Iterator[list[TensorBoard]]:
    wanted = args.tensorboard is not None and is_rank_zero()
    with TensorBoard(args.tensorboard) if wanted else nullcontext() as board:
        yield [] if board is None else [board]


def _open(args: argparse.Namespace) -> Path:
    folder = make_folder(args.out)
    if args.overwrite:
        clear(folder)
    return folder


def _ladder(args: argparse.Namespace) -> None:
    steps = list(rungs(**_given(args)))
    _check_device(steps[0].settings)
    if not args.overwrite:
        refuse_finished(args.out)
    folder, results = _open(args), []
    for rung in steps:
        data = _data(rung.settings)
        rung = rung.fitted(len(data.train), data.image)
        trainer = Trainer(rung.settings, "dfa", data)
        fit(trainer, rung.name)
        results.append((rung, metrics(trainer)))
        table = write_ladder(folder, results)
    say(table)


def _family(args: argparse.Namespace) -> None:
    given = {"epochs": 2, **_given(args)}
    first = next(runs(**given)).settings
    _check_device(first)
    if not args.overwrite:
        refuse_finished(args.out)
    data = _data(first)
    rows = [row.fitted(len(data.train), data.image, vars(args)) for row in runs(**given)]
    for row in rows:  # what cannot be made is refused before any is trained
        Trainer(row.settings, row.rule, data)
    folder, results = _open(args), []
    for row in rows:
        trainer = Trainer(row.settings, row.rule, data)
        memory = {
            "kept_megabytes": kept_megabytes(Trainer(row.settings, row.rule, data)),
            "peak_megabytes": peak_megabytes(row.settings, row.rule, data.image, data.classes),
        }
        fit(trainer, row.name, diagnosed=True)
        results.append((row, {**metrics(trainer), **memory}))
        table = write_comparison(folder, results)
    say(table)


def _line(argv: Sequence[str]) -> str:
    """Return the command as it was typed; where the data lay is no part of the results."""
    words = list(argv)
    for number, word in enumerate(words):
        if word.startswith("--data-root="):
            words[number] = "--data-root=DIR"
        elif word == "--data-root":
            words[number + 1 : number + 2] = ["DIR"]
    return shlex.join(["snn-dfa", *words])


def _recipes(_: argparse.Namespace) -> None:
    print("\n\n".join(describe(name) for name in RECIPES))


def _lacks_memory(error: Exception) -> bool:
    """Whether an error of PyTorch or Python says that memory could not be had."""
    said = ("allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(each in str(error) for each in said)


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
            parser = make_parser()
            args = parser.parse_args(argv)
            args.line = _line(sys.argv[1:] if argv is None else argv)
            if args.command is None:
                parser.print_help()
            else:
                commands[args.command](args)
            sys.stdout.flush()
    except (UsageError, DFAError) as error:
        say(f"snn-dfa: {error}", sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        say("snn-dfa: not enough memory; choose a smaller --hidden, --batch-size or --steps",
            sys.stderr)  # fmt: skip
        return 2
    except BrokenPipeError:  # what reads the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stop:
        left = str(stop) or "what was finished by then is in --out"
        say(f"snn-dfa: interrupted; {left}", sys.stderr)
        return 130
    return 0
