"""A roster that is handed in again and again, each time a deployment is installed, upgraded or taken back."""

from __future__ import annotations

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.errors import OlderInForceError, OperatorError
from fedddpm_aggregator.service.administration.rosters import put_in_force
from fedddpm_aggregator.service.context import Context, decode_roster
from fedddpm_protocol.primitives.keys import fingerprint
from fedddpm_protocol.wire.messages import SignedDocument


def bring_in_force(ctx: Context, document: SignedDocument) -> str:
    """Put a root-signed roster in force unless a newer one is; what came of it, in words.

    Raises OperatorError: signed by another root, of another federation or server, or another roster of this version
    is in force.
    """
    try:
        roster, is_new = put_in_force(ctx, document)
    except OlderInForceError:
        with ctx.database.read() as db:
            newer = ctx.newest_roster(db)
        return f"version {newer.version} stays in force: version {decode_roster(document.body).version} is older"
    since = "is in force" if is_new else "was in force already"
    return f"version {roster.version} of {roster.federation} {since}: {len(roster.members)} members"


def require_own_key(ctx: Context) -> None:
    """OperatorError when the roster in force names another server's key; there may be none yet."""
    with ctx.database.read() as db:
        if queries.newest_roster_version(db) == 0:
            return
        roster = ctx.newest_roster(db)
    if roster.server_public_key != ctx.key.public_key:
        raise OperatorError(
            f"roster version {roster.version} names the server key {fingerprint(roster.server_public_key)}, but this "
            f"server's is {fingerprint(ctx.key.public_key)}: institutions would refuse its rounds. Give it the key "
            "that the roster was signed for (FEDDDPM_AGGREGATOR_SERVER_KEY), or let the root sign a roster for this one"
        )
