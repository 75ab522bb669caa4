"""What the algebra says can be computed is computed here from the masked words, and comes out right."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import numpy as np
import pytest
from tests.adversary.search.cases import one, two
from tests.adversary.search.honest import WORDS, Federation, Offer, values, watched
from tests.adversary.search.knowledge import Party, history
from tests.adversary.search.mutant_table import MUTANTS
from tests.adversary.search.outcomes import OPEN, Facts
from tests.adversary.search.sessions import PLAIN, Breadth, Sessions
from tests.support.elimination import PRIME, echelon

from fedddpm_protocol.primitives.keystream import MaskStream

MODULUS = 2**32


def opened_words(party: Party, facts: Facts) -> int:
    """Opens every sum that can be; how many there were. Fails where the words are not those of the sum."""
    nodes = [node for node in history(facts) if node.seeds and not (node.parent and node.parent.seeds)]
    known, (columns, basis) = party.seeds(history(facts)), party.sums(facts)
    masks = sorted({seed for node in nodes for seed, _ in node.seeds if seed not in known})
    table = []
    for place, node in enumerate(nodes):
        signs = dict(node.seeds)
        column = (node.offer.base, node.offer.part, *(node.content or ())[::2])
        own = [int(column == (c[0], c[1], c[2], c[3])) for c in columns]
        table.append([*(signs.get(m, 0) for m in masks), *own, *(int(place == other) for other in range(len(nodes)))])
    sums = [row[len(masks) :] for row in echelon(table) if not any(row[: len(masks)])]
    done = 0
    for row in sums:
        told, used = row[: len(columns)], [_signed(value) for value in row[len(columns) :]]
        if not any(told) or max(map(abs, used)) > 1000:
            continue
        total = np.zeros(WORDS, np.int64)
        for times, node in zip(used, nodes, strict=True):
            if times:
                clear = node.words.astype(np.int64) if node.words is not None else total
                for seed, sign in node.seeds:
                    if seed in known:
                        clear = clear - sign * MaskStream(seed, node.offer.part, 32).words(0, WORDS).astype(np.int64)
                total = (total + times * clear) % MODULUS
        expected = np.zeros(WORDS, np.int64)
        for times, (base, part, member, making) in zip(map(_signed, told), columns, strict=True):
            expected = (expected + times * values((member, base, making), part).astype(np.int64)) % MODULUS
        assert total.tolist() == expected.tolist()
        done += 1
    assert done == len(basis)
    return done


def _signed(value: int) -> int:
    return value if value < PRIME // 2 else value - PRIME


def some(facts: Iterable[Facts], number: int) -> list[Facts]:
    every = list(facts)
    return Random(1).sample(every, min(number, len(every)))


@pytest.mark.parametrize("federation", [Federation(4, 0), Federation(4, 1), Federation(5, 2, 4)], ids=str)
def test_sums_that_may_be_opened_are(federation: Federation) -> None:
    with watched():
        sessions, party = Sessions(federation), Party(federation)
        assert sum(opened_words(party, facts) for facts in some(one(Breadth())(sessions, party), 30)) >= 5
        assert sum(opened_words(party, facts) for facts in some(two(OPEN, PLAIN, Offer(1))(sessions, party), 20)) >= 5


@pytest.mark.parametrize("name", ["the threshold is one less", "SPENT is not written", "uploads have no self mask"])
def test_sums_that_a_weaker_code_gives_away_are_right_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for weaken in MUTANTS[name].weaken:
        weaken(monkeypatch)
    with watched():
        federation = Federation(4, 0)
        sessions, party = Sessions(federation), Party(federation)
        stories = [*one(Breadth())(sessions, party), *two(OPEN, PLAIN, Offer(1))(sessions, party)]
        lies = some((facts for facts in stories if party.violation(facts)), 15)
        assert lies
        assert sum(opened_words(party, facts) for facts in lies) >= len(lies)
