"""Old vectors: single uploads go when nobody checks their sum any more; with a limit, opened sums and models go too.

Rows, signatures and hashes stay for ever. Kept are theta_0, the shared parts that the run began with, the models of the
newest rounds and the one before them: so every kept round can still be derived anew, and an institution that was away
takes the newest model whole. What is to be deleted is noted in the transaction that says it is gone, so a process
killed between loses nothing but time.
"""

from __future__ import annotations

import logging
import time

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import insert_once
from fedddpm_aggregator.db.tables import AttemptRow, ModelRow, RemovalRow, ResultRow, RunRow
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.vectors.model_files import model_blob
from fedddpm_aggregator.vectors.opened_values import OPENED, opened_folder
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.primitives import canonical

log = logging.getLogger(__name__)
_AT_ONCE = 100  # rounds of a run in one transaction


def retain(ctx: Context) -> None:
    """Remove what the setting ``keep_rounds`` keeps no longer; nothing with 0."""
    keep = ctx.limits.keep_rounds
    if keep:
        with ctx.database.read() as db:
            last = func.max(ResultRow.round).label("last")
            newest = db.execute(select(ResultRow.run_id, last).group_by(ResultRow.run_id)).all()
            due = [(run_id, last - keep) for run_id, last in newest if _due(db, run_id, last - keep)]
        for run_id, last_removed in due:
            with ctx.transaction() as db:
                _mark(db, run_id, last_removed)
    _delete_marked(ctx)


def is_shown(ctx: Context, db: Session, attempt: AttemptRow) -> bool:
    """Whether the single uploads of an attempt that is over are kept, so that survivors can check its sum.

    They are until a later round has closed MASKED; those of a run's last round for the time that is set. With 0 seconds
    none are.
    """
    keep_s = ctx.limits.keep_uploads_s
    result = db.get(ResultRow, (attempt.run_id, attempt.round))
    if not keep_s or attempt.status != "done" or result is None or queries.round_is_passed(db, attempt):
        return False
    goes_on = db.get_one(RunRow, attempt.run_id).status in queries.OPEN
    return goes_on or time.time() - result.published_at < keep_s


def _due(db: Session, run_id: int, last_removed: int) -> bool:
    mine = (ResultRow.run_id == run_id, ResultRow.round <= last_removed, ResultRow.removed_at.is_(None))
    return db.scalar(select(ResultRow.round).where(*mine).limit(1)) is not None


def _mark(db: Session, run_id: int, last_removed: int) -> None:
    """Opened sums up to round ``last_removed`` are kept no longer, nor the models before its own."""
    mine = (ResultRow.run_id == run_id, ResultRow.round <= last_removed, ResultRow.removed_at.is_(None))
    rows = db.scalars(select(ResultRow).where(*mine).order_by(ResultRow.round).limit(_AT_ONCE)).all()
    for row in rows:
        row.removed_at = time.time()
        spec_hash = canonical.decode(RoundResult, row.body).spec_hash.hex()
        insert_once(db, RemovalRow, name=opened_folder(spec_hash))
        before = db.get(ResultRow, (run_id, row.round - 1))
        for name in () if before is None else _models_of(before):
            if not _is_needed(db, run_id, row.round, name):
                model = db.get_one(ModelRow, name)
                model.removed_at = time.time()
                insert_once(db, RemovalRow, name=model_blob(model.hash))
    if rows:
        log.info("old rounds removed", extra={"fields": {"run_id": run_id, "up_to": rows[-1].round}})


def _models_of(row: ResultRow) -> set[str]:
    """The models (hashes in hex) that a result names: the next base, and with outer momentum the averaged one."""
    averaged = canonical.decode(RoundResult, row.body).averaged_hash.hex()
    return {row.model, averaged} - {""}


def _is_needed(db: Session, run_id: int, round_index: int, model: str) -> bool:
    """Whether a run begins with a model, or another round gave the same one."""
    begins = select(RunRow.id).where(or_(RunRow.initial_model == model, RunRow.first_base == model))
    elsewhere = or_(ResultRow.run_id != run_id, ResultRow.round >= round_index)
    gives = select(ResultRow.round).where(ResultRow.model == model, elsewhere)
    if db.scalar(begins.limit(1)) is not None or db.scalar(gives.limit(1)) is not None:
        return True
    # Where no institution moved, a later averaged model is the same one.
    later = (ResultRow.run_id == run_id, ResultRow.round >= round_index)
    return any(model in _models_of(row) for row in db.scalars(select(ResultRow).where(*later)))


def _delete_marked(ctx: Context) -> None:
    with ctx.database.read() as db:
        names = db.scalars(select(RemovalRow.name).limit(_AT_ONCE)).all()
    for name in names:
        if name.startswith(f"{OPENED}/"):
            ctx.blobs.remove_tree(name)
        else:
            ctx.blobs.remove(name)
        with ctx.database.write() as db:
            db.execute(delete(RemovalRow).where(RemovalRow.name == name))
