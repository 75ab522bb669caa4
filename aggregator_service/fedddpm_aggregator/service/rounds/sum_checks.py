"""What survivors may see of a published sum, so that each can open chunks of it itself.

Nothing is shown of sums that were not published, of members that are not in the sum, or to anybody who is not in it.
What a survivor sees here the aggregator has: it learns no more than the aggregator would with it as an accomplice
(docs/adr/0023-checked-sums.md).
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import NotFoundError, NotYoursError, RemovedError, WrongPhaseError
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.sessions import LiveSession, load, require_reached, survivors_of
from fedddpm_aggregator.vectors.stored_chunks import DamagedUploadError, StoredChunks, session_folder
from fedddpm_protocol.agreement.chunks import chunk_span
from fedddpm_protocol.wire.api import UploadDigests
from fedddpm_protocol.wire.messages import Unmask, Unmasks, UploadManifest
from fedddpm_protocol.wire.phases import Phase


def get_unmasks(ctx: Context, caller: str, spec_hash: str, part: str) -> Unmasks:
    """The survivors' answers, from which the secrets behind the masks follow; errors as :func:`_published`."""
    with ctx.database.read() as db:
        live = _published(ctx, db, caller, spec_hash, part)
        bodies = queries.bodies_of(db, live.session.id, queries.UNMASK)
        return Unmasks(unmasks=tuple(Unmask.model_validate_json(body) for body in bodies))


def get_digests(ctx: Context, caller: str, spec_hash: str, part: str, member: str) -> UploadDigests:
    """The chunk digests of a survivor's upload, without its sample count; errors as :func:`_published`."""
    with ctx.database.read() as db:
        live = _published(ctx, db, caller, spec_hash, part)
        _require_survivor(db, live, member)
        row = queries.message_of(db, live.session.id, queries.UPLOAD, member)
        if row is None:
            raise NotFoundError(f"there is no upload of {member!r}")
        return UploadDigests(chunks=UploadManifest.model_validate_json(row.body).chunks)


def get_chunk(ctx: Context, caller: str, spec_hash: str, part: str, member: str, segment: str, index: int) -> bytes:
    """The masked words of one chunk of a survivor, as they came.

    Raises what :func:`_published` does; MalformedError for an unknown segment or index, RemovedError once uploads are
    deleted, NotFoundError where the storage has lost them.
    """
    with ctx.database.read() as db:
        live = _published(ctx, db, caller, spec_hash, part)
        _require_survivor(db, live, member)
        chunk_span(live.plan.segment(segment), live.plan.chunk_coordinates, index)
        if live.attempt.scrubbed:
            raise RemovedError("the masked uploads of this round are kept no longer; check the sum of a later one")
    try:
        return bytes(StoredChunks(ctx.blobs, session_folder(spec_hash, part), segment).read(member, index))
    except DamagedUploadError as error:
        raise NotFoundError(f"this chunk cannot be shown: {error}") from error


def _published(ctx: Context, db: Session, caller: str, spec_hash: str, part: str) -> LiveSession:
    """A session whose sum is in a signed result, and that ``caller`` is in.

    Raises NotFoundError, PhaseOverError (it failed), WrongPhaseError (no result yet) or NotYoursError.
    """
    live = load(ctx, db, spec_hash, part)
    require_reached(live, Phase.DONE)
    if live.attempt.status != "done":
        raise WrongPhaseError(f"the sum of part {part!r} is shown once its round is published")
    if caller not in survivors_of(db, live).ids:
        raise NotYoursError(f"the sum of part {part!r} is shown to those who are in it, and {caller!r} is not")
    return live


def _require_survivor(db: Session, live: LiveSession, member: str) -> None:
    if member not in survivors_of(db, live).ids:
        raise NotFoundError(f"{member!r} is not in the sum of part {live.session.part!r}")
