"""Which members sum together, where there are more than one sum can hold.

A shard is a complete secure sum of its own: its own cohort, threshold and masks. The aggregator sees one sum a shard
and adds them up. Who is in which shard follows from the root-signed roster alone, so every institution recomputes its
own place and no message of the aggregator can move it. It is the same in all rounds under one roster version (a fixed
set of conspirators gets one draw, not one a round), unless the root allowed for further ones: then each result that
lacks a sum because it was spoiled moves on to the next of these draws, which are as many whatever anybody does.
"""

from __future__ import annotations

from functools import lru_cache

from fedddpm_protocol.agreement.methods import Method, session_name
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.errors import SpecError, UnknownMemberError
from fedddpm_protocol.primitives.canonical import tagged_hash


@lru_cache(maxsize=64)
def draw(roster: Roster, number: int = 0) -> tuple[tuple[str, ...], ...]:
    """Member ids by shard, sorted bytewise in each; one group of everybody where the roster has no shards.

    Members are put in the order of ``H("shard", seed, id)`` and cut into shards of equal size, the first ones one
    larger where it does not come out even. Draws after the first have ``H("redraw", seed, number)`` for a seed.

    Raises:
        SpecError: the roster has no draw of this number.
    """
    if not 0 <= number <= most_redraws(roster):
        raise SpecError(f"roster version {roster.version} has no draw {number}, but 0 to {most_redraws(roster)}")
    if not roster.sharding:
        return (roster.ids,)
    rules = roster.sharding[0]
    seed = tagged_hash("redraw", rules.seed, number.to_bytes(4, "big")) if number else rules.seed
    order = sorted(roster.ids, key=lambda member: tagged_hash("shard", seed, member.encode()))
    shards, start = [], 0
    for size in rules.sizes(len(order)):
        shards.append(tuple(sorted(order[start : start + size], key=str.encode)))
        start += size
    return tuple(shards)


def most_redraws(roster: Roster) -> int:
    """How often a spoiled sum may change the draw under this roster."""
    return roster.sharding[0].redraws if roster.sharding else 0


def largest_cohort(roster: Roster) -> int:
    """The most members that any sum under this roster can have, whatever the draw."""
    return max(len(shard) for shard in draw(roster))


def shard_of(roster: Roster, member: str, number: int = 0) -> int | None:
    """The index of a member's shard in a draw, None where there are none; UnknownMemberError if it is not enrolled."""
    roster.public_key(member)
    if not roster.sharding:
        return None
    for shard, ids in enumerate(draw(roster, number)):
        if member in ids:
            return shard
    raise UnknownMemberError(f"{member!r} is in no shard", member)


def sessions_of(method: Method, roster: Roster, turn: str = "") -> tuple[str, ...]:
    """Names of all sessions of a round, part by part; the same in every draw. ``turn``: as in the specification."""
    shards = range(len(draw(roster))) if roster.sharding else (None,)
    return tuple(session_name(part, shard) for part in method.summed_in(turn) for shard in shards)


def members_of(method: Method, roster: Roster, session: str, number: int = 0, turn: str = "") -> tuple[str, ...]:
    """The members among whom a session's reporters are: all, or those of its shard in a draw.

    Raises:
        SpecError: the method has no such session under this roster.
    """
    sessions = sessions_of(method, roster, turn)
    if session not in sessions:
        raise SpecError(f"method {method} has no session {session!r} under roster version {roster.version}")
    shard = sessions.index(session) % len(draw(roster))
    return draw(roster, number)[shard]


def session_of(roster: Roster, part: str, member: str, number: int = 0) -> str:
    """The session in which a member reports a part, in a draw."""
    return session_name(part, shard_of(roster, member, number))
