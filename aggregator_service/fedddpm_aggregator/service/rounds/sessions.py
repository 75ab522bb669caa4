"""One session as the database holds it, and the sets of members rebuilt from its stored messages.

Nothing about U1, U2 and U3 is kept in memory only: whoever restarts rebuilds them from the same rows.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, JoinRow, MessageRow, SessionRow
from fedddpm_aggregator.errors import NotFoundError, NotYoursError, PhaseOverError, WrongPhaseError
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.telemetry.logs import note
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import ConflictError
from fedddpm_protocol.session.cohort import Cohort, SessionPlan, Sharing, SurvivorSet, open_cohort
from fedddpm_protocol.wire.messages import Deal, Join, Message, Shares
from fedddpm_protocol.wire.phases import Phase, has_reached

T = TypeVar("T", Cohort, Sharing, SurvivorSet)


@dataclass(frozen=True)
class LiveSession:
    """A session with what it was agreed on."""

    attempt: AttemptRow
    session: SessionRow
    plan: SessionPlan
    roster: Roster

    @property
    def phase(self) -> Phase:
        """Where the session stands."""
        return Phase(self.session.phase)


def load(ctx: Context, db: Session, spec_hash: str, part: str, *, lock: bool = False) -> LiveSession:
    """The session of a spec hash (hex) and part; NotFoundError. With ``lock`` its attempt is locked until the end."""
    attempt = queries.attempt_by_spec(db, spec_hash, lock=lock)
    row = None
    if attempt is not None:
        mine = (SessionRow.attempt_id == attempt.id, SessionRow.part == part)
        row = db.scalar(select(SessionRow).where(*mine))
    if attempt is None or row is None:
        raise NotFoundError(f"there is no session of part {part!r} for spec {spec_hash}; read /v1/state again")
    return live_of(ctx, db, attempt, row)


def live_of(ctx: Context, db: Session, attempt: AttemptRow, row: SessionRow) -> LiveSession:
    """A loaded session with its plan and roster; from here on the log names it."""
    spec = ctx.spec_of(attempt)
    note(run=spec.run, round=spec.round, attempt=spec.attempt, session=row.id, part=row.part)
    return LiveSession(attempt, row, ctx.plan_of(db, attempt, row.part), ctx.roster(db, attempt.roster_version))


# --- phases ----------------------------------------------------------------------------------------------------------


def reached(live: LiveSession, phase: Phase) -> bool:
    """Whether the session is in ``phase`` or past it (a failed session is past everything)."""
    return has_reached(live.phase, phase)


def require_open(live: LiveSession, phase: Phase) -> None:
    """Raise WrongPhaseError before ``phase`` and PhaseOverError after it."""
    if not reached(live, phase):
        raise WrongPhaseError(f"part {live.session.part!r} is in {live.phase}; this message belongs to {phase}")
    if live.phase is not phase:
        raise PhaseOverError(_over(live, phase))


def require_reached(live: LiveSession, phase: Phase) -> None:
    """Raise WrongPhaseError before ``phase``, PhaseOverError if the session failed."""
    if live.phase is Phase.FAILED:
        raise PhaseOverError(_over(live, phase))
    if not reached(live, phase):
        raise WrongPhaseError(f"part {live.session.part!r} is in {live.phase}; this is there from {phase} on")


def _over(live: LiveSession, phase: Phase) -> str:
    if live.phase is Phase.FAILED:
        return f"the session of part {live.session.part!r} failed: {live.session.reason}; join the next attempt"
    return f"{phase} of part {live.session.part!r} is over (now {live.phase}); join the next attempt or round"


# --- sets ------------------------------------------------------------------------------------------------------------


class _Fixed:
    """Sets that can change no more, by spec hash and session; what is not here any more is rebuilt.

    Every message of a session needs them, and rebuilding them costs signatures and rows of the whole cohort.
    """

    def __init__(self, most: int) -> None:
        self._sets: OrderedDict[tuple[str, str, Phase], Cohort | Sharing | SurvivorSet] = OrderedDict()
        self._most, self._lock = most, threading.Lock()

    def get(self, live: LiveSession, after: Phase, build: Callable[[], T]) -> T:
        """What ``build`` gives, kept once the session is past ``after``; keys of one ``after`` hold one type."""
        key = (live.attempt.spec_hash, live.session.part, after)
        with self._lock:
            known = self._sets.get(key)
        if known is not None:
            return cast(T, known)
        built = build()
        if live.phase is not after and reached(live, after):
            with self._lock:
                self._sets[key] = built
                while len(self._sets) > self._most:
                    self._sets.popitem(last=False)
        return built


_FIXED = _Fixed(most=256)


def join_message(row: JoinRow) -> Join:
    """A stored JOIN as it was sent."""
    return Join(body=row.body, signature=row.signature)


def cohort_of(db: Session, live: LiveSession) -> Cohort:
    """U1 of a session past JOIN."""

    def build() -> Cohort:
        joins = queries.cohort_joins(db, live.session.id)
        return open_cohort(live.plan, live.roster, [Join(body=body, signature=signature) for body, signature in joins])

    return _FIXED.get(live, Phase.JOIN, build)


def sharing_of(db: Session, live: LiveSession) -> Sharing:
    """U2 of a session past SHARES."""

    def build() -> Sharing:
        bodies = queries.bodies_of(db, live.session.id, queries.SHARES)
        return cohort_of(db, live).sharing(Deal.model_validate_json(body) for body in bodies)

    return _FIXED.get(live, Phase.SHARES, build)


def survivors_of(db: Session, live: LiveSession) -> SurvivorSet:
    """U3 of a session past MASKED."""

    def build() -> SurvivorSet:
        return sharing_of(db, live).survivors(queries.upload_digests(db, live.session.id))

    return _FIXED.get(live, Phase.MASKED, build)


def dropped_of(db: Session, live: LiveSession) -> frozenset[str]:
    """Cohort members who joined again and so lost their session secrets."""
    return queries.dropped(db, live.session.id)


# --- messages --------------------------------------------------------------------------------------------------------


def require_own(caller: str, speaker: str) -> None:
    """NotYoursError unless a message speaks for the member that signed the request."""
    if caller != speaker:
        raise NotYoursError(f"{caller!r} signed the request, but the message speaks for {speaker!r}")


def sha256_of(message: Message) -> tuple[str, str]:
    """Canonical JSON of a message and its SHA-256 in hex."""
    body = message.model_dump_json()
    return body, hashlib.sha256(body.encode()).hexdigest()


def known(db: Session, live: LiveSession, step: str, member: str, message: Message) -> bool:
    """Whether exactly this message was accepted before.

    Ask before the phase is checked: who repeats a message because the answer was lost may come after its phase.
    A different one was accepted: this one is kept as evidence, and ConflictError is raised after the commit.
    """
    row = queries.message_of(db, live.session.id, step, member)
    if row is None:
        return False
    body, digest = sha256_of(message)
    if row.sha256 != digest:
        queries.keep_evidence(db, live.session.id, member, step, digest, body)
        queries.refuse(db, ConflictError(f"another {step} message was accepted before; both are kept", member))
    return True


def remember(
    db: Session, live: LiveSession, step: str, member: str, message: Message, *, upload_digest: bytes | None = None
) -> None:
    """Store an accepted message; of shares the deal, since the items have a table of their own."""
    body, digest = sha256_of(message)
    row = MessageRow(
        session_id=live.session.id,
        step=step,
        member=member,
        body=message.deal.model_dump_json() if isinstance(message, Shares) else body,
        sha256=digest,
        upload_digest=upload_digest,
    )
    db.add(row)
    db.flush()
