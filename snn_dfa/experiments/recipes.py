"""Recipes: whole experiments by name, as data."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from snn_dfa.experiments.settings import Settings, option, shown

__all__ = [
    "DEFAULT",
    "ENVIRONMENT_FIELDS",
    "RECIPES",
    "Recipe",
    "default_for",
    "describe",
    "epochs_for",
    "fitted",
]


@dataclass(frozen=True)
class Recipe:
    """A network, how it is driven and how it learns; what it is for in a line.

    On a small training part the epochs are as many as make ``least_updates`` of the weights.
    """

    about: str
    settings: Settings = field(default_factory=Settings)
    least_updates: int = 1000


# Fixed random matrices, as in Nøkland 2016.
_FIXED: dict[str, Any] = {"feedback": "gaussian", "feedback_decay": 0.0, "error_at": "spikes"}
_RECORDED: dict[str, Any] = {
    "encoding": "events",
    "input_dropout": 0.0,
    "drop_to": "zero",
    "weight_decay": 0.0,
    "validation": 0.1,
    "lr": 1e-3,
    "epochs": 50,
    "batch_size": 64,
    **_FIXED,
}
_ZHANG: dict[str, Any] = {
    "hidden": (1000,),
    "normalize": False,
    "weights": "zhang",
    "biases": (0.8,),
    "neuron": "refractory",
    "threshold": (0.4,),
    "spike_size": 4.0,  # as long as the refractory period: A.6 to A.8 hold for such spikes
    "steps": 400,
    "run_in": 80,
    "temperature": 10.0,  # at 1 an output may fall silent for good under the exact slope
    "epochs": 20,
    "batch_size": 100,
    "optimizer": "sgd",
    "lr": 1000.0,
    "per_input": True,
    "schedule": "step",
    "lr_decay": 1.0,
    **_FIXED,
    "feedback": "zhang",
    "credit": "current",
    "input_dropout": 0.0,
    "weight_decay": 0.0,
    "validation": 0.1,
}

#: The name of a recipe on the command line to the recipe; options override its settings.
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "deep": Recipe("three hidden layers under DFA, the default"),
        "small": Recipe(
            "three small hidden layers on Poisson spikes, the default for the digits",
            Settings(
                hidden=(256, 128, 64),
                beta=0.4,
                slope=10.0,
                encoding="poisson",
                steps=25,
                temperature=2.0,
                input_dropout=0.0,
                weight_decay=0.0,
                validation=0.1,
                epochs=30,
                batch_size=32,
                schedule="step",
                **_FIXED,
            ),
        ),
        "wide": Recipe("one hidden layer of 1000", Settings(hidden=(1000,))),
        "conv": Recipe(
            "a small convolutional network, as in snnTorch's sixth tutorial",
            Settings(
                hidden=("12c5", "mp2", "64c5", "mp2"),
                steps=8,
                input_dropout=0.15,
                epochs=12,
                weight_decay=0.2,
                feedback_decay=0.2,  # of feedback that follows no optimiser: as the weights have it
            ),
        ),
        "vgg": Recipe(
            "six convolutions on images of three colours, moved and mirrored at random, the "
            "default for CIFAR-10 and CIFAR-100",
            Settings(
                hidden=("64c3", "64c3", "mp2", "128c3", "128c3", "mp2", "256c3", "256c3", "mp2"),
                slope=2.0,
                steps=4,
                readout="current",  # counts of four steps are too coarse
                temperature=2.8,
                lr=6e-3,
                shift=4,
                flip=True,
                input_dropout=0.0,
                weight_decay=0.2,
            ),
        ),
        "events": Recipe(
            "one hidden layer on the events of a camera, the default for N-MNIST",
            Settings(
                hidden=(400,),
                encoding="events",
                steps=20,
                beta=0.8,
                temperature=1.4,
                shift=2,
                input_dropout=0.3,
                drop_to="zero",
                epochs=60,
                keep="last",  # of 1,100 recordings too few are held back to choose an epoch by
                batch_size=32,
            ),
        ),
        "shd": Recipe(
            "two recurrent hidden layers on spoken digits, the default for SHD and SSC; not tuned",
            Settings(hidden=(100, 100), neuron="recurrent", steps=100, beta=0.95, **_RECORDED),
        ),
        "gesture": Recipe(
            "five convolutions and two dense layers, the default for DVS-Gesture; not tuned",
            Settings(
                hidden=("128c3", "mp2") * 5 + (512,),
                steps=16,
                beta=0.5,
                **{**_RECORDED, "batch_size": 16, "shift": 4},
            ),
        ),
        "objects": Recipe(
            "three convolutions on events at a quarter of the size, the default for N-Caltech101; "
            "not tuned",
            Settings(
                hidden=("64c3", "mp2", "128c3", "mp2", "256c3", "mp2", 512),
                steps=10,
                downsample=4,
                beta=0.5,
                **{**_RECORDED, "shift": 2},
            ),
        ),
        "zhang2024": Recipe(
            "Zhang et al. 2024, arXiv 2409.07776: DFA with the exact surrogate",
            Settings(**_ZHANG, surrogate="exact"),
            least_updates=0,
        ),
        "zhang2024-augmented": Recipe(
            "the same with an arbitrary slope in place of the exact one: augmented DFA",
            # The exact slope far from the threshold, and as much below it; eight times as high.
            Settings(**{**_ZHANG, "lr": 125.0}, surrogate="fast-sigmoid", slope=0.125),
            least_updates=0,
        ),
        "notebook": Recipe(
            "the first implementation by hand, to the letter, as long as its record: at chance",
            Settings(
                normalize=False,
                weights="xavier",
                biases=(0.5, 0.5, 0.5, 1.0),
                neuron="refractory",
                threshold=(0.05, 0.02, 0.01, 0.15),
                encoding="poisson",
                steps=25,
                max_rate=0.8,
                input_dropout=0.0,
                weight_decay=0.0,
                validation=0.1,
                slope=10.0,
                loss="share",
                temperature=0.5,
                epochs=4,  # those of its record; it was to have 50, and learns from the 16th on
                batch_size=128,
                optimizer="sgd",
                lr=0.1,
                schedule="step",
                lr_decay=0.95,
                decay_every=10,
                **_FIXED,
                feedback_std=0.0338,
                credit="current",
            ),
            least_updates=0,
        ),
    }
)
DEFAULT = "deep"
ENVIRONMENT_FIELDS = ("dataset", "data_root", "seed", "device")  # no part of a recipe


def default_for(dataset: str) -> str:
    """Return the name of the recipe that a data set gets where none is asked for."""
    return {
        "digits": "small", "cifar10": "vgg", "cifar100": "vgg",
        "nmnist": "events", "shd": "shd", "ssc": "shd",
        "dvs-gesture": "gesture", "ncaltech101": "objects",
    }.get(dataset, DEFAULT)  # fmt: skip


def epochs_for(name: str, settings: Settings, samples: int) -> int:
    """Return a recipe's epochs for settings made of it and so many training samples.

    Example:
        >>> epochs_for("conv", RECIPES["conv"].settings, 57_000)
        12
        >>> epochs_for("conv", RECIPES["conv"].settings, 1_280)  # ten batches
        100
    """
    batches = -(-samples // settings.batch_size)
    return max(settings.epochs, -(-RECIPES[name].least_updates // batches))


def fitted(
    name: str,
    settings: Settings,
    samples: int,
    image: tuple[int, ...],
    given: Container[str] = (),
) -> Settings:
    """Return settings made of a recipe with what it has for such data and such a network.

    Samples that are no images lose no features: an image's neighbouring pixels tell what a dropped
    one was, other features have no neighbours.

    Args:
        name: Of the recipe.
        settings: Made of it.
        samples: Of the training part.
        image: Channels, height and width of a sample; a height of one for [S, features].
        given: Names of settings that were asked for, and stay.

    Example:
        >>> letters = fitted("deep", RECIPES["deep"].settings, 15_000, (1, 1, 16))
        >>> letters.epochs, letters.input_dropout
        (40, 0.0)
    """
    fitting: dict[str, Any] = {"epochs": epochs_for(name, settings, samples)}
    if image[1] == 1:
        fitting["input_dropout"] = 0.0
    return replace(settings, **{k: v for k, v in fitting.items() if k not in given})


def describe(name: str) -> str:
    """Return a recipe as options: the default one whole, of another what differs from that."""
    recipe = RECIPES[name]
    lines = [f"{name}: {recipe.about}"]
    for each in fields(Settings):
        value = getattr(recipe.settings, each.name)
        if each.name in ENVIRONMENT_FIELDS or value in ((), ""):
            continue
        if name == DEFAULT or value != each.default:
            lines.append(f"    {option(each, value)} {shown(value)}".rstrip())
            if each.name == "epochs" and recipe.least_updates:
                lines[-1] += f"  # or more, to {recipe.least_updates} updates"
            if each.name == "input_dropout" and value:
                lines[-1] += "  # of images; features of other samples are kept"
    return "\n".join(lines)
