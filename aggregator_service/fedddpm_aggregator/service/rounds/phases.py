"""Moving a session from phase to phase, under the lock of its attempt.

Called after every accepted message (so that a phase closes the moment the last expected one arrives) and at every tick
of the sweeper (for deadlines).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import RunRow
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import settle
from fedddpm_aggregator.service.rounds.phase_rules import (
    PhaseView,
    Verdict,
    decide,
    may_form,
    no_answer_can_come,
    worth_opening,
)
from fedddpm_aggregator.service.rounds.sessions import (
    LiveSession,
    cohort_of,
    dropped_of,
    join_message,
    sharing_of,
    survivors_of,
)
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import CohortTooSmallError
from fedddpm_protocol.session.cohort import Cohort, SessionPlan
from fedddpm_protocol.session.coordinator import form_cohort
from fedddpm_protocol.wire.messages import Join
from fedddpm_protocol.wire.phases import NEXT_PHASE, TERMINAL, Phase, has_reached

log = logging.getLogger(__name__)


def advance(ctx: Context, db: Session, live: LiveSession) -> None:
    """Close or fail the current phase, as often as the stored messages and the elapsed time allow."""
    while not has_reached(live.phase, Phase.OPENING):  # what is opened has no deadline
        before = live.phase
        if before is Phase.JOIN:
            _advance_join(ctx, db, live)
        elif before is Phase.UNMASK:
            _advance_unmask(ctx, db, live)
        else:
            decision = decide(view_of(ctx, db, live))
            if decision.verdict is Verdict.FAIL:
                fail(ctx, db, live, decision.reason or "no reason given")
            elif decision.verdict is Verdict.CLOSE:
                enter(db, live, NEXT_PHASE[before])
        if live.phase is before:
            return


def view_of(ctx: Context, db: Session, live: LiveSession) -> PhaseView:
    """The current phase (JOIN to UNMASK) as the rules see it."""
    phase, row = live.phase, live.session
    spec = ctx.spec_of(live.attempt)
    if phase is Phase.JOIN:
        run = db.get_one(RunRow, live.attempt.run_id)
        joined = queries.joined(db, row.id)
        needed = max(run.min_cohort, live.roster.n_min)
        expected = frozenset(live.plan.reporters) - blame.excluded_from(db, live.attempt).keys()
        return PhaseView(phase, row.elapsed_s, spec.join_s, expected, joined, needed)
    dropped = dropped_of(db, live)
    if phase is Phase.SHARES:
        cohort = cohort_of(db, live)
        ids, step, needed, duration_s = cohort.ids, queries.SHARES, cohort.quorum, spec.shares_s
    elif phase is Phase.MASKED:
        sharing = sharing_of(db, live)
        ids, step, needed, duration_s = sharing.ids, queries.UPLOAD, sharing.cohort.quorum, spec.masked_s
    else:
        survivors = survivors_of(db, live)
        ids, needed = survivors.ids, survivors.sharing.cohort.threshold
        confirming = phase is Phase.CONFIRM
        step = queries.CONFIRMATION if confirming else queries.UNMASK
        duration_s = spec.confirm_s if confirming else spec.unmask_s
    expected = frozenset(ids) - dropped
    return PhaseView(phase, row.elapsed_s, duration_s, expected, queries.members_of(db, row.id, step), needed)


def enter(db: Session, live: LiveSession, phase: Phase) -> None:
    """Start ``phase``."""
    log.info(
        "phase closed",
        extra={"fields": {"session": live.session.id, "part": live.session.part, "was": live.phase, "now": phase}},
    )
    live.session.phase = phase
    live.session.elapsed_s = 0.0
    live.session.enough_s = None
    live.session.reason = None
    db.flush()
    queries.bump_version(db)


def fail(
    ctx: Context, db: Session, live: LiveSession, reason: str, *, held: bool = False, wrapped: bool = False
) -> None:
    """End a session without a sum, and the attempt with it if nothing else of it is open.

    ``held``: a gate refused the opened sum; ``wrapped``: it was too large for its ring.
    """
    log.warning(
        "session failed", extra={"fields": {"session": live.session.id, "part": live.session.part, "reason": reason}}
    )
    live.session.phase = Phase.FAILED
    live.session.reason = reason
    live.session.held, live.session.wrapped = held, wrapped
    db.flush()
    queries.bump_version(db)
    settle(ctx, db, live.attempt)


def _advance_join(ctx: Context, db: Session, live: LiveSession) -> None:
    view = view_of(ctx, db, live)
    if not may_form(view) or db.get_one(RunRow, live.attempt.run_id).status == "paused":
        return
    rows = queries.joins_of(db, live.session.id)
    try:
        cohort = _formed(live.plan, live.roster, tuple(join_message(row) for row in rows))
    except CohortTooSmallError as error:
        _wait_or_give_up(ctx, db, live, view, str(error))
        return
    # Members whose base is spent meet again as exactly the survivors of that sum, also where the run waits for more.
    recorded = any(body.recorded_u3 for body in cohort.bodies)
    if len(cohort.ids) < view.needed and not recorded:
        _wait_or_give_up(ctx, db, live, view, f"{len(cohort.ids)} members joined, this run waits for {view.needed}")
        return
    for row in rows:
        row.in_cohort = row.member in cohort.ids
    enter(db, live, Phase.SHARES)


def _formed(plan: SessionPlan, roster: Roster, joins: tuple[Join, ...]) -> Cohort:
    """As :func:`form_cohort`; while nobody else joins, no signature is checked again at every tick."""
    formed = _form_or_not(plan, roster, joins)
    if isinstance(formed, str):
        raise CohortTooSmallError(formed)
    return formed


@lru_cache(maxsize=32)
def _form_or_not(plan: SessionPlan, roster: Roster, joins: tuple[Join, ...]) -> Cohort | str:
    try:
        return form_cohort(plan, roster, joins)
    except CohortTooSmallError as error:
        return str(error)


def _wait_or_give_up(ctx: Context, db: Session, live: LiveSession, view: PhaseView, why: str) -> None:
    """Too few joined: wait on, except where the round is over but for sessions that wait like this one."""
    others = [row for row in queries.sessions_of(db, live.attempt.id) if row.id != live.session.id]
    over = [row for row in others if Phase(row.phase) in TERMINAL]
    waiting = [row for row in others if Phase(row.phase) is Phase.JOIN and row.elapsed_s >= view.duration_s]
    if view.expired and over and len(over) + len(waiting) == len(others):
        fail(ctx, db, live, f"{why}, and the other parts of the round are over")
        return
    missing = ", ".join(sorted(view.expected - view.done)) or "nobody"
    reason = f"waiting for members: {why}. Not heard of: {missing}"
    convicted = blame.excluded_from(db, live.attempt)
    if convicted:
        reason += f". Not admitted until the root signs a newer roster: {', '.join(sorted(convicted))}"
    spent = sorted(
        {
            body.recorded_u3
            for row in queries.joins_of(db, live.session.id)
            if (body := join_message(row).parse()).recorded_u3
        }
    )
    if spent:
        reason += f". {_spent_on(db, live, spent)}"
    if live.session.reason != reason:
        live.session.reason = reason
        db.flush()
        queries.bump_version(db)


def _spent_on(db: Session, live: LiveSession, spent: Sequence[tuple[str, ...]]) -> str:
    """What a spent base means here, and the way out."""
    sets = "; ".join(", ".join(ids) for ids in spent)
    fact = f"This base model is spent on the sum of {sets}"
    if live.attempt.round == 0 and not queries.answers_may_exist(db, live.attempt):
        return (
            f"{fact} in an earlier run that this aggregator does not know: the first model is not new. End the run "
            "(federation end-run) and start one from another first model (fedddpm init-model --seed ...)"
        )
    return (
        f"{fact}: these members go on only together. If one of them is gone for good, the root can sign a roster that "
        f"releases them: federation roster release --base {live.plan.base_model_hash.hex()} --part {live.plan.part} "
        f"--old {','.join(spent[0])} --new ..."
    )


def _advance_unmask(ctx: Context, db: Session, live: LiveSession) -> None:
    view, row = view_of(ctx, db, live), live.session
    # Answers beyond the needed ones let wrong shares be found and left out, so they get a moment to come.
    if len(view.done) >= view.needed and row.enough_s is None:
        row.enough_s = row.elapsed_s
        db.flush()
    waited = None if row.enough_s is None else row.elapsed_s - row.enough_s
    if worth_opening(view, waited, ctx.limits.unmask_grace_s):
        queries.announce_work(db, live.attempt.id)
    elif no_answer_can_come(view) and len(view.done) < view.needed:
        silent = ", ".join(sorted(view.expected - view.done)) or "nobody"
        fail(ctx, db, live, f"{len(view.done)} of {view.needed} needed UNMASK answers came; not heard of: {silent}")
