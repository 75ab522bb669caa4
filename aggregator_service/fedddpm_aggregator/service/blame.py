"""Verdicts over members that spoiled a session: kept with their evidence, told to people, and what follows from them.

A convicted member is not admitted to the next attempts of the run: three after the first conviction, and twice as many
after each further one. A roster that is newer than its conviction ends that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import AttemptRow, SessionRow, VerdictRow
from fedddpm_aggregator.errors import NotFoundError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.session.cohort import Cohort
from fedddpm_protocol.session.verdicts import Verdict, evidence_of
from fedddpm_protocol.wire.api import Exclusion
from fedddpm_protocol.wire.messages import MAX_COHORT, SignedDocument

log = logging.getLogger(__name__)
SITS_OUT = 3  # attempts after a first conviction


def keep_verdict(
    ctx: Context, db: Session, attempt: AttemptRow, session: SessionRow, cohort: Cohort, verdict: Verdict
) -> None:
    """Keep a verdict and its evidence, once; the audit log names both."""
    sha256 = body = None
    if verdict.proof is not None:
        spec = SignedDocument(body=attempt.spec, signature=attempt.signature)
        evidence = evidence_of(spec, session.part, cohort, verdict.proof)
        sha256, body = evidence.sha256, evidence.model_dump_json()
    new = insert_once(
        db,
        VerdictRow,
        session_id=session.id,
        attempt_id=attempt.id,
        run_id=attempt.run_id,
        member=verdict.member,
        offence=str(verdict.offence),
        words=verdict.words,
        roster_version=attempt.roster_version,
        sha256=sha256,
        evidence=body,
        found_at=time.time(),
    )
    if not new:
        return
    log.warning("verdict", extra={"fields": {"member": verdict.member, "offence": verdict.offence, "evidence": sha256}})
    action = "member convicted" if verdict.offence.convicts else "members contradict each other"
    details = {"member": verdict.member, "offence": str(verdict.offence), "words": verdict.words}
    place: dict[str, str | int] = {"attempt": attempt.attempt, "round": attempt.round, "part": session.part}
    audit.record(ctx, db, audit.SERVER, action, evidence=sha256 or "", **details, **place)


def sentence(verdicts: Sequence[Verdict]) -> str:
    """Why a session ends for them, for its reason."""
    return f"wrong shares: {'; '.join(verdict.words for verdict in verdicts)}"


def verdicts_in(db: Session, session_id: int) -> Sequence[VerdictRow]:
    """What was found in a session, in order."""
    return db.scalars(select(VerdictRow).where(VerdictRow.session_id == session_id).order_by(VerdictRow.id)).all()


def told(row: VerdictRow) -> str:
    """A verdict in one sentence for people, with the name of its evidence."""
    return f"{row.words} (evidence {row.sha256[:16]})" if row.sha256 else row.words


def excluded_from(db: Session, attempt: AttemptRow) -> dict[str, VerdictRow]:
    """Who is not admitted to an attempt, and the newest verdict why."""
    mine = (
        VerdictRow.run_id == attempt.run_id,
        VerdictRow.attempt_id < attempt.id,
        VerdictRow.roster_version == attempt.roster_version,
        VerdictRow.sha256.is_not(None),
    )
    attempts: dict[str, set[int]] = {}
    newest: dict[str, VerdictRow] = {}
    for row in db.scalars(select(VerdictRow).where(*mine).order_by(VerdictRow.id)):
        attempts.setdefault(row.member, set()).add(row.attempt_id)
        newest[row.member] = row
    return {
        member: row
        for member, row in newest.items()
        if _attempts_since(db, row, attempt) <= SITS_OUT * 2 ** (len(attempts[member]) - 1)
    }


def exclusions(db: Session, attempt: AttemptRow) -> tuple[Exclusion, ...]:
    """Who is not admitted to an attempt, as institutions are told; each of them can fetch the evidence."""
    rows = list(excluded_from(db, attempt).values())[:MAX_COHORT]
    return tuple(Exclusion(member=row.member, words=row.words, evidence=row.sha256 or "") for row in rows)


def evidence_json(ctx: Context, sha256: str) -> str:
    """A piece of evidence as JSON; NotFoundError."""
    with ctx.database.read() as db:
        found = db.scalar(select(VerdictRow.evidence).where(VerdictRow.sha256 == sha256).limit(1))
    if found is None:
        raise NotFoundError(f"there is no evidence {sha256}; /v1/state names what there is")
    return found


def _attempts_since(db: Session, row: VerdictRow, attempt: AttemptRow) -> int:
    since = (AttemptRow.run_id == attempt.run_id, AttemptRow.id > row.attempt_id, AttemptRow.id <= attempt.id)
    return db.scalar(select(func.count()).select_from(AttemptRow).where(*since)) or 0
