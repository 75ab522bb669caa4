"""Step 3: masked uploads, chunk by chunk (stored as :mod:`~fedddpm_aggregator.vectors.stored_chunks` says)."""

from __future__ import annotations

import hashlib

from fedddpm_aggregator.blobs.interface import BlobConflictError
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import ChunkRow
from fedddpm_aggregator.errors import PhaseOverError
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.phases import advance
from fedddpm_aggregator.service.rounds.sessions import (
    LiveSession,
    known,
    load,
    remember,
    require_open,
    require_reached,
    sharing_of,
)
from fedddpm_aggregator.vectors.stored_chunks import chunk_blob, session_folder, with_checksum
from fedddpm_protocol.agreement.chunks import chunk_bytes
from fedddpm_protocol.errors import ConflictError, MalformedError
from fedddpm_protocol.wire.api import UploadStatus
from fedddpm_protocol.wire.messages import UploadManifest
from fedddpm_protocol.wire.phases import Phase


def put_chunk(ctx: Context, caller: str, spec_hash: str, part: str, segment: str, index: int, data: bytes) -> None:
    """Store one masked chunk, durable when this returns; the same bytes again are fine, others raise ConflictError.

    Raises MalformedError (unknown segment or index, wrong size), WrongPhaseError or PhaseOverError.
    """
    digest = hashlib.sha256(data).hexdigest()
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        row = db.get(ChunkRow, (live.session.id, caller, segment, index))
        if row is not None and row.sha256 == digest:
            return
        if row is None:
            _require_uploader(live, caller, queries.members_of(db, live.session.id, queries.SHARES))
            expected = chunk_bytes(live.plan.segment(segment), live.plan.chunk_coordinates, index)
            if len(data) != expected:
                raise MalformedError(f"chunk {index} of {segment!r} has {expected} bytes, got {len(data)}", caller)
    if row is None:
        # Before its row and without the attempt's lock: a row promises bytes on the disk, and a cohort uploads at once.
        try:
            name = chunk_blob(session_folder(spec_hash, part), caller, segment, index)
            ctx.blobs.put(name, with_checksum(name, data))
        except BlobConflictError:
            pass  # a twin of this request, or one before a crash, was first with other bytes
        except FileNotFoundError:  # the attempt ended meanwhile, and its uploads are being deleted
            with ctx.database.read() as db:
                require_open(load(ctx, db, spec_hash, part), Phase.MASKED)
            raise
        else:
            ctx.metrics.chunk_bytes.inc(len(data))
            row = ChunkRow(session_id=live.session.id, member=caller, segment=segment, index=index, sha256=digest)
    # The phase may be over by now. That does no harm: only post_upload, under the lock, makes a survivor.
    with ctx.transaction() as db:
        values = {"session_id": live.session.id, "member": caller, "segment": segment, "index": index}
        if row is not None and insert_once(db, ChunkRow, **values, sha256=digest):
            return
        stored = db.get(ChunkRow, tuple(values.values()))
        if stored is not None and stored.sha256 == digest:
            return
        queries.keep_evidence(db, live.session.id, caller, f"chunk {segment}/{index}", digest, None)
        queries.refuse(db, ConflictError(f"chunk {index} of {segment!r} arrived before with other content", caller))


def get_upload(ctx: Context, caller: str, spec_hash: str, part: str) -> UploadStatus:
    """Which chunks of the caller are durable, from MASKED on."""
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        require_reached(live, Phase.MASKED)
        chunks: dict[str, dict[int, str]] = {segment.name: {} for segment in live.plan.segments}
        for row in queries.chunks_of(db, live.session.id, caller):
            chunks[row.segment][row.index] = row.sha256
        complete = queries.message_of(db, live.session.id, queries.UPLOAD, caller) is not None
        return UploadStatus(chunks=chunks, complete=complete)


def post_upload(ctx: Context, caller: str, spec_hash: str, part: str, manifest: UploadManifest) -> None:
    """Complete an upload: from here on the caller is a survivor once MASKED closes.

    Raises ConflictError for a chunk that is missing or differs, and what
    :meth:`fedddpm_protocol.session.cohort.Sharing.verify_manifest` raises.
    """
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        if known(db, live, queries.UPLOAD, caller, manifest):
            return
        require_open(live, Phase.MASKED)
        digest = sharing_of(db, live).verify_manifest(caller, manifest)
        stored = {(row.segment, row.index): row.sha256 for row in queries.chunks_of(db, live.session.id, caller)}
        for segment, digests in manifest.chunks.items():
            for index, sha256 in enumerate(digests):
                if stored.get((segment, index)) != sha256.hex():
                    raise ConflictError(f"chunk {index} of {segment!r} is missing or differs; upload it first", caller)
        remember(db, live, queries.UPLOAD, caller, manifest, upload_digest=digest)
        advance(ctx, db, live)


def _require_uploader(live: LiveSession, caller: str, sharers: frozenset[str]) -> None:
    require_open(live, Phase.MASKED)
    if caller not in sharers:
        raise PhaseOverError(f"the shares of {caller!r} did not arrive in time; join the next attempt or round")
