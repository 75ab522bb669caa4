"""All drop patterns of small cohorts: the opened sum is the survivors' integer sum, or the session fails cleanly."""

from __future__ import annotations

import itertools

import pytest
from tests.protocol.support.sessions import SEGMENTS, Session, expected_sum, make_participants, make_plan, make_roster

from fedddpm_protocol.errors import CohortTooSmallError, CommitmentError

STAYS, BEFORE_UPLOAD, BEFORE_UNMASK = "unmask", "shares", "confirm"
CONFIGURATIONS = [(2, 0, 2), (3, 0, 3), (4, 0, 3), (4, 1, 3), (5, 1, 3), (5, 2, 4)]
LONG = [pytest.param(*numbers, marks=pytest.mark.soak) for numbers in ((6, 1, 3), (6, 2, 4))]  # a minute together


def must_open(n: int, c_max: int, n_min: int, pattern: tuple[str, ...]) -> bool:
    """The protocol's own promise: enough uploads, and enough survivors that answer."""
    quorum = max((n + c_max) // 2 + 1, n_min)
    return n - pattern.count(BEFORE_UPLOAD) >= quorum and pattern.count(STAYS) >= (n + c_max) // 2 + 1


@pytest.mark.parametrize(("n", "c_max", "n_min"), [*CONFIGURATIONS, *LONG])
def test_every_pattern(n: int, c_max: int, n_min: int) -> None:
    roster = make_roster(n, c_max, n_min)
    plan = make_plan(roster)
    opened = failed = 0
    for pattern in itertools.product((STAYS, BEFORE_UPLOAD, BEFORE_UNMASK), repeat=n):
        drops = {member: step for member, step in zip(roster.ids, pattern, strict=True) if step != STAYS}
        participants = make_participants(roster, plan)
        session = Session(roster, plan, participants, drops=drops)
        survivors = tuple(member for member in roster.ids if drops.get(member) != BEFORE_UPLOAD)
        if not must_open(n, c_max, n_min, pattern):
            with pytest.raises((CohortTooSmallError, CommitmentError)):
                session.run()
            failed += 1
            continue
        outcome = session.run()
        assert outcome.survivors == survivors
        for segment in SEGMENTS:
            assert [int(word) for word in outcome.opened[segment.name]] == expected_sum(survivors, segment)
        opened += 1
    assert opened + failed == 3**n
    assert opened
    assert failed


@pytest.mark.parametrize("late", range(5))
def test_drop_before_shares(late: int) -> None:
    """A member of U1 that never shares is in no mask at all."""
    roster = make_roster(5, 1)
    plan = make_plan(roster)
    session = Session(roster, plan, make_participants(roster, plan), drops={f"site-{late}": "join"})
    outcome = session.run()
    assert outcome.survivors == tuple(member for member in roster.ids if member != f"site-{late}")
    for segment in SEGMENTS:
        assert [int(word) for word in outcome.opened[segment.name]] == expected_sum(outcome.survivors, segment)
