"""Step 2: sealed shares and what their dealers committed to, in and out; and what members say of them."""

from __future__ import annotations

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import JoinRow
from fedddpm_aggregator.errors import PhaseOverError
from fedddpm_aggregator.service import blame
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.phases import advance, fail
from fedddpm_aggregator.service.rounds.sessions import (
    LiveSession,
    cohort_of,
    known,
    load,
    remember,
    require_open,
    require_own,
    require_reached,
    sharing_of,
)
from fedddpm_protocol.errors import ConflictError
from fedddpm_protocol.session.cohort import Sharing
from fedddpm_protocol.session.verdicts import Offence, Verdict, judge_accusation, judge_accusers
from fedddpm_protocol.wire.api import ShareInbox
from fedddpm_protocol.wire.messages import Accusation, ShareItem, Shares
from fedddpm_protocol.wire.phases import Phase


def post_shares(ctx: Context, caller: str, spec_hash: str, part: str, shares: Shares) -> None:
    """Accept the caller's shares for all others; the same again is fine, others raise ConflictError."""
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        if known(db, live, queries.SHARES, caller, shares):
            return
        require_open(live, Phase.SHARES)
        cohort_of(db, live).verify_shares(caller, shares)
        queries.add_shares(db, live.session.id, caller, [(item.recipient, item.sealed) for item in shares.items])
        remember(db, live, queries.SHARES, caller, shares)
        advance(ctx, db, live)


def get_inbox(ctx: Context, caller: str, spec_hash: str, part: str) -> ShareInbox:
    """The items addressed to the caller, and U2, from MASKED on; PhaseOverError for a member outside U2."""
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        require_reached(live, Phase.MASKED)
        sharing = sharing_of(db, live)
        if caller not in sharing.ids:
            raise PhaseOverError(f"the shares of {caller!r} did not arrive in time; join the next attempt or round")
        items = tuple(
            ShareItem(sender=sender, recipient=caller, sealed=sealed)
            for sender, sealed in queries.shares_to(db, live.session.id, caller)
            if sender in sharing.ids
        )
        return ShareInbox(items=items, deals=sharing.deals, sharers=sharing.ids)


def post_accusation(ctx: Context, caller: str, spec_hash: str, part: str, accusation: Accusation) -> None:
    """Judge what the caller says of the shares that it got; it leaves the session with that.

    A dealer that is convicted ends the session: nobody has to mask over its shares. Otherwise the others go on.
    Raises ConflictError once the caller's upload is complete, PhaseOverError, and what
    :func:`fedddpm_protocol.session.verdicts.judge_accusation` raises.
    """
    require_own(caller, accusation.id)
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        if known(db, live, queries.ACCUSATION, caller, accusation):
            return
        require_open(live, Phase.MASKED)
        if queries.message_of(db, live.session.id, queries.UPLOAD, caller) is not None:
            raise ConflictError(
                "an upload is complete, so the shares were accepted; an accusation comes before", caller
            )
        sharing = sharing_of(db, live)
        found = judge_accusation(sharing, accusation, dict(queries.shares_to(db, live.session.id, caller)))
        remember(db, live, queries.ACCUSATION, caller, accusation)
        found += _accused_by_many(db, live, sharing, found)
        for verdict in found:
            blame.keep_verdict(ctx, db, live.attempt, live.session, sharing.cohort, verdict)
        dealers = [one for one in found if one.offence in (Offence.WRONG_SHARE, Offence.ACCUSED_BY_MANY)]
        if dealers:
            fail(ctx, db, live, blame.sentence(dealers))
            return
        db.get_one(JoinRow, (live.session.id, caller)).dropped = True
        db.flush()
        advance(ctx, db, live)


def _accused_by_many(
    db: Session, live: LiveSession, sharing: Sharing, found: tuple[Verdict, ...]
) -> tuple[Verdict, ...]:
    """Verdicts over the dealers that the accuser contradicts, if more accuse them now than may conspire."""
    bodies = queries.bodies_of(db, live.session.id, queries.ACCUSATION)
    accusations = [Accusation.model_validate_json(body) for body in bodies]
    contradicted = [dealer for one in found if one.offence is Offence.CONTRADICTION for dealer in one.others]
    verdicts = (judge_accusers(sharing, dealer, accusations) for dealer in contradicted)
    return tuple(verdict for verdict in verdicts if verdict is not None)
