"""What stories are made of: how a session may end, and which ends are alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace

from tests.adversary.search.honest import Durable, Node
from tests.adversary.search.knowledge import Party
from tests.adversary.search.sessions import PLAIN, Outcome, Sessions, labels_of
from tests.adversary.search.symmetry import Label, canonical, mask_of, profile_labels

OPEN = replace(PLAIN, some_answer=True)
TRICKS = replace(PLAIN, tricks=True)
Facts = frozenset[Node]


def fresh(sessions: Sessions) -> tuple[Durable, ...]:
    return tuple(Durable() for _ in sessions.federation.honest)


def ends(sessions: Sessions, party: Party, outcomes: Iterator[Outcome], linked: bool = False) -> list[Outcome]:
    """One outcome of each kind: who remembers what, and which sums are open. ``linked``: all that was seen counts."""
    found: dict[Hashable, Outcome] = {}
    for outcome in outcomes:
        labels = profile_labels(outcome.durables)
        columns, basis = party.sums(outcome.facts)
        for row in basis:
            for value in sorted(set(row) - {0}):
                members = mask_of(c[2] for c, v in zip(columns, row, strict=True) if v == value)
                labels.append(Label("sum", members.bit_length() - 1, (members,), value))
        if linked:
            labels += labels_of(dict(enumerate(outcome.facts)))
        kind = canonical(labels, sessions.federation.n, len(sessions.federation.honest))
        if kind not in found or len(found[kind].facts) < len(outcome.facts):
            found[kind] = outcome
    return list(found.values())
