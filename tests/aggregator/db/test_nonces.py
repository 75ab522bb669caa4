"""A nonce is fresh once, whichever thread and replica asks, and however many are written together."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import NewFederation

from fedddpm_aggregator.db.nonces import NonceBook

THREADS, NONCES = 8, 60


def test_a_nonce_is_fresh_for_one_of_many(new_federation: NewFederation) -> None:
    """Two replicas, eight threads each, all of them with the same nonces in orders of their own."""
    federation = new_federation()
    with federation.context() as one, federation.context() as other:
        start = threading.Barrier(2 * THREADS)

        def ask(number: int) -> list[int]:
            book = (one, other)[number % 2].nonces
            start.wait()
            order = range(NONCES) if number % 3 else reversed(range(NONCES))
            return [n for n in order if book.first("a", f"nonce-{n}", time.time() + 60)[0]]

        with ThreadPoolExecutor(2 * THREADS) as pool:
            fresh = Counter(n for numbers in pool.map(ask, range(2 * THREADS)) for n in numbers)
    assert fresh == dict.fromkeys(range(NONCES), 1)


def test_the_same_nonce_of_another_member_is_fresh(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx:
        asked = [ctx.nonces.first(member, "nonce", time.time() + 60) for member in ("a", "b", "a")]
    assert asked == [(True, 1), (True, 1), (False, 1)]


def test_who_comes_meanwhile_is_written_together(tmp_path: Path) -> None:
    """While the first waits for the database all others gather, and are one transaction."""
    with Federation(tmp_path).context() as ctx:
        book, transactions = NonceBook(ctx.database), []
        held, go_on = threading.Event(), threading.Event()
        remember = book._remember

        def slow(batch: list[object]) -> None:
            transactions.append(len(batch))
            if len(transactions) == 1:
                held.set()
                go_on.wait(30)
            remember(batch)  # type: ignore[arg-type]

        book._remember = slow  # type: ignore[assignment, method-assign]
        with ThreadPoolExecutor(THREADS) as pool:
            first = pool.submit(book.first, "a", "first", time.time() + 60)
            assert held.wait(30)
            others = [pool.submit(book.first, "a", f"other {n % 5}", time.time() + 60) for n in range(THREADS - 1)]
            while len(book._waiting) < THREADS - 1:
                time.sleep(0.005)
            go_on.set()
            assert first.result()[0]
            assert sum(other.result()[0] for other in others) == 5
    assert transactions == [1, THREADS - 1]


def test_everybody_hears_of_a_database_that_is_away(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx:
        with ctx.database.write() as db:
            db.connection().exec_driver_sql("ALTER TABLE nonces RENAME TO elsewhere")
        for nonce in ("one", "two"):
            with pytest.raises(DBAPIError):
                ctx.nonces.first("a", nonce, time.time() + 60)
        with ctx.database.write() as db:
            db.connection().exec_driver_sql("ALTER TABLE elsewhere RENAME TO nonces")
        assert ctx.nonces.first("a", "one", time.time() + 60)[0]
