"""The ways of sharing a UNet, and who reports which part.

Source of FULL, USPLIT, ULATDEC and UDEC: arXiv 2406.12575 (FedDiffuse), section 3. TURN is ours: one part a round, by
turns, so that a round moves about as little as with UDEC and the run still ends with one whole model. Every institution
trains the whole network in every method; only what leaves the institution differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from fedddpm_protocol.primitives.canonical import tagged_hash, u64

ENCODER, BOTTLENECK, DECODER = "encoder", "bottleneck", "decoder"
MODEL_PARTS = (ENCODER, BOTTLENECK, DECODER)


class Method(StrEnum):
    """Which parts of the network are averaged, and in how many secure sums."""

    FULL = "FULL"
    USPLIT = "USPLIT"
    ULATDEC = "ULATDEC"
    UDEC = "UDEC"
    TURN = "TURN"

    @property
    def sessions(self) -> dict[str, tuple[str, ...]]:
        """Session part name -> the model parts that its vector carries, in order."""
        return {name: parts for name, parts in _SESSIONS[self]}  # noqa: C416 - a fresh dict on purpose

    @property
    def shared_parts(self) -> tuple[str, ...]:
        """The model parts that leave the institution, in some round; the rest stays local for the whole run."""
        return tuple(part for _, parts in _SESSIONS[self] for part in parts)

    def summed_in(self, turn: str) -> tuple[str, ...]:
        """The session parts that are summed in a round: all, or the one whose ``turn`` it is (empty: all)."""
        return (turn,) if turn else tuple(self.sessions)


def session_name(part: str, shard: int | None = None) -> str:
    """The name of a secure sum on the wire: its part, with the number of the shard where there are shards."""
    return part if shard is None else f"{part}{_SHARD_MARK}{shard}"


def part_of(session: str) -> str:
    """The part that a session sums."""
    return session.partition(_SHARD_MARK)[0]


def sessions_by_part(sessions: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Sessions grouped by their part, shards in order."""
    grouped: dict[str, list[str]] = {}
    for session in sessions:
        grouped.setdefault(part_of(session), []).append(session)
    return {part: tuple(sorted(names, key=_shard_number)) for part, names in grouped.items()}


def _shard_number(session: str) -> int:
    number = session.partition(_SHARD_MARK)[2]
    return int(number) if number.isdecimal() else -1


_SHARD_MARK = "."  # in no part's name
_SESSIONS: dict[Method, tuple[tuple[str, tuple[str, ...]], ...]] = {
    Method.FULL: (("full", MODEL_PARTS),),
    Method.USPLIT: ((ENCODER, (ENCODER,)), (BOTTLENECK, (BOTTLENECK,)), (DECODER, (DECODER,))),
    Method.ULATDEC: (("bottleneck-decoder", (BOTTLENECK, DECODER)),),
    Method.UDEC: ((DECODER, (DECODER,)),),
    Method.TURN: tuple((f"turn-{part}", (part,)) for part in MODEL_PARTS),
}
TURNS = tuple(name for name, _ in _SESSIONS[Method.TURN])  # each part once, in the order of the network
_WITH_LOSSES = frozenset(
    name for sums in _SESSIONS.values() for name, parts in sums if DECODER in parts or name in TURNS
)


def turn_of(turns: Sequence[str], round_index: int) -> str:
    """Whose turn it is in a round, counted from 0; empty where there are no turns."""
    return turns[round_index % len(turns)] if turns else ""


def stretch(turns: Sequence[str], part: str, round_index: int) -> float:
    """How many times as long as before its last turn ``part`` has been trained at home, where it is its turn again.

    What is summed of it is about as many times as large, so the scale of the last sum is stretched by this. 1.0 where
    it is another's turn, or its first.
    """
    if turn_of(turns, round_index) != part:
        return 1.0
    earlier = [-1, *(index for index in range(round_index) if turn_of(turns, index) == part)]
    return 1.0 if len(earlier) < 2 else (round_index - earlier[-1]) / (earlier[-1] - earlier[-2])


def reports_losses(session: str) -> bool:
    """Whether losses are summed in this session: in the one that carries the decoder, or whose turn it is.

    In one part of a base model only, also over several attempts: with USPLIT an institution reports the decoder in one
    draw and the encoder in the next, and two sums of the same losses that differ by one member reveal that member's.
    SPENT lets the decoder be summed over one set of survivors.
    """
    return part_of(session) in _WITH_LOSSES


def assign_parts(spec_hash: bytes, members: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Who reports which part in a USPLIT round: model part -> sorted member ids.

    Members are put in the order of ``H("assign", spec_hash, id)``. In each pair the first reports the decoder, the
    second the encoder, and a coin says which of them also reports the bottleneck; an odd last one reports the
    bottleneck and, by coin, the decoder or the encoder. One pair's uploads make exactly one whole network.
    """
    order = sorted(members, key=lambda member: tagged_hash("assign", spec_hash, member.encode()))
    reporters: dict[str, list[str]] = {part: [] for part in MODEL_PARTS}
    for pair in range(len(order) // 2):
        first, second = order[2 * pair], order[2 * pair + 1]
        reporters[DECODER].append(first)
        reporters[ENCODER].append(second)
        reporters[BOTTLENECK].append(second if _coin(spec_hash, pair) else first)
    if len(order) % 2:
        reporters[BOTTLENECK].append(order[-1])
        reporters[ENCODER if _coin(spec_hash, len(order) // 2) else DECODER].append(order[-1])
    return {part: tuple(sorted(ids)) for part, ids in reporters.items()}


def _coin(spec_hash: bytes, pair: int) -> int:
    return tagged_hash("coin", spec_hash, u64(pair))[0] & 1


def reporters_by_session(method: Method, spec_hash: bytes, members: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Session part -> the members expected to upload it: everybody, or the round's draw with USPLIT."""
    if method is Method.USPLIT:
        return assign_parts(spec_hash, members)
    everybody = tuple(sorted(members))
    return dict.fromkeys(method.sessions, everybody)
