"""Durable records of what may be done once only: a training on a base model, an update of it under masks, a sum.

Each is on the disk before what it stands for happens. A SPENT record says over whom a base model and part was summed;
it and the UNMASK message become durable in one transaction before the message is sent. After a restart the same bytes
are sent again until the aggregator acknowledges them; a different message for the same sum cannot be written.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from fedddpm.state.folder import StateFolder, ids_from_json, ids_to_json
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.roster import Release, Roster
from fedddpm_protocol.errors import ConflictError, SpentError
from fedddpm_protocol.session.spent import (
    SpentRecord,
    check_given,
    check_spent,
    check_terms,
    usable_release,
    without,
)
from fedddpm_protocol.session.verdicts import Conviction
from fedddpm_protocol.wire.evidence import Evidence
from fedddpm_protocol.wire.messages import Unmask

_KEY = "root = ? AND base_model_hash = ? AND part = ?"
_CARRIES = {session: frozenset(parts) for method in Method for session, parts in method.sessions.items()}


@dataclass(frozen=True)
class OwedUnmask:
    """A message that the aggregator has not acknowledged yet."""

    base_model_hash: bytes
    spec_hash: bytes
    part: str
    session: str  # the part, with the number of the shard where there are shards: where the message goes
    unmask: Unmask


class SpentLedger:
    """The rules of ``fedddpm_protocol.session.spent`` over the state folder, for the federation it is pinned to."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def agree(self, base_model_hash: bytes, terms_hash: bytes) -> None:
        """Bind a base model to the terms of its one training, durably; to be called before its first step.

        All parts at once, whatever the method: the whole network is trained.

        Raises:
            TermsError: it is bound to others, whether or not an update of it is there.
        """
        with self._state.transaction() as db:
            check_terms(self._training(db, base_model_hash)[0], terms_hash)
            row = (self._state.root, base_model_hash, terms_hash)
            db.execute("INSERT OR IGNORE INTO trainings VALUES (?, ?, ?, NULL)", row)

    def give(self, base_model_hash: bytes, update_digest: bytes) -> None:
        """Bind a base model to the one update of it that goes under masks, durably; before the first masked byte.

        Raises:
            SpentError: another one did, or no training on the base model is on record.
        """
        with self._state.transaction() as db:
            terms, given = self._training(db, base_model_hash)
            if not terms:
                raise SpentError("no training on this base model is on record, so no update of it may be sent")
            check_given(given, update_digest)
            db.execute(
                "UPDATE trainings SET update_digest = ? WHERE root = ? AND base_model_hash = ?",
                (update_digest, self._state.root, base_model_hash),
            )

    def has_given(self, base_model_hash: bytes) -> bool:
        """Whether an update of this base model may lie masked at the aggregator: it is never trained on again."""
        with self._state.transaction() as db:
            mine = (self._state.root, base_model_hash)
            spent = db.execute("SELECT 1 FROM spent WHERE root = ? AND base_model_hash = ?", mine).fetchone()
            return spent is not None or bool(self._training(db, base_model_hash)[1])

    def answers(self, base_model_hash: bytes, part: str) -> int:
        """How many sums over this base model and part were answered for."""
        with self._state.transaction() as db:
            return self._answers(db, base_model_hash, part)

    def recorded(self, base_model_hash: bytes, part: str) -> tuple[str, ...]:
        """Survivors this base model and part were spent on, who have to meet again; empty if unspent.

        Those that evidence convicts need not (see :meth:`convict`). A sum of another method over the same tensors
        counts too: FULL's sum holds those of USPLIT's three parts.
        SpentError if there were several, over different survivors.
        """
        with self._state.transaction() as db:
            recorded = self._recorded(db, base_model_hash, part)
            return without(recorded, self._convicted(db, base_model_hash, part))

    def convict(self, conviction: Conviction, evidence: Evidence) -> None:
        """Let a member be missing from the next sum over a base model and part, on evidence that was checked."""
        member, row = conviction.verdict.member, (conviction.base_model_hash, conviction.part)
        with self._state.transaction() as db:
            values = (self._state.root, *row, member, evidence.model_dump_json())
            db.execute("INSERT OR IGNORE INTO convictions VALUES (?, ?, ?, ?, ?)", values)

    def release(self, roster: Roster, base_model_hash: bytes, part: str) -> Release | None:
        """The root's unused release that applies now, or None."""
        with self._state.transaction() as db:
            recorded = self._recorded(db, base_model_hash, part)
            used, convicted = self._used(db, base_model_hash, part), self._convicted(db, base_model_hash, part)
            return usable_release(recorded, roster, base_model_hash, part, used, convicted)

    def commit(self, spec_hash: bytes, record: SpentRecord, session: str | None = None) -> None:
        """Make the record and its message durable; returns only when they are on the disk.

        ``session`` is the name of the sum on the wire, the part's own without shards.

        Raises:
            SpentError, ReleaseError: the rule forbids it (see ``fedddpm_protocol.session.spent``).
            ConflictError: another message was written for this very session.
            StateError: the disk does not take it. Nothing may be sent then.
        """
        base, part = record.base_model_hash, record.part
        message = record.unmask.model_dump_json().encode()
        with self._state.transaction() as db:
            held = self._row(db, base, part)
            again = held is not None and held[0] == record.session_id
            if held is not None and again and held[1] != message:
                raise ConflictError("a different answer was already given in this session")
            answers = self._answers(db, base, part)
            before = answers - 1 if again else answers
            recorded, convicted = self._recorded(db, base, part), self._convicted(db, base, part)
            check_spent(recorded, self._used(db, base, part), record, before, convicted)
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (self._state.root, base, part, before + 1))
            db.execute(
                "INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                (self._state.root, base, part, ids_to_json(record.u3), record.session_id, spec_hash, message),
            )
            db.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", (self._state.root, base, part, session or part)
            )
            if record.release is not None:
                release = (ids_to_json(record.release.old_u3), ids_to_json(record.release.new_u3))
                db.execute("INSERT INTO releases_used VALUES (?, ?, ?, ?, ?)", (self._state.root, base, part, *release))

    def owed(self) -> list[OwedUnmask]:
        """Messages to send again."""
        with self._state.transaction() as db:
            rows = db.execute(
                "SELECT base_model_hash, spec_hash, part, COALESCE(session, part), message"
                " FROM spent LEFT JOIN sessions USING (root, base_model_hash, part)"
                " WHERE root = ? AND acknowledged = 0",
                (self._state.root,),
            ).fetchall()
        return [
            OwedUnmask(base, spec, part, session, Unmask.model_validate_json(message))
            for base, spec, part, session, message in rows
        ]

    def acknowledge(self, owed: OwedUnmask) -> None:
        """The aggregator has the message, or has no more use for it."""
        with self._state.transaction() as db:
            db.execute(
                f"UPDATE spent SET acknowledged = 1 WHERE {_KEY} AND spec_hash = ?",  # noqa: S608 - a constant
                (self._state.root, owed.base_model_hash, owed.part, owed.spec_hash),
            )

    def _training(self, db: sqlite3.Connection, base: bytes) -> tuple[bytes, bytes]:
        """The terms and the update that a base model is bound to; empty where it is not."""
        query = "SELECT terms_hash, update_digest FROM trainings WHERE root = ? AND base_model_hash = ?"
        row = db.execute(query, (self._state.root, base)).fetchone()
        return (b"", b"") if row is None else (bytes(row[0]), bytes(row[1] or b""))

    def _answers(self, db: sqlite3.Connection, base: bytes, part: str) -> int:
        query = f"SELECT count FROM answers WHERE {_KEY}"  # noqa: S608 - a constant
        row = db.execute(query, (self._state.root, base, part)).fetchone()
        return int(self._row(db, base, part) is not None) if row is None else int(row[0])

    def _row(self, db: sqlite3.Connection, base: bytes, part: str) -> tuple[bytes, bytes, str] | None:
        query = f"SELECT session_id, message, u3 FROM spent WHERE {_KEY}"  # noqa: S608 - a constant
        row: tuple[bytes, bytes, str] | None = db.execute(query, (self._state.root, base, part)).fetchone()
        return row

    def _recorded(self, db: sqlite3.Connection, base: bytes, part: str) -> tuple[str, ...]:
        row = self._row(db, base, part)
        if row is not None:
            return ids_from_json(row[2])
        query = "SELECT part, u3 FROM spent WHERE root = ? AND base_model_hash = ?"
        rows = db.execute(query, (self._state.root, base)).fetchall()
        spent = {u3 for other, u3 in rows if _CARRIES.get(part, frozenset()) & _CARRIES.get(other, frozenset())}
        if len(spent) > 1:
            raise SpentError(
                f"part {part!r} of this base model already took part in sums over other survivors by another method;"
                " start the run from another first model"
            )
        return ids_from_json(spent.pop()) if spent else ()

    def _convicted(self, db: sqlite3.Connection, base: bytes, part: str) -> set[str]:
        query = f"SELECT member FROM convictions WHERE {_KEY}"  # noqa: S608 - a constant
        return {member for (member,) in db.execute(query, (self._state.root, base, part))}

    def _used(self, db: sqlite3.Connection, base: bytes, part: str) -> set[Release]:
        query = f"SELECT old_u3, new_u3 FROM releases_used WHERE {_KEY}"  # noqa: S608 - a constant
        rows = db.execute(query, (self._state.root, base, part)).fetchall()
        return {Release(base, part, ids_from_json(old), ids_from_json(new)) for old, new in rows}
