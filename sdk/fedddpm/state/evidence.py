"""What others sent wrong, kept so that a federation can find out who it was."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from fedddpm.files.atomic import write_atomic
from fedddpm_protocol.errors import PeerProtocolError
from fedddpm_protocol.wire.messages import Message
from fedddpm_protocol.wire.sum_proofs import FalseSum

FILE = "evidence.jsonl"
_PRIVATE = 0o600  # others' masked words stand in a proof
_LOG = logging.getLogger("fedddpm")


def keep_evidence(
    folder: Path, spec_hash: bytes, part: str, error: PeerProtocolError, received: Message | None
) -> None:
    """Add the refusal, and the signed message it is about, to ``evidence.jsonl`` in the state folder."""
    entry = {
        "spec_hash": spec_hash.hex(),
        "part": part,
        "code": error.code,
        "refused": str(error),
        "blame": error.blame,
        "received": None if received is None else received.model_dump(mode="json"),
    }
    try:
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as problem:  # the refusal itself matters more than its record
        _LOG.warning("evidence could not be kept: %s", problem)


def keep_proof(folder: Path, name: str, proof: FalseSum) -> Path:
    """Write the proof of a false sum into a file of its own, which ``fedddpm check-evidence`` reads."""
    path = folder / name
    write_atomic(path, proof.model_dump_json().encode(), _PRIVATE)
    return path
