"""An aggregator publishes a sum that nobody sent, within the clip norm, and signs it; its books agree with it.

Real institutions find it when they open the chunk themselves, stop before they train on it, and hold a proof that
convicts it before anybody who has the root's key. Without the check nobody notices.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from local_federation import CommandError
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, sitecustomize

from fedddpm import LocalPolicyOptions
from fedddpm.rounds.guards.sum_check import FalseSumFoundError
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.wire.sum_proofs import FalseSum

EVERYTHING, NOTHING = LocalPolicyOptions(check_sums=128), LocalPolicyOptions(check_sums=0)
# Code of the server's process: one chunk of every opened sum is moved by a step.
LIE = """
from fedddpm_protocol.session import coordinator

honest = coordinator.SegmentOpener.open

def lie(self, index, chunks):
    words = honest(self, index, chunks)
    if index == 1:
        words += 1
    return words

coordinator.SegmentOpener.open = lie
"""


@pytest.fixture
def lying(new_federation: NewFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Three institutions and an aggregator that lies in the second chunk of every sum."""
    fed = new_federation()
    fed.begin(rounds=2)
    with monkeypatch.context() as patch:
        paths = [sitecustomize(tmp_path / "lie", LIE)["PYTHONPATH"], os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        fed.serve()
    return fed


def proof_of(fed: Federation, member: str) -> Path:
    (proof,) = (fed.site(member) / "state").glob("false-sum-*.json")
    return proof


def test_a_false_sum_is_found_by_everybody_and_convicts(lying: Federation) -> None:
    fed = lying
    fed.join_here(policy=EVERYTHING)
    for member in fed.members:
        error = fed.failure_of(member)
        assert isinstance(error, FalseSumFoundError), error
        assert "chunk 1 of 'decoder' is not the sum of what the survivors sent" in str(error)
    assert all(not line.joined for line in fed.lines(1))  # nobody trained on it
    said = fed.fedddpm("check-evidence", proof_of(fed, "hospital-b"), "--federation-root", fed.root_public)
    assert "CONVICTED" in said
    assert "round 1, attempt 1 of run run-1" in said
    assert "nobody's word is needed" in said


def test_who_found_it_stays_away_and_others_cannot_be_framed(lying: Federation, tmp_path: Path) -> None:
    fed = lying
    fed.join_here(policy=EVERYTHING)
    errors = [fed.failure_of(member) for member in fed.members]
    assert all(isinstance(error, FalseSumFoundError) for error in errors)
    fed.join_here("hospital-a", policy=NOTHING)  # it is on record, whatever is set now
    again = fed.failure_of("hospital-a")
    assert isinstance(again, FalseSumFoundError)
    assert "not taken part in any more" in str(again)
    proof = FalseSum.model_validate_json(proof_of(fed, "hospital-a").read_bytes())
    assert proof.shown is not None
    (tmp_path / "other.json").write_text(proof.model_copy(update={"index": 0}).model_dump_json())
    for file, root, why in (
        (tmp_path / "other.json", fed.root_public, "not those that it sent"),
        (proof_of(fed, "hospital-a"), "ab" * 32, "does not verify"),
        (fed.roster, fed.root_public, "is no proof"),
    ):
        with pytest.raises(CommandError, match=why):
            fed.fedddpm("check-evidence", file, "--federation-root", root)


def test_without_the_check_nobody_notices(lying: Federation) -> None:
    """The attack itself: this test would fail if it could not succeed at all."""
    fed = lying
    fed.join_here(policy=NOTHING)
    fed.end()
    fed.check_models()
    assert len(fed.results()) == 2
    assert verify_history(fed.context)["models derived anew"] == 2  # from the sums that were published
    assert not list((fed.site("hospital-a") / "state").glob("false-sum-*"))


def test_an_honest_sum_is_checked_whole_and_goes_on(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start(rounds=2)
    fed.join_here(policy=EVERYTHING)
    fed.end()
    for summaries in fed.summaries.values():
        for summary in summaries:
            (checked,) = summary.checked.values()
            assert checked.chunks == tuple(range(checked.of))
            assert "sum of decoder checked" in str(summary)
