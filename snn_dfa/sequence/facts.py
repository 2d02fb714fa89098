"""What was read off tensors: a look at one on a GPU waits until the GPU has come so far."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["Facts"]


class Facts:
    """Answers questions about tensors, and asks each only once until its tensor changes.

    A tensor on the CPU is looked at each time, as that costs nothing.

    Example:
        >>> import torch
        >>> facts = Facts()
        >>> facts.holds("threshold", torch.tensor(1.0), lambda t: bool(t > 0))
        True
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tensor, int, bool]] = {}

    def holds(self, name: str, tensor: Tensor, test: Callable[[Tensor], bool]) -> bool:
        """Return the answer of ``test``.

        Args:
            name: Of the question.
            tensor: What it is about.
            test: From the tensor to the answer.
        """
        if tensor.device.type == "cpu" or tensor.is_inference():
            return test(tensor)
        known = self._known.get(name)
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            known = self._known[name] = tensor, tensor._version, test(tensor)
        return known[2]
