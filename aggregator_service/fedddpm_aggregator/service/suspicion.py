"""Who is in spoiled sums more often than by chance: where members are drawn anew, that finds who spoils them.

A sum that a norm or a weight has spoiled, or that wrapped, tells nobody whose update it was. With shards whose roster
allows for further draws the members of such a sum stand in other ones in the next round, and USPLIT draws in every
attempt. A member that spoils is in each spoiled sum; one that does not, in some by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, MessageRow, RunRow, SessionRow
from fedddpm_aggregator.service.context import Context

MOST_CHANCE = 0.02  # that any honest member is in as many spoiled sums as one that is named
_MOST_SUMS = 500  # spoiled ones of a run that are looked at; the newest
SPOILED = "was in the spoiled sums of"  # of whoever is named
_MOST_SHOWN = 10  # names in a sentence


@dataclass(frozen=True)
class SpoiledDraw:
    """A round of which some sums were spoiled and others opened."""

    round: int  # from 0
    drawn: frozenset[str]  # who was drawn into the sums that were spoiled
    took_part: frozenset[str]  # those of them whose updates were in
    among: int  # members of the round


@dataclass(frozen=True)
class Suspect:
    """A member that is in spoiled sums of as many draws as nobody else, or as hardly any honest one would be."""

    member: str
    times: int
    chance: float  # that a given honest member is in as many


@dataclass(frozen=True)
class Suspicion:
    """What the spoiled sums of a run tell."""

    draws: int  # different ones that tell something
    rounds: tuple[int, ...]  # of these, from 0
    among: int  # members that are enrolled
    most: tuple[Suspect, ...]  # those in most of the draws, by name
    named: tuple[Suspect, ...]  # those that chance hardly explains

    @property
    def happened(self) -> str:
        """In words."""
        times, names = self.most[0].times, [suspect.member for suspect in self.most]
        shown = ", ".join(names[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")
        found = f"sums were spoiled in {self.draws} draws (rounds {self._numbers}); "
        if times == self.draws:
            return f"{found}in all of them: {shown}, {len(names)} of {self.among} members"
        return f"{found}nobody is in all: more than one spoils them, or some wrapped by chance; in {times}: {shown}"

    def says(self, suspect: Suspect) -> str:
        """Of a member that is named: what it was in, and how likely that is of an honest one."""
        return (
            f"{SPOILED} {suspect.times} out of {self.draws} draws (rounds {self._numbers}), which"
            f" a given honest member is with a chance of {suspect.chance:.2g}"
        )

    @property
    def _numbers(self) -> str:
        numbers = [str(round_ + 1) for round_ in self.rounds]
        return ", ".join(numbers[:_MOST_SHOWN]) + (", ..." if len(numbers) > _MOST_SHOWN else "")


def suspicion(rounds: Iterable[SpoiledDraw], enrolled: Collection[str]) -> Suspicion | None:
    """What ``rounds`` tell of the members that are ``enrolled``; None: nothing.

    Rounds of one draw are one: whoever was missing in one of them has not spoiled that draw. Where a member that left
    since is in most draws, it explains those that it is in, and they are set aside.
    """
    draws = _by_draw(rounds)
    while draws:
        counts = Counter(member for one in draws for member in one.took_part)
        most = max(counts.values(), default=0)
        gone = sorted(member for member, count in counts.items() if count == most and member not in enrolled)
        if not gone:
            return _told(draws, {member: counts[member] for member in counts if member in enrolled}, len(enrolled))
        draws = [one for one in draws if gone[0] not in one.took_part]
    return None


def _by_draw(rounds: Iterable[SpoiledDraw]) -> list[SpoiledDraw]:
    found: dict[frozenset[str], SpoiledDraw] = {}
    for one in rounds:
        before = found.get(one.drawn, one)
        both = SpoiledDraw(before.round, one.drawn, before.took_part & one.took_part, one.among)
        found[one.drawn] = both
    return [one for one in found.values() if one.took_part and len(one.drawn) < one.among]


def _told(draws: Sequence[SpoiledDraw], counts: dict[str, int], among: int) -> Suspicion | None:
    if not counts:
        return None
    shares, most = [len(one.drawn) / one.among for one in draws], max(counts.values())
    suspects = [Suspect(member, times, _at_least(times, shares)) for member, times in sorted(counts.items())]
    return Suspicion(
        draws=len(draws),
        rounds=tuple(sorted(one.round for one in draws)),
        among=among,
        most=tuple(one for one in suspects if one.times == most),
        named=tuple(one for one in suspects if one.chance * among <= MOST_CHANCE),
    )


def _at_least(times: int, shares: Sequence[float]) -> float:
    """The chance that at least ``times`` of independent events with these chances happen."""
    exactly = [1.0]
    for share in shares:
        happens = [0.0, *(chance * share for chance in exactly)]
        exactly = [chance * (1 - share) + more for chance, more in zip([*exactly, 0.0], happens, strict=True)]
    return sum(exactly[times:])


# --- the database -----------------------------------------------------------------------------------------------------


def suspicion_in(ctx: Context, db: Session, run: RunRow) -> Suspicion | None:
    """What the published rounds of a run tell, at the moment that ``db`` sees."""
    refused = or_(SessionRow.held, SessionRow.wrapped)
    published = (AttemptRow.run_id == run.id, AttemptRow.status == "done", refused)
    query = select(SessionRow, AttemptRow).join(AttemptRow, AttemptRow.id == SessionRow.attempt_id).where(*published)
    rows = db.execute(query.order_by(SessionRow.id.desc()).limit(_MOST_SUMS)).all()
    if not rows:
        return None
    sent = select(MessageRow.session_id, MessageRow.member).where(
        MessageRow.session_id.in_([session.id for session, _ in rows]), MessageRow.step == queries.UPLOAD
    )
    uploads: dict[int, set[str]] = {}
    for session_id, member in db.execute(sent):
        uploads.setdefault(session_id, set()).add(member)
    by_attempt: dict[int, list[tuple[SessionRow, AttemptRow]]] = {}
    for session, attempt in reversed(rows):
        by_attempt.setdefault(attempt.id, []).append((session, attempt))
    return suspicion((_draw(ctx, db, found, uploads) for found in by_attempt.values()), ctx.newest_roster(db).ids)


def _draw(
    ctx: Context, db: Session, found: Sequence[tuple[SessionRow, AttemptRow]], uploads: dict[int, set[str]]
) -> SpoiledDraw:
    drawn: set[str] = set()
    took_part: set[str] = set()
    for session, attempt in found:
        drawn |= set(ctx.plan_of(db, attempt, session.part).reporters)
        took_part |= uploads.get(session.id, set())
    attempt = found[0][1]
    members = ctx.roster(db, attempt.roster_version).ids
    return SpoiledDraw(attempt.round, frozenset(drawn), frozenset(took_part), len(members))
