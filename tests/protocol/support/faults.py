"""Small changes to genuine messages, and what a machine must have done about them."""

from __future__ import annotations

from tests.protocol.test_vectors import Replay

from fedddpm_protocol.primitives.keys import SigningKey
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.messages import Unmask
from fedddpm_protocol.wire.phases import ClientState

ANY_UNMASK = Unmask(id="site-0", body=b"x", signature=bytes(64))  # what a record needs to hold


def flip(data: bytes, position: int = -1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def is_forgotten(machine: Participant) -> bool:
    return machine.state is ClientState.ABORTED and machine._secrets is None and not machine._streams


def identity(replay: Replay, name: str) -> SigningKey:
    return SigningKey(bytes.fromhex(replay.clients[name]["identity_sk"]))
