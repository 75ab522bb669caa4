"""Who is kept out, and whether the aggregator's evidence holds: each institution looks for itself."""

import logging

import pytest
from tests.protocol.support.trials import LIAR, SPOILED, Trial, with_items

from fedddpm.monitoring.reporter import Reporter
from fedddpm.rounds.exclusions import Exclusions
from fedddpm.state.folder import StateFolder
from fedddpm.state.spent_ledger import SpentLedger
from fedddpm.transport.problems import ProblemError
from fedddpm_protocol.errors import SpentError
from fedddpm_protocol.session.spent import SpentRecord
from fedddpm_protocol.session.verdicts import judge_accusation
from fedddpm_protocol.wire.api import Exclusion, RunState
from fedddpm_protocol.wire.messages import Unmask

ROOT = b"\x01" * 32


class Answers:
    """The one endpoint that is asked."""

    def __init__(self, evidence):
        self.given, self.asked = evidence, 0

    def evidence(self, sha256):
        self.asked += 1
        if self.given is None:
            raise ProblemError("the aggregator refused: there is no evidence", status=404, code="not-found")
        return self.given


@pytest.fixture
def trial():
    made = Trial(with_items(SPOILED["garbage"]))
    made.deliver()
    return made


@pytest.fixture
def evidence(trial):
    (verdict,) = judge_accusation(trial.sharing, trial.accusations["site-0"], trial.items_for("site-0"))
    return trial.evidence(verdict)


def state_with(member, sha256):
    fields = {"version": 1, "roster_version": 1, "run": "run-1", "method": "FULL", "status": "running", "round": 0}
    fields |= {"rounds": 1, "attempt": 1, "spec": None, "sessions": {}, "results": 0, "last_result": None}
    told = Exclusion(member=member, words="it did something", evidence=sha256)
    return RunState(**fields, excluded=(told,), server_time=0.0)


def record(trial, u3):
    unmask = Unmask(id="site-0", body=b"x", signature=bytes(64))
    return SpentRecord(trial.plan.base_model_hash, "full", u3, bytes([len(u3)]) * 32, unmask)


@pytest.fixture
def learned(tmp_path, trial, caplog):
    """What an institution says, and its ledger, which has answered for a sum over all four."""
    caplog.set_level(logging.INFO)
    with StateFolder(tmp_path / "state", ROOT, "site-0") as state:
        ledger = SpentLedger(state)
        ledger.commit(b"\x02" * 32, record(trial, trial.roster.ids))

        def learn(answers, told, me="site-0"):
            exclusions = Exclusions(answers, ledger, me, Reporter())
            for _ in range(2):
                exclusions.learn(told, trial.roster)
            assert answers.asked == 1  # not again and again
            return exclusions.keep_out(told), caplog.text, ledger

        yield learn


def test_evidence_that_holds_lets_the_others_meet_without_the_convicted(learned, trial, evidence):
    kept_out, said, ledger = learned(Answers(evidence), state_with(LIAR, evidence.sha256))
    assert not kept_out
    assert "The evidence holds" in said
    assert ledger.recorded(trial.plan.base_model_hash, "full") == trial.roster.ids[:3]
    with pytest.raises(SpentError):
        ledger.commit(b"\x03" * 32, record(trial, trial.roster.ids[:2]))
    ledger.commit(b"\x03" * 32, record(trial, trial.roster.ids[:3]))


@pytest.mark.parametrize("lie", ["another member", "another name", "forged", "nothing"])
def test_evidence_that_does_not_hold_is_said_and_changes_nothing(learned, trial, evidence, lie):
    member = "site-1" if lie == "another member" else LIAR
    sha256 = "0" * 64 if lie == "another name" else evidence.sha256
    forged = evidence.model_copy(update={"joins": evidence.joins[:3]})
    answers = Answers({"forged": forged, "nothing": None}.get(lie, evidence))
    _, said, ledger = learned(answers, state_with(member, sha256))
    assert f"keeps {member} out (it did something), and the evidence that it gives does not hold" in said
    assert ledger.recorded(trial.plan.base_model_hash, "full") == trial.roster.ids
    with pytest.raises(SpentError):
        ledger.commit(b"\x03" * 32, record(trial, trial.roster.ids[:3]))


def test_the_convicted_sits_out_and_knows_why(learned, evidence):
    kept_out, said, _ = learned(Answers(evidence), state_with(LIAR, evidence.sha256), me=LIAR)
    assert kept_out
    assert "by what it signed itself" in said
