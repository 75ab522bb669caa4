"""Nonces of signed requests, remembered by all replicas: many at once are one transaction.

Whoever comes while a transaction is being written waits, and the next one takes all who wait: under load a request
costs a share of a transaction, alone it waits for nobody. The table's key decides which request was first, in whichever
replica it arrived.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import Database


@dataclass
class _Entry:
    key: tuple[str, str]  # member, nonce
    expires_at: float
    turn: threading.Event = field(default_factory=threading.Event)
    fresh: bool = False
    roster_version: int = 0
    done: bool = False
    error: Exception | None = None


class NonceBook:
    """Remembers nonces in the database. For any number of threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._writing = False

    def first(self, member: str, nonce: str, expires_at: float) -> tuple[bool, int]:
        """Whether this member never used the nonce before, and the newest roster's version at that moment.

        The nonce is remembered when this returns. Raises what the database raises; then nothing is known of it.
        """
        entry = _Entry((member, nonce), expires_at)
        with self._lock:
            self._waiting.append(entry)
            mine, self._writing = not self._writing, True
        if not mine:
            entry.turn.wait()
        if not entry.done:
            self._write()
        if entry.error is not None:
            raise entry.error
        return entry.fresh, entry.roster_version

    def _write(self) -> None:
        """Write for all who wait, and let one of those who came meanwhile write next."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._remember(batch)
        except Exception as error:  # noqa: BLE001 - every one of them must hear of it
            for entry in batch:
                entry.error = error
        finally:
            for entry in batch:
                entry.done = True
                entry.turn.set()
            with self._lock:
                self._writing = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].turn.set()

    def _remember(self, batch: list[_Entry]) -> None:
        first: dict[tuple[str, str], _Entry] = {}
        for entry in batch:
            first.setdefault(entry.key, entry)
        rows = {key: first[key].expires_at for key in sorted(first)}  # sorted: replicas lock them in the same order
        with self._database.write_relaxed() as db:
            version = queries.newest_roster_version(db)
            fresh = queries.remember_nonces(db, rows)
        for entry in batch:
            entry.roster_version = version
            entry.fresh = entry.key in fresh and first[entry.key] is entry
