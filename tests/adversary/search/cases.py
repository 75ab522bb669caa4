"""What is searched: one session, two, and chains of more, each over all that the aggregator can do in them.

A case yields every situation that it comes to, as the facts that the adversary then has; :func:`search` asks of each
whether they give away more than they may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, permutations

from tests.adversary.search.convictions import left_out
from tests.adversary.search.honest import NOTHING, Federation, Node, Offer, trained, watched
from tests.adversary.search.knowledge import Party
from tests.adversary.search.outcomes import OPEN, TRICKS, Facts, ends, fresh
from tests.adversary.search.sessions import ALL, PLAIN, Breadth, Outcome, Sessions, Shown
from tests.adversary.search.symmetry import mask_of, shown

from fedddpm_protocol.agreement.roster import Release
from fedddpm_protocol.errors import TermsError


@dataclass
class Found(Exception):  # noqa: N818 - what was looked for
    """More is known than may be."""

    what: str
    case: str
    federation: Federation
    story: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what} ({self.case}; {self.federation}): {'; '.join(self.story)}"


@dataclass(frozen=True)
class Case:
    """A kind of story, and the federations that it is played in."""

    name: str
    federations: tuple[Federation, ...]
    play: Callable[[Sessions, Party], Iterator[Facts]]


def search(case: Case) -> int:
    """The number of situations that were looked at; raises :class:`Found`."""
    number = 0
    for federation in case.federations:
        with watched():
            sessions, party = Sessions(federation), Party(federation)
            for facts in case.play(sessions, party):
                number += 1
                what = party.violation(facts)
                if what:
                    raise Found(what, case.name, federation, tuple(story(facts)))
    return number


def story(facts: Facts) -> Iterator[str]:
    """How far each machine came, and what it was shown."""
    for node in sorted(facts, key=lambda node: (node.offer.attempt, node.offer.part, node.member)):
        sets = [shown(mask) for mask in node.label[2]]
        names = {"answer": ("U3", "U2"), "upload": ("U2",), "cohort": ()}[node.label[0]]
        seen = [f"{name}={value}" for name, value in zip(names, sets, strict=False)]
        seen += [f"{tag}={value}" for tag, value in zip(node.label[3], sets[len(names) :], strict=True)]
        yield f"attempt {node.offer.attempt} {node.member}: {node.label[0]} {' '.join(seen)}"


# --- one session, and a second one after it --------------------------------------------------------------------------


def one(breadth: Breadth) -> Callable[[Sessions, Party], Iterator[Facts]]:
    """A single session."""
    return lambda sessions, _: (outcome.facts for outcome in sessions.explore(Offer(0), fresh(sessions), breadth))


def lawless(sessions: Sessions, party: Party) -> Iterator[Facts]:
    """A session under a roster that nobody should be able to make."""
    try:
        sessions.federation.roster()
    except ValueError:
        return
    yield from one(PLAIN)(sessions, party)


def linked(sessions: Sessions, first: Offer, second: Offer) -> bool:
    """Whether a member's two JOINs have a secret in common; honest machines make all of them anew."""
    pairs = [
        {
            key
            for node in sessions.joined(offer, fresh(sessions)).values()
            for body in [node.sent.parse()]
            for key in (body.channel_public_key, body.mask_public_key, body.self_mask_commitment)
        }
        for offer in (first, second)
    ]
    return bool(pairs[0] & pairs[1])


def two(first: Breadth, second: Breadth, other: Offer, life: int = 0) -> Callable[[Sessions, Party], Iterator[Facts]]:
    """A session of which some answered, and after it another, in which all that was seen may come again."""

    def play(sessions: Sessions, party: Party) -> Iterator[Facts]:
        outcomes = sessions.explore(Offer(0), fresh(sessions), first)
        tied = other == Offer(0) or linked(sessions, Offer(0), other)
        for end in ends(sessions, party, outcomes, tied):
            yield end.facts
            past = sorted(end.facts, key=lambda node: node.member)
            for outcome in sessions.explore(other, end.durables, second, past, life):
                yield end.facts | outcome.facts

    return play


def harvested(breadth: Breadth) -> Callable[[Sessions, Party], Iterator[Facts]]:
    """A session after some, one for each set of survivors, that were given up when everybody had confirmed."""

    def play(sessions: Sessions, _: Party) -> Iterator[Facts]:
        past: list[Node] = []
        everybody = max(sessions.cohorts(sessions.joined(Offer(9), fresh(sessions)), Offer(9), PLAIN, ()), key=_size)
        uploads = max(sessions.told(sessions.uploads(everybody, PLAIN, ()), 1, []), key=_size)
        for confirmed in sessions.told(sessions.confirmed(uploads), 1, []):
            past += confirmed.values()
        for outcome in sessions.explore(Offer(0), fresh(sessions), breadth, past):
            yield outcome.facts

    return play


def _size(shown: Shown) -> tuple[int, int]:
    """More members, and larger sets that they were shown."""
    return len(shown), sum(node.label[2][0].bit_count() for node in shown.values())


def overlapping(sessions: Sessions, party: Party) -> Iterator[Facts]:
    """A second attempt begins, and ends, while machines of the first wait for confirmations with an empty log."""
    durables = fresh(sessions)
    start = sessions.joined(Offer(0), durables)
    for cohorts in sessions.cohorts(start, Offer(0), PLAIN, ()):
        for uploads in sessions.told(sessions.uploads(cohorts, PLAIN, ()), 1, []):
            for confirmed in sessions.told(sessions.confirmed(uploads), 1, []):
                for end in ends(sessions, party, sessions.explore(Offer(1), durables, OPEN)):
                    for answered in sessions.answered(confirmed, end.durables, PLAIN, ()):
                        yield end.facts | frozenset((uploads | answered).values())


def left_for_another(sessions: Sessions, party: Party) -> Iterator[Facts]:
    """Some leave an attempt that they confirmed for another; when that has ended, the others answer in the first."""
    durables = fresh(sessions)
    start = sessions.joined(Offer(0), durables)
    for cohorts in sessions.cohorts(start, Offer(0), PLAIN, ()):
        for uploads in sessions.told(sessions.uploads(cohorts, PLAIN, ()), 1, []):
            for confirmed in sessions.told(sessions.confirmed(uploads), 1, []):
                for gone in _some(sessions, 2):
                    past = [confirmed[member] for member in gone if member in confirmed]
                    stay = {member: node for member, node in confirmed.items() if member not in gone}
                    for outcome in sessions.explore(Offer(1), durables, OPEN, who=gone):
                        for answered in sessions.answered(stay, outcome.durables, TRICKS, past):
                            yield outcome.facts | frozenset((uploads | answered).values())


# --- chains of plain sessions -----------------------------------------------------------------------------------------


def in_turn(offers: Sequence[Offer], largest: bool = False) -> Callable[[Sessions, Party], Iterator[Facts]]:
    """Sessions in which everybody is told the same: any cohort, any survivors; of the first, any of them answer.

    ``largest``: between the first and the last, only sessions of everybody.
    """

    def play(sessions: Sessions, party: Party) -> Iterator[Facts]:
        ways = ends(sessions, party, sessions.explore(offers[0], fresh(sessions), OPEN))
        for number, offer in enumerate(offers[1:], 2):
            following: list[Outcome] = []
            for way in ways:
                outcomes = list(sessions.explore(offer, way.durables, PLAIN))
                if largest and number < len(offers):
                    outcomes = sorted(outcomes, key=_answers)[-1:]
                following += (Outcome(outcome.durables, way.facts | outcome.facts) for outcome in outcomes)
            yield from (way.facts for way in following)
            ways = ends(sessions, party, iter(following)) if number < len(offers) else []

    return play


def _answers(outcome: Outcome) -> tuple[int, int]:
    return sum(node.label[0] == "answer" for node in outcome.facts), len(outcome.facts)


def released(times: int, other: Offer | None = None) -> Callable[[Sessions, Party], Iterator[Facts]]:
    """Sums, the root's release of one base and part, and ``times`` sessions under it. ``other``: what is summed."""

    def play(sessions: Sessions, party: Party) -> Iterator[Facts]:
        first = Offer(0) if other is None else other
        ids = sessions.federation.roster().ids
        sets = [u3 for size in range(sessions.federation.least, len(ids) + 1) for u3 in combinations(ids, size)]
        for end in ends(sessions, party, sessions.explore(first, fresh(sessions), OPEN)):
            summed = {record.u3 for durable in end.durables for record in durable.records}
            summed |= {sets[0]} if other is None else set()
            for u3, new in ((u3, new) for u3, new in permutations(sets, 2) if u3 in summed):
                release = (Release(Offer(0).base_hash, "part", u3, new),)
                ways = [end]
                for attempt in range(1, times + 1):
                    offer = replace(first, attempt=attempt, releases=release)
                    ways = [
                        Outcome(outcome.durables, way.facts | outcome.facts)
                        for way in ways
                        for outcome in sessions.explore(offer, way.durables, OPEN if attempt < times else PLAIN)
                    ]
                    yield from (way.facts for way in ways)
                    ways = ends(sessions, party, iter(ways))

    return play


def again_and_again(times: int, releases: int) -> Callable[[Sessions, Party], Iterator[Facts]]:
    """The same sum ``times`` times; then, turn about, one that is released and the first one, released again."""

    def play(sessions: Sessions, _: Party) -> Iterator[Facts]:
        ids = sessions.federation.roster().ids
        ends = (ids[:-1], ids[1:]) if releases else (ids, ids)
        durables, facts = fresh(sessions), frozenset[Node]()
        for attempt in range(times + releases):
            turn = max(0, attempt - times + 1) % 2
            release = (Release(Offer(0).base_hash, "part", ends[1 - turn], ends[turn]),) if attempt >= times else ()
            outcomes = sessions.explore(Offer(attempt, releases=release), durables, PLAIN)
            wanted = [outcome for outcome in outcomes if _answered_for(outcome) == {mask_of(ends[turn])}]
            if not wanted:
                return
            most = max(wanted, key=lambda outcome: sum(node.label[0] == "answer" for node in outcome.facts))
            durables, facts = most.durables, facts | most.facts
            yield facts

    return play


def _answered_for(outcome: Outcome) -> set[int]:
    return {node.label[2][0] for node in outcome.facts if node.label[0] == "answer"}


# --- trainings --------------------------------------------------------------------------------------------------------


def lone_trainings(sessions: Sessions, _: Party) -> Iterator[Facts]:
    """Some are offered an attempt that nobody else is; the next one asks everybody for something else."""
    for members in _some(sessions):
        durables = list(fresh(sessions))
        for member in members:
            durables[member] = trained(durables[member], member, Offer(0))
        for terms in (1, NOTHING):
            for outcome in sessions.explore(Offer(1, terms=terms), tuple(durables), PLAIN):
                yield outcome.facts


def second_trainings(sessions: Sessions, party: Party) -> Iterator[Facts]:
    """After a sum the update of some is gone: a run on another base took its place, or the file was lost."""
    for end in ends(sessions, party, sessions.explore(Offer(0), fresh(sessions), OPEN)):
        for members in _some(sessions):
            durables = list(end.durables)
            for member in members:
                durables[member] = replace(durables[member], stored=())
                try:
                    durables[member] = replace(trained(durables[member], member, Offer(8, base=8)), stored=())
                except TermsError:
                    continue
            for terms, making in ((1, 0), (NOTHING, 0), (0, 1)):
                made = dict.fromkeys(members, making)
                for outcome in sessions.explore(Offer(1, terms=terms), tuple(durables), PLAIN, making=made):
                    yield end.facts | outcome.facts


def _some(sessions: Sessions, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Few of the honest members, and all but one."""
    honest = sessions.federation.honest
    return chain(combinations(honest, least), combinations(honest, len(honest) - 1))


# --- the list ---------------------------------------------------------------------------------------------------------

F = Federation
THREES, FOURS, FIVES = (F(3, 0), F(3, 1)), (F(4, 0), F(4, 1)), (F(5, 0), F(5, 1), F(5, 2, 4))
FOUR, SMALL = FOURS[:1], (*THREES, *FOURS)
LAWLESS = (F(3, 2), F(3, 1, 2))  # fewer than c_max + 2; no roster of the root can be like that
SOME = replace(ALL, some_answer=True)
WIDE = Breadth(1, 1, 0, tricks=False)
TALES = Breadth(2, 2, 2)
OTHER_PART, OTHER_BASE = Offer(0, part="other"), Offer(1, base=1)
AT_ONCE = Case("two attempts at once", FOUR, overlapping)  # what no client does: a new attempt ends the one before
CASES = (
    Case("one session", (*SMALL, F(4, 2, 4), F(5, 2, 4)), one(ALL)),
    Case("floors", (F(4, 0, 3, 4), F(4, 1, 4), F(5, 0, 4), F(5, 0, 3, 4)), one(TALES)),
    Case("one session of five", FIVES[:1], one(WIDE)),
    Case("a roster of few", LAWLESS, lawless),
    Case("a retry", (*THREES, F(4, 1)), two(replace(TALES, some_answer=True), TALES, Offer(1))),
    Case("the next round", SMALL, two(OPEN, PLAIN, OTHER_BASE)),
    Case("another part", SMALL, two(OPEN, PLAIN, OTHER_PART)),
    Case("killed and started again", (*THREES, F(4, 1)), two(OPEN, TRICKS, Offer(0), life=1)),
    Case("left for another attempt", FOURS, left_for_another),
    Case("given up before", FOURS, harvested(TALES)),
    Case("three retries", FOUR, in_turn([Offer(0), Offer(1), Offer(2)])),
    Case("parts in turn", FOUR, in_turn([Offer(0), OTHER_PART, Offer(1)], largest=True)),
    Case("bases in turn", FOUR, in_turn([Offer(0), OTHER_BASE, Offer(2)], largest=True)),
    Case("a release", FOUR, released(1)),
    Case("a release of another part", FOUR, released(1, OTHER_PART)),
    Case("again and again", FOURS, again_and_again(5, 0)),
    Case("there and back", FOURS, again_and_again(1, 11)),
    Case("lone trainings", SMALL, lone_trainings),
    Case("second trainings", FOUR, second_trainings),
    Case("without the convicted", (F(4, 1), F(4, 0)), left_out),
)
DEEP = (
    Case("a retry of five", FIVES[:1], two(replace(OPEN, tricks=True), PLAIN, Offer(1))),
    Case("sharers of six", (F(6, 1),), one(replace(PLAIN, sharers=2))),
    Case("a release of another base", FOUR, released(1, Offer(0, base=1))),
    Case("two stories to five", FIVES[:1], one(TALES)),
    Case("a retry of four", FOURS, two(replace(TALES, some_answer=True), TALES, Offer(1))),
    Case("killed and started again, of four", FOURS, two(OPEN, TRICKS, Offer(0), life=1)),
    Case("one session of five, to each its own story", (F(5, 1), F(5, 1, 4)), one(ALL)),
    Case("given up before, to five", FIVES[:1], harvested(replace(WIDE, tricks=True))),
    Case("a retry, to each its own story", SMALL, two(SOME, ALL, Offer(1))),
    Case("a retry of five, two stories", FIVES, two(OPEN, TALES, Offer(1))),
    Case(
        "killed and started again, two stories", SMALL, two(replace(TALES, some_answer=True), TALES, Offer(0), life=1)
    ),
    Case("three retries of five", FIVES, in_turn([Offer(0), Offer(1), Offer(2)])),
    Case("parts and bases in turn", FOURS, in_turn([Offer(0), OTHER_PART, OTHER_BASE, Offer(2)])),
    Case("two sessions under a release", FOURS, released(2)),
    Case("left for another attempt, of five", FIVES, left_for_another),
    Case("second trainings of four", FOURS, second_trainings),
    Case("without the convicted, of three and five", (*THREES, *FIVES), left_out),
)
