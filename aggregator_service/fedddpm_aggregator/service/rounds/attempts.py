"""Attempts at rounds: starting one, and what follows when all its sessions are over."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow, SessionRow
from fedddpm_aggregator.service import audit, conduct
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.chartered import (
    Place,
    charter_of,
    durations_of,
    lineage_of,
    round_spec,
)
from fedddpm_aggregator.service.rounds.ring_choice import next_rings
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_metadata import manifests_of
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.shards import draw, most_redraws, sessions_of
from fedddpm_protocol.agreement.spec import HIDDEN, RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.phases import TERMINAL, Phase

log = logging.getLogger(__name__)


def cannot_run(charter: Charter, roster: Roster) -> str | None:
    """Why this roster cannot carry a run, with what to do; None if it can. With shards each of them must."""
    method, min_cohort = Method(charter.method), charter.min_cohort
    if charter.travel.weighting == HIDDEN and most_redraws(roster):
        return (
            "sums of groups that are drawn anew reveal sample counts to whoever adds and subtracts them: run with"
            " --weighting equal, or sign a roster without --redraws"
        )
    members = min(len(shard) for shard in draw(roster))
    who = "members" if not roster.sharding else "members of the smallest shard"
    if method is Method.USPLIT:
        reporters = members // 2  # fewest that report one part, whatever the draw
        if reporters < max(roster.quorum(reporters), min_cohort):
            needed = max(roster.n_min, min_cohort, roster.c_max + 2)
            return (
                f"USPLIT gives each part to half of the {members} {who}: {reporters} reporters are too few to hide "
                f"one update (the roster's rules want {needed}). Enrol at least {2 * needed} members, or use FULL, "
                "ULATDEC or UDEC"
            )
    elif members < max(roster.quorum(members), min_cohort):
        needed = max(roster.quorum(members), min_cohort)
        return f"the roster has {members} {who} and {needed} must take part; enrol more, or lower --min-cohort"
    return None


def start_attempt(ctx: Context, db: Session, run: RunRow) -> None:
    """Start the next attempt of a run under the newest roster; the caller holds the lock of the newest attempt.

    A roster that cannot carry the run stalls it until a newer one is installed. A paused run starts none.
    """
    roster, result = ctx.newest_roster(db), queries.last_result(db, run.id)
    round_index = 0 if result is None else result.round + 1
    if round_index >= run.rounds:
        run.status, run.reason = "finished", None
        queries.bump_version(db)
        return
    if run.status == "paused":
        return
    charter, lineage = charter_of(run), lineage_of(run)
    if charter is None:
        stop_without_charter(ctx, db, run, None)
        return
    method = Method(charter.method)
    obstacle = cannot_run(charter, roster)
    if obstacle is not None:
        stall(ctx, db, run, roster.version, obstacle)
        return
    last = queries.newest_attempt(db, run.id)
    number = last.attempt + 1 if last is not None and last.round == round_index else 0
    base, previous = (result.model, result.hash) if result else (run.first_base, "")
    place = Place(number, bytes.fromhex(base), bytes.fromhex(previous))
    try:
        rings, manifests = next_rings(db, run.id, charter, lineage), manifests_of(run.manifest)
        spec = round_spec(charter, lineage, place, roster, manifests, rings, durations_of(run))
    except ValueError as error:
        stall(ctx, db, run, roster.version, f"no round can be made under roster version {roster.version}: {error}")
        return
    _insert(db, run, spec, sessions_of(method, roster, spec.turn), sign_spec(spec, ctx.key).signature)
    queries.bump_version(db)
    audit.record(ctx, db, audit.SERVER, "attempt started", run=run.name, round=round_index, attempt=number)
    log.info("attempt started", extra={"fields": {"run": run.name, "round": round_index, "attempt": number}})


def stop_without_charter(ctx: Context, db: Session, run: RunRow, attempt: AttemptRow | None) -> None:
    """End what goes on of a run from before charters, and say what to do; the caller holds the attempt's lock."""
    reason = f"run {run.name} is from before charters; end it and sign a new one: federation sign-run"
    if attempt is not None and attempt.status == "active":
        close_attempt(ctx, db, attempt, reason)
    stall(ctx, db, run, queries.newest_roster_version(db), reason)


def _insert(db: Session, run: RunRow, spec: RoundSpec, sessions: Sequence[str], signature: bytes) -> None:
    row = AttemptRow(
        run_id=run.id,
        round=spec.round,
        attempt=spec.attempt,
        status="active",
        spec_hash=spec.hash.hex(),
        spec=canonical.encode(spec),
        signature=signature,
        roster_version=spec.roster_version,
        scrubbed=False,
        created_at=time.time(),
    )
    db.add(row)
    db.flush()
    for name in sessions:
        session = SessionRow(attempt_id=row.id, part=name, phase=Phase.JOIN)
        session.elapsed_s, session.held, session.wrapped = 0.0, False, False
        db.add(session)
    db.flush()


def settle(ctx: Context, db: Session, attempt: AttemptRow) -> None:
    """After a session ended: nothing while others are open, publish if one opened, else the next attempt.

    A held sum stalls the run. One that wrapped does not: the next attempt has a ring with room for it, and the same
    survivors may meet in it although they are spent on this base.
    """
    sessions = queries.sessions_of(db, attempt.id)
    phases = [Phase(row.phase) for row in sessions]
    if attempt.status != "active" or any(phase not in TERMINAL for phase in phases):
        return
    if Phase.DONE in phases:
        queries.announce_work(db, attempt.id)
        return
    attempt.status = "failed"
    run = db.get_one(RunRow, attempt.run_id)
    held = [row.reason or "" for row in sessions if row.held]
    db.flush()
    _record_failure(ctx, db, attempt, "; ".join(sorted({row.reason or "" for row in sessions})))
    if run.status not in ("running", "paused"):
        return
    if held:
        stall(ctx, db, run, queries.newest_roster_version(db), f"the round is held: {'; '.join(held)}")
        return
    start_attempt(ctx, db, run)


def stall(ctx: Context, db: Session, run: RunRow, roster_version: int, reason: str) -> None:
    """Stop a run until a roster newer than ``roster_version`` is installed; a paused one stalls when it is resumed."""
    log.warning("run stalled", extra={"fields": {"run": run.name, "reason": reason}})
    run.reason, run.stalled_roster = reason, roster_version
    run.status = "paused" if run.status == "paused" else "stalled"
    db.flush()
    queries.bump_version(db)
    audit.record(ctx, db, audit.SERVER, "run stalled", run=run.name, reason=reason)


def close_attempt(ctx: Context, db: Session, attempt: AttemptRow, reason: str) -> None:
    """End an attempt and whatever of it is open."""
    for row in queries.sessions_of(db, attempt.id):
        if Phase(row.phase) not in TERMINAL:
            row.phase, row.reason = Phase.FAILED, reason
    attempt.status = "failed"
    db.flush()
    queries.bump_version(db)
    _record_failure(ctx, db, attempt, reason)


def _record_failure(ctx: Context, db: Session, attempt: AttemptRow, reason: str) -> None:
    run = db.get_one(RunRow, attempt.run_id)
    place: dict[str, str | int] = {"run": run.name, "round": attempt.round, "attempt": attempt.attempt}
    audit.record(ctx, db, audit.SERVER, "attempt failed", reason=reason, **place)
    conduct.name_members(ctx, db, run)
