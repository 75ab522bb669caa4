"""The end of a round: next model, signed result, next attempt."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import delete
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import ModelRow, RemovalRow, ResultRow, RunRow
from fedddpm_aggregator.service import alarms, audit, conduct
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import start_attempt
from fedddpm_aggregator.service.rounds.chartered import averaged_of, follow_result
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


class StoredModel(NamedTuple):
    """A model that is durable."""

    hash: str  # in hex
    size: int  # bytes


def store_model(ctx: Context, run: RunRow, vector: Vector, parts: tuple[str, ...]) -> StoredModel:
    """Make a model of these parts durable."""
    manifests = {part: manifest for part, manifest in manifests_of(run.manifest).items() if part in parts}
    hashed = model_hash(tuple(tensor for manifest in manifests.values() for tensor in manifest), vector).hex()
    # Kept if it exists: the name tells the values, while the order of a file's tensors may differ.
    if not ctx.blobs.exists(model_blob(hashed)):
        with ctx.blobs.create_or_keep(model_blob(hashed)) as blob:
            write_safetensors(blob, canonical.decode(Architecture, run.architecture), manifests, vector)
    return StoredModel(hashed, ctx.blobs.size(model_blob(hashed)))


def remember_model(db: Session, model: StoredModel) -> None:
    """A model is stored; one that was removed before is back."""
    if not insert_once(db, ModelRow, hash=model.hash, size=model.size, created_at=time.time()):
        db.get_one(ModelRow, model.hash, with_for_update=True).removed_at = None
        db.execute(delete(RemovalRow).where(RemovalRow.name == model_blob(model.hash)))


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
    models = _store_next(ctx, run, spec, _opened(ctx, spec, parts))
    with ctx.transaction() as db:
        result = RoundResult.of(spec, parts, *(bytes.fromhex(model.hash) for model in models))
        _record(ctx, db, attempt_id, result, models)
    scrub(ctx)


def _store_next(ctx: Context, run: RunRow, spec: RoundSpec, opened: Mapping[str, OpenedPart]) -> list[StoredModel]:
    """Make durable what a round makes of its base model: the next one, and with outer momentum the averaged model."""
    shared, before = Method(run.method).shared_parts, averaged_of(run, spec)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(vector_on_disk(coordinates(spec.base_manifest)))
        read_model(ctx.blobs, spec.base_model_hash.hex(), spec.base_manifest, model)
        averaged = None
        if before is not None:
            averaged = stack.enter_context(vector_on_disk(coordinates(spec.base_manifest)))
            read_model(ctx.blobs, before, spec.base_manifest, averaged)
        advance_model(spec, model, opened, averaged)
        return [store_model(ctx, run, one, shared) for one in (model, averaged) if one is not None]


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


def _record(ctx: Context, db: Session, attempt_id: int, result: RoundResult, models: Sequence[StoredModel]) -> None:
    """Result, models and next attempt in the caller's transaction; nothing if another replica was first."""
    attempt = queries.attempt_by_id(db, attempt_id, lock=True)
    if attempt.status != "active":
        return
    run = db.get_one(RunRow, attempt.run_id)
    signed = sign_result(result, ctx.key)
    for model in models:
        remember_model(db, model)
    alarms.ring(ctx, db, run, result)
    row = ResultRow(
        run_id=run.id,
        round=result.round,
        hash=result.hash.hex(),
        body=signed.body,
        signature=signed.signature,
        model=models[0].hash,
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
    log.info("round published", extra={"fields": {"run": run.name, "round": result.round, "model": row.model}})


def _opened(ctx: Context, spec: RoundSpec, parts: tuple[PartResult, ...]) -> dict[str, OpenedPart]:
    opened = {}
    for result in parts:
        if result.opened:
            values = OpenedValues(ctx.blobs, spec, result.part)
            opened[result.part] = OpenedPart(values.chunk, result.sums, result.cohort, result.survivors)
    return opened
