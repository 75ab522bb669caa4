"""Three server processes behind a balancer, two of them killed again and again: every round ends with the exact sum.

The same with their PostgreSQL stopped in the middle, without a goodbye, and started again.

Which replica answers a request is chance; only attempts that members left may fail, and a round is published once.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from benchmarks.load.postgresql import PostgreSQL
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.replica_history import check_history
from tests.aggregator.support.replicas import cluster, outages, take_part
from tests.support.postgresql import NewDatabase

ROUNDS = int(os.environ.get("FEDDDPM_SOAK_ROUNDS", "50"))
SEED = int(os.environ.get("FEDDDPM_SOAK_SEED", str(random.SystemRandom().randrange(2**32))))
MEMBERS = ("a", "b", "c", "d", "e")
UNHURRIED = dict.fromkeys(("join_s", "shares_s", "masked_s", "confirm_s", "unmask_s"), 300.0)


@pytest.fixture
def federation(tmp_path: Path, new_postgresql_database: NewDatabase) -> Federation:
    return Federation(tmp_path, new_postgresql_database(), members=MEMBERS)


def test_a_few_rounds_while_replicas_die(federation: Federation) -> None:
    federation.start_run(rounds=3, chunk_coordinates=64, **UNHURRIED)
    with cluster(federation, seed=1, pause=(20, 60)) as running:
        book = take_part(running, seed=1, drops=0.1, timeout_s=240)
        assert running.kills >= 2
    check_history(running, book, rounds=3)


def test_the_database_goes_away_in_the_middle(tmp_path: Path, own_postgresql: PostgreSQL) -> None:
    federation = Federation(tmp_path, own_postgresql.new_database(), members=MEMBERS)
    federation.start_run(rounds=2, chunk_coordinates=64, **UNHURRIED)
    with cluster(federation, seed=2, pause=None) as running, outages(running, own_postgresql, 2, (30, 60)) as away:
        book = take_part(running, seed=2, drops=0.0, timeout_s=240)
        assert away.count >= 1
    check_history(running, book, rounds=2)


@pytest.mark.soak
def test_many_rounds_while_replicas_die(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    federation.start_run(rounds=ROUNDS, **UNHURRIED)
    with cluster(federation, seed=SEED, pause=(30, 300)) as running:
        with capsys.disabled():
            print(f"\nreplicas with FEDDDPM_SOAK_SEED={SEED}")
        book = take_part(running, seed=SEED, drops=0.15, timeout_s=60 + 30 * ROUNDS)
    attempts = check_history(running, book, rounds=ROUNDS)
    with capsys.disabled():
        balancer = running.balancer
        print(
            f"{ROUNDS} rounds in {attempts} attempts, {running.kills} kills, {balancer.requests} requests, "
            f"{balancer.unanswered} of them cut"
        )


@pytest.mark.soak
def test_many_rounds_while_replicas_and_their_database_die(tmp_path: Path, own_postgresql: PostgreSQL) -> None:
    rounds = max(3, ROUNDS // 5)
    federation = Federation(tmp_path, own_postgresql.new_database(), members=MEMBERS)
    federation.start_run(rounds=rounds, **UNHURRIED)
    with cluster(federation, SEED, pause=(50, 400)) as running, outages(running, own_postgresql, SEED, (100, 600)):
        book = take_part(running, seed=SEED, drops=0.15, timeout_s=60 + 60 * rounds)
    check_history(running, book, rounds)
