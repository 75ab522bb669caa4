"""Step 7: opening a sum and publishing the round.

Everything is recomputed from stored messages and chunks, so a process killed here loses only time. Chunk by chunk the
values are opened, measured and written, so memory holds a few chunks whatever the vector's length. Publication is one
transaction: result, model and the next attempt appear together, after their blobs are durable.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.reduction.threads import DamagedUploadError, open_segment
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import settle
from fedddpm_aggregator.service.rounds.phase_rules import no_answer_can_come
from fedddpm_aggregator.service.rounds.phases import enter, fail, view_of
from fedddpm_aggregator.service.rounds.publishing import publish
from fedddpm_aggregator.service.rounds.sessions import LiveSession, live_of, survivors_of
from fedddpm_aggregator.vectors.opened_values import OpenedValues, opened_blob
from fedddpm_aggregator.vectors.stored_chunks import StoredChunks, session_folder
from fedddpm_protocol.agreement.result import PartResult
from fedddpm_protocol.agreement.rings import WIDEST_BITS
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.encoding.decoder import check_opened
from fedddpm_protocol.encoding.encoder import weight_units
from fedddpm_protocol.encoding.scale import Energy
from fedddpm_protocol.errors import CommitmentError, MisdealtError, ResultError, WrappedSumError
from fedddpm_protocol.primitives import canonical, ring
from fedddpm_protocol.session.cohort import SurvivorSet
from fedddpm_protocol.session.coordinator import MaskPlan, recover
from fedddpm_protocol.session.verdicts import judge_secrets
from fedddpm_protocol.wire.messages import Unmask, UploadManifest
from fedddpm_protocol.wire.phases import Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What opening one session needs, read in one go."""

    session_id: int
    spec: RoundSpec
    spec_hash: str
    part: str
    masks: MaskPlan
    uploads: dict[str, UploadManifest]


def conclude(ctx: Context, attempt_id: int) -> None:
    """Open every session of an attempt that can be opened, and publish the round once all are over."""
    with ctx.database.read() as db:
        sessions = [(row.id, Phase(row.phase)) for row in queries.sessions_of(db, attempt_id)]
    for session_id, phase in sessions:
        if phase in (Phase.UNMASK, Phase.OPENING):
            with ctx.tracer.span("open sum"):
                _open(ctx, attempt_id, session_id)
    with ctx.tracer.span("publish round"):
        publish(ctx, attempt_id)


def _open(ctx: Context, attempt_id: int, session_id: int) -> None:
    job = _prepare(ctx, attempt_id, session_id)
    if job is None:
        return
    try:
        result = _reduce(ctx, job)
    except (ResultError, DamagedUploadError) as error:
        # A sum that wrapped in the widest ring would come again, and again: such a one is held.
        narrow = job.spec.part(job.part).values.bits < WIDEST_BITS
        wrapped = narrow and isinstance(error, WrappedSumError)
        held = not wrapped and isinstance(error, ResultError)
        with ctx.transaction() as db:
            live = _loaded(ctx, db, attempt_id, session_id, lock=True)
            if live.phase is Phase.OPENING:
                fail(ctx, db, live, str(error), held=held, wrapped=wrapped)
        return
    with ctx.transaction() as db:
        live = _loaded(ctx, db, attempt_id, session_id, lock=True)
        # Opening took its time, without the lock: another replica may have been first, or the run was ended.
        if live.phase is Phase.OPENING and live.attempt.status == "active":
            live.session.result = canonical.encode(result)
            live.session.opened_digest = result.opened_digest.hex()
            enter(db, live, Phase.DONE)
            settle(ctx, db, live.attempt)


def _prepare(ctx: Context, attempt_id: int, session_id: int) -> _Job | None:
    """Recover the masks and enter OPENING; None when the sum cannot be opened yet or ever.

    U3 is fixed and answers are only ever added, so the secrets may be rebuilt without holding the attempt's lock.
    """
    with ctx.database.read() as db:
        live = _loaded(ctx, db, attempt_id, session_id)
        if live.phase not in (Phase.UNMASK, Phase.OPENING) or live.attempt.status != "active":
            return None
        survivors = survivors_of(db, live)
        answers = queries.messages_of(db, session_id, queries.UNMASK)
        uploads = queries.messages_of(db, session_id, queries.UPLOAD)
    unmasks = [Unmask.model_validate_json(row.body) for row in answers]
    try:
        masks = recover(survivors, unmasks)
    except MisdealtError:
        _convict(ctx, attempt_id, session_id, survivors, unmasks)
        return None
    except CommitmentError as error:
        _give_up_if_over(ctx, attempt_id, session_id, len(answers), str(error))
        return None
    with ctx.transaction() as db:
        live = _loaded(ctx, db, attempt_id, session_id, lock=True)
        if live.phase is Phase.UNMASK and live.attempt.status == "active":
            enter(db, live, Phase.OPENING)
    manifests = {row.member: UploadManifest.model_validate_json(row.body) for row in uploads}
    spec = ctx.spec_of(live.attempt)
    return _Job(session_id, spec, live.attempt.spec_hash, live.session.part, masks, manifests)


def _convict(ctx: Context, attempt_id: int, session_id: int, survivors: SurvivorSet, unmasks: Sequence[Unmask]) -> None:
    """Fail a session that a dealer of wrong shares keeps shut; the others go on without it."""
    verdicts = judge_secrets(survivors, unmasks)
    with ctx.transaction() as db:
        live = _loaded(ctx, db, attempt_id, session_id, lock=True)
        if live.phase is not Phase.UNMASK or live.attempt.status != "active":
            return
        for verdict in verdicts:
            blame.keep_verdict(ctx, db, live.attempt, live.session, survivors.sharing.cohort, verdict)
        fail(ctx, db, live, blame.sentence(verdicts))


def _give_up_if_over(ctx: Context, attempt_id: int, session_id: int, answers: int, why: str) -> None:
    """Fail the session if no further answer can come after the ``answers`` that were not enough."""
    with ctx.transaction() as db:
        live = _loaded(ctx, db, attempt_id, session_id, lock=True)
        if live.phase is not Phase.UNMASK:
            return
        view = view_of(ctx, db, live)
        if len(view.done) == answers and no_answer_can_come(view):
            fail(ctx, db, live, f"the sum cannot be opened: {why}")


def _loaded(ctx: Context, db: Session, attempt_id: int, session_id: int, *, lock: bool = False) -> LiveSession:
    attempt = queries.attempt_by_id(db, attempt_id, lock=lock)
    row = next(row for row in queries.sessions_of(db, attempt_id) if row.id == session_id)
    return live_of(ctx, db, attempt, row)


def _reduce(ctx: Context, job: _Job) -> PartResult:
    """Open both segments and check the sum; the values go to their blob."""
    started = time.monotonic()
    part, survivors = job.spec.part(job.part), job.masks.survivors
    digest, energy = _open_values(ctx, job)
    sums = _open_sums(ctx, job)
    cohort = survivors.sharing.cohort
    norm = check_opened(job.spec, part, energy, sums, len(cohort.ids), len(survivors.ids))
    _check_disclosed(job, sums[0])
    seconds = time.monotonic() - started
    ctx.metrics.reduction(len(survivors.ids) * part.values.coordinates, seconds)
    log.info("sum opened", extra={"fields": {"session": job.session_id, "seconds": seconds}})
    return PartResult(
        part=job.part,
        opened=True,
        session_id=cohort.session_id,
        hu3=survivors.hu3,
        cohort=cohort.ids,
        survivors=survivors.ids,
        sums=sums,
        opened_digest=digest,
        norm=norm,
    )


def _open_sums(ctx: Context, job: _Job) -> tuple[int, ...]:
    segment = job.spec.part(job.part).weights
    packed = bytearray(ring.packed_bytes(segment.coordinates, segment.bits))

    def keep(offset: int, chunk: bytes) -> None:
        packed[offset : offset + len(chunk)] = chunk

    chunks = _stored(ctx, job, segment.name)
    with chunks.ahead(job.masks.survivors.ids) as read:
        open_segment(job.masks, segment, job.spec.chunk_coordinates, read, keep, 1)  # it has a few words
    return tuple(int(word) for word in ring.unpack(bytes(packed), segment.bits, segment.coordinates))


def _open_values(ctx: Context, job: _Job) -> tuple[bytes, Energy]:
    """Digest and energy of the opened values, which are in their blob when this returns."""
    part = job.spec.part(job.part)
    name = opened_blob(job.spec_hash, job.part)
    if ctx.blobs.exists(name):  # a process killed after this blob was whole: the sum is the same
        return OpenedValues(ctx.blobs, job.spec, job.part).measure()
    energy = Energy(part)
    with ctx.blobs.create_or_keep(name) as file:
        descriptor = file.fileno()

        def write_at(offset: int, packed: bytes) -> None:
            ctx.pulse.progress()
            if os.pwrite(descriptor, packed, offset) != len(packed):
                raise OSError("a short write to the opened vector")

        chunks = _stored(ctx, job, part.values.name)
        digest = ctx.reducer.open_segment(
            job.masks, part.values, job.spec.chunk_coordinates, chunks, write_at, energy.add
        )
    return digest, energy


def _stored(ctx: Context, job: _Job, segment: str) -> StoredChunks:
    return StoredChunks(ctx.blobs, session_folder(job.spec_hash, job.part), segment)


def _check_disclosed(job: _Job, total: int) -> None:
    """Where counts are disclosed, the opened weight must be theirs."""
    if job.spec.weighting != "disclosed":
        return
    counts = {member: job.uploads[member].samples or 0 for member in job.masks.survivors.ids}
    disclosed = sum(weight_units(samples, job.spec) for samples in counts.values())
    if disclosed != total:
        raise ResultError(
            f"the opened weight {total} is not the {disclosed} that the disclosed sample counts give: "
            "an institution weighted its update by another count. The round is held"
        )
