"""The end of a round: next model, signed result, next attempt."""

from __future__ import annotations

import logging
import time

from sqlalchemy import delete
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import ModelRow, RemovalRow, ResultRow, RunRow
from fedddpm_aggregator.service import alarms, audit, conduct
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import start_attempt
from fedddpm_aggregator.service.rounds.chartered import follow_result
from fedddpm_aggregator.service.rounds.retention import is_shown
from fedddpm_aggregator.vectors.model_files import model_blob, read_model, vector_on_disk, write_safetensors
from fedddpm_aggregator.vectors.opened_values import OPENED, OpenedValues, opened_blob, opened_folder
from fedddpm_aggregator.vectors.stored_chunks import UPLOADS, upload_folder
from fedddpm_protocol.agreement.documents import sign_result
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import Architecture, Vector, coordinates, model_hash
from fedddpm_protocol.agreement.model_metadata import manifests_of
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.shards import most_redraws
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import OpenedPart, advance_model
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.phases import TERMINAL, Phase

log = logging.getLogger(__name__)


def store_model(ctx: Context, run: RunRow, vector: Vector, parts: tuple[str, ...]) -> tuple[str, int]:
    """Make a model of these parts durable; its hash (hex) and size in bytes."""
    manifests = {part: manifest for part, manifest in manifests_of(run.manifest).items() if part in parts}
    hashed = model_hash(tuple(tensor for manifest in manifests.values() for tensor in manifest), vector).hex()
    # Kept if it exists: the name tells the values, while the order of a file's tensors may differ.
    if not ctx.blobs.exists(model_blob(hashed)):
        with ctx.blobs.create_or_keep(model_blob(hashed)) as blob:
            write_safetensors(blob, canonical.decode(Architecture, run.architecture), manifests, vector)
    return hashed, ctx.blobs.size(model_blob(hashed))


def remember_model(db: Session, model: str, size: int) -> None:
    """A model (hash in hex) of so many bytes is stored; one that was removed before is back."""
    if not insert_once(db, ModelRow, hash=model, size=size, created_at=time.time()):
        db.get_one(ModelRow, model, with_for_update=True).removed_at = None
        db.execute(delete(RemovalRow).where(RemovalRow.name == model_blob(model)))


def publish(ctx: Context, attempt_id: int) -> None:
    """Publish an attempt whose sessions are all over, at least one of them opened; otherwise do nothing."""
    with ctx.database.read() as db:
        attempt = queries.attempt_by_id(db, attempt_id)
        sessions = queries.sessions_of(db, attempt_id)
        run = db.get_one(RunRow, attempt.run_id)
        redraws = most_redraws(ctx.roster(db, attempt.roster_version))
    phases = [Phase(row.phase) for row in sessions]
    if attempt.status != "active" or Phase.DONE not in phases or any(phase not in TERMINAL for phase in phases):
        return
    spec = ctx.spec_of(attempt)
    parts = tuple(
        PartResult.not_opened(row.part, spoiled=row.is_spoiled and redraws > 0)
        if row.result is None
        else canonical.decode(PartResult, row.result)
        for row in sessions
    )
    # Outside of any transaction: a large model takes long, and doing it twice ends in the same blob.
    with vector_on_disk(coordinates(spec.base_manifest)) as model:
        read_model(ctx.blobs, spec.base_model_hash.hex(), spec.base_manifest, model)
        advance_model(spec, model, _opened(ctx, spec, parts))
        hashed, size = store_model(ctx, run, model, Method(run.method).shared_parts)
    with ctx.transaction() as db:
        _record(ctx, db, attempt_id, RoundResult.of(spec, parts, bytes.fromhex(hashed)), hashed, size)
    scrub(ctx)


def scrub(ctx: Context) -> None:
    """Delete what nothing needs any more of attempts that are over.

    That is every single upload, once its sum is not checked any more, and opened values that were not published: of a
    sum that wrapped or was held, or of a run that was ended before.
    """
    with ctx.database.read() as db:
        over = [
            (row, queries.sessions_of(db, row.id))
            for row in queries.unscrubbed_attempts(db)
            if not is_shown(ctx, db, row)
        ]
    for attempt, sessions in over:  # marked last, so that a process killed in between leaves it to be done again
        ctx.blobs.remove_tree(upload_folder(attempt.spec_hash))
        for session in sessions:
            if attempt.status != "done" or session.phase != Phase.DONE:
                ctx.blobs.remove(opened_blob(attempt.spec_hash, session.part))
        with ctx.transaction() as db:
            queries.drop_shares(db, [row.id for row in sessions])
            queries.attempt_by_id(db, attempt.id, lock=True).scrubbed = True


def remove_strays(ctx: Context) -> None:
    """Delete blobs that were being written while their attempt was scrubbed."""
    opened = ctx.blobs.folders(OPENED)
    with ctx.database.read() as db:
        failed = queries.failed_specs(db)
    for spec_hash in failed.intersection(opened):
        ctx.blobs.remove_tree(opened_folder(spec_hash))
    for spec_hash in ctx.blobs.folders(UPLOADS):
        with ctx.database.read() as db:
            attempt = queries.attempt_by_spec(db, spec_hash)
        if attempt is not None and attempt.scrubbed:
            ctx.blobs.remove_tree(upload_folder(spec_hash))


def _record(ctx: Context, db: Session, attempt_id: int, result: RoundResult, hashed: str, size: int) -> None:
    """Result, model and next attempt in the caller's transaction; nothing if another replica was first."""
    attempt = queries.attempt_by_id(db, attempt_id, lock=True)
    if attempt.status != "active":
        return
    run = db.get_one(RunRow, attempt.run_id)
    signed = sign_result(result, ctx.key)
    remember_model(db, hashed, size)
    alarms.ring(ctx, db, run, result)
    row = ResultRow(
        run_id=run.id,
        round=result.round,
        hash=result.hash.hex(),
        body=signed.body,
        signature=signed.signature,
        model=hashed,
        published_at=time.time(),
    )
    db.add(row)
    attempt.status = "done"
    follow_result(run, result)
    queries.drop_shares(db, [session.id for session in queries.sessions_of(db, attempt_id)])
    db.flush()
    queries.bump_version(db)
    audit.record(ctx, db, audit.SERVER, "round published", run=run.name, round=result.round, hash=row.hash)
    conduct.name_members(ctx, db, run)
    start_attempt(ctx, db, run)
    log.info("round published", extra={"fields": {"run": run.name, "round": result.round, "model": hashed}})


def _opened(ctx: Context, spec: RoundSpec, parts: tuple[PartResult, ...]) -> dict[str, OpenedPart]:
    opened = {}
    for result in parts:
        if result.opened:
            values = OpenedValues(ctx.blobs, spec, result.part)
            opened[result.part] = OpenedPart(values.chunk, result.sums, result.cohort, result.survivors)
    return opened
