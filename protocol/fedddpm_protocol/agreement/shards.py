"""Which members sum together, where there are more than one sum can hold.

A shard is a complete secure sum of its own: its own cohort, threshold and masks. The aggregator sees one sum a shard
and adds them up. Who is in which shard follows from the root-signed roster alone, so every institution recomputes its
own place and no message of the aggregator can move it. It is the same in all rounds under one roster version: a
fixed set of conspirators gets one draw, not one a round.
"""

from __future__ import annotations

from functools import lru_cache

from fedddpm_protocol.agreement.methods import Method, session_name
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import SpecError, UnknownMemberError
from fedddpm_protocol.primitives.canonical import tagged_hash


@lru_cache(maxsize=8)
def draw(roster: Roster) -> tuple[tuple[str, ...], ...]:
    """Member ids by shard, sorted bytewise in each; one group of everybody where the roster has no shards.

    Members are put in the order of ``H("shard", seed, id)`` and cut into shards of equal size, the first ones one
    larger where it does not come out even.
    """
    if not roster.sharding:
        return (roster.ids,)
    rules = roster.sharding[0]
    order = sorted(roster.ids, key=lambda member: tagged_hash("shard", rules.seed, member.encode()))
    shards, start = [], 0
    for size in rules.sizes(len(order)):
        shards.append(tuple(sorted(order[start : start + size], key=str.encode)))
        start += size
    return tuple(shards)


def largest_cohort(roster: Roster) -> int:
    """The most members that any sum under this roster can have."""
    return max(len(shard) for shard in draw(roster))


def shard_of(roster: Roster, member: str) -> int | None:
    """The number of a member's shard, None where there are none; UnknownMemberError if it is not enrolled."""
    roster.public_key(member)
    if not roster.sharding:
        return None
    for number, ids in enumerate(draw(roster)):
        if member in ids:
            return number
    raise UnknownMemberError(f"{member!r} is in no shard", member)


def sessions_of(method: Method, roster: Roster) -> tuple[str, ...]:
    """Names of all sessions of a round, part by part."""
    shards = range(len(draw(roster))) if roster.sharding else (None,)
    return tuple(session_name(part, shard) for part in method.sessions for shard in shards)


def members_of(method: Method, roster: Roster, session: str) -> tuple[str, ...]:
    """The members among whom a session's reporters are: all, or those of its shard.

    Raises:
        SpecError: the method has no such session under this roster.
    """
    if session not in sessions_of(method, roster):
        raise SpecError(f"method {method} has no session {session!r} under roster version {roster.version}")
    shard = sessions_of(method, roster).index(session) % len(draw(roster))
    return draw(roster)[shard]


def session_of(roster: Roster, part: str, member: str) -> str:
    """The session in which a member reports a part."""
    return session_name(part, shard_of(roster, member))
