"""Phases of one session and the steps between them, as data.

The aggregator's session and the institution's machine are two tables over the same protocol (Bonawitz et al. 2017,
with a signed consistency round before anything is revealed).
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise

from fedddpm_protocol.errors import PhaseError


class Phase(StrEnum):
    """Where the aggregator's session stands."""

    JOIN = "join"
    SHARES = "shares"
    MASKED = "masked"
    CONFIRM = "confirm"
    UNMASK = "unmask"
    OPENING = "opening"
    DONE = "done"
    FAILED = "failed"


# The way of a session that ends with a sum; it can leave it anywhere before DONE, for FAILED.
PHASES = (Phase.JOIN, Phase.SHARES, Phase.MASKED, Phase.CONFIRM, Phase.UNMASK, Phase.OPENING, Phase.DONE)
NEXT_PHASE: dict[Phase, Phase] = dict(pairwise(PHASES))
TERMINAL = frozenset({Phase.DONE, Phase.FAILED})


def place_of(phase: Phase) -> int:
    """How far a session in ``phase`` has come; one that failed is past everything."""
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def has_reached(now: Phase, phase: Phase) -> bool:
    """Whether a session in ``now`` is in ``phase`` or past it."""
    return place_of(now) >= place_of(phase)


class ClientState(StrEnum):
    """Where the institution's machine stands."""

    TRAINED = "trained"
    JOINED = "joined"
    SHARED = "shared"
    MASKING = "masking"
    UPLOADED = "uploaded"
    CONFIRMED = "confirmed"
    DONE = "done"
    ABORTED = "aborted"


class Step(StrEnum):
    """What moves the institution's machine."""

    JOIN = "join"
    COHORT = "cohort"
    SHARES = "shares"
    UPLOAD = "upload"
    SURVIVORS = "survivors"
    CONFIRMATIONS = "confirmations"


# Every other pair is illegal: the machine aborts and forgets its secrets.
CLIENT_STEPS: dict[tuple[ClientState, Step], ClientState] = {
    (ClientState.TRAINED, Step.JOIN): ClientState.JOINED,
    (ClientState.JOINED, Step.COHORT): ClientState.SHARED,
    (ClientState.SHARED, Step.SHARES): ClientState.MASKING,
    (ClientState.MASKING, Step.UPLOAD): ClientState.UPLOADED,
    (ClientState.UPLOADED, Step.SURVIVORS): ClientState.CONFIRMED,
    (ClientState.CONFIRMED, Step.CONFIRMATIONS): ClientState.DONE,
}


def next_state(state: ClientState, step: Step) -> ClientState:
    """The state after ``step``; PhaseError if the table has no such step."""
    try:
        return CLIENT_STEPS[state, step]
    except KeyError:
        raise PhaseError(f"step {step.value!r} is not allowed in state {state.value!r}") from None
