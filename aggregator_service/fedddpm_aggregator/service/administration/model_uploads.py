"""First models on their way in: an operator uploads theta_0 in chunks, named by the SHA-256 of the whole file.

Chunks are kept with the other blobs, so that any replica takes the next one. What no run was started from is removed
after a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from fedddpm_aggregator.blobs.interface import BlobConflictError
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import IncomingRow
from fedddpm_aggregator.errors import OperatorConflictError, OperatorError
from fedddpm_aggregator.service.context import Context

INCOMING = "incoming"
CHUNK_BYTES = 2**20
MOST_FILES = 4  # that are on their way at one time
KEPT_S = 24 * 3600.0


def chunk_bytes(ctx: Context) -> int:
    """Bytes of every chunk but the last."""
    return min(CHUNK_BYTES, ctx.limits.max_chunk_bytes)


def stored_chunks(ctx: Context, sha256: str) -> tuple[int, ...]:
    """Indices of the chunks of a file that are here."""
    with ctx.database.read() as db:
        return tuple(row.index for row in _rows(db, sha256) if row.size)


def put_chunk(ctx: Context, operator: str, sha256: str, index: int, data: bytes) -> None:
    """Store one chunk, durable when this returns; OperatorError, OperatorConflictError for other bytes."""
    if not 0 < len(data) <= chunk_bytes(ctx):
        raise OperatorError(f"a chunk of a model has 1 to {chunk_bytes(ctx)} bytes, this one {len(data)}")
    if index * chunk_bytes(ctx) + len(data) > ctx.limits.max_model_bytes:
        raise OperatorError(f"a first model has at most {ctx.limits.max_model_bytes} bytes here (max_model_bytes)")
    with ctx.transaction() as db:
        queries.federation(db, lock=True)
        others = db.scalar(select(func.count(IncomingRow.sha256.distinct())).where(IncomingRow.sha256 != sha256)) or 0
        if others >= MOST_FILES:
            raise OperatorConflictError(
                f"{others} other models are being uploaded; start runs from them, or wait a day"
            )
        values = {"sha256": sha256, "index": index, "size": 0, "operator": operator, "received_at": time.time()}
        insert_once(db, IncomingRow, **values)
    try:
        ctx.blobs.put(_blob(sha256, index), data)
    except BlobConflictError:
        raise OperatorConflictError(f"chunk {index} of {sha256} is here with other bytes") from None
    with ctx.transaction() as db:
        this = (IncomingRow.sha256 == sha256, IncomingRow.index == index)
        db.execute(update(IncomingRow).where(*this).values(size=len(data), received_at=time.time()))


@contextlib.contextmanager
def assembled(ctx: Context, sha256: str) -> Iterator[Path]:
    """The uploaded file, whole and checked; OperatorError says what is missing."""
    with ctx.database.read() as db:
        indices = [row.index for row in _rows(db, sha256) if row.size]
    if not indices or indices != list(range(len(indices))):
        raise OperatorError(f"the first model {sha256} is not here, or not whole; upload it before the run is started")
    with tempfile.TemporaryDirectory(prefix="fedddpm-") as folder:
        path, digest = Path(folder) / "theta_0.safetensors", hashlib.sha256()
        with path.open("wb") as file:
            for index in indices:
                data = ctx.blobs.read(_blob(sha256, index))
                digest.update(data)
                file.write(data)
        if digest.hexdigest() != sha256:
            forget(ctx, sha256)
            raise OperatorError(f"what was uploaded has the SHA-256 {digest.hexdigest()}, not {sha256}; upload it anew")
        yield path


def forget(ctx: Context, sha256: str) -> None:
    """Remove what was uploaded of a file."""
    ctx.blobs.remove_tree(f"{INCOMING}/{sha256}")
    with ctx.transaction() as db:
        db.execute(delete(IncomingRow).where(IncomingRow.sha256 == sha256))


def remove_leftovers(ctx: Context, now: float) -> None:
    """Remove files of which nothing has come for a day."""
    with ctx.database.read() as db:
        newest = select(IncomingRow.sha256, func.max(IncomingRow.received_at)).group_by(IncomingRow.sha256)
        old = [sha256 for sha256, received_at in db.execute(newest) if received_at < now - KEPT_S]
    for sha256 in old:
        forget(ctx, sha256)


def _rows(db: Session, sha256: str) -> list[IncomingRow]:
    return list(db.scalars(select(IncomingRow).where(IncomingRow.sha256 == sha256).order_by(IncomingRow.index)))


def _blob(sha256: str, index: int) -> str:
    return f"{INCOMING}/{sha256}/{index}"
