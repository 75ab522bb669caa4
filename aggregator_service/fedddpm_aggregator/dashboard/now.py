"""What goes on now, for the operator's page: the open round's sessions and where every member stands in them.

Only what the aggregator learns anyway by running the protocol: who did which step, and when a member was last heard of.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, NonceRow, RunRow, SessionRow
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.administration.rosters import next_step_in
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.phase_rules import PhaseView
from fedddpm_aggregator.service.rounds.phases import view_of
from fedddpm_aggregator.service.rounds.reading import why_paused
from fedddpm_aggregator.service.rounds.sessions import LiveSession, cohort_of, live_of, survivors_of
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives.keys import fingerprint
from fedddpm_protocol.wire.phases import Phase

CONNECTED_S = 60.0  # an institution that waits for news asks again sooner; one that trains may be silent
_SUMMED = (Phase.OPENING, Phase.DONE)
_DID = {
    Phase.JOIN: "joined",
    Phase.SHARES: "sent its shares",
    Phase.MASKED: "uploaded",
    Phase.CONFIRM: "confirmed",
    Phase.UNMASK: "answered",
}


@dataclass(frozen=True)
class Standing:
    """Where a member stands in a session: how it goes, and in words."""

    kind: str  # done, wait, late, dropped or out
    words: str


OUT = Standing("out", "not in this round")
CONVICTED = Standing("dropped", "sits out: it broke the protocol")
NO_ROUND = Standing("out", "no round is open")
_ORDER = ("late", "dropped", "wait", "done", "out")  # what is shown of a member that stands in several sessions


@dataclass(frozen=True)
class SessionNow:
    """One secure sum as it moves."""

    name: str
    phase: Phase
    done: int  # members that did the step
    expected: int  # members that did it or still can
    needed: int  # fewest that may go on
    left_s: float | None  # of the phase; None: it has no end of its own
    reason: str | None
    standings: Mapping[str, Standing]  # by member; those who are not named are out

    @property
    def missing(self) -> tuple[str, ...]:
        """Members that the phase still waits for."""
        return tuple(sorted(m for m, standing in self.standings.items() if standing.kind in ("wait", "late")))


@dataclass(frozen=True)
class RunNow:
    """The run that goes on, or the newest one."""

    name: str
    method: str
    status: str  # running, paused, stalled, finished or ended
    reason: str | None
    round: int  # from 0
    rounds: int
    attempt: int  # from 0
    open: bool  # an attempt is going on
    sessions: tuple[SessionNow, ...]


@dataclass(frozen=True)
class MemberNow:
    """One enrolled institution."""

    id: str
    standing: Standing
    seen_s: float | None  # since its last request, while that is remembered


@dataclass(frozen=True)
class Now:
    """The federation at this moment."""

    federation: str | None
    roster_version: int
    c_max: int
    n_min: int
    server_fingerprint: str
    root_fingerprint: str | None
    operators: tuple[str, ...]  # who may start, pause and end runs from afar
    next_step: str | None
    run: RunNow | None
    members: tuple[MemberNow, ...]


def now(ctx: Context, db: Session) -> Now:
    """Everything that moves, at the moment that ``db`` sees."""
    row = queries.federation(db)
    root = row.root_public_key if row is not None else None
    version = queries.newest_roster_version(db)
    roster = ctx.roster(db, version) if version else None
    run = queries.current_run(db)
    current = _run_now(ctx, db, run) if run is not None else None
    return Now(
        federation=roster.federation if roster is not None else None,
        roster_version=version,
        c_max=roster.c_max if roster is not None else 0,
        n_min=roster.n_min if roster is not None else 0,
        server_fingerprint=fingerprint(ctx.key.public_key),
        root_fingerprint=fingerprint(root) if root is not None else None,
        operators=tuple(operator.id for operator in roster.operators) if roster is not None else (),
        next_step=next_step_in(db),
        run=current,
        members=_members(ctx, db, roster, current) if roster is not None else (),
    )


def _run_now(ctx: Context, db: Session, run: RunRow) -> RunNow:
    attempt = queries.newest_attempt(db, run.id)
    going_on = attempt is not None and attempt.status == "active"
    rows = queries.sessions_of(db, attempt.id) if attempt is not None else ()
    return RunNow(
        name=run.name,
        method=run.method,
        status=run.status,
        reason=_why_not(run),
        round=attempt.round if attempt is not None else 0,
        rounds=run.rounds,
        attempt=attempt.attempt if attempt is not None else 0,
        open=going_on,
        sessions=tuple(_session_now(ctx, db, attempt, row) for row in rows) if attempt is not None else (),
    )


def _why_not(run: RunRow) -> str | None:
    if run.status != "paused":
        return run.reason
    return why_paused(run)


def _session_now(ctx: Context, db: Session, attempt: AttemptRow, row: SessionRow) -> SessionNow:
    phase = Phase(row.phase)
    try:
        live = live_of(ctx, db, attempt, row)
        if phase in _SUMMED:
            return _summed(db, live)
        if phase is not Phase.FAILED:
            return _moving(ctx, db, live)
    except ProtocolError:  # an attempt that another version of this program wrote
        return SessionNow(row.part, phase, 0, 0, 0, None, row.reason, {})
    return SessionNow(row.part, phase, 0, 0, 0, None, row.reason, {})


def _moving(ctx: Context, db: Session, live: LiveSession) -> SessionNow:
    view = view_of(ctx, db, live)
    return SessionNow(
        name=live.session.part,
        phase=live.phase,
        done=len(view.done),
        expected=len(view.expected | view.done),
        needed=view.needed,
        left_s=max(0.0, view.duration_s - view.elapsed_s),
        reason=live.session.reason,
        standings=_standings(db, live, view),
    )


def _summed(db: Session, live: LiveSession) -> SessionNow:
    survivors, cohort = survivors_of(db, live).ids, cohort_of(db, live).ids
    standings = {member: Standing("dropped", "dropped out") for member in cohort}
    standings |= {member: Standing("done", "in the sum") for member in survivors}
    size = len(survivors)
    return SessionNow(live.session.part, live.phase, size, size, size, None, live.session.reason, standings)


def _standings(db: Session, live: LiveSession, view: PhaseView) -> dict[str, Standing]:
    """Who did the step, who is awaited or late (half the time is over), and who dropped out."""
    joining, late = view.phase is Phase.JOIN, view.elapsed_s > view.duration_s / 2
    missing = Standing("late", "late") if late else Standing("wait", "not joined yet" if joining else "awaited")
    standings = {}
    if not joining:
        standings = {member: Standing("dropped", "dropped out") for member in cohort_of(db, live).ids}
    standings |= dict.fromkeys(view.expected, missing)
    standings |= {member: Standing("done", _DID[view.phase]) for member in view.done}
    return standings


def _members(ctx: Context, db: Session, roster: Roster, run: RunNow | None) -> tuple[MemberNow, ...]:
    seen = _last_requests(ctx, db)
    moment = time.time()
    sessions = run.sessions if run is not None and run.open else ()
    convicted = _convicted(db) if sessions else ()
    return tuple(
        MemberNow(
            id=member,
            standing=CONVICTED
            if member in convicted
            else _worst([s.standings[member] for s in sessions if member in s.standings], bool(sessions)),
            seen_s=max(0.0, moment - seen[member]) if member in seen else None,
        )
        for member in roster.ids
    )


def _convicted(db: Session) -> Collection[str]:
    """Who is not admitted to the attempt that is open."""
    run = queries.current_run(db)
    attempt = queries.newest_attempt(db, run.id) if run is not None else None
    return blame.excluded_from(db, attempt) if attempt is not None else ()


def _worst(standings: Sequence[Standing], round_is_open: bool) -> Standing:
    if not standings:
        return OUT if round_is_open else NO_ROUND
    return min(standings, key=lambda standing: _ORDER.index(standing.kind))


def _last_requests(ctx: Context, db: Session) -> dict[str, float]:
    """Unix seconds of each member's last signed request, as long as its nonce is remembered."""
    rows = db.execute(select(NonceRow.member, func.max(NonceRow.expires_at)).group_by(NonceRow.member))
    return {member: expires_at - ctx.limits.nonce_kept_s for member, expires_at in rows}
