"""Checks of published sums that are interrupted, or that an aggregator does not serve."""

import json
import logging

import pytest

from fedddpm import LocalPolicyOptions
from fedddpm.errors import PolicyError
from fedddpm.transport.endpoints import SessionApi
from fedddpm_protocol.agreement.methods import Method

VICTIM = "hospital-c"
SMALL = {"chunk_coordinates": 16384}
STRICT = LocalPolicyOptions(require_checks=True)


class Crash(BaseException):
    """The process is gone."""


class Watched:
    """Writes down which chunks the victim asks for, and when it joins; ``break_at`` happens at one of its requests."""

    def __init__(self, monkeypatch, break_at=lambda number, data: data):
        self.asked, self.steps = [], []
        fetch, join = SessionApi.masked_chunk, SessionApi.join

        def masked_chunk(api, member, segment, index, size):
            data = fetch(api, member, segment, index, size)
            if api._connection.member_id != VICTIM:
                return data
            self.asked.append((member, segment, index))
            self.steps.append("check")
            return break_at(len(self.asked), data)

        def joined(api, message):
            if api._connection.member_id == VICTIM:
                self.steps.append("join")
            return join(api, message)

        monkeypatch.setattr(SessionApi, "masked_chunk", masked_chunk)
        monkeypatch.setattr(SessionApi, "join", joined)


def test_a_kill_in_between_repeats_the_same_check_before_anything_is_trained(federation, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 2, **SMALL)

    def die_once(number, data):
        if number == 5:
            raise Crash
        return data

    watched = Watched(monkeypatch, die_once)
    with pytest.raises(Crash):
        fed.together(1)
    before = watched.asked.copy()
    assert watched.steps == ["join"] + ["check"] * 5
    fed.together()
    assert watched.asked[5:10] == before  # the draw was on the disk: a second one could be hoped for
    assert watched.steps.index("join", 1) > 9
    assert [line["took_part"] for line in fed.rounds_of(VICTIM)][-1]


def test_the_round_says_what_was_checked(federation, caplog):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1, **SMALL)
    with caplog.at_level(logging.INFO, "fedddpm"):
        summary = fed.together()[VICTIM][0]
    (checked,) = summary.checked.values()
    assert 1 <= len(checked.chunks) <= checked.of
    assert f"sum of decoder checked ({checked})" in str(summary)
    assert fed.rounds_of(VICTIM)[0]["checked"]["decoder"]["chunks"] == list(checked.chunks)
    assert sum(record.event == "sum-checked" for record in caplog.records) == 3


@pytest.mark.parametrize("served", ["nothing", "other words"])
def test_what_is_not_shown_is_said_and_no_proof(federation, monkeypatch, caplog, served):
    fed = federation("abc")
    if served == "nothing":
        monkeypatch.setenv("FEDDDPM_AGGREGATOR_KEEP_UPLOADS_S", "0")
        fed.kill()
        fed.serve()
    else:
        Watched(monkeypatch, lambda number, data: data[:-1] + bytes([data[-1] ^ 1]))
    fed.start_run(Method.UDEC, 2, **SMALL)
    caplog.set_level(logging.WARNING, "fedddpm")
    fed.together()
    warned = [record for record in caplog.records if record.event == "sum-not-checked"]
    assert warned
    why = "kept no longer" if served == "nothing" else "not those that it sent"
    assert all(why in record.getMessage() for record in warned)
    assert not list((fed.folder / f"state-{VICTIM}").glob("false-sum-*"))
    assert [line["round"] for line in fed.rounds_of(VICTIM)] == [0, 1]


def test_a_policy_that_requires_checks_stops_and_can_be_taken_back(federation, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1, **SMALL)
    watched = Watched(monkeypatch, lambda number, data: b"")
    with pytest.raises(PolicyError, match=r"could not be checked.*require_checks"):
        fed.together(policy=STRICT)
    asked = len(watched.asked)
    with pytest.raises(PolicyError, match="require_checks"):
        fed.client(VICTIM, policy=STRICT).participate()
    assert watched.asked[asked:] == watched.asked[:asked]
    fed.client(VICTIM).participate()  # it warns and goes on
    fed.client(VICTIM, policy=STRICT).participate()  # once let pass it is not asked for again


def test_nothing_is_asked_for_where_nothing_is_to_be_checked(federation, monkeypatch):
    fed = federation("abc")
    fed.start_run(Method.UDEC, 1, **SMALL)
    watched = Watched(monkeypatch)
    summary = fed.together(policy=LocalPolicyOptions(check_sums=0))[VICTIM][0]
    assert watched.asked == []
    assert summary.checked == {}
    assert json.loads(json.dumps(fed.rounds_of(VICTIM)[0]))["checked"] == {}
