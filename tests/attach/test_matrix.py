"""Every pair of network and machinery works or is refused, as the documentation's page says."""

import matrix
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said():
    """The page's word on each pair, and the reasons that it gives."""
    return matrix.read(matrix.PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("machinery", matrix.MACHINERY)
@pytest.mark.parametrize("network", matrix.NETWORKS)
def test_pair(network, machinery, said):
    assert matrix.in_general(matrix.outcome(network, machinery)) == said[network, machinery]


def test_the_page_has_no_other_pairs(said):
    assert set(said) == {(n, m) for n in matrix.NETWORKS for m in matrix.MACHINERY}
