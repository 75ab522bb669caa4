"""Rounds without institutions: attempts that begin, fail and end with made-up sums, in the database alone."""

from __future__ import annotations

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import MessageRow, ResultRow
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import close_attempt, start_attempt
from fedddpm_aggregator.service.rounds.chartered import follow_result
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.phases import Phase


def confirm(ctx: Context, part: str) -> None:
    """One member's confirmation is stored in the newest attempt."""
    with ctx.transaction() as db:
        attempt = queries.newest_attempt(db, queries.open_runs(db)[0].id)
        assert attempt is not None
        (session,) = [row for row in queries.sessions_of(db, attempt.id) if row.part == part]
        db.add(MessageRow(session_id=session.id, step=queries.CONFIRMATION, member="a", sha256="00" * 32, body="{}"))


def rings_of(ctx: Context) -> dict[str, int]:
    """Start the next attempt; the ring of each part in it."""
    with ctx.transaction() as db:
        start_attempt(ctx, db, queries.open_runs(db)[0])
    return {part.name: part.values.bits for part in spec_in(ctx).parts}


def spec_in(ctx: Context) -> RoundSpec:
    with ctx.database.read() as db:
        attempt = queries.newest_attempt(db, queries.open_runs(db)[0].id)
        assert attempt is not None
        return ctx.spec_of(attempt)


def fail_attempt(ctx: Context) -> None:
    with ctx.transaction() as db:
        attempt = queries.newest_attempt(db, queries.open_runs(db)[0].id)
        assert attempt is not None
        close_attempt(ctx, db, attempt, "nobody came")


def conclude(ctx: Context, wrapped: str = "", missing: str = "") -> RoundResult:
    """Publish the newest attempt with made-up sums; norms are 0.5 in round 0 and 1 later."""
    spec = spec_in(ctx)
    parts = tuple(
        part_result(part.name, spec, part.name not in (wrapped, missing), part.name == wrapped) for part in spec.parts
    )
    result = RoundResult.of(spec, parts, spec.base_model_hash)
    with ctx.transaction() as db:
        (run,) = queries.open_runs(db)
        attempt = queries.newest_attempt(db, run.id)
        assert attempt is not None
        attempt.status = "done"
        for session in queries.sessions_of(db, attempt.id):
            session.wrapped = session.part == wrapped
            session.phase = Phase.FAILED if session.part in (wrapped, missing) else Phase.DONE
        row = ResultRow(run_id=run.id, round=spec.round, hash=result.hash.hex(), body=canonical.encode(result))
        row.signature, row.model, row.published_at = b"", run.first_base, 0.0
        db.add(row)
        follow_result(run, result)
    return result


def part_result(part: str, spec: RoundSpec, opened: bool, spoiled: bool) -> PartResult:
    digest, ids, sums = (bytes(32), ("a", "b", "c"), (3 * 65535, 0, 0)) if opened else (b"", (), ())
    norm = (1.0 if spec.round else 0.5) if opened else 0.0
    return PartResult(part, opened, digest, digest, ids, ids, sums, digest, norm, spoiled)
