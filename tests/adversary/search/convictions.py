"""Sums from which members are left out that were in one before, because evidence that they were shown convicts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

from tests.adversary.search import messages
from tests.adversary.search.evidence import Court
from tests.adversary.search.honest import Durable, Federation, Node, Offer
from tests.adversary.search.knowledge import Party
from tests.adversary.search.outcomes import OPEN, Facts, ends, fresh
from tests.adversary.search.sessions import PLAIN, Outcome, Sessions
from tests.protocol.support.specs import make_spec

from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session import verdicts

Told = tuple[bytes, str, str]  # base, part, member


@cache
def judged(federation: Federation, attempt: int, base: int = 0) -> Offer:
    """An offer with a specification that evidence can be about."""
    offer, roster = Offer(attempt, base, "full"), federation.roster()
    spec = make_spec(roster, chunk_coordinates=8, attempt=attempt, base_model_hash=offer.base_hash)
    return replace(offer, document=canonical.encode(spec))


def everybody(sessions: Sessions, offer: Offer, durables: Sequence[Durable]) -> list[Node]:
    """A session with everybody in its cohort; nobody was given shares yet."""
    cohorts = sessions.cohorts(sessions.joined(offer, durables), offer, PLAIN, ())
    wanted = (list(shown.values()) for shown in cohorts)
    return max(wanted, key=lambda nodes: (len(messages.cohort_of(nodes[0]).ids), len(nodes)), default=[])


def courts(sessions: Sessions, facts: Iterable[Node]) -> Iterator[Court]:
    """One for each session of everybody."""
    groups: dict[bytes, dict[int, Node]] = {}
    for node in facts:
        groups.setdefault(node.machine.session_id or b"", {})[node.member] = node
    for group in groups.values():
        court = Court(sessions.hands, [group[member] for member in sorted(group)])
        if len(court.cohort.ids) == sessions.federation.n:
            yield court


def guilty(sessions: Sessions, facts: Iterable[Node]) -> set[Told]:
    """Whom institutions hold for convicted, of all evidence that can be made of this; they check it themselves."""
    roster, found = sessions.federation.roster(), set()
    for court in courts(sessions, facts):
        for evidence in court.evidence():
            try:
                conviction = verdicts.verify_evidence(roster, evidence)
            except ProtocolError:
                continue
            found.add((conviction.base_model_hash, conviction.part, conviction.verdict.member))
    return found


def left_out(sessions: Sessions, party: Party) -> Iterator[Facts]:
    """A sum; evidence from it, and from a session that was given up before it; and a sum without some."""
    for spoil in (False, True) if sessions.hands.members else (False,):
        yield from _left_out(Sessions(sessions.federation, spoil), party)


def _left_out(sessions: Sessions, party: Party) -> Iterator[Facts]:
    federation = sessions.federation
    before = guilty(sessions, everybody(sessions, judged(federation, 9), fresh(sessions)))
    found = ends(sessions, party, sessions.explore(judged(federation, 0), fresh(sessions), OPEN))
    for end in sorted(found, key=_most_answers):
        yield end.facts
        for told in _some_of(sorted(before | guilty(sessions, end.facts))):
            for outcome in _afterwards(sessions, end, told):
                yield end.facts | outcome.facts


def _most_answers(end: Outcome) -> tuple[int, int]:
    """Sorts sums of everybody first."""
    answers = [node for node in end.facts if node.label[0] == "answer"]
    return -max((len(messages.cohort_of(node).ids) for node in answers), default=0), -len(answers)


def _some_of(told: Sequence[Told]) -> Iterator[tuple[Told, ...]]:
    """Each by itself, and all together."""
    yield from combinations(told, 1)
    if len(told) > 1:
        yield tuple(told)


def _afterwards(sessions: Sessions, end: Outcome, told: tuple[Told, ...]) -> Iterator[Outcome]:
    """One more session, when all were shown the evidence, and when all but one were."""
    honest = sessions.federation.honest
    for spared in (None, *honest):
        durables = tuple(
            durable if member == spared else replace(durable, convicted=told)
            for member, durable in zip(honest, end.durables, strict=True)
        )
        yield from sessions.explore(judged(sessions.federation, 1), durables, PLAIN)
