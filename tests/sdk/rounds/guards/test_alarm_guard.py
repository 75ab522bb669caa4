"""Alarms at an institution: rung from signed results alone, remembered over restarts, and a reason to stop."""

import logging
import shutil

import pytest

import fedddpm.training.trainer
from fedddpm import LocalPolicyOptions
from fedddpm.cli.status import status_rows
from fedddpm.errors import PolicyError
from fedddpm.rounds.round_update import RoundUpdate
from fedddpm_protocol.agreement.methods import Method

A, B, C = "hospital-a", "hospital-b", "hospital-c"
CAREFUL = LocalPolicyOptions(stop_on_alarm=True)
SAID = "the mean held-out loss became worse 3 rounds running: 0.4000 -> 0.4100 -> 0.4300 -> 0.4500"


def trains(*_):
    raise AssertionError("it trained for another round")


def rounds_with(fed, monkeypatch, *losses):
    """One round for each loss, in which everybody measures it; every round is a start of its own for everybody."""
    for loss in losses:
        monkeypatch.setattr(fedddpm.training.trainer, "held_out_loss", lambda *_, loss=loss: loss)
        fed.together(rounds=1)


def alarms_in(caplog):
    return [record for record in caplog.records if getattr(record, "event", "") == "alarm"]


def status_of(fed, member):
    return [value for name, value in status_rows(fed.folder / f"state-{member}", None) if name == "alarm"]


def test_everybody_hears_it_and_who_is_careful_stops(federation, caplog, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 6)
    with caplog.at_level(logging.WARNING, logger="fedddpm"):
        rounds_with(fed, monkeypatch, 0.4, 0.41, 0.43)
        assert alarms_in(caplog) == []
        rounds_with(fed, monkeypatch, 0.45)
    assert [SAID in record.getMessage() for record in alarms_in(caplog)] == [True] * 3
    assert len(status_of(fed, A)) == 1
    assert f"after round 4 of run run-udec: {SAID}" in status_of(fed, A)[0]
    with monkeypatch.context() as patch:
        patch.setattr(RoundUpdate, "_made", trains)
        with pytest.raises(PolicyError, match="an alarm rang after round 4 of run run-udec, and the policy stops"):
            fed.client(A, policy=CAREFUL).participate(1)
        shutil.rmtree(fed.folder / f"state-{C}")  # as one that was never here: it follows the chain of results first
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, logger="fedddpm"),
            pytest.raises(PolicyError, match=r"stop_on_alarm = false and start again"),
        ):
            fed.client(C, policy=CAREFUL).participate(1)
        assert [SAID in record.getMessage() for record in alarms_in(caplog)] == [True]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fedddpm"):
        rounds_with(fed, monkeypatch, 0.42)
    assert alarms_in(caplog) == []
    assert status_of(fed, A) == []
    fed.together(rounds=1, policy=CAREFUL)
