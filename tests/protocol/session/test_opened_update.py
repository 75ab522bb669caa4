"""A member opens its update to the auditor: only its own, only as it was sent, and only the auditor reads it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from tests.protocol.support.checked import CHUNK, COORDINATES, ROOT, confirmed_sum
from tests.protocol.support.sessions import Session, identity_of, inputs_for, make_participants, make_roster
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import Auditor, Roster, open_roster, sign_roster
from fedddpm_protocol.agreement.spec import SegmentSpec
from fedddpm_protocol.errors import (
    CohortTooSmallError,
    MalformedError,
    OtherUpdateError,
    PhaseError,
    SignatureError,
    SurvivorsError,
)
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.primitives.keys import SealingKey, SigningKey
from fedddpm_protocol.session.cohort import SessionPlan, session_plan
from fedddpm_protocol.session.opened_update import open_update, seal_words, sign_paper
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.sum_proofs import SealedUpdate

KEY = SealingKey(b"\x31" * 32)
AUDITOR = Auditor("auditor", KEY.public_key)


@dataclass
class Held:
    """A confirmed sum, and what each survivor has of it."""

    session: Session
    plan: SessionPlan
    secrets: dict[str, bytes]

    def paper(self, member: str, change: Callable[[ring.Words], None] | None = None, **changes: object) -> SealedUpdate:
        """What ``member`` writes for the auditor; ``change`` lies about the words of every chunk."""
        survivors = self.session.seen["survivors"]
        words = {
            segment.name: tuple(self._sealed(member, segment, index, change) for index in range(self._chunks(segment)))
            for segment in self.plan.segments
        }
        fields = {"secrets": self.secrets[member], "words": words, **changes}
        by = identity_of(int(member.split("-")[1]))
        signature = sign_paper(survivors, member, by, fields["secrets"], fields["words"])
        confirmed = confirmed_sum(self.session, "full")
        return SealedUpdate(confirmed=confirmed, member=member, **{"signature": signature, **fields})

    def _chunks(self, segment: SegmentSpec) -> int:
        return chunk_count(segment, self.plan.chunk_coordinates)

    def _sealed(
        self, member: str, segment: SegmentSpec, index: int, change: Callable[[ring.Words], None] | None
    ) -> bytes:
        start, count = chunk_span(segment, self.plan.chunk_coordinates, index)
        words = inputs_for(member, [segment])[segment.name][start : start + count].copy()
        if change is not None:
            change(words)
        session_id = self.session.seen["survivors"].sharing.cohort.session_id
        packed = ring.pack(words, segment.bits)
        return seal_words(KEY.public_key, session_id, member, segment.name, index, packed, secrets.token_bytes)


class Sealing(Participant):
    """Seals its secrets to the auditor before it answers, as an institution does."""

    sealed: bytes = b""

    def receive_confirmations(self, *arguments, **named):  # type: ignore[no-untyped-def]
        self.sealed = self.secrets_for(KEY.public_key)
        return super().receive_confirmations(*arguments, **named)


def held(members: int = 4, drops: dict[str, str] | None = None, roster: Roster | None = None) -> Held:
    roster = roster or make_roster(members, auditors=(AUDITOR,))
    spec = make_spec(roster, Method.FULL, bits=8, coordinates=COORDINATES, chunk_coordinates=CHUNK)
    plan = session_plan(spec, roster, "full")
    session = Session(roster, plan, make_participants(roster, plan, kind=Sealing), drops=drops or {})
    session.spec = spec
    session.run()
    return Held(session, plan, {name: one.sealed for name, one in session.participants.items()})  # type: ignore[attr-defined]


@pytest.mark.parametrize("drops", [{}, {"site-3": "join"}, {"site-3": "shares"}])
def test_the_auditor_reads_what_was_sent(drops: dict[str, str]) -> None:
    one = held(5, drops)
    for member in one.session.seen["survivors"].ids:
        paper = SealedUpdate.model_validate_json(one.paper(member).model_dump_json())
        opened = open_update(paper, KEY, ROOT.public_key)
        opened.require_sent()
        for segment in one.plan.segments:
            wanted = inputs_for(member, [segment])[segment.name]
            for index in range(chunk_count(segment, CHUNK)):
                start, count = chunk_span(segment, CHUNK, index)
                assert (opened.words(segment, index) == wanted[start : start + count]).all()


def test_other_words_than_those_that_were_sent_are_found() -> None:
    one = held()

    def nudge(words: ring.Words) -> None:
        words[0] ^= 1

    with pytest.raises(OtherUpdateError, match="not those that it sent") as caught:
        open_update(one.paper("site-1", nudge), KEY, ROOT.public_key).require_sent()
    assert caught.value.blame == "site-1"


def test_secrets_of_another_member_or_session_do_not_pass() -> None:
    one, other = held(), held()
    for taken in (one.secrets["site-2"], other.secrets["site-1"], one.secrets["site-1"][:-1], b""):
        with pytest.raises(MalformedError):
            open_update(one.paper("site-1", secrets=taken), KEY, ROOT.public_key).require_sent()


def test_secrets_that_a_member_made_up_are_not_those_of_its_join() -> None:
    from fedddpm_protocol.session.session_secrets import SessionSecrets, seal_secrets

    one = held()
    session_id = one.session.seen["survivors"].sharing.cohort.session_id
    made_up = SessionSecrets(bytearray(32), bytearray(b"\x01" * 32), bytearray(b"\x02" * 32))
    sealed = seal_secrets(KEY.public_key, session_id, "site-1", made_up, secrets.token_bytes)
    with pytest.raises(MalformedError, match="not those of the member's JOIN"):
        open_update(one.paper("site-1", secrets=sealed), KEY, ROOT.public_key).require_sent()


def test_nobody_but_the_auditor_reads_anything() -> None:
    one = held()
    paper = one.paper("site-0")
    stranger = SealingKey(b"\x32" * 32)
    with pytest.raises(MalformedError, match="with another key than this one"):
        open_update(paper, stranger, ROOT.public_key)
    opened = replace(open_update(paper, KEY, ROOT.public_key), key=stranger)  # past the check of the roster
    with pytest.raises(MalformedError, match="does not open"):
        opened.require_sent()
    with pytest.raises(MalformedError, match="does not open"):
        opened.words(one.plan.segments[0], 0)


def test_a_text_opens_in_its_own_place_only() -> None:
    one = held()
    segment = one.plan.segments[0]
    paper = one.paper("site-0")
    chunks = paper.words[segment.name]
    swapped = one.paper("site-0", words={**paper.words, segment.name: (chunks[1], chunks[0], *chunks[2:])})
    with pytest.raises(MalformedError, match="does not open"):
        open_update(swapped, KEY, ROOT.public_key).words(segment, 0)
    short = one.paper("site-0", words={**paper.words, segment.name: chunks[:-1]})
    with pytest.raises(MalformedError, match="is missing"):
        open_update(short, KEY, ROOT.public_key).require_sent()


def test_nobody_frames_a_member_whose_file_it_handles() -> None:
    """Words that a stranger sealed, under the member's own secrets, prove nothing, as do those of another sum."""
    one, other = held(), held()
    honest = one.paper("site-1")

    def zero(words: ring.Words) -> None:
        words[:] = 0

    forged = [
        honest.model_copy(update={"words": one.paper("site-1", zero).words}),
        honest.model_copy(update={"secrets": one.secrets["site-2"]}),
        honest.model_copy(update={"signature": other.paper("site-1").signature}),
        honest.model_copy(
            update={"words": one.paper("site-1", zero).words, "signature": one.paper("site-2").signature}
        ),
    ]
    for paper in forged:
        with pytest.raises(SignatureError) as caught:
            open_update(paper, KEY, ROOT.public_key)
        assert not isinstance(caught.value, OtherUpdateError)
    open_update(honest, KEY, ROOT.public_key).require_sent()


def test_papers_that_do_not_hold_say_nothing_about_anybody() -> None:
    one = held(5, {"site-4": "shares"})
    paper = one.paper("site-0")
    with pytest.raises(SignatureError):
        open_update(paper, KEY, SigningKey(b"\x01" * 32).public_key)
    few = paper.confirmed.model_copy(update={"confirmations": paper.confirmed.confirmations[:1]})
    with pytest.raises(CohortTooSmallError):
        open_update(paper.model_copy(update={"confirmed": few}), KEY, ROOT.public_key)
    with pytest.raises(SurvivorsError, match="not in this sum"):
        open_update(paper.model_copy(update={"member": "site-4"}), KEY, ROOT.public_key)
    without = held(roster=make_roster(4))
    with pytest.raises(MalformedError, match="names nobody as auditor"):
        open_update(without.paper("site-0"), KEY, ROOT.public_key)


def test_secrets_are_sealed_while_there_are_any() -> None:
    roster = make_roster(3)
    spec = make_spec(roster, Method.FULL, bits=8, coordinates=COORDINATES, chunk_coordinates=CHUNK)
    machines = make_participants(roster, session_plan(spec, roster, "full"))
    with pytest.raises(PhaseError):
        machines["site-0"].secrets_for(KEY.public_key)
    done = held().session.participants["site-0"]
    with pytest.raises(PhaseError):
        done.secrets_for(KEY.public_key)


def test_a_roster_names_one_auditor_and_older_rosters_keep_their_bytes() -> None:
    plain = make_roster(3)
    assert plain.auditor is None
    with_one = make_roster(3, auditors=(AUDITOR,))
    assert with_one.auditor == AUDITOR
    assert open_roster(sign_roster(with_one, ROOT), ROOT.public_key) == with_one
    assert with_one.hash != plain.hash == make_roster(3, auditors=()).hash
    for taken in (plain.server_public_key, plain.members[0].public_key):
        with pytest.raises(ValueError, match=r"a key of its own|sealing key of auditor"):
            make_roster(3, auditors=(Auditor("auditor", taken),))
    with pytest.raises(ValueError, match="one auditor at most"):
        make_roster(3, auditors=(AUDITOR, Auditor("other", SealingKey(b"\x05" * 32).public_key)))
    for low in (bytes(32), b"\x01" + bytes(31), b"\x01"):
        with pytest.raises(ValueError, match="sealing key of auditor"):
            Auditor("auditor", low)
    assert KEY.private.hex() not in repr(KEY)
