"""Starting and ending runs: what the operator does at the command line, with what the root has signed.

These work while the server runs: they only write rows, and the server's sweeper notices within a second.
"""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, ResultRow, RunRow
from fedddpm_aggregator.errors import OlderInForceError, OperatorConflictError, OperatorError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration.charter_drafts import require_rounds
from fedddpm_aggregator.service.administration.first_models import first_model_of
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import close_attempt, start_attempt
from fedddpm_aggregator.service.rounds.chartered import durations_of
from fedddpm_aggregator.service.rounds.publishing import remember_model, store_model
from fedddpm_aggregator.vectors.model_files import ModelFileError, Network, read_network
from fedddpm_protocol.agreement.charter import MAX_ENDED, Charter, open_charter
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_metadata import manifests_json
from fedddpm_protocol.agreement.rings import WIDEST_BITS
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import ProtocolError
from fedddpm_protocol.primitives import canonical, ring
from fedddpm_protocol.wire.messages import SignedDocument

_NO_ROSTER = "no roster is installed; sign one (federation roster create) and install it first"


def start_run(
    ctx: Context, document: SignedDocument, durations: OperatorSettings, initial_model: Path, actor: str = audit.LOCAL
) -> tuple[Charter, bool]:
    """Install a root-signed charter, with which its run begins from theta_0 and those that it ends are over.

    The charter, and whether this call did it: the same again is fine. OperatorError says what cannot be and what to do.
    """
    durations.require_bounds()
    with ctx.database.read() as db:
        charter = _opened(db, document)
        if _was_started(db, document, charter, durations):
            return charter, False
        _check(ctx, db, charter)
    network = first_model(initial_model)
    _require_chartered(charter, network, initial_model)
    row = _row(charter, document, durations, network)
    method = Method(row.method)
    whole = store_model(ctx, row, network.vector, tuple(network.manifests))
    shared = store_model(ctx, row, network.select(method.shared_parts), method.shared_parts)
    row.initial_model, row.first_base = whole.hash, shared.hash
    with ctx.transaction() as db:
        _end_those_named(ctx, db, charter, actor)
        queries.federation(db, lock=True)  # two operators at once: one sees the other's run
        if _was_started(db, document, charter, durations):
            return charter, False
        _check(ctx, db, charter, network)
        _require_new_base(db, row, initial_model)
        for model in (whole, shared):
            remember_model(db, model)
        db.add(row)
        db.flush()
        queries.bump_version(db)
        signed: dict[str, str | int] = {"charter": charter.hash.hex(), "number": charter.number}
        audit.record(ctx, db, actor, "run started", run=row.name, initial_model=row.initial_model, **signed)
    return charter, True


def started_before(ctx: Context, document: SignedDocument, durations: OperatorSettings) -> Charter | None:
    """The charter, where it is installed with these durations already; OperatorError as :func:`start_run`."""
    with ctx.database.read() as db:
        charter = _opened(db, document)
        return charter if _was_started(db, document, charter, durations) else None


def cut_short(db: Session) -> tuple[str, ...]:
    """Runs with a charter that were ended before their last round: every later charter names them, as many as it can.

    Also those that an earlier charter named, since somebody may not have seen that one.
    """
    results = select(func.count(ResultRow.round)).where(ResultRow.run_id == RunRow.id).scalar_subquery()
    ended = (RunRow.status == "ended", RunRow.charter_number.is_not(None), results < RunRow.rounds)
    newest = db.scalars(select(RunRow.name).where(*ended).order_by(RunRow.id.desc()).limit(MAX_ENDED))
    return tuple(sorted(newest))


def next_charter(ctx: Context) -> tuple[int, Roster, tuple[str, ...]]:
    """What a charter for this database goes by: its number, the newest roster, and the runs that it must end."""
    with ctx.database.read() as db:
        if queries.newest_roster_version(db) == 0:
            raise OperatorError(_NO_ROSTER)
        return queries.newest_charter_number(db) + 1, ctx.newest_roster(db), cut_short(db)


def first_model(path: Path) -> Network:
    """theta_0 in a file; OperatorError."""
    try:
        return read_network(path)
    except ModelFileError as error:
        raise OperatorError(str(error)) from error


def end_run(ctx: Context, actor: str = audit.LOCAL, name: str | None = None) -> str:
    """End the open run (of this name) now, between rounds or in the middle of one; its name. Results so far stay."""
    with ctx.transaction() as db:
        run, attempt = _locked_run(db, "end", name)
        _end(ctx, db, run, attempt, actor, "the coordinator")
        return run.name


def pause_run(ctx: Context, actor: str = audit.LOCAL, name: str | None = None) -> str:
    """Let the open run start no attempt and close no JOIN until it is resumed; its name.

    Sessions past JOIN go on to their end, and what they open is published. Pausing a paused run changes nothing.
    """
    with ctx.transaction() as db:
        run, _ = _locked_run(db, "pause", name)
        if run.status != "paused":
            run.status = "paused"
            queries.bump_version(db)
            audit.record(ctx, db, actor, "run paused", run=run.name)
        return run.name


def resume_run(ctx: Context, actor: str = audit.LOCAL, name: str | None = None) -> str:
    """Let a paused run go on; its name. One that stalled in the meantime stays so until a newer roster is installed."""
    with ctx.transaction() as db:
        run, attempt = _locked_run(db, "resume", name)
        if run.status == "paused":
            run.status = "running" if run.stalled_roster is None else "stalled"
            run.reason = run.reason if run.status == "stalled" else None
            queries.bump_version(db)
            audit.record(ctx, db, actor, "run resumed", run=run.name)
            if run.status == "running" and attempt is not None and attempt.status != "active":
                start_attempt(ctx, db, run)
        return run.name


def _locked_run(db: Session, verb: str, name: str | None) -> tuple[RunRow, AttemptRow | None]:
    """The open run (of this name) with its newest attempt, under the attempt's lock; OperatorError if none is open."""
    runs = [run for run in queries.open_runs(db) if name in (None, run.name)]
    attempt = queries.newest_attempt(db, runs[0].id, lock=True) if runs else None
    if runs:
        db.refresh(runs[0])
    if not runs or runs[0].status not in queries.OPEN:
        raise OperatorError(f"there is no run to {verb}")
    return runs[0], attempt


def _end(ctx: Context, db: Session, run: RunRow, attempt: AttemptRow | None, actor: str, by: str) -> None:
    run.status, run.reason = "ended", f"ended by {by}"
    audit.record(ctx, db, actor, "run ended", run=run.name)
    if attempt is not None and attempt.status == "active":
        close_attempt(ctx, db, attempt, f"{by} ended the run")
    queries.bump_version(db)


def _end_those_named(ctx: Context, db: Session, charter: Charter, actor: str) -> None:
    """End the open runs that a charter ends; takes the locks of their attempts."""
    for run in queries.open_runs(db):
        if run.name in charter.ends:
            attempt = queries.newest_attempt(db, run.id, lock=True)
            db.refresh(run)
            if run.status in queries.OPEN:
                _end(ctx, db, run, attempt, actor, f"charter {charter.number}, which begins run {charter.run}")


def _opened(db: Session, document: SignedDocument) -> Charter:
    federation = queries.federation(db)
    if federation is None or federation.root_public_key is None:
        raise OperatorError("no root key is pinned; run: fedddpm-aggregator init --data DIR --root-key PUBHEX")
    try:
        return open_charter(document, federation.root_public_key)
    except ProtocolError as error:
        raise OperatorError(f"the charter is not signed by the pinned root key or not valid: {error}") from error


def _was_started(db: Session, document: SignedDocument, charter: Charter, durations: OperatorSettings) -> bool:
    """Whether this very charter is installed; OperatorConflictError with other durations, or for another one."""
    run = db.scalar(select(RunRow).where(RunRow.charter_number == charter.number))
    if run is None:
        return False
    if run.charter != document.body:
        raise OperatorConflictError(
            f"another charter of number {charter.number} is installed, that of run {run.name!r}; let the root sign "
            f"this one with a higher number: --number {queries.newest_charter_number(db) + 1}"
        )
    if (durations_of(run), run.on_alarm) != (durations.seconds, durations.on_alarm):
        raise OperatorConflictError(
            f"run {run.name!r} has been started with other durations of its phases, or --on-alarm, which a run keeps"
        )
    return True


def _require_chartered(charter: Charter, network: Network, path: Path) -> None:
    """OperatorError unless the file is the first model that the root has signed."""
    found, signed = first_model_of(network), charter.first_model
    if found.model_hash != signed.model_hash:
        raise OperatorError(
            f"{path} holds model {found.model_hash.hex()[:16]}, the charter of run {charter.run!r} begins with "
            f"{signed.model_hash.hex()[:16]}; give the file that the root has signed"
        )
    if found.seed != signed.seed or network.architecture != charter.architecture:
        raise OperatorError(
            f"{path} names another seed or architecture than the charter of run {charter.run!r}; give the file that "
            "the root has signed"
        )


def _row(charter: Charter, document: SignedDocument, durations: OperatorSettings, network: Network) -> RunRow:
    training, travel = charter.training, charter.travel
    join_s, shares_s, masked_s, confirm_s, unmask_s = durations.seconds
    return RunRow(
        name=charter.run,
        method=charter.method,
        status="running",
        rounds=charter.rounds,
        epochs=training.epochs,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        weighting=travel.weighting,
        weight_cap=travel.weight_cap,
        clip=travel.clip,
        clip_norm=travel.clip_norm,
        bits=travel.bits,
        first_bits=travel.first_bits,
        chunk_coordinates=travel.chunk_coordinates,
        min_cohort=charter.min_cohort,
        join_s=join_s,
        shares_s=shares_s,
        masked_s=masked_s,
        confirm_s=confirm_s,
        unmask_s=unmask_s,
        on_alarm=durations.on_alarm,
        architecture=canonical.encode(charter.architecture),
        manifest=manifests_json(network.manifests),
        initial_model="",
        first_base="",
        initial_seed=charter.first_model.seed.hex(),
        charter_number=charter.number,
        charter=document.body,
        charter_signature=document.signature,
        created_at=time.time(),
    )


def _require_new_base(db: Session, row: RunRow, initial_model: Path) -> None:
    """Members may have answered for a sum over a used base: others could never meet over it again."""
    earlier = queries.run_based_on(db, row.first_base)
    if earlier is not None:
        raise OperatorError(
            f"run {earlier!r} has used the shared parts of {initial_model} as a base, and a base is used by one run "
            "only; make a new one with: fedddpm init-model --seed ... (another seed)"
        )


def _check(ctx: Context, db: Session, charter: Charter, network: Network | None = None) -> None:
    """OperatorError unless the run can start now, under the newest roster; with what is known of its first model."""
    if queries.newest_roster_version(db) == 0:
        raise OperatorError(_NO_ROSTER)
    roster = ctx.newest_roster(db)
    if charter.federation != roster.federation:
        raise OperatorError(
            f"the charter is one of federation {charter.federation!r}, this is federation {roster.federation!r}"
        )
    newest = queries.newest_charter_number(db)
    if charter.number < newest:
        raise OlderInForceError(
            f"charter {charter.number} is older than charter {newest}, which is installed; charters never go back"
        )
    for open_run in queries.open_runs(db):
        if open_run.name not in charter.ends:
            raise OperatorError(
                f"run {open_run.name!r} goes on; wait until it is finished, end it (federation end-run), or let the "
                f"root sign a charter that ends it: federation sign-run --ends {open_run.name}"
            )
    for name in sorted(set(cut_short(db)) - set(charter.ends)):
        raise OperatorError(
            f"run {name!r} was ended before its last round, and institutions begin another run only where its charter "
            f"says so: federation sign-run --ends {name}"
        )
    if db.scalar(select(RunRow.id).where(RunRow.name == charter.run)) is not None:
        raise OperatorError(f"a run called {charter.run!r} exists; let the root sign another name")
    largest = ring.packed_bytes(charter.travel.chunk_coordinates, WIDEST_BITS)
    if largest > ctx.limits.max_chunk_bytes:
        raise OperatorError(
            f"chunks of {charter.travel.chunk_coordinates} coordinates take {largest} bytes, the server accepts "
            f"{ctx.limits.max_chunk_bytes}; lower --chunk-coordinates"
        )
    if network is not None:
        require_rounds(charter, roster, network.manifests)
