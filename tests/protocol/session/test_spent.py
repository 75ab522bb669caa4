"""Which sums a base model may still be in, and how a release changes that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.protocol.support.faults import ANY_UNMASK
from tests.protocol.support.sessions import (
    Session,
    make_participants,
    make_plan,
    make_roster,
)

from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.errors import (
    ReleaseError,
    SpentError,
)
from fedddpm_protocol.session.spent import SpentLog, SpentRecord, check_spent, usable_release

BASE, OLD, NEW = b"\x07" * 32, ("a", "b", "c"), ("a", "b", "d")


def record(u3: tuple[str, ...], release: Release | None = None, base: bytes = BASE, part: str = "part") -> SpentRecord:
    return SpentRecord(base, part, u3, bytes(32), ANY_UNMASK, release)


def test_one_base_and_part_is_summed_over_one_set() -> None:
    log = SpentLog([record(OLD)])
    log.commit(record(OLD))
    for other in (NEW, OLD[:2], (*OLD, "d")):
        with pytest.raises(SpentError):
            log.commit(record(other))
    log.commit(record(NEW, base=b"\x08" * 32))
    log.commit(record(NEW, part="decoder"))
    assert log.recorded(BASE, "part") == OLD


def test_only_the_convicted_may_be_missing() -> None:
    log = SpentLog([record((*OLD, "d"))])
    with pytest.raises(SpentError):
        log.commit(record(OLD))
    log.convict(BASE, "decoder", "d")  # of another part: changes nothing here
    with pytest.raises(SpentError):
        log.commit(record(OLD))
    log.convict(BASE, "part", "d")
    assert log.recorded(BASE, "part") == OLD
    for other in (OLD[:2], ("a", "b", "d"), (*OLD, "e"), (*OLD, "d", "e")):
        with pytest.raises(SpentError):
            log.commit(record(other))
    log.commit(record((*OLD, "d")))  # as before the conviction
    log.commit(record(OLD))
    with pytest.raises(SpentError):
        log.commit(record((*OLD, "d")))  # nobody comes back into a smaller sum


def test_a_release_may_start_with_or_without_the_convicted() -> None:
    for start in (OLD, ("a", "b")):
        release = Release(BASE, "part", start, NEW)
        log = SpentLog([record(OLD)])
        roster = replace(make_roster(5), releases=(release,))
        assert (log.release(roster, BASE, "part") == release) is (start == OLD)
        log.convict(BASE, "part", "c")
        assert log.release(roster, BASE, "part") == release
        log.commit(record(NEW, release))


def test_a_release_is_used_once() -> None:
    release = Release(BASE, "part", OLD, NEW)
    log = SpentLog([record(OLD)])
    roster = replace(make_roster(5), releases=(release,))
    assert log.release(roster, BASE, "part") == release
    log.commit(record(NEW, release))
    assert log.recorded(BASE, "part") == NEW
    assert log.release(roster, BASE, "part") is None
    with pytest.raises(ReleaseError, match="already used"):
        log.commit(record(NEW, release))
    with pytest.raises(SpentError):
        log.commit(record(OLD))
    back = Release(BASE, "part", NEW, OLD)
    log.commit(record(OLD, back))
    assert log.release(roster, BASE, "part") is None  # the first release stays used when its start comes round again
    with pytest.raises(ReleaseError):
        log.commit(record(NEW, release))


@pytest.mark.parametrize(
    ("release", "u3", "recorded"),
    [
        (Release(BASE, "part", OLD, NEW), ("a", "d", "e"), OLD),
        (Release(BASE, "part", OLD, NEW), OLD, OLD),
        (Release(BASE, "part", OLD, NEW), NEW, ("a", "b", "e")),
        (Release(BASE, "part", OLD, NEW), NEW, ()),
        (Release(b"\x08" * 32, "part", OLD, NEW), NEW, OLD),
        (Release(BASE, "decoder", OLD, NEW), NEW, OLD),
    ],
    ids=["other-new", "same", "other-old", "unspent", "other-base", "other-part"],
)
def test_a_release_for_something_else(release: Release, u3: tuple[str, ...], recorded: tuple[str, ...]) -> None:
    with pytest.raises(ReleaseError):
        check_spent(recorded, set(), record(u3, release))
    roster = replace(make_roster(5), releases=(release,))
    if recorded != OLD or (release.base_model_hash, release.part) != (BASE, "part"):
        assert usable_release(recorded, roster, BASE, "part", set()) is None


def test_an_unknown_release_is_not_found() -> None:
    assert usable_release(OLD, make_roster(5), BASE, "part", set()) is None
    assert not make_roster(5).releases_pair(BASE, "part", OLD, NEW)
    released = replace(make_roster(5), releases=(Release(BASE, "part", OLD, NEW),))
    assert released.releases_pair(BASE, "part", OLD, NEW)
    assert not released.releases_pair(BASE, "part", NEW, OLD)


def test_a_second_session_with_other_survivors_ends_before_anything_is_shared() -> None:
    roster = make_roster(4)
    logs = {member: SpentLog() for member in roster.ids}
    Session(roster, make_plan(roster), make_participants(roster, make_plan(roster), logs), logs=logs).run()
    retry = make_plan(roster, attempt=1, reporters=roster.ids[:3])
    machines = make_participants(roster, retry, logs)
    del machines["site-3"]
    joins = [machine.join(2) for machine in machines.values()]
    for machine in machines.values():
        with pytest.raises(SpentError):
            machine.receive_cohort(joins)
