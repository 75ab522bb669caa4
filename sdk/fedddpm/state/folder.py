"""The state folder: one process at a time, and facts that must survive a power cut.

``state.sqlite`` holds what the rules of the protocol depend on; every change is one transaction that is on the disk
(``synchronous=FULL``) before the next message leaves. Vectors lie beside it as safetensors files, written atomically;
the database names the file that counts.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

from fedddpm.errors import StateError
from fedddpm.identity import root_id
from fedddpm.state.database import open_database, unusable
from fedddpm.state.lock import lock_folder
from fedddpm.transport.traffic import Traffic
from fedddpm_protocol.agreement.lineage import NO_RESULTS, Lineage
from fedddpm_protocol.errors import OlderRosterError, RosterError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.messages import SignedDocument

_COUNTERS = tuple(field.name for field in fields(Traffic))


@dataclass(frozen=True)
class RunPosition:
    """How far this institution is in one run, and with which model."""

    run: str
    method: str
    next_round: int
    last_result: bytes
    initial_model_hash: bytes
    base_model_hash: bytes
    model_file: str
    finished: bool = False
    lineage: Lineage = NO_RESULTS  # what the next specification follows from


class StateFolder:
    """Open state folder; a context manager that holds the lock.

    Raises:
        StateError: another process holds it, it belongs to another federation or institution, or it is unusable.
    """

    def __init__(self, path: Path, root_public_key: bytes, member_id: str) -> None:
        self.path = path
        self.root, self._member = root_id(root_public_key), member_id.encode()
        self._lock = lock_folder(path)
        try:
            self._db = open_database(path / "state.sqlite")
            self._refuse_other("root", self.root, "another federation (another root key)")
            self._refuse_other("member", self._member, "another institution")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back."""
        if hasattr(self, "_db"):
            self._db.close()
        self._lock.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when the block has ended; StateError when the disk does not take it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise unusable(self.path / "state.sqlite", error) from error

    # --- facts -----------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> bytes | None:
        """A single remembered value."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def remember(self, name: str, value: bytes) -> None:
        """Set a single value, durably."""
        with self.transaction() as db:
            _set_fact(db, name, value)

    def facts(self, prefix: str) -> dict[str, bytes]:
        """The remembered values whose names begin so."""
        rows = self._db.execute("SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
        return {name: bytes(value) for name, value in rows}

    def wipe(self) -> None:
        """Leave nothing of what was forgotten in the database's files, as far as SQLite and the disk let one."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise unusable(self.path / "state.sqlite", error) from error

    def forget(self, *names: str) -> None:
        """Remove single values, all at once."""
        with self.transaction() as db:
            db.executemany("DELETE FROM facts WHERE name = ?", [(name,) for name in names])

    def next_seq(self) -> int:
        """The next JOIN's sequence number; on the disk before it is used."""
        with self.transaction() as db:
            seq = int(self.fact("seq") or b"0") + 1
            _set_fact(db, "seq", str(seq).encode())
        return seq

    @property
    def roster_version(self) -> int:
        """The highest roster version ever accepted; 0 before the first."""
        return int(self.fact("roster-version") or b"0")

    def accept_roster(self, version: int, roster_hash: bytes, document: SignedDocument) -> None:
        """Remember a verified roster; OlderRosterError or RosterError if it goes back or differs at one version.

        The first one binds the folder to the root key: before it, the key may still be a typing mistake.
        """
        with self.transaction() as db:
            newest = self.roster_version
            if version < newest:
                raise OlderRosterError(f"roster version {version} is older than version {newest}, already seen")
            if version == newest and self.fact("roster-hash") != roster_hash:
                raise RosterError(f"two different rosters carry version {version}")
            _set_fact(db, "root", self.root)
            _set_fact(db, "roster-version", str(version).encode())
            _set_fact(db, "roster-hash", roster_hash)
            _set_fact(db, "roster", document.model_dump_json().encode())

    def bind_member(self) -> None:
        """Bind the folder to the member id, once an accepted roster holds it."""
        if self.fact("member") is None:
            self.remember("member", self._member)

    @property
    def roster_document(self) -> SignedDocument | None:
        """The newest accepted roster as it was signed."""
        stored = self.fact("roster")
        return None if stored is None else SignedDocument.model_validate_json(stored)

    # --- position --------------------------------------------------------------------------------------------------

    def position(self, run: str) -> RunPosition | None:
        """Where this institution stands in ``run``; None before the first contact."""
        row = self._db.execute(
            "SELECT run, method, next_round, last_result, initial_model_hash, base_model_hash, model_file, finished"
            " FROM runs WHERE run = ?",
            (run,),
        ).fetchone()
        if row is None:
            return None
        kept = self._db.execute("SELECT lineage FROM lineages WHERE run = ?", (run,)).fetchone()
        lineage = NO_RESULTS if kept is None else canonical.decode(Lineage, bytes(kept[0]))
        return RunPosition(row[0], row[1], row[2], row[3], row[4], row[5], row[6], bool(row[7]), lineage)

    def newest_position(self) -> RunPosition | None:
        """The position that was written last."""
        run = self.fact("newest-run")
        return None if run is None else self.position(run.decode())

    def move_to(self, position: RunPosition) -> None:
        """Take ``position``; StateError if its round lies behind the one already reached."""
        with self.transaction() as db:
            held = self.position(position.run)
            if held is not None and position.next_round < held.next_round:
                raise StateError(f"run {position.run} would go back from round {held.next_round}")
            row = [getattr(position, field.name) for field in fields(position) if field.name != "lineage"]
            db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            lineage = canonical.encode(position.lineage)
            db.execute("INSERT OR REPLACE INTO lineages VALUES (?, ?)", (position.run, lineage))
            _set_fact(db, "newest-run", position.run.encode())

    def has_seen_base(self, base_model_hash: bytes) -> bool:
        """Whether this base model was ever offered here."""
        found = self._db.execute("SELECT 1 FROM bases_seen WHERE base_model_hash = ?", (base_model_hash,))
        return found.fetchone() is not None

    def see_base(self, base_model_hash: bytes) -> None:
        """Remember a base model that was offered."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO bases_seen VALUES (?)", (base_model_hash,))

    # --- traffic ---------------------------------------------------------------------------------------------------

    def add_traffic(self, run: str, round_: int, traffic: Traffic) -> None:
        """Add to the one record of this round."""
        total = self.traffic(run, round_) + traffic
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO traffic VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (run, round_, *astuple(total)))

    def traffic(self, run: str, round_: int | None = None) -> Traffic:
        """What one round moved, or the whole run."""
        sums = ", ".join(f"COALESCE(SUM({name}), 0)" for name in _COUNTERS)
        query = f"SELECT {sums} FROM traffic WHERE run = ? AND (? IS NULL OR round = ?)"  # noqa: S608 - own names
        return Traffic(*self._db.execute(query, (run, round_, round_)).fetchone())

    def _refuse_other(self, name: str, value: bytes, owner: str) -> None:
        if self.fact(name) not in (None, value):
            raise StateError(
                f"the state folder {self.path} belongs to {owner}",
                "Use another state_dir for every institution and federation; check the root key and the identity",
            )


def _set_fact(db: sqlite3.Connection, name: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def ids_to_json(ids: tuple[str, ...]) -> str:
    """Member ids as one text column."""
    return json.dumps(list(ids), separators=(",", ":"))


def ids_from_json(text: str) -> tuple[str, ...]:
    """Inverse of :func:`ids_to_json`."""
    return tuple(json.loads(text))
