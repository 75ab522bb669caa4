"""Survivors and confirmations: each wrong message raises its own error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.protocol.support.faults import ANY_UNMASK, flip, identity, is_forgotten
from tests.protocol.support.sessions import (
    Session,
    make_participants,
    make_plan,
    make_roster,
)
from tests.protocol.test_vectors import Replay

from fedddpm_protocol.errors import (
    CohortTooSmallError,
    DuplicateError,
    PhaseError,
    SignatureError,
    SpentError,
    SurvivorsError,
)
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog, SpentRecord
from fedddpm_protocol.wire.messages import Confirmation, Survivor
from fedddpm_protocol.wire.phases import ClientState


def announced(replay: Replay) -> tuple[Participant, list[Survivor]]:
    replay.to_uploads()
    digests = {name: replay.sharing.verify_manifest(name, m) for name, m in replay.manifests.items()}
    survivors = replay.sharing.survivors(digests)
    return replay.machines[replay.case["u3"][0]], list(survivors.message.survivors)


def altered_survivors(listed: list[Survivor], outside: str) -> dict[str, tuple[list[Survivor], type[Exception]]]:
    own = listed[0]
    return {
        "own-missing": (listed[1:], SurvivorsError),
        "own-altered": ([Survivor(id=own.id, upload_digest=flip(own.upload_digest)), *listed[1:]], SurvivorsError),
        "own-swapped": ([Survivor(id=own.id, upload_digest=listed[1].upload_digest), *listed[1:]], SurvivorsError),
        "one-twice": ([*listed, listed[1]], SurvivorsError),
        "not-a-sharer": ([*listed, Survivor(id=outside, upload_digest=bytes(32))], SurvivorsError),
        "stranger": ([*listed, Survivor(id="stranger", upload_digest=bytes(32))], SurvivorsError),
        "too-few": (listed[:2], CohortTooSmallError),
        "nobody": ([], SurvivorsError),
    }


@pytest.mark.parametrize(
    "case",
    ["own-missing", "own-altered", "own-swapped", "one-twice", "not-a-sharer", "stranger", "too-few", "nobody"],
)
def test_survivors_that_cannot_be_confirmed(replay: Replay, case: str) -> None:
    machine, listed = announced(replay)
    outside = next(iter(set(replay.case["u1"]) - set(replay.case["u2"])))
    wrong, error = altered_survivors(listed, outside)[case]
    with pytest.raises(error) as caught:
        machine.receive_survivors(wrong)
    assert type(caught.value) is error
    assert is_forgotten(machine)


def test_one_set_of_survivors_for_each_session(replay: Replay) -> None:
    machine, listed = announced(replay)
    machine.receive_survivors(listed)
    with pytest.raises(PhaseError):
        machine.receive_survivors(listed)
    assert is_forgotten(machine)


def test_survivors_below_the_local_policy() -> None:
    roster = make_roster(5)
    drops = {"site-4": "shares"}
    machines = make_participants(roster, make_plan(roster))
    machines |= {"site-0": make_participants(roster, make_plan(roster), floor=5)["site-0"]}
    with pytest.raises(CohortTooSmallError, match="survivors are below this institution"):
        Session(roster, make_plan(roster), machines, drops=drops).run()


def test_survivors_other_than_the_recorded_ones() -> None:
    """The cohort was right, but one of it fell silent: the spent member keeps its share."""
    roster, log = make_roster(5), SpentLog()
    everybody = SpentRecord(b"\x07" * 32, "part", roster.ids, bytes(32), ANY_UNMASK)
    log.commit(everybody)
    machines = make_participants(roster, make_plan(roster), dict.fromkeys(roster.ids, log))
    with pytest.raises(SpentError, match="survivors"):
        Session(roster, make_plan(roster), machines, drops={"site-4": "shares"}).run()


def test_the_aggregator_cannot_build_survivors_out_of_nothing(replay: Replay) -> None:
    replay.to_uploads()
    digests = {name: replay.sharing.verify_manifest(name, m) for name, m in replay.manifests.items()}
    with pytest.raises(SurvivorsError):
        replay.sharing.survivors({**digests, "stranger": bytes(32)})
    with pytest.raises(CohortTooSmallError):
        replay.sharing.survivors(dict(list(digests.items())[:2]))
    deals = [shares.deal for shares in replay.shares.values()]
    with pytest.raises(CohortTooSmallError):
        replay.cohort.sharing(deals[:2])
    with pytest.raises(DuplicateError):
        replay.cohort.sharing([*deals, deals[0]])
    with pytest.raises(SignatureError):
        replay.cohort.sharing([deals[0].model_copy(update={"signature": deals[1].signature}), *deals[1:]])


def refuse_confirmations(replay: Replay, confirmations: list[Confirmation], error: type[Exception]) -> Any:
    machine = replay.machines[replay.case["u3"][0]]
    log = SpentLog()
    with pytest.raises(error) as caught:
        machine.receive_confirmations(confirmations, log.commit)
    assert is_forgotten(machine)
    assert log.recorded(replay.plan.base_model_hash, replay.plan.part) == ()  # nothing revealed, nothing spent
    return caught.value


@pytest.mark.parametrize("position", [0, 31, 32, 63])
def test_a_flipped_bit_in_a_confirmation(replay: Replay, position: int) -> None:
    replay.to_survivors()
    given = list(replay.confirmations.values())
    given[1] = Confirmation(id=given[1].id, signature=flip(given[1].signature, position))
    assert refuse_confirmations(replay, given, SignatureError).blame == given[1].id


def test_a_confirmation_of_other_survivors(replay: Replay) -> None:
    """One member was told another digest: its signature is genuine, over another hU3."""
    survivors = replay.to_survivors()
    given = list(replay.confirmations.values())
    other = replace(survivors, digests=(flip(survivors.digests[0]), *survivors.digests[1:]))
    given[2] = Confirmation(id=given[2].id, signature=identity(replay, given[2].id).sign("confirm", other.hu3))
    refuse_confirmations(replay, given, SignatureError)


def test_a_confirmation_under_another_name(replay: Replay) -> None:
    replay.to_survivors()
    given = list(replay.confirmations.values())
    refuse_confirmations(replay, [given[0], Confirmation(id=given[1].id, signature=given[2].signature)], SignatureError)


def test_a_confirmation_from_outside_the_survivors(replay: Replay) -> None:
    survivors = replay.to_survivors()
    outside = next(iter(set(replay.case["u2"]) - set(replay.case["u3"])))
    extra = Confirmation(id=outside, signature=identity(replay, outside).sign("confirm", survivors.hu3))
    refuse_confirmations(replay, [*replay.confirmations.values(), extra], SurvivorsError)
    with pytest.raises(SurvivorsError):
        survivors.verify_confirmation(extra)


def test_one_member_cannot_confirm_for_the_threshold(replay: Replay) -> None:
    replay.to_survivors()
    given = list(replay.confirmations.values())
    refuse_confirmations(replay, [given[0], given[1], given[1], given[0]], CohortTooSmallError)


def test_nothing_is_revealed_when_the_record_cannot_be_written(replay: Replay) -> None:
    replay.to_survivors()
    machine = replay.machines[replay.case["u3"][0]]

    def full_disk(record: SpentRecord) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        machine.receive_confirmations(list(replay.confirmations.values()), full_disk)
    assert is_forgotten(machine)


def test_the_record_is_written_before_the_message_exists(replay: Replay) -> None:
    replay.to_survivors()
    machine = replay.machines[replay.case["u3"][0]]
    written: list[SpentRecord] = []

    def commit(record: SpentRecord) -> None:
        assert machine.state is ClientState.CONFIRMED
        written.append(record)

    message = machine.receive_confirmations(list(replay.confirmations.values()), commit)
    assert written[0].unmask == message
    assert written[0].u3 == tuple(replay.case["u3"])
    assert machine.state is ClientState.DONE
    assert machine._secrets is None
    with pytest.raises(PhaseError):  # a second unmask
        machine.receive_confirmations(list(replay.confirmations.values()), commit)
    assert len(written) == 1


def test_a_base_spent_while_the_session_ran_is_found_by_the_commit(replay: Replay) -> None:
    """The log is asked again inside the transaction, whatever the machine was told when it was made."""
    replay.to_survivors()
    machine, log = replay.machines[replay.case["u3"][0]], SpentLog()
    log.commit(SpentRecord(replay.plan.base_model_hash, replay.plan.part, ("a", "b"), b"", ANY_UNMASK))
    with pytest.raises(SpentError):
        machine.receive_confirmations(list(replay.confirmations.values()), log.commit)
    assert is_forgotten(machine)
