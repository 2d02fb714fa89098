"""Short runs of the command line, and trainings that are cut."""

import pytest

from snn_dfa.experiments.cli import main
from snn_dfa.experiments.settings import Settings

TINY = ["train", "--hidden", "12", "--steps", "3", "--epochs", "2", "--batch-size", "256"]


SETTINGS = Settings(hidden=(12,), steps=3, epochs=2, batch_size=256, dropout=0.2)


def run(*args):
    return main([str(a) for a in args])


class Cut(Exception):
    """The end of a life."""


def cut_at(trainer, batch, diagnosed=False):
    """Train up to a batch of the run; return the state that is saved there."""

    def after_batch():
        if trainer.behind == batch:
            raise Cut

    with pytest.raises(Cut):
        list(trainer.fit(after_batch, diagnosed=diagnosed))
    return trainer.state_dict()
