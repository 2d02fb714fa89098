"""What a linear reader of event counts reaches on N-MNIST: the figure to stand beside.

    python benchmarks/ridge.py --data-root DIR --folds 5 --json ridge.json

Ridge regression on the number of events of each pixel and polarity, on the folds that
``snn-dfa compare --dataset nmnist --folds 5 --seeds 5`` tests on. The penalty is chosen inside the
training part, by generalised cross-validation; for what it is worth, the best penalty on the test
part itself is printed beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

from snn_dfa.experiments.data import Part, load
from snn_dfa.experiments.recipes import RECIPES
from snn_dfa.experiments.settings import Settings

PENALTIES = np.logspace(0, 6, 13)
_STEPS = 340  # of a millisecond, in which a pixel rarely sees a second event of a polarity


def counts(part: Part) -> np.ndarray:
    """Return the events of each pixel and polarity, [S, 2312]."""
    return part.x.sum(1).flatten(1).double().numpy()


def accuracies(settings: Settings) -> tuple[float, float, float]:
    """Return accuracy on the test part, the penalty chosen, and the best of any penalty there."""
    data = load(settings)
    x = np.concatenate([counts(data.train), counts(data.val)])
    y = np.concatenate([data.train.y.numpy(), data.val.y.numpy()])
    test_x, test_y = counts(data.test), data.test.y.numpy()
    chosen = RidgeClassifierCV(PENALTIES).fit(x, y)
    best = max(RidgeClassifier(a).fit(x, y).score(test_x, test_y) for a in PENALTIES)
    return chosen.score(test_x, test_y), chosen.alpha_, best


def main() -> None:
    """Print a line for each fold, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--folds", type=int, default=5, help="0: the given split; default 5")
    parser.add_argument("--json", type=Path, help="write the folds into this file")
    args = parser.parse_args()
    settings = replace(
        RECIPES["events"].settings,
        dataset="nmnist",
        data_root=args.data_root,
        steps=_STEPS,
        folds=args.folds,
    )
    rows = []
    for fold in range(max(args.folds, 1)):
        found, penalty, best = accuracies(replace(settings, seed=fold))
        rows.append((found, best))
        print(f"fold {fold}: {found:.2%} with penalty {penalty:g}; the best of all {best:.2%}")
    if args.json:
        folds = [round(100 * found, 2) for found, _ in rows]
        args.json.write_text(json.dumps({"accuracy": {"ridge": folds}}) + "\n")
    found, best = (fmean(column) for column in zip(*rows, strict=True))
    print(f"mean: {found:.2%}; with the best penalty of each fold {best:.2%}")


if __name__ == "__main__":
    main()
