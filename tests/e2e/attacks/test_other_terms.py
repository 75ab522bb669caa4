"""An aggregator asks for two trainings on one base model, so that a sum, or a difference, shows one update alone.

It lies as it can: it signs what it says with its own key, and its books agree with it.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.adversary.conftest import NewLyingFederation, new_lying_federation
from tests.adversary.support.defences import CHARTER
from tests.adversary.support.lying_server import LyingFederation
from tests.e2e.federation import wait_until

from fedddpm.errors import PolicyError
from fedddpm.generation.networks import load_network, newest_network
from fedddpm.model.partition import flatten
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.updates.update_store import UpdateStore

__all__ = ["new_lying_federation"]


@pytest.fixture(autouse=True)
def _without_charters(monkeypatch: pytest.MonkeyPatch) -> None:
    """They refuse other terms before this rule has to."""
    CHARTER.switch_off(monkeypatch)


def joined(fed: LyingFederation, count: int) -> None:
    wait_until(lambda: any(len(line.joined) >= count for line in fed.lines()), f"{count} JOINs")


def begun(new_lying_federation: NewLyingFederation) -> tuple[LyingFederation, str, list[str]]:
    """Four honest institutions, one conspirator allowed for; the victim alone has trained, for the first attempt."""
    fed = new_lying_federation("abcd", c_max=1)
    fed.start("FULL", learning_rate=1e-3, bits=32)
    victim, *others = fed.members
    fed.join_here(victim, rounds=1)
    joined(fed, 1)
    return fed, victim, others


@pytest.mark.parametrize(
    "terms",
    [
        {"learning_rate": 1e-30},
        pytest.param({"learning_rate": 1e-4}, marks=pytest.mark.soak),
        pytest.param({"max_steps": 1}, marks=pytest.mark.soak),
    ],
)
def test_one_update_among_those_of_others_who_learn_nothing(
    new_lying_federation: NewLyingFederation, terms: dict[str, float]
) -> None:
    fed, victim, others = begun(new_lying_federation)
    fed.again(**terms)
    fed.join_here(*others, rounds=1)
    error = fed.failure_of(victim)
    assert isinstance(error, PolicyError)
    assert "trained on under other terms" in str(error)
    fed.end(*others)
    assert victim not in fed.results()[0].parts[0].survivors


def test_without_the_rule_the_sum_is_the_one_update(
    new_lying_federation: NewLyingFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack itself, with the defence switched off: this test would fail if it could not succeed at all."""
    monkeypatch.setattr(SpentLedger, "agree", _bind_to_anything)
    load = UpdateStore.load
    monkeypatch.setattr(UpdateStore, "load", lambda self, base, terms=None: load(self, base))
    fed, victim, others = begun(new_lying_federation)
    fed.again(learning_rate=1e-30)
    update = UpdateStore(fed.site(victim) / "state").load(fed.spec().base_model_hash)
    fed.join_here(*others, rounds=1)
    fed.end()
    moved = flatten(newest_network(fed.site(victim) / "state")) - _base(fed)
    assert update is not None
    cosine = moved @ update.delta / np.linalg.norm(moved) / np.linalg.norm(update.delta)
    assert cosine > 0.999  # the rest is how float32 rounds the model
    assert fed.results()[0].parts[0].survivors == tuple(fed.members)


def _bind_to_anything(ledger: SpentLedger, base_model_hash: bytes, terms_hash: bytes) -> None:
    with ledger._state.transaction() as db:
        db.execute(
            "INSERT OR IGNORE INTO trainings VALUES (?, ?, ?, NULL)", (ledger._state.root, base_model_hash, terms_hash)
        )


def _base(fed: LyingFederation) -> np.ndarray:
    return flatten(load_network(next(fed.folder.glob("*.safetensors")), "theta_0"))


def test_the_same_terms_again_are_no_lie(new_lying_federation: NewLyingFederation) -> None:
    fed, _, others = begun(new_lying_federation)
    fed.again()
    fed.join_here(*others, rounds=1)
    fed.end()
    assert fed.results()[0].parts[0].survivors == tuple(fed.members)
    assert fed.spec().terms_hash == fed.spec().terms.hash
