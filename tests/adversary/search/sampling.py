"""Stories drawn at random, for federations that are too large to look at everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from tests.adversary.search.honest import Durable, Federation, Node, Offer
from tests.adversary.search.outcomes import Facts, fresh
from tests.adversary.search.sessions import PLAIN, Sessions, Shown


def sample(federation: Federation, seed: int, attempts: int = 3) -> Iterator[Facts]:
    """Attempts one after the other, each told in a random way; the facts after each. The seed decides all of it."""
    draw, sessions = Random(seed), Sessions(federation)
    durables, facts = fresh(sessions), frozenset[Node]()
    for attempt in range(attempts):
        found = _session(sessions, draw, Offer(attempt), durables)
        facts |= frozenset(found.values())
        durables = tuple(found[m].durable if m in found else durable for m, durable in enumerate(durables))
        yield facts


def _session(sessions: Sessions, draw: Random, offer: Offer, durables: Sequence[Durable]) -> Shown:
    start = sessions.joined(offer, durables)
    asked = {m for m in start if draw.random() < 0.9}  # who is told of it at all
    pool = sessions.pool({m: start[m] for m in asked}, offer, PLAIN, ())
    stories = [{m: draw.choice(kinds) for m, kinds in pool.items() if draw.random() < 0.9} for _ in range(2)]
    shared: Shown = {}
    for member in asked:
        chosen = list((stories[0] if draw.random() < 0.9 else stories[1]).values())
        child = sessions.shown_cohort(start[member], chosen)
        if child is not None:
            shared[member] = child
    groups: dict[bytes, Shown] = {}
    for member, node in shared.items():
        groups.setdefault(node.machine.session_id or b"", {})[member] = node
    uploads: Shown = {}
    for group in groups.values():
        uploads |= _pick(draw, sessions.uploads(group, PLAIN, ()))
    confirmed = _pick(draw, sessions.confirmed(uploads))
    answers = next(iter(sessions.answered(confirmed, durables, PLAIN, ())))
    return uploads | {m: node for m, node in answers.items() if draw.random() < 0.8}


def _pick(draw: Random, options: dict[int, dict[int, Node]]) -> Shown:
    """Mostly one story, of two, for all who take it."""
    every = sorted({view for sets in options.values() for view in sets})
    if not every:
        return {}
    weights = [1 + 4 * sum(view in sets for sets in options.values()) for view in every]
    stories = draw.choices(every, weights, k=2)
    shown = {}
    for member, sets in options.items():
        mine = [view for view in stories if view in sets] or sorted(sets)
        if mine:
            shown[member] = sets[mine[0] if draw.random() < 0.8 else draw.choice(mine)]
    return shown
