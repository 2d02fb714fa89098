"""What a report says of an experiment besides its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from snn_dfa.experiments.recipes import ENVIRONMENT_FIELDS, RECIPES
from snn_dfa.experiments.settings import Settings, option, shown

__all__ = ["MEANINGS", "Description", "Setting", "of_recipe"]

#: What the names of rules mean.
MEANINGS = {
    "bptt": "back-propagation through time: the exact gradient, but for the surrogate",
    "dfa": "direct feedback alignment: each hidden layer gets the output's error through a matrix "
    "of its own",
    "sign": "as dfa, with the sign of the error (sDFA)",
    "target": "as dfa, with the targets in place of the error (DRTP)",
    "local": "each hidden layer gets the error of a fixed readout of its own",
    "fa": "feedback alignment: errors go from layer to layer through random matrices",
    "shallow": "the output layer learns alone; hidden layers keep their first weights",
}
#: Which weights were tested, by ``--keep``.
_EPOCHS = {"best": "epoch that was best on the validation part", "last": "last epoch"}


@dataclass(frozen=True)
class Setting:
    """A setting as a line of the report.

    Args:
        name: As the user writes it.
        value: As text.
        usual: What it would be without the user's word.
        help: What it is.
    """

    name: str
    value: str
    usual: str
    help: str = ""


@dataclass(frozen=True)
class Description:
    """What was trained on what, for a report.

    Args:
        title: Of the page.
        name: Of the recipe or of the network's class.
        about: A sentence on that.
        device: Where it ran.
        keep: Which weights were tested: of the ``"best"`` or of the ``"last"`` epoch.
        settings: For ``metrics.json``.
        listed: For the page.
        usual: What the usual values are those of.
        command: What was called to make the results.
    """

    title: str
    name: str
    about: str
    device: str
    keep: str
    settings: Mapping[str, Any]
    listed: Sequence[Setting]
    usual: str
    command: str = ""

    @property
    def weights(self) -> str:
        """Of which epoch the weights are that were tested."""
        return _EPOCHS[self.keep]


def of_recipe(recipe: str, settings: Settings, command: str = "") -> Description:
    """Describe an experiment of the command line."""
    usual = RECIPES[recipe].settings
    listed = [
        Setting(
            option(each, getattr(settings, each.name)),
            _text(getattr(settings, each.name)),
            _text(getattr(usual, each.name)),
            each.metadata["help"],
        )
        for each in fields(Settings)
        if each.name not in ENVIRONMENT_FIELDS
    ]
    return Description(
        title=f"{recipe} on {settings.dataset}",
        name=f"Recipe {recipe}",
        about=RECIPES[recipe].about,
        device=settings.device,
        keep=settings.keep,
        settings={"recipe": recipe, "settings": settings.as_dict()},
        listed=listed,
        usual=f"recipe {recipe}",
        command=command,
    )


def _text(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else shown(value) or "-"
