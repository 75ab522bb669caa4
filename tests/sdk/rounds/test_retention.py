"""Institutions of an aggregator that keeps the vectors of one round only."""

import shutil

import pytest
from tests.sdk.rounds.test_returns import A, B, C, D, in_background, same_models
from tests.sdk.support.federation import aggregator

from fedddpm.identity import Identity
from fedddpm.transport.endpoints import FederationApi
from fedddpm.transport.problems import ProblemError
from fedddpm_protocol.agreement.methods import Method


@pytest.fixture
def federation(federation, monkeypatch):
    monkeypatch.setenv("FEDDDPM_AGGREGATOR_KEEP_ROUNDS", "1")
    return federation


def test_who_was_away_and_who_is_new_take_the_newest_model(federation):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.UDEC, 4, join_s=1.5)
    fed.together(1)
    fed.together(2, members=[A, B, C])
    newcomer = Identity.generate("hospital-e")
    newcomer.save(fed.folder / "hospital-e.key")
    shutil.copy(fed.folder / f"{A}.npz", fed.folder / "hospital-e.npz")
    enrolled = f"hospital-e={newcomer.public_key.hex()}"
    aggregator("federation", "roster", "add", fed.roster, *fed.rooted, "--member", enrolled)
    fed.install()
    others = in_background(fed.together, members=[D, "hospital-e"])
    fed.wait_for_join(3)
    fed.together(members=[A, B, C])
    others.join(60)
    assert [line["took_part"] for line in fed.rounds_of(D)][1:] == [False, False, True]
    assert same_models(fed, [*fed.members, "hospital-e"])


def test_sums_that_go_while_they_are_fetched(federation, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 2)
    fetch, gone = FederationApi.download_opened, []

    def late(self, *arguments):
        if not gone:
            gone.append(True)
            raise ProblemError("the sums of round 0 are kept no longer", status=410, code="removed")
        return fetch(self, *arguments)

    monkeypatch.setattr(FederationApi, "download_opened", late)
    fed.together()
    assert gone
    assert same_models(fed, fed.members)


def test_rounds_that_end_while_a_model_is_fetched(federation, monkeypatch):
    fed = federation("abcd", c_max=1)
    fed.start_run(Method.UDEC, 5, join_s=1.5)
    fed.together(1)
    fed.together(1, members=[A, B, C])
    fetch, slow = FederationApi.download_model, []

    def late(self, *arguments):
        if not slow:
            slow.append(in_background(fed.together, 2, members=[A, B, C]))
            slow[0].join(60)  # so what is fetched here is kept no longer
        return fetch(self, *arguments)

    monkeypatch.setattr(FederationApi, "download_model", late)
    others = in_background(fed.together, members=[D])
    while not slow or slow[0].is_alive():
        others.join(0.05)
    fed.together(members=[A, B, C])
    others.join(60)
    assert not any(line["took_part"] for line in fed.rounds_of(D)[1:4])
    assert same_models(fed, fed.members)
