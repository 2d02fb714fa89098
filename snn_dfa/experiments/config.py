"""Experiments as files: YAML in, settings out, and the file that repeats a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import yaml

from snn_dfa.experiments.arguments import layers, numbers, one_or_more, rule, rules
from snn_dfa.experiments.files import on_one_line
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.settings import Settings, UsageError

__all__ = ["NAME", "as_yaml", "read"]

#: Of the file that each run writes into its folder.
NAME = "experiment.yaml"


def as_yaml(command: str, said: Mapping[str, Any], settings: Settings) -> str:
    """Return the text of the file that repeats a run.

    Args:
        command: ``compare`` or ``train``.
        said: Its options beside the settings: recipe, rules, seeds, diagnose.
        settings: All of them, so that a later version's recipe changes nothing.
    """
    text = yaml.safe_dump(
        {"command": command, **said, "settings": settings.as_dict()}, sort_keys=False
    )
    return f"# snn-dfa {command} --config {NAME} repeats this run.\n{text}"


def read(path: Path, command: str) -> dict[str, Any]:
    """Return the options that a file gives, by the names that the parser has for them.

    Raises:
        UsageError: if the file is not there, is no such file, or has a name or value that is none.
    """
    found = _loaded(path)
    given = {**found, **_mapping(found.pop("settings", {}), path, "settings")}
    given.pop("settings", None)
    of = given.pop("command", command)
    if of != command:
        raise UsageError(
            f"--config: {path} is of snn-dfa {of}, not {command}; run snn-dfa {of} --config {path}"
        )
    known = _known(command)
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise UsageError(
            f"--config: expected names of options of snn-dfa {command} in {path}, got {unknown!r}"
        )
    return {name: _made(path, name, value, known[name]) for name, value in given.items()}


def _loaded(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"--config: expected a readable YAML file at {path} ({on_one_line(error)})"
        ) from error
    return _mapping(found, path, "the file")


def _mapping(found: Any, path: Path, what: str) -> dict[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(
            f"--config: expected names and values (NAME: VALUE) as {what} in {path}, got "
            f"{on_one_line(ValueError(repr(found)), 60)}"
        )
    return dict(found)


Kind = Callable[[Any], Any]


def _known(command: str) -> dict[str, Kind]:
    """Return name to what makes a value of YAML the option's."""
    own: dict[str, Kind] = {"recipe": _recipe, "diagnose": _flag}
    if command == "compare":
        own |= {"rules": lambda v: rules(_text(v)), "seeds": lambda v: one_or_more(_text(v))}
        own["freeze_blocks"] = _flag
    else:
        own["rule"] = lambda v: rule(_text(v))
    return {**own, **{field.name: _kind(field) for field in fields(Settings)}}


def _kind(field: Field[Any]) -> Kind:
    if isinstance(field.default, tuple):
        parse = layers if field.name == "hidden" else numbers
        return lambda value: parse(_text(value))
    if isinstance(field.default, bool):
        return _flag
    if isinstance(field.default, str):
        return _string
    return type(field.default) if isinstance(field.default, float) else _whole


def _made(path: Path, name: str, value: Any, kind: Kind) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        reason = f" ({error})" if str(error).startswith("expected") else ""
        raise UsageError(
            f"--config: expected a value that --{name.replace('_', '-')} takes in {path}, got "
            f"{value!r}{reason}"
        ) from error


def _text(value: Any) -> str:
    """Return a list as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("expected a whole number")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def _recipe(value: Any) -> str:
    if value not in RECIPES:
        raise ValueError(f"expected one of {', '.join(RECIPES)}")
    return str(value)
