"""Institutions die at every step of a sum and come back: no round is lost and no second answer is ever given."""

import contextlib
import threading

import numpy as np
import pytest

from fedddpm.transport.endpoints import SessionApi
from fedddpm_protocol.agreement.methods import Method

POINTS = [
    ("join", "before"),
    ("join", "after"),
    ("post_shares", "before"),
    ("put_chunk", "after"),
    ("complete_upload", "after"),
    ("confirm", "after"),
    ("unmask", "before"),
    ("unmask", "after"),
]
VICTIM = "hospital-c"


class Crash(BaseException):
    """The process is gone."""


class Saboteur:
    """Kills the victim at one point a round and writes down every answer it sends."""

    def __init__(self, monkeypatch):
        self.points, self.fired, self.answers = list(POINTS), [], {}
        for name in {name for name, _ in POINTS}:
            monkeypatch.setattr(SessionApi, name, self.wrap(name, getattr(SessionApi, name)))

    def wrap(self, name, original):
        def call(api, *arguments):
            victim = api._connection.member_id == VICTIM
            if victim:
                self.crash(name, "before")
            if victim and name == "unmask":
                self.answers.setdefault(api._path, set()).add(arguments[0].model_dump_json())
            reply = original(api, *arguments)
            if victim:
                self.crash(name, "after")
            return reply

        return call

    def crash(self, name, when):
        if self.points and self.points[0] == (name, when):
            self.fired.append(self.points.pop(0))
            raise Crash


def come_back_until_done(fed, rounds):
    while (left := rounds - len(fed.rounds_of(VICTIM))) > 0:
        with contextlib.suppress(Crash):
            fed.client(VICTIM).participate(left)


@pytest.mark.slow
def test_a_crash_at_every_step_loses_no_round(federation, monkeypatch):
    rounds = len(POINTS)
    saboteur = Saboteur(monkeypatch)
    fed = federation("abc")
    fed.start_run(Method.UDEC, rounds, shares_s=8, masked_s=8, confirm_s=8, unmask_s=8)
    victim = threading.Thread(target=come_back_until_done, args=(fed, rounds))
    victim.start()
    others = fed.together(members=["hospital-a", "hospital-b"])
    victim.join(60)
    assert saboteur.fired == POINTS
    assert [summary.round for summary in others["hospital-a"]] == list(range(rounds))
    assert [line["round"] for line in fed.rounds_of(VICTIM)] == list(range(rounds))
    vectors = [fed.shared_vector(member, Method.UDEC) for member in fed.members]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
    assert saboteur.answers
    assert all(len(messages) == 1 for messages in saboteur.answers.values())
