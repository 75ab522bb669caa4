"""Every step in every wrong state."""

from __future__ import annotations

from typing import Any

import pytest
from tests.protocol.support.faults import is_forgotten
from tests.protocol.support.sessions import masking_machine
from tests.protocol.test_vectors import CASES, Replay

from fedddpm_protocol.errors import (
    PhaseError,
)
from fedddpm_protocol.primitives import ring
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.phases import CLIENT_STEPS, ClientState, Step


def machine_in(state: ClientState) -> Participant:
    replay = Replay(CASES[0])
    name = replay.case["u3"][0]
    if state is ClientState.ABORTED:
        replay.machines[name].abort()
    stages = {
        ClientState.JOINED: replay.to_cohort,
        ClientState.SHARED: replay.to_sharing,
        ClientState.UPLOADED: replay.to_uploads,
        ClientState.CONFIRMED: replay.to_survivors,
        ClientState.DONE: replay.to_unmasks,
    }
    if state is ClientState.MASKING:
        return masking_machine()
    stages.get(state, lambda: None)()
    machine = replay.machines[name]
    assert machine.state is state
    return machine


def call(machine: Participant, step: Step) -> None:
    calls: dict[Step, Any] = {
        Step.JOIN: lambda: machine.join(5),
        Step.COHORT: lambda: machine.receive_cohort([]),
        Step.SHARES: lambda: machine.receive_shares([], []),
        Step.UPLOAD: lambda: machine.finish_upload(),
        Step.SURVIVORS: lambda: machine.receive_survivors([]),
        Step.CONFIRMATIONS: lambda: machine.receive_confirmations([], SpentLog().commit),
    }
    calls[step]()


@pytest.mark.parametrize(
    ("state", "step"), [(state, step) for state in ClientState for step in Step if (state, step) not in CLIENT_STEPS]
)
def test_every_step_in_every_wrong_state(state: ClientState, step: Step) -> None:
    machine = machine_in(state)
    with pytest.raises(PhaseError):
        call(machine, step)
    assert is_forgotten(machine)


@pytest.mark.parametrize("state", [state for state in ClientState if state is not ClientState.MASKING])
def test_masking_in_every_wrong_state(state: ClientState) -> None:
    with pytest.raises(PhaseError):
        machine_in(state).mask_chunk("part", 0, ring.zeros(8, 32))
