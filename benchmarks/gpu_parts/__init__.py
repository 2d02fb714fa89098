"""The parts of ``gpu.py``."""

from collections.abc import Callable
from functools import partial

from gpu_parts import correct, speed, training
from gpu_parts.visit import Visit, allow_tf32, in_short

__all__ = ["PARTS", "Visit", "allow_tf32", "in_short"]

#: Each part and its limit in seconds, in order of worth.
PARTS: dict[str, tuple[Callable[[Visit], None], int]] = {
    "machine": (correct.machine, 30),
    "tests": (correct.tests, 90),
    "parity": (correct.parity, 60),
    "parity compiled": (correct.compiled, 90),
    "programs": (correct.programs, 90),
    "own": (speed.own, 90),
    "step dense": (partial(speed.step, network="dense"), 90),
    "step conv": (partial(speed.step, network="conv"), 90),
    "neuron": (speed.neuron, 60),
    "wide": (speed.wide, 60),
    "epoch": (training.epoch, 60),
    "graph bptt": (partial(speed.graph, rule="bptt", feedback="gaussian"), 30),
    "graph dfa": (partial(speed.graph, rule="dfa", feedback="gaussian"), 30),
    "graph dfa product": (partial(speed.graph, rule="dfa", feedback="kolen-pollack-product"), 30),
    "profile": (speed.profile, 40),
    "images": (training.images, 3600),
}
