"""PostgreSQL 10 ms away: many things happen between two statements, and everybody goes on as if it stood next door."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation
from tests.support.slow_pipe import far_away

from fedddpm_aggregator.app import open_context
from fedddpm_aggregator.service.rounds.reading import run_state
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.api import RunState

ONE_WAY_S, ROUNDS, ASKING = 0.01, 2, 12


@pytest.mark.slow
def test_nobody_is_told_of_two_moments(
    new_federation: NewFederation, new_postgresql_database: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    near = new_postgresql_database()
    fed = new_federation(database_url=near)
    fed.begin(rounds=ROUNDS)
    with far_away(near, ONE_WAY_S) as (far, _):
        fed.database_url = far
        fed.serve()
        for member in fed.members:
            fed.proxy(member)
        fed.join_here()
        with asked_all_the_time(fed, far) as seen:
            fed.end(timeout_s=240)
        told = [*seen, *(state for member in fed.members for state in told_to(fed, member))]
        fed.kill("aggregator")
    assert len(told) > ROUNDS * len(fed.members)
    assert [state for state in told if not is_of_one_moment(state)] == []
    assert "asking the aggregator again" not in caplog.text
    fed.database_url = near
    for round_ in range(ROUNDS):
        assert fed.check_round(round_, fed.members).attempt == 0
    fed.check_models()


@contextmanager
def asked_all_the_time(fed: Federation, url: str) -> Iterator[list[RunState]]:
    """What many replies say that are put together side by side, as far from the database as the server's."""
    ctx, over = open_context(Settings(data=fed.data, database_url=url)), threading.Event()
    seen: list[RunState] = []

    def ask() -> None:
        while not over.is_set():
            seen.append(run_state(ctx))

    with closing(ctx.database), ThreadPoolExecutor(ASKING) as pool:
        asking = [pool.submit(ask) for _ in range(ASKING)]
        try:
            yield seen
        finally:
            over.set()
    for one in asking:
        one.result()


def told_to(fed: Federation, member: str) -> list[RunState]:
    exchanges = fed.proxy(member).requests("GET /v1/state")
    return [RunState.model_validate_json(exchange.reply) for exchange in exchanges if exchange.status == 200]


def is_of_one_moment(state: RunState) -> bool:
    """Whether the specification stands on the newest result, or is the one of the last round when all are over."""
    if state.spec is None:
        return state.results == 0
    spec = canonical.decode(RoundSpec, state.spec.body)
    if state.status == "finished":
        return (spec.round + 1, state.results) == (ROUNDS, ROUNDS)
    return (spec.round, spec.previous_result.hex()) == (state.results, state.last_result or "")
