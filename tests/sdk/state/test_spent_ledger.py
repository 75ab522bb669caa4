"""SPENT records: durable before anything is sent, and never two different answers."""

import pytest

from fedddpm.errors import StateError
from fedddpm.state.folder import StateFolder
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm_protocol.agreement.roster import Member, Release, Roster
from fedddpm_protocol.errors import ConflictError, ReleaseError, SpentError
from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.spent import SpentRecord
from fedddpm_protocol.wire.messages import Unmask

BASE, PART, SPEC = b"b" * 32, "decoder", b"s" * 32
U3, OTHER = ("a", "b", "c"), ("a", "b", "d")
RELEASE = Release(BASE, PART, U3, OTHER)


def roster(*releases):
    members = tuple(Member(name, SigningKey.generate().public_key) for name in "abcd")
    return Roster("fed", 2, 0, 3, SigningKey.generate().public_key, members, releases)


def record(u3=U3, session=b"1" * 32, body=b"unmask", release=None, base=BASE):
    return SpentRecord(base, PART, u3, session, Unmask(id="a", body=body, signature=bytes(64)), release)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def open_state(folder, root=b"r" * 32):
    return StateFolder(folder, root, "a")


def test_the_answer_is_owed_until_it_is_acknowledged_even_after_a_restart(folder):
    with open_state(folder) as state:
        SpentLedger(state).commit(SPEC, record())
    with open_state(folder) as state:
        ledger = SpentLedger(state)
        (owed,) = ledger.owed()
        assert (owed.spec_hash, owed.part, owed.unmask) == (SPEC, PART, record().unmask)
        assert ledger.recorded(BASE, PART) == U3
        ledger.acknowledge(owed)
    with open_state(folder) as state:
        assert SpentLedger(state).owed() == []
        assert SpentLedger(state).recorded(BASE, PART) == U3


def test_a_second_sum_over_other_survivors_is_refused_for_ever(folder):
    with open_state(folder) as state:
        SpentLedger(state).commit(SPEC, record())
    with open_state(folder) as state:
        ledger = SpentLedger(state)
        with pytest.raises(SpentError):
            ledger.commit(b"t" * 32, record(OTHER, b"2" * 32))
        assert ledger.owed()[0].unmask == record().unmask  # the refusal changed nothing
        ledger.commit(b"t" * 32, record(U3, b"2" * 32, b"other keys"))  # same survivors, another session
        assert ledger.owed()[0].spec_hash == b"t" * 32
        ledger.commit(SPEC, record(OTHER, b"3" * 32, base=b"c" * 32))  # another base model is free


def test_one_session_has_one_answer(folder):
    with open_state(folder) as state:
        ledger = SpentLedger(state)
        ledger.commit(SPEC, record())
        ledger.commit(SPEC, record())
        with pytest.raises(ConflictError):
            ledger.commit(SPEC, record(body=b"another"))
        assert ledger.owed()[0].unmask == record().unmask


def test_a_release_of_the_root_works_once(folder):
    with open_state(folder) as state:
        ledger = SpentLedger(state)
        assert ledger.release(roster(RELEASE), BASE, PART) is None  # nothing was spent yet
        ledger.commit(SPEC, record())
        assert ledger.release(roster(), BASE, PART) is None
        assert ledger.release(roster(RELEASE), BASE, PART) == RELEASE
        with pytest.raises(ReleaseError):
            ledger.commit(SPEC, record(("b", "c", "d"), b"2" * 32, release=RELEASE))
        ledger.commit(SPEC, record(OTHER, b"2" * 32, release=RELEASE))
    with open_state(folder) as state:
        ledger = SpentLedger(state)
        assert ledger.recorded(BASE, PART) == OTHER
        back = Release(BASE, PART, OTHER, U3)
        ledger.commit(SPEC, record(U3, b"3" * 32, release=back))
        assert ledger.release(roster(RELEASE), BASE, PART) is None  # used, although it fits again
        with pytest.raises(ReleaseError):
            ledger.commit(SPEC, record(OTHER, b"4" * 32, release=RELEASE))


def test_nothing_is_recorded_when_the_disk_is_full(folder):
    with open_state(folder) as state:
        ledger = SpentLedger(state)
        with state.transaction() as db:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StateError, match="disk is full"):
            ledger.commit(SPEC, record(body=bytes(24_000)))
        assert ledger.recorded(BASE, PART) == ()
        assert ledger.owed() == []
