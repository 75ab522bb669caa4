"""The audit log: who decided what about the federation, in a chain that nobody can change unnoticed.

Every entry is hashed together with the hash of the entry before it and signed by the server's key. Changed, removed,
inserted and swapped entries break the chain. Entries cut off at its end do not: who wants to notice that keeps the
last hash outside (see :attr:`Head`) and looks for it later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AuditRow
from fedddpm_aggregator.errors import AuditError
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.errors import SignatureError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import verify

LOCAL, SERVER = "local", "server"  # actors besides operators: the command line on the server, the server itself
REFUSED = "request refused"
MOST_REFUSALS, REFUSALS_S = 100, 3600.0  # an actor's refused requests that are kept, in so many seconds
MOST_CHARACTERS = 2000  # of one detail; reasons can name many members
_TAG = "audit-entry"
_PAGE = 500


@dataclass(frozen=True)
class Entry:
    """What an entry's hash covers."""

    seq: int  # from 1, without gaps
    at: float  # Unix seconds
    actor: str  # "operator:NAME", "local" or "server"
    action: str
    details: str  # JSON object with sorted keys, values are strings and integers
    previous: bytes  # hash of the entry before; empty for the first

    @property
    def hash(self) -> bytes:
        """32 bytes."""
        return canonical.tagged_hash(_TAG, canonical.encode(self))


@dataclass(frozen=True)
class Head:
    """The newest entry of a chain; seq 0 and no hash while it is empty."""

    seq: int = 0
    hash: bytes = field(default=b"")


def operator_actor(operator: str) -> str:
    """The actor of an operator's requests."""
    return f"operator:{operator}"


def record(ctx: Context, db: Session, actor: str, action: str, **details: str | int) -> None:
    """Append an entry in the caller's transaction: it is kept if and only if what it tells is.

    Takes the lock of the federation's row, which ``init`` makes, so that replicas append one after the other.
    """
    queries.federation(db, lock=True)
    db.flush()
    newest = db.scalar(select(AuditRow).order_by(AuditRow.seq.desc()).limit(1))
    entry = Entry(
        seq=newest.seq + 1 if newest is not None else 1,
        at=time.time(),
        actor=actor,
        action=action,
        details=_details(details),
        previous=newest.hash if newest is not None else b"",
    )
    hashed = entry.hash
    db.add(AuditRow(**entry.__dict__, hash=hashed, signature=ctx.key.sign(_TAG, hashed)))
    db.flush()


def record_refusal(ctx: Context, db: Session, actor: str, **details: str | int) -> None:
    """Append a refused request of an actor, unless so many were kept lately that the log would be filled with them."""
    mine = (AuditRow.actor == actor, AuditRow.action == REFUSED, AuditRow.at > time.time() - REFUSALS_S)
    if (db.scalar(select(func.count()).select_from(AuditRow).where(*mine)) or 0) < MOST_REFUSALS:
        record(ctx, db, actor, REFUSED, **details)


def entries(db: Session, start: int = 1, most: int = _PAGE) -> list[AuditRow]:
    """Entries from ``start`` on in order, at most ``most``."""
    query = select(AuditRow).where(AuditRow.seq >= start).order_by(AuditRow.seq).limit(most)
    return list(db.scalars(query))


def all_entries(db: Session) -> Iterator[AuditRow]:
    """The whole log in order, read page by page."""
    start = 1
    while page := entries(db, start):
        yield from page
        start = page[-1].seq + 1


def verify_chain(db: Session, server_public_key: bytes, known: Head | None = None) -> Head:
    """Recompute all hashes and signatures; the newest entry.

    Args:
        known: a newest entry that was noted earlier. It must still be there.

    Raises:
        AuditError: names the first entry that is broken.
    """
    head, seen = Head(), known is None or known.seq == 0
    for row in all_entries(db):
        _check(row, head, server_public_key)
        head = Head(row.seq, row.hash)
        if known is not None and known.seq == row.seq:
            if known.hash != row.hash:
                raise AuditError(f"audit entry {row.seq} is not the one that was noted: the log was written anew")
            seen = True
    if not seen and known is not None:
        raise AuditError(
            f"the audit log ends at entry {head.seq}, but entry {known.seq} was noted: its end was cut off"
        )
    return head


def _check(row: AuditRow, head: Head, server_public_key: bytes) -> None:
    if row.seq != head.seq + 1:
        raise AuditError(f"audit entry {head.seq + 1} is missing: entry {row.seq} follows entry {head.seq}")
    if row.previous != head.hash:
        raise AuditError(f"audit entry {row.seq} does not follow from the entry before it")
    entry = Entry(row.seq, row.at, row.actor, row.action, row.details, row.previous)
    if entry.hash != row.hash:
        raise AuditError(f"audit entry {row.seq} was changed: its hash does not hold")
    try:
        verify(server_public_key, _TAG, row.hash, row.signature)
    except SignatureError:
        raise AuditError(f"audit entry {row.seq} is not signed by this aggregator's key") from None


def _details(details: dict[str, str | int]) -> str:
    cut = {name: value[:MOST_CHARACTERS] if isinstance(value, str) else value for name, value in details.items()}
    return json.dumps(cut, sort_keys=True, separators=(",", ":"))


def shown(row: AuditRow) -> dict[str, Any]:
    """An entry as JSON has it; bytes are hexadecimal."""
    fields = {"seq": row.seq, "at": row.at, "actor": row.actor, "action": row.action}
    digests = {"previous": row.previous.hex(), "hash": row.hash.hex(), "signature": row.signature.hex()}
    return {**fields, "details": json.loads(row.details), **digests}
