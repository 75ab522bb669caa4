"""Fixtures of the tests of sessions."""

from __future__ import annotations

import pytest
from tests.protocol.test_vectors import CASES, Replay


@pytest.fixture
def replay() -> Replay:
    """Five members of the known answers: U1 has five, U2 four, U3 three; t = 3."""
    return Replay(CASES[1])
