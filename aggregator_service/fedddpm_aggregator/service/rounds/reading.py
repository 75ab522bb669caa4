"""What institutions read: the state of the run, results, models and opened vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, ModelRow, ResultRow, RunRow, SessionRow
from fedddpm_aggregator.errors import NotFoundError, RemovedError
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.chartered import charter_document
from fedddpm_aggregator.service.rounds.sessions import join_message
from fedddpm_aggregator.vectors.model_files import model_blob
from fedddpm_aggregator.vectors.opened_values import opened_blob
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.api import RESULTS, ResultsPage, RunState, SessionState
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.phases import Phase

PAUSED = "the coordinator has paused the run; it goes on when it is resumed"
_STEP = {
    Phase.SHARES: queries.SHARES,
    Phase.MASKED: queries.UPLOAD,
    Phase.CONFIRM: queries.CONFIRMATION,
    Phase.UNMASK: queries.UNMASK,
    Phase.OPENING: queries.UNMASK,
    Phase.DONE: queries.UNMASK,
}


def run_state(ctx: Context) -> RunState:
    """Everything an institution needs to know what to do next."""
    with ctx.database.read() as db:
        version, roster_version = queries.state_version(db), queries.newest_roster_version(db)
        run = queries.current_run(db)
        if run is None:
            return _nothing_yet(version, roster_version)
        attempt, result = queries.newest_attempt(db, run.id), queries.last_result(db, run.id)
        rows = queries.sessions_of(db, attempt.id) if attempt is not None else ()
        sessions = {row.part: _session_state(db, row) for row in rows}
        status, reason = _status(db, run, attempt, rows)
        return RunState(
            version=version,
            roster_version=roster_version,
            run=run.name,
            method=run.method,
            status=status,
            reason=reason,
            round=attempt.round if attempt is not None else 0,
            rounds=run.rounds,
            attempt=attempt.attempt if attempt is not None else 0,
            spec=SignedDocument(body=attempt.spec, signature=attempt.signature) if attempt is not None else None,
            charter=charter_document(run),
            sessions=sessions,
            results=result.round + 1 if result is not None else 0,
            last_result=result.hash if result is not None else None,
            excluded=blame.exclusions(db, attempt) if attempt is not None else (),
            server_time=time.time(),
        )


def results_page(ctx: Context, run_name: str, start: int) -> ResultsPage:
    """Signed results of a run from round ``start`` on, as many as fit a page; NotFoundError for an unknown run."""
    with ctx.database.read() as db:
        run = _run(db, run_name)
        mine = (ResultRow.run_id == run.id, ResultRow.round >= start)
        found: list[SignedDocument] = []
        size = 0
        for row in db.scalars(select(ResultRow).where(*mine).order_by(ResultRow.round).limit(RESULTS)):
            size += 2 * len(row.body)  # in base64, with room for what is around it
            if found and size > ResultsPage.most_bytes:
                break
            found.append(SignedDocument(body=row.body, signature=row.signature))
        return ResultsPage(results=tuple(found))


def model_name(ctx: Context, model: str) -> str:
    """Name of the blob of a published model, a safetensors file; NotFoundError or RemovedError."""
    with ctx.database.read() as db:
        row = db.get(ModelRow, model)
        if row is None:
            raise NotFoundError(f"there is no model {model}; its hash stands in the spec or in a result")
        if row.removed_at is not None:
            raise RemovedError(f"model {model} is of an old round and is kept no longer; take the newest one")
    return model_blob(model)


def opened_name(ctx: Context, run_name: str, round_index: int, part: str) -> tuple[str, str]:
    """Name of the blob with the opened vector of a part, packed, and its digest in hex; NotFoundError, RemovedError."""
    with ctx.database.read() as db:
        run = _run(db, run_name)
        row = db.get(ResultRow, (run.id, round_index))
        result = canonical.decode(RoundResult, row.body) if row is not None else None
        for opened in result.parts if result is not None else ():
            if row is not None and result is not None and opened.part == part and opened.opened:
                if row.removed_at is not None:
                    raise RemovedError(f"the sums of round {round_index} are kept no longer; take the newest model")
                return opened_blob(result.spec_hash.hex(), part), opened.opened_digest.hex()
    raise NotFoundError(f"part {part!r} was not opened in round {round_index} of run {run_name!r}")


def why_paused(run: RunRow) -> str:
    """Why a paused run is, in words: because somebody paused it, or because an alarm rang."""
    if run.reason is None:
        return PAUSED
    if run.stalled_roster is None:
        return f"the run is paused, and goes on when the coordinator resumes it: {run.reason}"
    return f"{PAUSED}. Besides: {run.reason}"


def _run(db: Session, name: str) -> RunRow:
    run = db.scalar(select(RunRow).where(RunRow.name == name))
    if run is None:
        raise NotFoundError(f"there is no run called {name!r}")
    return run


def _session_state(db: Session, row: SessionRow) -> SessionState:
    phase = Phase(row.phase)
    cohort, step = queries.cohort_size(db, row.id), _STEP.get(phase)
    posted = queries.joined(db, row.id) if phase is Phase.JOIN else queries.members_of(db, row.id, step) if step else ()
    return SessionState(phase=phase, cohort_size=cohort, posted=len(posted), reason=row.reason)


def _status(
    db: Session, run: RunRow, attempt: AttemptRow | None, rows: Sequence[SessionRow]
) -> tuple[Literal["waiting", "running", "finished", "stalled"], str | None]:
    if run.status == "stalled":
        return "stalled", run.reason
    if run.status == "paused":  # a word that clients know
        return "stalled", why_paused(run)
    if run.status in ("finished", "ended"):
        return "finished", run.reason
    if attempt is None:
        return "waiting", "the first round is about to start"
    for row in rows:  # a spent base whose recorded members do not come together again
        if Phase(row.phase) is Phase.JOIN and row.reason is not None and _has_spent(db, row):
            return "stalled", row.reason
    return "running", None


def _has_spent(db: Session, row: SessionRow) -> bool:
    return any(join_message(join).parse().recorded_u3 for join in queries.joins_of(db, row.id))


def _nothing_yet(version: int, roster_version: int) -> RunState:
    return RunState(
        version=version,
        roster_version=roster_version,
        run=None,
        method=None,
        status="waiting",
        reason="no run has been started",
        round=0,
        rounds=0,
        attempt=0,
        spec=None,
        sessions={},
        results=0,
        last_result=None,
        server_time=time.time(),
    )
