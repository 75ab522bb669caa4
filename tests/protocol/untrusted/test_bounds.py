"""Every reply has a bound that its largest instance fits, and little more."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.untrusted.bounds import NOTHING, Bound, bound_of
from fedddpm_protocol.wire import api, messages
from fedddpm_protocol.wire.api import Reply, RunState, SessionState
from fedddpm_protocol.wire.messages import Message, SignedDocument
from fedddpm_protocol.wire.phases import Phase

MIB = 2**20
REPLIES = [
    kind
    for module in (api, messages)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind not in (Message, Reply)
]


@pytest.mark.parametrize("kind", [kind for kind in REPLIES if kind is not messages.UploadManifest])
def test_every_message_has_a_bound(kind: type[BaseModel]) -> None:
    assert NOTHING.size < bound_of(kind).size <= 33 * MIB
    assert bound_of(kind).marks < 1_200_000


def test_each_kind_has_its_own() -> None:
    most = {kind.__name__: bound_of(kind).size for kind in REPLIES if kind is not messages.UploadManifest}
    assert most["SignedDocument"] < 1.5 * MIB < most["CohortReply"] < 3 * MIB < most["RunState"] < most["ResultsPage"]
    assert max(most[name] for name in ("Problem", "JoinReceipt", "Survivors", "Confirmations")) < MIB / 8
    assert most["ShareInbox"] < 7 * MIB  # a line of every member's deal for every member


def test_the_largest_instances_fit() -> None:
    document = SignedDocument(body=bytes(MIB), signature=bytes(64))
    assert bound_of(SignedDocument).holds(document.model_dump_json().encode())
    reason = "a, b, " * 50
    session = SessionState(phase=Phase.CONFIRM, cohort_size=2**53 - 1, posted=2**53 - 1, reason=reason)
    state = RunState(
        version=2**53 - 1,
        roster_version=2**53 - 1,
        run="x" * 64,
        method="X" * 80,
        status="finished",
        reason="€" * 4000,
        round=2**31 - 1,
        rounds=2**31 - 1,
        attempt=2**31 - 1,
        spec=document,
        sessions={f"{number:080d}": session for number in range(10_002)},
        results=2**31 - 1,
        last_result="f" * 64,
        server_time=2**32 + 0.123456789,
    )
    text = state.model_dump_json().encode()
    assert bound_of(RunState).holds(text)
    assert RunState.model_validate_json(text) == state


def test_garbage_is_beyond_it_by_bytes_or_by_marks() -> None:
    bound = bound_of(SignedDocument)
    assert not bound.holds(b" " * (bound.size + 1))
    for garbage in (b"[],", b'{"a":1},', b"1,", b'"",', b"[[],[]],"):
        text = b'{"x":[' + garbage * (bound.size // len(garbage) - 10) + b"]}"
        assert len(text) <= bound.size
        assert not bound.holds(text)


@pytest.mark.parametrize(
    "field", [str, int, list[int], dict[str, int], Any, Annotated[tuple[str, ...], Field(max_length=3)], bytes]
)
def test_a_field_without_a_bound_is_a_mistake_of_the_model(field: Any) -> None:
    model = type("Model", (BaseModel,), {"__annotations__": {"field": field}})
    with pytest.raises(TypeError, match="no bound"):
        bound_of(model)


def test_words_of_the_other_side_are_plain_where_they_are_parsed() -> None:
    dirty = "\x1b[2J" + "y" * 9000 + "\n"
    session = SessionState.model_validate({"phase": "join", "cohort_size": 0, "posted": 0, "reason": dirty})
    assert session.reason is not None
    assert session.reason.isprintable()
    assert len(session.reason) == 300
    problem = api.Problem(type="t", title=dirty, status=400, detail=dirty, code=dirty)
    assert all(text.isprintable() for text in (problem.title, problem.detail, problem.code))
    assert isinstance(bound_of(api.Problem), Bound)


@pytest.mark.parametrize("number", [-1, 2**31, 2**63, 2**64, 10**30, float("inf"), float("nan"), "x", None])
@pytest.mark.parametrize("name", ["round", "rounds", "attempt", "results"])
def test_numbers_are_bounded(name: str, number: object) -> None:
    fields = {
        "version": 0,
        "roster_version": 0,
        "run": None,
        "method": None,
        "status": "waiting",
        "round": 0,
        "rounds": 0,
    }
    fields |= {"attempt": 0, "spec": None, "sessions": {}, "results": 0, "last_result": None, "server_time": 0.0}
    RunState.model_validate(fields)
    with pytest.raises(ValueError, match=name):
        RunState.model_validate({**fields, name: number})


def test_the_largest_messages_of_a_member_fit() -> None:
    ids = tuple(f"{number:064d}" for number in range(messages.MAX_COHORT))
    join = messages.JoinBody(bytes(32), ids[0], 2**63 - 1, *(bytes([n]) * 32 for n in range(4)), ids)
    assert messages.Join(body=canonical.encode(join), signature=bytes(64)).parse() == join
    revealed = {one: messages.RevealedShare("self_mask", bytes(32), bytes(32)) for one in ids}
    unmask = messages.UnmaskBody(bytes(32), bytes(32), revealed)
    assert messages.Unmask(id="a", body=unmask.encode(), signature=bytes(64)).parse() == unmask
    lines = tuple(
        messages.Commitments(one, *[bytes(32) if one != ids[0] else b""] * 2, *[bytes(32)] * 2) for one in ids
    )
    deal = messages.DealBody(bytes(32), ids[0], lines)
    assert messages.Deal(body=canonical.encode(deal), signature=bytes(64)).parse() == deal
    accused = tuple(messages.Accused(one, bytes(32), bytes(32)) for one in ids[1:])
    accusation = messages.AccusationBody(bytes(32), ids[0], accused)
    assert messages.Accusation(id="a", body=canonical.encode(accusation), signature=bytes(64)).parse() == accusation
