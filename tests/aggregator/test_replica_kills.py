"""Three server processes behind a balancer, two of them killed again and again: every round ends with the exact sum.

Which replica answers a request is chance; only attempts that members left may fail, and a round is published once.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.aggregator.federations import Federation
from tests.aggregator.replica_history import check_history
from tests.aggregator.replicas import cluster, take_part
from tests.postgresql import NewDatabase

ROUNDS = int(os.environ.get("FEDDDPM_SOAK_ROUNDS", "50"))
SEED = int(os.environ.get("FEDDDPM_SOAK_SEED", str(random.SystemRandom().randrange(2**32))))
UNHURRIED = dict.fromkeys(("join_s", "shares_s", "masked_s", "confirm_s", "unmask_s"), 300.0)


@pytest.fixture
def federation(tmp_path: Path, new_postgresql_database: NewDatabase) -> Federation:
    return Federation(tmp_path, new_postgresql_database(), members=("a", "b", "c", "d", "e"))


def test_a_few_rounds_while_replicas_die(federation: Federation) -> None:
    federation.start_run(rounds=4, **UNHURRIED)
    with cluster(federation, seed=1, pause=(20, 60)) as running:
        book = take_part(running, seed=1, drops=0.15, timeout_s=120)
        assert running.kills.total() >= 2
    check_history(running, book, rounds=4)


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
            f"{ROUNDS} rounds in {attempts} attempts, {running.kills.total()} kills, {balancer.requests} requests, "
            f"{balancer.unanswered} of them cut"
        )
