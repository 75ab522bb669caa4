"""The adaptive clip norm: how large an update of the next round may be, from the signed results so far.

The mean of n updates is short where one of them dwarfs the others or where they have little in common. With
``MARGIN = 4/3`` the next clip norm is ``sqrt(MARGIN * n)`` times the last mean. Updates that on the whole do not
contradict each other add up to at least the root of their squares, so it is at least ``sqrt(MARGIN)`` of the root mean
square of what was sent: it shrinks for none that is like the others, even where a quarter of them sends nothing. One
that is clipped round after round is at most ``sqrt(MARGIN / n)`` of the sum.

A member that works against the others could shrink it on and on: it never falls below ``FLOOR`` of what followed from
the first mean. Nothing but numbers of signed results goes in, so whoever has these computes the same clip norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedddpm_protocol.methods import sessions_by_part
from fedddpm_protocol.spec import MIN_CLIP_NORM, PartResult, RoundResult

ADAPTIVE, FIXED = "adaptive", "fixed"
CLIPPINGS = (ADAPTIVE, FIXED)  # how the clip norm of a run's rounds comes about
MARGIN = 4 / 3
FLOOR = 1 / 16


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
    """Over the survivors of all shards: MARGIN times the number of them in one's own shard times its squared norm."""
    survivors = sum(len(shard.survivors) for shard in shards)
    return sum(MARGIN * (len(shard.survivors) * shard.norm) ** 2 for shard in shards) / survivors


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
    return math.sqrt(sum(norm * norm for norm in norms.values()))
