"""Who is in every spoiled sum of a run: where members are drawn anew, whoever spoils sums alone is left over.

A sum that a norm or a weight has spoiled, or that wrapped, tells nobody whose update it was. With shards whose roster
allows for further draws the members of such a sum stand in other ones in the next round, and USPLIT draws in every
attempt. A member that spoils is in each spoiled sum; one that does not, by chance alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow, SessionRow
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.wire.phases import Phase

FEWEST_SUMS = 2  # that name one member
MOST_CHANCE = 0.01  # that any honest member is in as many, where the one that is named is not in all
_MOST_ATTEMPTS = 500  # with a spoiled sum; the newest


@dataclass(frozen=True)
class SpoiledDraw:
    """An attempt in which some sums were spoiled and others were not."""

    round: int  # from 0
    spoiled: frozenset[str]  # survivors of the sums that were spoiled
    members: frozenset[str]  # survivors of all sums that came out


@dataclass(frozen=True)
class Suspicion:
    """Among whom the one is that spoils sums, if it does so alone."""

    draws: int  # that tell something
    rounds: tuple[int, ...]  # of these, from 0
    members: tuple[str, ...]  # those in most of them
    among: int  # members that are enrolled
    times: int  # in how many draws each of ``members`` is
    chance: float  # that a given honest member is in as many

    @property
    def cornered(self) -> str | None:
        """The member that is left over, if one is."""
        if len(self.members) != 1 or self.times < FEWEST_SUMS:
            return None
        certain = self.times == self.draws or self.chance * self.among <= MOST_CHANCE
        return self.members[0] if certain else None

    @property
    def happened(self) -> str:
        """In words."""
        rounds = ", ".join(str(round_ + 1) for round_ in self.rounds)
        if self.times < self.draws:
            return (
                f"sums were spoiled in {self.draws} draws (rounds {rounds}) and no member is in all of them: two spoil"
                f" sums, or one wrapped by chance; in {self.times}: {', '.join(self.members)}"
            )
        return (
            f"in all sums that were spoiled (rounds {rounds}): {', '.join(self.members)}, {len(self.members)} of"
            f" {self.among} members; if one spoils alone, it is among them"
        )

    @property
    def says(self) -> str:
        """Of the member that is left over: what it was in, and how likely that is of an honest one."""
        rounds = ", ".join(str(round_ + 1) for round_ in self.rounds)
        return (
            f"is alone in {self.times} of {self.draws} draws whose sums were spoiled (rounds {rounds}); a given honest"
            f" member is in as many with a chance of {self.chance:.2g}"
        )


def suspicion(draws: Iterable[SpoiledDraw], enrolled: Collection[str]) -> Suspicion | None:
    """What ``draws`` tell of the members that are ``enrolled`` (None: nothing).

    A draw tells something where part of its members stood in spoiled sums; the same members twice are one draw. One
    whose spoiled sums had a member that has left since is explained by it.
    """
    telling: dict[frozenset[str], SpoiledDraw] = {}
    for one in draws:
        if one.spoiled and one.spoiled < one.members and one.spoiled <= set(enrolled):
            telling.setdefault(one.spoiled, one)
    if not telling:
        return None
    counts = Counter(member for spoiled in telling for member in spoiled)
    most = max(counts.values())
    shares = [len(one.spoiled) / len(one.members) for one in telling.values()]
    return Suspicion(
        draws=len(telling),
        rounds=tuple(sorted({one.round for one in telling.values()})),
        members=tuple(sorted(member for member, count in counts.items() if count == most)),
        among=len(enrolled),
        times=most,
        chance=_at_least(most, shares),
    )


def _at_least(times: int, shares: Sequence[float]) -> float:
    """The chance that at least ``times`` of independent events with these chances happen."""
    exactly = [1.0]
    for share in shares:
        happens = [0.0, *(chance * share for chance in exactly)]
        exactly = [chance * (1 - share) + more for chance, more in zip([*exactly, 0.0], happens, strict=True)]
    return sum(exactly[times:])


# --- the database -----------------------------------------------------------------------------------------------------


def suspicion_in(ctx: Context, db: Session, run: RunRow, before: AttemptRow | None = None) -> Suspicion | None:
    """What the run's finished attempts tell, at the moment that ``db`` sees; those older than ``before`` alone."""
    over = [AttemptRow.run_id == run.id, AttemptRow.status != "active"]
    if before is not None:
        over.append(AttemptRow.id < before.id)
    refused = or_(SessionRow.held, SessionRow.wrapped)
    ids = select(SessionRow.attempt_id).join(AttemptRow, AttemptRow.id == SessionRow.attempt_id).where(*over, refused)
    newest = select(AttemptRow).where(AttemptRow.id.in_(ids)).order_by(AttemptRow.id.desc()).limit(_MOST_ATTEMPTS)
    attempts = db.scalars(newest).all()
    return suspicion((_draw(db, row) for row in reversed(attempts)), ctx.newest_roster(db).ids) if attempts else None


def _draw(db: Session, attempt: AttemptRow) -> SpoiledDraw:
    spoiled: set[str] = set()
    members: set[str] = set()
    for row in queries.sessions_of(db, attempt.id):
        if row.is_spoiled or Phase(row.phase) is Phase.DONE:
            survivors = queries.members_of(db, row.id, queries.UPLOAD)
            members |= survivors
            spoiled |= survivors if row.is_spoiled else frozenset()
    return SpoiledDraw(attempt.round, frozenset(spoiled), frozenset(members))
