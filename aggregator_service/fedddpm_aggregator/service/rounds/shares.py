"""Step 2: sealed shares, in and out."""

from __future__ import annotations

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import PhaseOverError
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.phases import advance
from fedddpm_aggregator.service.rounds.sessions import cohort_of, known, load, remember, require_open, require_reached
from fedddpm_protocol.wire.api import ShareInbox
from fedddpm_protocol.wire.messages import ShareItem, Shares
from fedddpm_protocol.wire.phases import Phase


def post_shares(ctx: Context, caller: str, spec_hash: str, part: str, shares: Shares) -> None:
    """Accept the caller's shares for all others; the same again is fine, others raise ConflictError."""
    with ctx.transaction() as db:
        live = load(ctx, db, spec_hash, part, lock=True)
        if known(db, live, queries.SHARES, caller, shares):
            return
        require_open(live, Phase.SHARES)
        cohort_of(db, live).verify_shares(caller, shares)
        items = [(item.recipient, item.sealed, item.signature) for item in shares.items]
        queries.add_shares(db, live.session.id, caller, items)
        remember(db, live, queries.SHARES, caller, shares)
        advance(ctx, db, live)


def get_inbox(ctx: Context, caller: str, spec_hash: str, part: str) -> ShareInbox:
    """The items addressed to the caller, and U2, from MASKED on; PhaseOverError for a member outside U2."""
    with ctx.database.read() as db:
        live = load(ctx, db, spec_hash, part)
        require_reached(live, Phase.MASKED)
        sharers = queries.members_of(db, live.session.id, queries.SHARES)
        if caller not in sharers:
            raise PhaseOverError(f"the shares of {caller!r} did not arrive in time; join the next attempt or round")
        items = tuple(
            ShareItem(sender=sender, recipient=caller, sealed=sealed, signature=signature)
            for sender, sealed, signature in queries.shares_to(db, live.session.id, caller)
        )
        return ShareInbox(items=items, sharers=tuple(sorted(sharers, key=str.encode)))
