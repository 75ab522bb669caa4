"""The charters that this institution has seen, as the root signed them, and which of them somebody here approved.

Numbers only grow. A charter is written down before anything is trained under it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedddpm.errors import StateError
from fedddpm.state.database import open_database, unusable
from fedddpm.state.folder import StateFolder
from fedddpm.state.report import no_state
from fedddpm_protocol.agreement.charter import Charter
from fedddpm_protocol.errors import CharterError, OlderCharterError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.messages import SignedDocument


@dataclass(frozen=True)
class KnownCharter:
    """A charter that was written down here."""

    charter: Charter
    is_approved: bool


class CharterBook:
    """The charters in an open state folder."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    @property
    def newest(self) -> KnownCharter | None:
        """The one with the highest number."""
        with self._state.transaction() as db:
            return newest_charter(db)

    def of_run(self, run: str) -> Charter | None:
        """The charter of a run; None where there was none."""
        with self._state.transaction() as db:
            row = db.execute("SELECT document FROM charters WHERE run = ?", (run,)).fetchone()
        return None if row is None else _decoded(bytes(row[0]))

    def write(self, document: SignedDocument, charter: Charter, *, approved: bool) -> None:
        """Write down a verified charter, durably; one that is known stays as it is.

        Raises:
            OlderCharterError: a higher number was seen before.
            CharterError: another charter with this number, or for this run, was.
        """
        with self._state.transaction() as db:
            newest = newest_charter(db)
            if newest is not None and charter.number < newest.charter.number:
                raise OlderCharterError(
                    f"charter {charter.number} (run {charter.run}) is older than charter {newest.charter.number} (run"
                    f" {newest.charter.run}), already seen",
                    "aggregator",
                )
            found = db.execute(
                "SELECT hash FROM charters WHERE number = ? OR run = ?", (charter.number, charter.run)
            ).fetchone()
            if found is None:
                row = (charter.number, charter.run, charter.hash, document.model_dump_json().encode(), approved)
                db.execute("INSERT INTO charters VALUES (?, ?, ?, ?, ?)", row)
            elif bytes(found[0]) != charter.hash:
                raise CharterError(
                    f"two different charters were signed with number {charter.number} or for run {charter.run}: keep"
                    " both and call the federation's coordinator"
                )


def newest_charter(db: sqlite3.Connection) -> KnownCharter | None:
    """The charter with the highest number in an open state database."""
    row = db.execute("SELECT document, approved FROM charters ORDER BY number DESC LIMIT 1").fetchone()
    return None if row is None else KnownCharter(_decoded(bytes(row[0])), bool(row[1]))


def read_newest(folder: Path) -> KnownCharter | None:
    """The newest charter in a state folder, also while another process works with it; StateError if it is none."""
    with _opened(folder) as db:
        return newest_charter(db)


def approve_newest(folder: Path, number: int) -> None:
    """Approve the newest charter, also while another process works with the folder; it must be number ``number``.

    Raises:
        StateError: there is no such charter, or a newer one has come.
    """
    with _opened(folder) as db:
        changed = db.execute(
            "UPDATE charters SET approved = 1 WHERE number = ? AND number = (SELECT MAX(number) FROM charters)",
            (number,),
        ).rowcount
    if not changed:
        raise StateError(f"charter {number} is not the newest one here", "Look again with fedddpm approve")


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / "state.sqlite"
    if not path.is_file():
        raise no_state(folder)
    try:
        with contextlib.closing(open_database(path)) as db:
            yield db
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def _decoded(document: bytes) -> Charter:
    return canonical.decode(Charter, SignedDocument.model_validate_json(document).body)
