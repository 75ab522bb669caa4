"""Starting and ending runs: what the coordinator does at the command line.

These work while the server runs: they only write rows, and the server's sweeper notices within a second.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration.run_settings import DEFAULT_FIRST_BITS, RING_CHOICES, RunSettings
from fedddpm_aggregator.service.alarms import ON_ALARM
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import cannot_run, close_attempt, round_spec, start_attempt
from fedddpm_aggregator.service.rounds.publishing import remember_model, store_model
from fedddpm_aggregator.vectors.model_files import ModelFileError, Network, read_network
from fedddpm_protocol.agreement.clipping import CLIPPINGS
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.model_layout import require_name
from fedddpm_protocol.agreement.model_metadata import manifests_json
from fedddpm_protocol.agreement.rings import WIDEST_BITS, ValuesRing
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RINGS, ROTATED, PartSpec, rotation_block
from fedddpm_protocol.primitives import canonical, ring

_BLOCK = 4096  # coordinates that are rotated together, at least, where a part has as many


def start_run(
    ctx: Context, settings: RunSettings, initial_model: Path, actor: str = audit.LOCAL, request: str | None = None
) -> None:
    """Begin a run from theta_0; OperatorError says what cannot be and what to do.

    ``request`` (64 characters at most) is kept with the run, to tell the same request from another one.
    """
    _check_rings(settings)
    settings.require_bounds()
    if settings.clip not in CLIPPINGS:
        raise OperatorError(f"unknown clipping {settings.clip!r}; choose one of {', '.join(CLIPPINGS)}")
    if settings.on_alarm not in ON_ALARM:
        raise OperatorError(f"unknown --on-alarm {settings.on_alarm!r}; choose one of {', '.join(ON_ALARM)}")
    try:
        network = read_network(initial_model)
    except ModelFileError as error:
        raise OperatorError(str(error)) from error
    row = _row(settings, network)
    row.request = request
    with ctx.database.read() as db:
        _check(ctx, db, row)
    method = Method(row.method)
    row.initial_model, whole = store_model(ctx, row, network.vector, tuple(network.manifests))
    row.first_base, shared = store_model(ctx, row, network.select(method.shared_parts), method.shared_parts)
    with ctx.transaction() as db:
        queries.federation(db, lock=True)  # two coordinators at once: one sees the other's run
        _check(ctx, db, row)
        _require_new_base(db, row, initial_model)
        for hashed, size in ((row.initial_model, whole), (row.first_base, shared)):
            remember_model(db, hashed, size)
        db.add(row)
        db.flush()
        queries.bump_version(db)
        audit.record(ctx, db, actor, "run started", run=row.name, initial_model=row.initial_model)


def end_run(ctx: Context, actor: str = audit.LOCAL, name: str | None = None) -> str:
    """End the open run (of this name) now, between rounds or in the middle of one; its name. Results so far stay."""
    with ctx.transaction() as db:
        run, attempt = _locked_run(db, "end", name)
        run.status, run.reason = "ended", "ended by the coordinator"
        audit.record(ctx, db, actor, "run ended", run=run.name)
        if attempt is not None and attempt.status == "active":
            close_attempt(ctx, db, attempt, "the coordinator ended the run")
        queries.bump_version(db)
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


def _row(settings: RunSettings, network: Network) -> RunRow:
    try:
        method = Method(settings.method.upper())
    except ValueError:
        known = ", ".join(Method)
        raise OperatorError(f"unknown method {settings.method!r}; choose one of {known}") from None
    settled = dataclasses.replace(settings, method=method, first_bits=_first_bits(settings))
    return RunRow(
        **dataclasses.asdict(settled),  # each setting has a column of its name
        status="running",
        architecture=canonical.encode(network.architecture),
        manifest=manifests_json(network.manifests),
        initial_model="",
        first_base="",
        initial_seed=network.initial_seed.hex(),
        created_at=time.time(),
    )


def _first_bits(settings: RunSettings) -> int:
    return max(settings.bits, DEFAULT_FIRST_BITS) if settings.first_bits is None else settings.first_bits


def _check_rings(settings: RunSettings) -> None:
    for option, bits in (("--bits", settings.bits), ("--first-bits", _first_bits(settings))):
        if bits not in RINGS:
            raise OperatorError(f"{option} {bits} is no ring that values can travel in; choose one of {RING_CHOICES}")
    if _first_bits(settings) < settings.bits:
        raise OperatorError(
            f"--first-bits {settings.first_bits} is narrower than --bits {settings.bits}, but less is known of the "
            "first sum than of later ones; leave --first-bits out or choose a wider ring"
        )


def _require_new_base(db: Session, row: RunRow, initial_model: Path) -> None:
    """Members may have answered for a sum over a used base: others could never meet over it again."""
    earlier = queries.run_based_on(db, row.first_base)
    if earlier is not None:
        raise OperatorError(
            f"run {earlier!r} has used the shared parts of {initial_model} as a base, and a base is used by one run "
            "only; make a new one with: fedddpm init-model --seed ... (another seed)"
        )


def _check(ctx: Context, db: Session, row: RunRow) -> None:
    """OperatorError unless this run can start now under the newest roster."""
    if queries.newest_roster_version(db) == 0:
        raise OperatorError("no roster is installed; sign one (federation roster create) and install it first")
    roster = ctx.newest_roster(db)
    for open_run in queries.open_runs(db):
        raise OperatorError(f"run {open_run.name!r} goes on; wait until it is finished, or: federation end-run")
    if db.scalar(select(RunRow.id).where(RunRow.name == row.name)) is not None:
        raise OperatorError(f"a run called {row.name!r} exists; choose another name")
    row.min_cohort = row.min_cohort or roster.n_min
    if row.min_cohort < roster.n_min:
        raise OperatorError(f"--min-cohort {row.min_cohort} is below the roster's n_min {roster.n_min}")
    obstacle = cannot_run(Method(row.method), roster, row.min_cohort)
    if obstacle is not None:
        raise OperatorError(obstacle)
    try:
        require_name("run", row.name)
        _check_specs(row, roster)
    except ValueError as error:
        raise OperatorError(f"the run cannot be started: {error}") from error
    largest = ring.packed_bytes(row.chunk_coordinates, WIDEST_BITS)
    if largest > ctx.limits.max_chunk_bytes:
        raise OperatorError(
            f"chunks of {row.chunk_coordinates} coordinates take {largest} bytes, the server accepts "
            f"{ctx.limits.max_chunk_bytes}; lower --chunk-coordinates"
        )


def _check_specs(row: RunRow, roster: Roster) -> None:
    """ValueError unless rounds can be made in every ring that the run may come to use."""
    nothing = "00" * 32
    row.initial_model, row.first_base = row.initial_model or nothing, row.first_base or nothing
    for bits in (WIDEST_BITS, row.first_bits, row.bits):
        rings = dict.fromkeys(Method(row.method).sessions, ValuesRing(bits))
        for part in round_spec(row, roster, rings, row.clip_norm, 0, 0, row.first_base, None).parts:
            _require_mixing(part, row.chunk_coordinates)


def _require_mixing(part: PartSpec, chunk_coordinates: int) -> None:
    """A narrow ring counts on blocks in which every coordinate is mixed with many others, within one chunk."""
    if part.values.encoding == ROTATED and part.values.block < min(_BLOCK, rotation_block(part.parameters)):
        raise ValueError(
            f"chunks of {chunk_coordinates} coordinates leave blocks of {part.values.block} to be rotated together, "
            f"too few for a narrow ring; choose a multiple of {_BLOCK} for --chunk-coordinates, or --bits 32"
        )
