"""What several tests of sequences start from."""

import pytest

from snn_dfa.sequence.scan import cpu


@pytest.fixture
def in_torch(monkeypatch):
    """The plain implementation; that the compiled one equals it has tests of its own."""
    monkeypatch.setattr(cpu, "available", lambda *_: False)
