"""Spent bases and newer rosters that a member meets at the cohort."""

from __future__ import annotations

import pytest
from tests.protocol.support.faults import is_forgotten
from tests.protocol.support.sessions import identity_of, make_plan, make_roster

from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.errors import (
    RosterError,
    SpentError,
)
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.phases import ClientState


def machine_for(index: int, recorded: tuple[str, ...] = (), release: Release | None = None, n: int = 5) -> Participant:
    roster = make_roster(n)
    return Participant(
        identity=identity_of(index),
        member_id=f"site-{index}",
        roster=roster,
        plan=make_plan(roster),
        floor=roster.n_min,
        recorded_u3=recorded,
        release=release,
    )


def test_a_spent_member_takes_part_with_the_same_survivors_only() -> None:
    recorded = ("site-0", "site-1", "site-2")
    for size, allowed in ((3, True), (4, False), (5, False)):
        machines = [machine_for(0, recorded), *(machine_for(index) for index in range(1, size))]
        joins = [machine.join(1) for machine in machines]
        assert joins[0].parse().recorded_u3 == recorded
        if allowed:
            machines[0].receive_cohort(joins)
            continue
        with pytest.raises(SpentError):
            machines[0].receive_cohort(joins)
        assert is_forgotten(machines[0])


def test_a_release_names_the_new_survivors() -> None:
    old, new = ("site-0", "site-1", "site-2"), ("site-0", "site-1", "site-3")
    release = Release(b"\x07" * 32, "part", old, new)
    machines = [machine_for(0, old, release), machine_for(1, old, release), machine_for(3)]
    machines[0].receive_cohort([machine.join(1) for machine in machines])
    left_out = machine_for(2, old, release)
    with pytest.raises(SpentError, match="sits out"):
        left_out.join(1)


@pytest.mark.parametrize("seen", ["before-join", "joined", "shared"])
@pytest.mark.parametrize(("n", "c_max", "n_min"), [(4, 0, 3), (5, 1, 3)], ids=["member-removed", "c_max-raised"])
def test_a_newer_roster_ends_the_session_whenever_it_is_seen(seen: str, n: int, c_max: int, n_min: int) -> None:
    newer = make_roster(n, c_max, n_min, version=2)
    machines = [machine_for(index) for index in range(5)]
    machine = machines[0]

    def whole() -> None:
        if seen == "before-join":
            machine.check_newer_roster(newer)
        joins = [each.join(1) for each in machines]
        if seen == "joined":
            machine.check_newer_roster(newer)
        machine.receive_cohort(joins)
        if seen == "shared":
            machine.check_newer_roster(newer)

    with pytest.raises(RosterError, match="version 2"):
        whole()
    assert is_forgotten(machine)


def test_a_newer_roster_that_only_adds_members_ends_nothing() -> None:
    machines = [machine_for(index) for index in range(5)]
    joins = [machine.join(1) for machine in machines]
    machines[0].check_newer_roster(make_roster(7, version=2))
    machines[0].receive_cohort(joins)
    assert machines[0].state is ClientState.SHARED
