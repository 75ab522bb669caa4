"""What opens this institution's update of the round to the roster's auditor, if it is given away: sealed to that key.

It is written before the answer that lets the sum be opened leaves, and is forgotten when the round has its result, when
its run is over, and when another round is answered for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedddpm.errors import StateError
from fedddpm.identity import root_id
from fedddpm.state.confirmed_sums import CONFIRMED, confirmed_in
from fedddpm.state.folder import StateFolder
from fedddpm.state.report import read_facts
from fedddpm.state.secret import TRAINING_FACT
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum

_SEALED = "sealed-secrets/"  # and the session


@dataclass(frozen=True)
class SealedSecrets:
    """Of one session."""

    spec_hash: bytes
    secrets: bytes  # of the masks, sealed to the auditor
    words: bytes  # SHA-256 of all words that were masked, to know them again


@dataclass(frozen=True)
class HeldSum:
    """A confirmed sum whose round has no result yet, with what opens this institution's part in it."""

    sealed: SealedSecrets
    confirmed: ConfirmedSum
    newest_roster: SignedDocument
    member: str
    secret: bytes  # that private rounding is drawn from


class SealedSecretsBook:
    """The sealed secrets of the newest round, by session."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def keep(self, session: str, sealed: SealedSecrets) -> None:
        """Write them down, in the place of all that is of an earlier attempt."""
        fields = {"spec": sealed.spec_hash.hex(), "secrets": sealed.secrets.hex(), "words": sealed.words.hex()}
        kept = self._state.facts(_SEALED).items()
        stale = [name for name, stored in kept if _sealed(stored).spec_hash != sealed.spec_hash]
        if stale:
            self._state.forget(*stale)
        self._state.remember(_SEALED + session, json.dumps(fields).encode())

    def clear(self) -> None:
        """Nothing is left to be opened."""
        names = self._state.facts(_SEALED)
        if names:
            self._state.forget(*names)
            self._state.wipe()


def held_sums(folder: Path, root_public_key: bytes) -> list[HeldSum]:
    """Sums that could be opened, also while another process works with the folder.

    StateError without a folder, or where it belongs to another federation.
    """
    facts = read_facts(folder)
    if facts.get("root", b"") != root_id(root_public_key):
        raise StateError(
            f"the state folder {folder} belongs to another federation (another root key)",
            "Give the root key that stands in this institution's settings",
        )
    held = []
    for name, stored in facts.items():
        confirmed = facts.get(CONFIRMED + name.removeprefix(_SEALED))
        if name.startswith(_SEALED) and confirmed is not None:
            newest = SignedDocument.model_validate_json(facts["roster"])
            parts = (confirmed_in(confirmed), newest, facts["member"].decode(), facts[TRAINING_FACT])
            held.append(HeldSum(_sealed(stored), *parts))
    return sorted(held, key=lambda one: one.confirmed.session)


def _sealed(stored: bytes) -> SealedSecrets:
    try:
        fields = json.loads(stored)
        return SealedSecrets(*(bytes.fromhex(fields[name]) for name in ("spec", "secrets", "words")))
    except (KeyError, TypeError, ValueError) as error:
        raise StateError("the record of sealed secrets is damaged", "Restore the state folder") from error
