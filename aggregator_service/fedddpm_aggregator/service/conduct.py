"""Who is late, silent or starts again in the middle, attempt after attempt, and who says two things in one step.

Steps are messages to the aggregator, so it knows without being told who did which. One miss is nothing: programs are
updated and lines fail. A member is named that missed a step in ``TIMES`` of the last ``LATELY`` finished attempts of a
run, or that ever sent two different messages for one step, which no working program does, or that is in spoiled
sums more often than chance explains (see ``suspicion``). Nobody is kept out for it: a coordinator reads it and calls.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, AuditRow, EvidenceRow, JoinRow, MessageRow, RunRow, SessionRow
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.suspicion import SPOILED, Suspicion, suspicion_in
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.wire.phases import Phase

log = logging.getLogger(__name__)
LATELY, TIMES = 5, 3
NAMED = "member named"  # in the audit log
_MOST_EVIDENCE = 1000
_STEPS = (queries.SHARES, queries.UPLOAD, queries.CONFIRMATION, queries.UNMASK)
JOIN, RESTARTED = "join", "restarted"
WORDS = {
    JOIN: "did not join in time",
    queries.SHARES: "sent no key shares in time",
    queries.UPLOAD: "did not finish its upload in time",
    queries.CONFIRMATION: "did not confirm in time who is in the sum",
    queries.UNMASK: "did not answer with what opens the sum",
    RESTARTED: "started again in the middle",
}


@dataclass(frozen=True)
class SessionSteps:
    """Who did what in a session that is over."""

    expected: frozenset[str]  # its reporters
    joined: frozenset[str]
    cohort: frozenset[str]
    restarted: frozenset[str]  # joined again once the cohort was closed
    did: Mapping[str, frozenset[str]]  # by step
    opened: bool
    timed_out: Mapping[str, bool]  # by step: whether a session that failed in it had used up its duration


@dataclass(frozen=True)
class AttemptSteps:
    """What members missed in one finished attempt, in whichever of its sessions."""

    round: int  # from 0
    attempt: int  # from 0
    missed: Mapping[str, str]  # by member, the first step
    missed_last: Mapping[str, str]  # those who did all but UNMASK in a sum that was opened: the answer may still come


@dataclass(frozen=True)
class Miss:
    """One step that a member missed."""

    round: int  # from 0
    attempt: int  # from 0
    step: str


@dataclass(frozen=True)
class Conduct:
    """A member that a coordinator should call, and why."""

    member: str
    misses: tuple[Miss, ...]  # TIMES or more, or none
    second: tuple[Miss, ...]  # steps for which it sent two different messages
    spoiled: str = ""  # which spoiled sums it was in, where chance hardly explains it

    @property
    def happened(self) -> str:
        """In words."""
        found = []
        if self.second:
            first = self.second[0]
            found.append(
                f"sent two different messages for one step (round {first.round + 1}, attempt {first.attempt + 1}:"
                f" {first.step}); the first one counts, both are kept"
            )
        if self.misses:
            places = "; ".join(f"round {m.round + 1}, attempt {m.attempt + 1}: {WORDS[m.step]}" for m in self.misses)
            found.append(f"was late or silent in {len(self.misses)} of the last {LATELY} attempts ({places})")
        if self.spoiled:
            found.append(self.spoiled)
        return " and ".join(found)

    @property
    def to_do(self) -> str:
        """What the coordinator can do."""
        if self.spoiled:
            return (
                f"That is no proof, and members that conspire can bring it about against another one. Call"
                f" {self.member}: fedddpm status shows what it sent, and an own network or optimizer may be the reason."
                " Until it is mended the root can sign a roster without it: pause the run, let the round end, then"
                f" federation roster remove --member {self.member}, federation install, resume. Nothing of its updates"
                " is shown by that, for the next round has another base."
            )
        why = (
            "A working program never does this: look for two processes with one identity, or a state folder that was "
            "copied back; without either, the key is in other hands."
            if self.second
            else "It may be ill and not evil: its log and fedddpm status say what it waits for, and whether it refuses "
            "something that another one sent."
        )
        return (
            f"Call {self.member}. {why} The others' rounds go on where enough are there; if it does not mend, the root "
            f"can sign a roster without it (federation roster remove --member {self.member}, then federation install)."
        )


def missed_steps(session: SessionSteps) -> dict[str, str]:
    """By member the first step it missed; UNMASK as any other, where the sum was opened without it.

    Nothing where JOIN was not over. A step that no more than half of those who could do it did is nobody's fault.
    """
    if not session.cohort:
        return {}
    found = dict.fromkeys(session.expected - session.joined, JOIN)
    able = session.cohort
    for step, over in _steps_over(session).items():
        did = session.did[step]
        silent = able - did
        if over and 2 * len(able & did) > len(able):
            found |= {member: RESTARTED if member in session.restarted else step for member in silent - found.keys()}
        elif not over:
            found |= dict.fromkeys((silent & session.restarted) - found.keys(), RESTARTED)
        if step in (queries.SHARES, queries.UPLOAD):
            able = able & did  # whoever confirmed or not may answer
    return found


def _steps_over(session: SessionSteps) -> dict[str, bool]:
    """Steps that the session came to, and whether each was over."""
    if session.opened:
        return dict.fromkeys(_STEPS, True)
    able, current = session.cohort, 0
    for index, step in enumerate(_STEPS):
        if session.did[step]:
            current = index if able - session.did[step] else min(index + 1, len(_STEPS) - 1)
        if step in (queries.SHARES, queries.UPLOAD):
            able = able & session.did[step]
    over = {step: index < current for index, step in enumerate(_STEPS[: current + 1])}
    return over | {_STEPS[current]: session.timed_out[_STEPS[current]]}


def to_be_called(attempts: Sequence[AttemptSteps], second: Mapping[str, Sequence[Miss]]) -> list[Conduct]:
    """Members to be named after ``attempts`` in order, by name."""
    misses: dict[str, list[Miss]] = {}
    for one in attempts[-LATELY:]:
        missed = one.missed if one is attempts[-1] else {**one.missed_last, **one.missed}
        for member, step in missed.items():
            misses.setdefault(member, []).append(Miss(one.round, one.attempt, step))
    late = {member: tuple(found) for member, found in misses.items() if len(found) >= TIMES}
    return [
        Conduct(member, late.get(member, ()), tuple(second.get(member, ()))) for member in sorted(late.keys() | second)
    ]


# --- the database -----------------------------------------------------------------------------------------------------


def conduct_in(ctx: Context, db: Session, run: RunRow, suspected: Suspicion | None) -> list[Conduct]:
    """Members of the newest roster that a coordinator should call, at the moment that ``db`` sees.

    ``suspected``: what spoiled sums tell at that moment (see ``suspicion_in``).
    """
    enrolled = frozenset(ctx.newest_roster(db).ids)
    named = to_be_called(_attempts(ctx, db, run, LATELY), _second_contents(db, run))
    return [*(conduct for conduct in named if conduct.member in enrolled), *_spoiling(suspected)]


def _spoiling(found: Suspicion | None) -> list[Conduct]:
    return [] if found is None else [Conduct(one.member, (), (), found.says(one)) for one in found.named]


def name_members(ctx: Context, db: Session, run: RunRow) -> None:
    """Put into the audit log who is to be named since the newest attempt, which has ended; its lock is held."""
    attempts = _attempts(ctx, db, run, LATELY + 1)
    before = {conduct.member for conduct in to_be_called(attempts[:-1], {})}
    for conduct in to_be_called(attempts[-LATELY:], {}):
        if conduct.member not in before:
            _name(ctx, db, run, conduct, round=attempts[-1].round, attempt=attempts[-1].attempt)
    for conduct in _spoiling(suspicion_in(ctx, db, run)):
        if not _is_known_to_spoil(db, run, conduct.member):
            _name(ctx, db, run, conduct, round=attempts[-1].round, attempt=attempts[-1].attempt)
    for member, second in _second_contents(db, run).items():
        place = {"round": second[0].round, "attempt": second[0].attempt}
        if not _is_told(db, _details(run, Conduct(member, (), tuple(second)), place)):
            _name(ctx, db, run, Conduct(member, (), tuple(second)), **place)


def _name(ctx: Context, db: Session, run: RunRow, conduct: Conduct, **place: int) -> None:
    details = _details(run, conduct, place)
    log.warning(NAMED, extra={"fields": details})
    audit.record(ctx, db, audit.SERVER, NAMED, **details)


def _details(run: RunRow, conduct: Conduct, place: Mapping[str, int]) -> dict[str, str | int]:
    return {"run": run.name, "member": conduct.member, "reason": conduct.happened, **place}


def _is_known_to_spoil(db: Session, run: RunRow, member: str) -> bool:
    rows = db.scalars(select(AuditRow.details).where(AuditRow.action == NAMED, AuditRow.details.contains(SPOILED)))
    told = (json.loads(row) for row in rows)
    return any((one["run"], one["member"]) == (run.name, member) for one in told)


def _is_told(db: Session, details: Mapping[str, str | int]) -> bool:
    rows = db.scalars(select(AuditRow.details).where(AuditRow.action == NAMED))
    return any(json.loads(row) == details for row in rows)


def _attempts(ctx: Context, db: Session, run: RunRow, most: int) -> list[AttemptSteps]:
    """The newest finished attempts of a run in order, at most so many."""
    finished = (AttemptRow.run_id == run.id, AttemptRow.status != "active")
    rows = db.scalars(select(AttemptRow).where(*finished).order_by(AttemptRow.id.desc()).limit(most)).all()
    return [_attempt(ctx, db, row) for row in reversed(rows)]


def _attempt(ctx: Context, db: Session, row: AttemptRow) -> AttemptSteps:
    missed: dict[str, str] = {}
    last: dict[str, str] = {}
    try:
        spec = ctx.spec_of(row)
    except MalformedError:  # an earlier version of this program wrote it in other records
        return AttemptSteps(row.round, row.attempt, {}, {})
    for session in queries.sessions_of(db, row.id):
        steps = _session(ctx, db, row, spec, session)
        for member, step in missed_steps(steps).items():
            (last if steps.opened and step == queries.UNMASK else missed).setdefault(member, step)
    return AttemptSteps(row.round, row.attempt, missed, last)


def _session(ctx: Context, db: Session, attempt: AttemptRow, spec: RoundSpec, row: SessionRow) -> SessionSteps:
    joins = db.execute(
        select(JoinRow.member, JoinRow.in_cohort, JoinRow.dropped).where(JoinRow.session_id == row.id)
    ).all()
    did: dict[str, set[str]] = {step: set() for step in _STEPS}
    sent = select(MessageRow.step, MessageRow.member).where(MessageRow.session_id == row.id)
    for step, member in db.execute(sent.where(MessageRow.step.in_(_STEPS))):  # not accusations: they are no step
        did[step].add(member)
    durations = zip(_STEPS, (spec.shares_s, spec.masked_s, spec.confirm_s, spec.unmask_s), strict=True)
    return SessionSteps(
        expected=frozenset(ctx.plan_of(db, attempt, row.part).reporters),
        joined=frozenset(member for member, _, _ in joins),
        cohort=frozenset(member for member, in_cohort, _ in joins if in_cohort),
        restarted=frozenset(member for member, _, dropped in joins if dropped),
        did={step: frozenset(members) for step, members in did.items()},
        opened=Phase(row.phase) is Phase.DONE,
        timed_out={step: row.elapsed_s >= duration for step, duration in durations},
    )


def _second_contents(db: Session, run: RunRow) -> dict[str, list[Miss]]:
    """By member the steps of a run for which it sent two different messages, in order."""
    query = select(EvidenceRow.member, EvidenceRow.step, AttemptRow.round, AttemptRow.attempt, SessionRow.part)
    joined = query.join(SessionRow, SessionRow.id == EvidenceRow.session_id).join(
        AttemptRow, AttemptRow.id == SessionRow.attempt_id
    )
    rows = db.execute(joined.where(AttemptRow.run_id == run.id).order_by(EvidenceRow.id).limit(_MOST_EVIDENCE))
    found: dict[str, list[Miss]] = {}
    for member, step, round_, attempt, part in rows:
        found.setdefault(member, []).append(Miss(round_, attempt, f"{step} of part {part}"))
    return found
