"""The aggregator is killed and stays away for some seconds: everybody waits, and no round is lost."""

from __future__ import annotations

import time

import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import wait_until

from fedddpm_protocol.wire.phases import Phase

AWAY_S = 3.0
MOMENTS = {
    "shares": "POST .*/shares",
    "upload": "PUT .*/chunks/",
    "confirm": "POST .*/confirmations",
    "unmask": "POST .*/unmask",
}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Either database of the aggregator."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("new_postgresql_database")()
    return url


def test_while_institutions_train(new_federation: NewFederation, database_url: str | None) -> None:
    """Training goes on without the aggregator; what is ready waits with its JOIN."""
    fed = new_federation("abc", database_url=database_url)
    fed.start(rounds=2, epochs=10)
    checkpoint = fed.site(fed.members[0]) / "state" / "model-run-1-0.safetensors"
    fed.join_in(fed.members[0])
    fed.join_here(*fed.members[1:])
    wait_until(checkpoint.exists, "the beginning of training")
    fed.kill("aggregator")
    time.sleep(AWAY_S)
    fed.serve()
    fed.end()
    for round_ in (0, 1):
        assert fed.check_round(round_, fed.members).attempt == 0
    fed.check_models()


@pytest.mark.parametrize(
    "moment", ["upload", "unmask", *(pytest.param(one, marks=pytest.mark.soak) for one in ("shares", "confirm"))]
)
def test_in_the_middle_of_a_session(new_federation: NewFederation, moment: str) -> None:
    """One member's message is on its way when the aggregator dies; the same attempt ends with everybody."""
    fed = new_federation("abc", c_max=1)
    fed.start()
    slow, *others = fed.members
    hold = fed.proxy(slow).hold(MOMENTS[moment])
    fed.join_here(slow, *others)
    hold.wait()
    fed.kill("aggregator")
    hold.go_on.set()
    time.sleep(AWAY_S)
    fed.serve()
    fed.end()
    assert [(line.attempt, line.phase) for line in fed.lines(0)] == [(0, Phase.DONE)]
    fed.check_round(0, fed.members)
    fed.check_models()


@pytest.mark.soak  # also shown by shorter tests
def test_again_and_again(new_federation: NewFederation) -> None:
    """Killed every second or so, through two rounds."""
    fed = new_federation("abc")
    fed.start(rounds=2)
    fed.join_here()
    for _ in range(4):
        time.sleep(0.7)
        fed.kill("aggregator")
        fed.serve()
    fed.end()
    for round_ in (0, 1):
        fed.check_round(round_, fed.members)
    fed.check_models()


def test_for_longer_than_an_institution_waits(new_federation: NewFederation) -> None:
    """Its patience is over: a clear message, and the same command goes on later."""
    fed = new_federation("abc")
    fed.start()
    member, *others = fed.members
    fed.kill("aggregator")
    fed.join_in(member, network={"patience_s": 1})
    code, said = fed.exit_of(member)
    assert code == 4
    assert f"the aggregator {fed.url} did not serve this institution" in said
    assert "then start again: nothing is lost" in said
    fed.serve()
    fed.join_in(member)
    fed.join_here(*others)
    fed.end()
    fed.check_round(0, fed.members)
