"""The aggregator's choice of a cohort, above all around members that are spent on this base model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.support.sessions import identity_of, make_plan, make_roster
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.methods import Method, assign_parts
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import CohortTooSmallError, DuplicateError, MalformedError, SignatureError, SpecError
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.session.coordinator import form_cohort
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.messages import Join


def ids(*indices: int) -> tuple[str, ...]:
    return tuple(f"site-{index}" for index in sorted(indices))


def join_of(roster: Roster, index: int, recorded: tuple[str, ...] = (), seq: int = 1) -> Join:
    return Participant(
        identity=identity_of(index),
        member_id=f"site-{index}",
        roster=roster,
        plan=make_plan(roster),
        floor=roster.n_min,
        recorded_u3=recorded,
    ).join(seq)


def cohort_of(roster: Roster, recorded: dict[int, tuple[int, ...]]) -> tuple[str, ...]:
    joins = [join_of(roster, index, ids(*u3)) for index, u3 in recorded.items()]
    formed = {form_cohort(make_plan(roster), roster, order).ids for order in (joins, joins[::-1])}
    assert len(formed) == 1  # the order of arrival decides nothing
    return formed.pop()


FRESH: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ({0: FRESH, 1: FRESH, 2: FRESH}, ids(0, 1, 2)),
        # A spent member whose set cannot be met is left out.
        ({0: FRESH, 1: FRESH, 2: FRESH, 3: (3, 4, 5)}, ids(0, 1, 2)),
        ({0: (0, 1, 2), 1: FRESH, 2: FRESH}, ids(0, 1, 2)),
        # All of a recorded set are there: exactly they, spent or not.
        ({0: (0, 1, 2), 1: (0, 1, 2), 2: (0, 1, 2)}, ids(0, 1, 2)),
        # The larger of two admissible cohorts.
        ({0: (0, 1, 2), 1: FRESH, 2: FRESH, 3: FRESH, 4: FRESH}, ids(1, 2, 3, 4)),
        ({0: (0, 1, 2, 3), 1: (0, 1, 2, 3), 2: FRESH, 3: FRESH, 4: FRESH}, ids(0, 1, 2, 3)),
        # A member of the recorded set is spent on another one: nobody can meet it.
        ({0: (0, 1, 2), 1: (1, 3, 4), 2: FRESH, 3: FRESH, 4: FRESH}, ids(2, 3, 4)),
    ],
)
def test_spent_members_join_exactly_their_own_survivors(
    recorded: dict[int, tuple[int, ...]], expected: tuple[str, ...]
) -> None:
    assert cohort_of(make_roster(6), recorded) == expected


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {0: FRESH, 1: FRESH},
        {0: (0, 1, 2), 1: (0, 1, 2), 3: FRESH, 4: FRESH},
        {0: (0, 1, 2), 1: (0, 1, 3), 2: (0, 2, 3)},
    ],
)
def test_no_admissible_cohort(recorded: dict[int, tuple[int, ...]]) -> None:
    with pytest.raises(CohortTooSmallError):
        cohort_of(make_roster(6), recorded)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), min_size=3), min_size=6, max_size=6), st.sets(st.integers(0, 5)))
def test_no_member_meets_others_than_it_recorded(wanted: list[set[int]], spent: set[int]) -> None:
    """Whatever is recorded: the cohort is the set of each spent member in it, and no admissible one is larger."""
    roster = make_roster(6)
    recorded = {i: tuple(sorted(wanted[i] | {i})) if i in spent else FRESH for i in range(6)}
    admissible = [
        group
        for size in range(3, 7)
        for group in itertools.combinations(range(6), size)
        if all(recorded[i] in (FRESH, group) for i in group) and len(group) >= roster.quorum(len(group))
    ]
    if not admissible:
        with pytest.raises(CohortTooSmallError):
            cohort_of(roster, recorded)
        return
    formed = cohort_of(roster, recorded)
    assert formed in [ids(*group) for group in admissible]
    assert len(formed) == max(len(group) for group in admissible)


def test_what_is_wrong_in_a_join_is_not_taken_for_a_small_cohort() -> None:
    roster = make_roster(4)
    joins = [join_of(roster, index) for index in range(4)]
    with pytest.raises(DuplicateError):
        form_cohort(make_plan(roster), roster, [*joins, join_of(roster, 0, seq=2)])
    with pytest.raises(SpecError):
        form_cohort(make_plan(roster, attempt=1), roster, joins)
    forged = Join(body=joins[0].body, signature=joins[1].signature)
    with pytest.raises(SignatureError):
        form_cohort(make_plan(roster), roster, [forged, *joins[1:]])
    with pytest.raises(MalformedError):
        form_cohort(make_plan(roster, largest_cohort=3), roster, joins)


def test_the_plan_of_a_part() -> None:
    roster = make_roster(8)
    spec = make_spec(roster, Method.USPLIT, weighting="disclosed", largest_cohort=8)
    reporters = assign_parts(spec.hash, roster.ids)
    for part in Method.USPLIT.sessions:
        plan = session_plan(spec, roster, part)
        assert plan.reporters == reporters[part]
        assert plan.discloses_samples
        assert plan.spec_hash == spec.hash
        assert plan.segments == spec.part(part).segments
    with pytest.raises(SpecError):
        session_plan(spec, roster, "full")
    everybody = session_plan(make_spec(roster), roster, "full")
    assert everybody.reporters == roster.ids
    assert not everybody.discloses_samples
