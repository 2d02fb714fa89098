"""Statistics of batch normalisation for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from snn_dfa.normalization import SteadyNorm

__all__ = ["batch_norms", "recalibrate_batch_norm"]


def batch_norms(net: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """Return what normalises by the batch in training and by statistics in evaluation.

    :class:`SteadyNorm` is none: it is trained with the statistics that it is evaluated with.
    """
    return [
        module
        for module in net.modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
        and not isinstance(module, SteadyNorm)
    ]


@contextmanager
def recalibrate_batch_norm(
    net: nn.Module, norms: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]
) -> Iterator[None]:
    """Take the statistics of batch normalisation anew: the mean over the passes in the block.

    The running ones lag behind the weights, by more than a network can bear where its updates are
    few. And they are of batches from which values were dropped: what is dropped and what is
    scaled up for it widens the currents, so that the neurons of a network that is evaluated, with
    nothing dropped, would get less current than they learned with. Beside normalisation the
    network is in evaluation, in the block and after it.

    Args:
        net: The network.
        norms: Of it, those whose statistics are meant.

    Source of the observation: Li et al. 2018, arXiv 1801.05134, "variance shift".
    """
    momenta = [norm.momentum for norm in norms]
    net.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.eval()
