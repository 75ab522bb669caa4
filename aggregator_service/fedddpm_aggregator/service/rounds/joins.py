"""Step 1: JOINs, and the closed cohort."""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import JoinRow
from fedddpm_aggregator.errors import ExcludedError, PhaseOverError
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.phases import advance
from fedddpm_aggregator.service.rounds.sessions import (
    LiveSession,
    cohort_of,
    load,
    require_open,
    require_own,
    require_reached,
)
from fedddpm_protocol.errors import DuplicateError
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session.cohort import verify_join
from fedddpm_protocol.wire.api import CohortReply, JoinReceipt
from fedddpm_protocol.wire.messages import Join, JoinBody
from fedddpm_protocol.wire.phases import Phase


def post_join(ctx: Context, caller: str, spec_hash: str, part: str, join: Join) -> JoinReceipt:
    """Accept a JOIN. Until the cohort closes a higher seq replaces the older; afterwards it marks the member dropped.

    Raises ExcludedError for a convicted member, PhaseOverError after the cohort closed, DuplicateError for another
    member's session key, and what :func:`fedddpm_protocol.session.cohort.verify_join` raises.
    """
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        body = verify_join(live.plan, live.roster, join)
        require_own(caller, body.id)
        _require_admitted(db, live, caller)
        row = db.get(JoinRow, (live.session.id, caller))
        if row is not None and body.seq <= row.seq:
            same = (join.body, join.signature) == (row.body, row.signature)
            return JoinReceipt(outcome="unchanged" if same else "stale", newest_seq=row.seq)
        if live.phase is not Phase.JOIN:
            _mark_dropped(ctx, db, live, row)
            return JoinReceipt(outcome="stale", newest_seq=body.seq)
        _require_fresh_keys(db, live, body)
        if row is None:
            row = JoinRow(session_id=live.session.id, member=caller, in_cohort=False, dropped=False)
            db.add(row)
            outcome = JoinReceipt(outcome="accepted", newest_seq=body.seq)
        else:
            outcome = JoinReceipt(outcome="replaced", newest_seq=body.seq)
        row.seq, row.body, row.signature = body.seq, join.body, join.signature
        db.flush()
        advance(ctx, db, live)
        return outcome


def get_cohort(ctx: Context, spec_hash: str, part: str) -> CohortReply:
    """U1, from SHARES on."""
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        require_reached(live, Phase.SHARES)
        return CohortReply(joins=cohort_of(db, live).joins)


def _require_admitted(db: Session, live: LiveSession, caller: str) -> None:
    row = blame.excluded_from(db, live.attempt).get(caller)
    if row is not None:
        raise ExcludedError(
            f"{caller!r} sits out the next attempts of this run, or until the root signs a newer roster, because of "
            f"evidence that every institution can check: {blame.told(row)}"
        )


def _mark_dropped(ctx: Context, db: Session, live: LiveSession, row: JoinRow | None) -> None:
    """The cohort is closed: a member that joins again has lost its secrets, so nobody waits for it any more."""
    if row is not None and row.in_cohort and not row.dropped:
        row.dropped = True
        db.flush()
        advance(ctx, db, live)
    try:
        require_open(live, Phase.JOIN)
    except PhaseOverError as error:
        queries.refuse(db, error)


def _require_fresh_keys(db: Session, live: LiveSession, body: JoinBody) -> None:
    own = {body.channel_public_key, body.mask_public_key}
    for member, other in queries.join_bodies(db, live.session.id):
        if member != body.id and own & _session_keys(other):
            raise DuplicateError("this JOIN carries a session key of another member", body.id)
    if len(own) != 2:
        raise DuplicateError("the two session keys of a JOIN must differ", body.id)


@lru_cache(maxsize=4096)
def _session_keys(join_body: bytes) -> frozenset[bytes]:
    """The two session keys of a JOIN that was accepted."""
    body = canonical.decode(JoinBody, join_body)
    return frozenset({body.channel_public_key, body.mask_public_key})
