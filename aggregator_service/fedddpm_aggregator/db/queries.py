"""Queries and row locks. Functions take an open database session and never commit.

Order of locks, to keep replicas from waiting for each other in a circle: attempt, then federation.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from fedddpm_aggregator.db.engine import insert_many_once, insert_once
from fedddpm_aggregator.db.tables import (
    AttemptRow,
    ChunkRow,
    EvidenceRow,
    FederationRow,
    JoinRow,
    LeaseRow,
    MessageRow,
    NonceRow,
    ResultRow,
    RosterRow,
    RunRow,
    SessionRow,
    ShareRow,
)
from fedddpm_protocol.agreement.methods import session_name
from fedddpm_protocol.wire.phases import Phase

T = TypeVar("T")
SHARES, UPLOAD, CONFIRMATION, UNMASK, ACCUSATION = "shares", "upload", "confirmation", "unmask", "accusation"
MOST_EVIDENCE = 3  # messages kept per member and step, besides the accepted one
OPEN = ("running", "stalled", "paused")  # statuses of runs that are neither finished nor ended
CHANGED, WORK, REFUSAL = "fedddpm_changed", "fedddpm_work", "fedddpm_refusal"  # notes on an open transaction


def announce_work(db: Session, attempt_id: int) -> None:
    """After the commit: an attempt has something to open or to publish."""
    db.info.setdefault(WORK, set()).add(attempt_id)


def refuse(db: Session, error: Exception) -> None:
    """Raise ``error`` after the commit, so that what was written about the refused message is kept."""
    db.info[REFUSAL] = error


def _locked(query: Select[T]) -> Select[T]:
    """Take the row's lock and read it anew, whatever was loaded before."""
    return query.with_for_update().execution_options(populate_existing=True)


# --- the federation --------------------------------------------------------------------------------------------------


def federation(db: Session, *, lock: bool = False) -> FederationRow | None:
    """The federation's row, None before init."""
    query = select(FederationRow).where(FederationRow.id == 1)
    return db.scalar(_locked(query) if lock else query)


def bump_version(db: Session) -> None:
    """Mark that institutions have something new to see; takes the federation's row lock."""
    db.execute(update(FederationRow).values(version=FederationRow.version + 1))
    db.info[CHANGED] = True


def state_version(db: Session) -> int:
    """The number that grows with every change."""
    return db.scalar(select(FederationRow.version)) or 0


def newest_roster_version(db: Session) -> int:
    """0 before the first roster."""
    return db.scalar(select(func.max(RosterRow.version))) or 0


# --- runs and attempts -----------------------------------------------------------------------------------------------


def current_run(db: Session) -> RunRow | None:
    """The run that goes on, else the newest one."""
    alive = RunRow.status.in_(OPEN)
    return db.scalar(select(RunRow).order_by(alive.desc(), RunRow.id.desc()).limit(1))


def open_runs(db: Session) -> Sequence[RunRow]:
    """Runs that are neither finished nor ended."""
    return db.scalars(select(RunRow).where(RunRow.status.in_(OPEN)).order_by(RunRow.id)).all()


def newest_charter_number(db: Session) -> int:
    """The highest number of a charter that a run was started from; 0 before the first."""
    return db.scalar(select(func.max(RunRow.charter_number))) or 0


def newest_attempt(db: Session, run_id: int, *, lock: bool = False) -> AttemptRow | None:
    """The newest attempt of a run, locked when asked; before the first one the federation is locked instead."""
    query = select(AttemptRow).where(AttemptRow.run_id == run_id).order_by(AttemptRow.id.desc()).limit(1)
    row = db.scalar(query)
    while lock:
        if row is None:
            row = _first_attempt_meanwhile(db, query)
            if row is None:
                break
        locked = attempt_by_id(db, row.id, lock=True)
        row = db.scalar(query)  # whoever held the lock may have begun the next attempt
        if row is locked:
            break
    return row


def _first_attempt_meanwhile(db: Session, query: Select[AttemptRow]) -> AttemptRow | None:
    """None under the federation's lock, so nobody begins the first attempt; else that attempt, without the lock."""
    before = db.begin_nested()
    federation(db, lock=True)
    row = db.scalar(query)
    if row is None:
        before.commit()
    else:
        before.rollback()  # gives the lock back: an attempt is locked before the federation
    return row


def attempt_by_id(db: Session, attempt_id: int, *, lock: bool = False) -> AttemptRow:
    """One attempt, locked when asked; it must exist."""
    query = select(AttemptRow).where(AttemptRow.id == attempt_id)
    return db.scalars(_locked(query) if lock else query).one()


def attempt_by_spec(db: Session, spec_hash: str, *, lock: bool = False) -> AttemptRow | None:
    """The attempt with this spec hash (hex)."""
    query = select(AttemptRow).where(AttemptRow.spec_hash == spec_hash)
    return db.scalar(_locked(query) if lock else query)


def sessions_of(db: Session, attempt_id: int) -> Sequence[SessionRow]:
    """The sessions of an attempt in the method's order."""
    return db.scalars(select(SessionRow).where(SessionRow.attempt_id == attempt_id).order_by(SessionRow.id)).all()


def last_result(db: Session, run_id: int) -> ResultRow | None:
    """The newest result of a run."""
    return db.scalar(select(ResultRow).where(ResultRow.run_id == run_id).order_by(ResultRow.round.desc()).limit(1))


def results_backwards(db: Session, run_id: int) -> Iterator[ResultRow]:
    """The results of a run, the newest first, each read when it is asked for."""
    newest_first = select(ResultRow).where(ResultRow.run_id == run_id).order_by(ResultRow.round.desc()).limit(1)
    row = db.scalar(newest_first)
    while row is not None:
        yield row
        row = db.scalar(newest_first.where(ResultRow.round < row.round))


def _sums(part: str) -> ColumnElement[bool]:
    """Sessions of a part: the one of its name, or those of its shards."""
    return or_(SessionRow.part == part, SessionRow.part.startswith(session_name(part, 0)[:-1], autoescape=True))


def wrapped_lately(db: Session, run_id: int, part: str) -> bool:
    """Whether a sum of ``part`` wrapped since the newest round that opened one: later, or beside it in a shard."""
    done = (AttemptRow.run_id == run_id, AttemptRow.status == "done")
    opened = select(func.max(AttemptRow.round)).join(SessionRow, SessionRow.attempt_id == AttemptRow.id)
    opened_in = db.scalar(opened.where(*done, _sums(part), SessionRow.phase == Phase.DONE))
    newest = -1 if opened_in is None else opened_in
    beside = and_(AttemptRow.round == newest, AttemptRow.status == "done")
    mine = (AttemptRow.run_id == run_id, or_(AttemptRow.round > newest, beside), _sums(part), SessionRow.wrapped)
    query = select(SessionRow.id).join(AttemptRow, AttemptRow.id == SessionRow.attempt_id)
    return db.scalar(query.where(*mine).limit(1)) is not None


def was_confirmed(db: Session, run_id: int, round_index: int, part: str) -> bool:
    """Whether an attempt at ``part`` of a round came so far that members may have answered for its sum."""
    mine = (AttemptRow.run_id == run_id, AttemptRow.round == round_index, _sums(part))
    query = select(SessionRow.id).join(AttemptRow, AttemptRow.id == SessionRow.attempt_id)
    confirmed = query.join(MessageRow, MessageRow.session_id == SessionRow.id)
    return db.scalar(confirmed.where(*mine, MessageRow.step == CONFIRMATION).limit(1)) is not None


def run_based_on(db: Session, model: str) -> str | None:
    """The name of a run with an attempt over this base model (hex); None if no attempt ever used it."""
    first = select(RunRow.name).join(AttemptRow, AttemptRow.run_id == RunRow.id).where(RunRow.first_base == model)
    next_round = (AttemptRow.run_id == ResultRow.run_id) & (AttemptRow.round == ResultRow.round + 1)
    later = select(RunRow.name).join(ResultRow, ResultRow.run_id == RunRow.id).join(AttemptRow, next_round)
    return db.scalar(first.limit(1)) or db.scalar(later.where(ResultRow.model == model).limit(1))


def answers_may_exist(db: Session, attempt: AttemptRow) -> bool:
    """Whether an earlier attempt at the same round came so far that members may have answered for a sum."""
    earlier = (
        AttemptRow.run_id == attempt.run_id,
        AttemptRow.round == attempt.round,
        AttemptRow.attempt < attempt.attempt,
        MessageRow.step == CONFIRMATION,
    )
    query = select(MessageRow.session_id).join(SessionRow, SessionRow.id == MessageRow.session_id)
    return (
        db.scalar(query.join(AttemptRow, AttemptRow.id == SessionRow.attempt_id).where(*earlier).limit(1)) is not None
    )


def unscrubbed_attempts(db: Session) -> Sequence[AttemptRow]:
    """Attempts that are over but whose single uploads are still on disk."""
    over = AttemptRow.status != "active"
    return db.scalars(select(AttemptRow).where(over, AttemptRow.scrubbed.is_(False))).all()


def round_is_passed(db: Session, attempt: AttemptRow) -> bool:
    """Whether a later round of the run has closed MASKED: somebody confirmed its survivors."""
    later = (AttemptRow.run_id == attempt.run_id, AttemptRow.round > attempt.round)
    query = select(MessageRow.session_id).join(SessionRow, SessionRow.id == MessageRow.session_id)
    confirmed = query.join(AttemptRow, AttemptRow.id == SessionRow.attempt_id).where(*later)
    return db.scalar(confirmed.where(MessageRow.step == CONFIRMATION).limit(1)) is not None


def failed_specs(db: Session) -> frozenset[str]:
    """Spec hashes (hex) of failed attempts whose uploads are deleted."""
    over = (AttemptRow.status == "failed", AttemptRow.scrubbed)
    return frozenset(db.scalars(select(AttemptRow.spec_hash).where(*over)))


# --- messages of a session -------------------------------------------------------------------------------------------


# Columns and not whole rows where every message of a session looks at those of all members: a hundred objects take
# longer to make than everything else that a message needs.


def joins_of(db: Session, session_id: int) -> Sequence[JoinRow]:
    """JOINs by member."""
    return db.scalars(select(JoinRow).where(JoinRow.session_id == session_id).order_by(JoinRow.member)).all()


def cohort_joins(db: Session, session_id: int) -> list[tuple[bytes, bytes]]:
    """Body and signature of the JOINs of a closed cohort."""
    mine = (JoinRow.session_id == session_id, JoinRow.in_cohort)
    return [(body, signature) for body, signature in db.execute(select(JoinRow.body, JoinRow.signature).where(*mine))]


def joined(db: Session, session_id: int) -> frozenset[str]:
    """Who joined, in the cohort or not."""
    return frozenset(db.scalars(select(JoinRow.member).where(JoinRow.session_id == session_id)))


def join_bodies(db: Session, session_id: int) -> list[tuple[str, bytes]]:
    """Member and canonical body of every JOIN."""
    rows = db.execute(select(JoinRow.member, JoinRow.body).where(JoinRow.session_id == session_id))
    return [(member, body) for member, body in rows]


def cohort_size(db: Session, session_id: int) -> int:
    """Members of a closed cohort; 0 while it is open."""
    mine = (JoinRow.session_id == session_id, JoinRow.in_cohort)
    return db.scalar(select(func.count()).select_from(JoinRow).where(*mine)) or 0


def dropped(db: Session, session_id: int) -> frozenset[str]:
    """Cohort members who joined again."""
    mine = (JoinRow.session_id == session_id, JoinRow.in_cohort, JoinRow.dropped)
    return frozenset(db.scalars(select(JoinRow.member).where(*mine)))


def messages_of(db: Session, session_id: int, step: str) -> Sequence[MessageRow]:
    """Accepted messages of a step, by member."""
    mine = (MessageRow.session_id == session_id, MessageRow.step == step)
    return db.scalars(select(MessageRow).where(*mine).order_by(MessageRow.member)).all()


def members_of(db: Session, session_id: int, step: str) -> frozenset[str]:
    """Who did a step."""
    mine = (MessageRow.session_id == session_id, MessageRow.step == step)
    return frozenset(db.scalars(select(MessageRow.member).where(*mine)))


def message_of(db: Session, session_id: int, step: str, member: str) -> MessageRow | None:
    """A member's message of a step."""
    return db.get(MessageRow, (session_id, step, member))


def bodies_of(db: Session, session_id: int, step: str) -> Sequence[str]:
    """Canonical JSON of the accepted messages of a step, by member."""
    mine = (MessageRow.session_id == session_id, MessageRow.step == step)
    return db.scalars(select(MessageRow.body).where(*mine).order_by(MessageRow.member)).all()


def upload_digests(db: Session, session_id: int) -> dict[str, bytes]:
    """The digest of every completed upload, by member."""
    mine = (MessageRow.session_id == session_id, MessageRow.step == UPLOAD)
    rows = db.execute(select(MessageRow.member, MessageRow.upload_digest).where(*mine))
    return {member: digest or b"" for member, digest in rows}


def add_shares(db: Session, session_id: int, sender: str, items: Iterable[tuple[str, bytes]]) -> None:
    """Store one sender's share items: recipient and sealed bytes of each."""
    common = {"session_id": session_id, "sender": sender}
    values = [{**common, "recipient": recipient, "sealed": sealed} for recipient, sealed in items]
    db.execute(insert(ShareRow), values)


def shares_to(db: Session, session_id: int, recipient: str) -> list[tuple[str, bytes]]:
    """Sender and sealed bytes of the share items addressed to one member."""
    mine = (ShareRow.session_id == session_id, ShareRow.recipient == recipient)
    rows = db.execute(select(ShareRow.sender, ShareRow.sealed).where(*mine).order_by(ShareRow.sender))
    return [(sender, sealed) for sender, sealed in rows]


def chunks_of(db: Session, session_id: int, member: str) -> Sequence[ChunkRow]:
    """A member's durable chunks."""
    mine = (ChunkRow.session_id == session_id, ChunkRow.member == member)
    return db.scalars(select(ChunkRow).where(*mine).order_by(ChunkRow.segment, ChunkRow.index)).all()


def keep_evidence(db: Session, session_id: int, member: str, step: str, sha256: str, body: str | None) -> None:
    """Keep a second, different message beside the first; a few of them, so that nobody can fill the disk."""
    mine = (EvidenceRow.session_id == session_id, EvidenceRow.member == member, EvidenceRow.step == step)
    if (db.scalar(select(func.count()).where(*mine)) or 0) >= MOST_EVIDENCE:
        return
    insert_once(
        db,
        EvidenceRow,
        session_id=session_id,
        member=member,
        step=step,
        sha256=sha256,
        body=body,
        received_at=time.time(),
    )


# --- leases and nonces -----------------------------------------------------------------------------------------------


def take_lease(db: Session, name: str, holder: str, now: float, lease_s: float) -> bool:
    """Take or renew a lease; False while another holder's has not run out."""
    if insert_once(db, LeaseRow, name=name, holder=holder, expires_at=now + lease_s):
        return True
    row = db.scalars(select(LeaseRow).where(LeaseRow.name == name).with_for_update()).one_or_none()
    if row is None:  # given back between the two statements
        return insert_once(db, LeaseRow, name=name, holder=holder, expires_at=now + lease_s)
    if row.holder != holder and row.expires_at > now:
        return False
    row.holder, row.expires_at = holder, now + lease_s
    return True


def release_leases(db: Session, holder: str | None) -> None:
    """Give back all leases of a holder; everybody's with None (when no other process can be alive)."""
    db.execute(delete(LeaseRow) if holder is None else delete(LeaseRow).where(LeaseRow.holder == holder))


def release_lease(db: Session, name: str, holder: str) -> None:
    """Give back one lease, if it is the holder's."""
    db.execute(delete(LeaseRow).where(LeaseRow.name == name, LeaseRow.holder == holder))


def remember_nonces(db: Session, expires_at: Mapping[tuple[str, str], float]) -> frozenset[tuple[str, str]]:
    """Remember nonces by member and nonce; those that were not known before."""
    rows = [{"member": member, "nonce": nonce, "expires_at": at} for (member, nonce), at in expires_at.items()]
    new = insert_many_once(db, NonceRow, rows, NonceRow.member, NonceRow.nonce)
    return frozenset((member, nonce) for member, nonce in new)


def forget_old_nonces(db: Session, now: float) -> None:
    """Delete nonces whose signatures are too old to pass anyway."""
    db.execute(delete(NonceRow).where(NonceRow.expires_at < now))


def drop_shares(db: Session, session_ids: Iterable[int]) -> None:
    """Delete the sealed share items of finished sessions."""
    db.execute(delete(ShareRow).where(ShareRow.session_id.in_(list(session_ids))))
