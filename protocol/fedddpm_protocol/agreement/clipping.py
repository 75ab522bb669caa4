"""The adaptive clip norm: how large an update of the next round may be, from the signed results so far.

The next clip norm is ``sqrt(n)`` times the norm of the last mean of n updates. Updates that on the whole do not
contradict each other add up to at least the root of their squares, so it is at least the root mean square of what was
sent: equals are not clipped, however little they agree. Where one update dwarfs the others it is smaller than that one,
which is clipped round after round until it is at most ``1 / sqrt(n)`` of the sum.

A member that sends nothing in a very small cohort, or works against the others, could shrink it on and on: it never
falls below ``FLOOR`` of what followed from the first mean. Nothing but numbers of signed results goes in, so whoever
has these computes the same clip norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedddpm_protocol.agreement.methods import sessions_by_part
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import MIN_CLIP_NORM

ADAPTIVE, FIXED = "adaptive", "fixed"
CLIPPINGS = (ADAPTIVE, FIXED)  # how the clip norm of a run's rounds comes about
FLOOR = 1 / 4


def norms_allowed(result: RoundResult) -> dict[str, float]:
    """By opened part: the norm that the next round's updates may have in it.

    Of a part with shards, the root mean square over their survivors.
    """
    opened = {part.part: part for part in result.parts if part.opened}
    return {
        part: math.sqrt(_mean_square([opened[shard] for shard in shards]))
        for part, shards in sessions_by_part(opened).items()
    }


def _mean_square(shards: list[PartResult]) -> float:
    """Of the updates behind the shards' means, were all in a shard of one size and at right angles."""
    survivors = sum(len(shard.survivors) for shard in shards)
    return math.fsum((len(shard.survivors) * shard.norm) ** 2 for shard in shards) / survivors  # alike everywhere


def next_clip_norm(largest: float, first: Mapping[str, float], newest: Mapping[str, float]) -> float:
    """The clip norm of a run's next round, at most ``largest``.

    ``first`` and ``newest`` are :func:`norms_allowed` by part of the results that first and last opened it; without
    any part, or where the first means were nothing, ``largest`` holds on.
    """
    began = _length(first)
    if began == 0:
        return largest
    return min(largest, max(_length(newest), FLOOR * min(largest, began), MIN_CLIP_NORM))


def _length(norms: Mapping[str, float]) -> float:
    return math.sqrt(math.fsum(norm * norm for norm in norms.values()))
