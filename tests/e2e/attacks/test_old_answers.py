"""Old answers on an honest line: an institution asks once more before it says that the aggregator went back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation

from fedddpm.errors import PolicyError, TransportError
from fedddpm.rounds import rollback_check
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.messages import SignedDocument

State = dict[str, Any]
Lie = Callable[[Federation, State, State], State]  # of what was said in round 1 and what is said now
OF_THE_ROUND = ("spec", "round", "attempt", "sessions")
SHORT = ("put together", "newer roster")  # the others take as long, in the soak
ONCE, ALWAYS = 1, 10**9


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback_check, "PAUSE_S", 0.1)


class Answers:
    """Answers to ``GET /v1/state``: from the second round on, the first ``most`` of them are what ``lie`` makes."""

    def __init__(self, fed: Federation, lie: Lie, most: int) -> None:
        self._fed, self._lie, self._most = fed, lie, most
        self._old: State | None = None
        self.lies = 0

    def __call__(self, body: bytes) -> bytes:
        said = json.loads(body)
        if said["results"] == 0 and said["spec"] is not None and self._old is None:
            self._old = said
        second = said["results"] == 1 and said["spec"] is not None and self._old is not None
        in_time = self._lie is not kept or {one["phase"] for one in said["sessions"].values()} != {"join"}
        if not second or not in_time or self.lies == self._most:
            return body
        self.lies += 1
        return json.dumps(self._lie(self._fed, self._old, said)).encode()


def put_together(_: Federation, old: State, now: State) -> State:
    """Read in several moments: the old specification beside the new results."""
    return now | {name: old[name] for name in OF_THE_ROUND}


def kept(_: Federation, old: State, now: State) -> State:
    """An answer of the past, while the second round's sum is under way: who leaves it then is missing in it."""
    return old


def older_roster(_: Federation, old: State, now: State) -> State:
    return now | {"roster_version": now["roster_version"] - 1}


def another_ground(fed: Federation, old: State, now: State) -> State:
    """A signed specification over another result, with the seed that follows from it."""
    spec = canonical.decode(RoundSpec, SignedDocument.model_validate(now["spec"]).body)
    charter = canonical.decode(Charter, SignedDocument.model_validate(now["charter"]).body)
    seed = charter.encoding_seed(spec.round, bytes(32))
    signed = sign_spec(dataclasses.replace(spec, previous_result=bytes(32), encoding_seed=seed), fed.context.key)
    return now | {"spec": json.loads(signed.model_dump_json())}


def newer_roster(fed: Federation, old: State, now: State) -> State:
    """A signed specification for a roster that the same answer does not know yet."""
    spec = canonical.decode(RoundSpec, SignedDocument.model_validate(now["spec"]).body)
    signed = sign_spec(dataclasses.replace(spec, roster_version=2, roster_hash=bytes(32)), fed.context.key)
    return now | {"spec": json.loads(signed.model_dump_json())}


LIES: dict[str, tuple[Lie, type[Exception], str]] = {
    "put together": (put_together, PolicyError, "went back to round 1 of run run-1; this institution has finished"),
    "kept": (kept, PolicyError, "went back to round 1 of run run-1; this institution has finished"),
    "older roster": (older_roster, PolicyError, "went back to roster version 0 from 1"),
    "another ground": (another_ground, TransportError, "round 2 does not build on the result of round 1 known here"),
    "newer roster": (newer_roster, TransportError, "the round was made for roster version 2"),
}


def begun(new_federation: NewFederation, lie: Lie, most: int) -> tuple[Federation, Answers]:
    fed = new_federation()
    fed.start(rounds=2)
    answers = Answers(fed, lie, most)
    fed.proxy(fed.members[0]).alter("GET /v1/state", answers)
    fed.join_here()
    return fed, answers


@pytest.mark.parametrize("lie", [lie if lie in SHORT else pytest.param(lie, marks=pytest.mark.soak) for lie in LIES])
def test_once_is_no_reason_to_stop(new_federation: NewFederation, lie: str) -> None:
    """Nor to leave the attempt: nobody may be missing in this federation, and each round is the first attempt's."""
    fed, answers = begun(new_federation, LIES[lie][0], ONCE)
    fed.end()
    assert answers.lies == ONCE
    for round_ in (0, 1):
        assert fed.check_round(round_, fed.members).attempt == 0
    fed.check_models()


@pytest.mark.parametrize("lie", LIES)
def test_said_again_it_is_believed(new_federation: NewFederation, lie: str) -> None:
    make, kind, said = LIES[lie]
    fed, answers = begun(new_federation, make, ALWAYS)
    error = fed.failure_of(fed.members[0])
    assert isinstance(error, kind)
    assert said in str(error)
    assert ONCE < answers.lies < 6, "it asked once more, not for ever"


def test_an_old_roster_once(new_federation: NewFederation) -> None:
    fed, given = new_federation("abcd", c_max=1), []
    old, members = fed.roster.read_bytes(), fed.members[:3]
    fed.sign_roster("remove", "--member", fed.members[3])
    fed.install_roster()
    fed.start(rounds=2)
    fed.join_here(*members, rounds=1)
    fed.end(*members)

    def first_the_old(body: bytes) -> bytes:
        given.append(body)
        return old if len(given) == 1 else body

    fed.proxy(members[0]).alter("GET /v1/roster", first_the_old)
    fed.join_here(*members)
    fed.end(*members)
    assert len(given) == 2
    fed.check_models(members=members)
