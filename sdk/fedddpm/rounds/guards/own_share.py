"""How much of a round's mean is this institution's own update: its share, and the cosine between the two.

A sum in which one update dwarfs the others hides that update from nobody. What a share is of is what everybody derives
at home anyway; the share itself needs the own update, and so is known to this institution alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from fedddpm.updates.contribution import Pieces
from fedddpm_protocol.agreement.methods import part_of
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec

_PIECE = 2**18  # coordinates


@dataclass(frozen=True)
class Products:
    """Scalar products of the own weighted contribution to a mean and that mean."""

    own: float  # own * own
    shared: float  # own * mean
    mean: float  # mean * mean, above 0

    @property
    def share(self) -> float:
        """Of the mean: the shares of all members add up to 1; above 1 where others point the other way."""
        return self.shared / self.mean

    @property
    def cosine(self) -> float:
        """Between the own update and the mean; 0.0 for an update of nothing."""
        return self.shared / math.sqrt(self.own * self.mean) if self.own else 0.0

    def scaled(self, factor: float) -> Products:
        """The same where the own update had counted ``factor`` times, and all others as they did."""
        others = self.shared - self.own  # own * (mean - own)
        mean = self.mean - 2 * (1 - factor) * self.shared + (1 - factor) ** 2 * self.own
        return Products(factor**2 * self.own, factor**2 * self.own + factor * others, mean)


@dataclass(frozen=True)
class OwnShare:
    """The own contribution to one round's mean."""

    run: str
    round: int  # from 0
    norm: float  # L2 norm of the whole own update as it was sent
    parts: Mapping[str, Products]  # those that it contributed to, and whose mean is not zero
    whole: Products  # over all opened parts

    def to_json(self) -> bytes:
        """For the state folder."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Inverse of :meth:`to_json`."""
        fields = json.loads(text)
        parts = {name: Products(**part) for name, part in fields.pop("parts").items()}
        return cls(**{**fields, "parts": parts, "whole": Products(**fields["whole"])})

    def __str__(self) -> str:
        return f"{100 * self.whole.share:.0f} % (cosine {self.whole.cosine:.2f})"

    @property
    def largest(self) -> float:
        """The share of the part where it is largest; below 0 for no part."""
        return max((part.share for part in self.parts.values()), default=-math.inf)

    def largest_at(self, clip_norm: float) -> float:
        """As :attr:`largest` if everybody sent the same once more, and only the own update were clipped to this."""
        factor = min(1.0, clip_norm / self.norm) if self.norm else 1.0
        scaled = (part.scaled(factor) for part in self.parts.values())
        return max((part.share for part in scaled if part.mean > 0), default=self.largest)


def own_share(
    spec: RoundSpec, result: RoundResult, member: str, weight: int, pieces: Pieces, base: Vector, model: Vector
) -> OwnShare | None:
    """The share of ``member``, whose update is ``pieces`` and counts ``weight`` units; None if it is in no mean.

    ``base`` and ``model`` [coordinates of the base manifest] are the shared parts before and after the round.
    """
    parts, whole = {}, Products(0, 0, 0)
    for part, piece in spec.places:
        opened = [one for one in result.parts if one.opened and part_of(one.part) == part.name]
        if not opened:
            continue
        in_it = any(member in one.survivors for one in opened)
        counts = pieces.factor * weight / sum(one.sums[0] for one in opened) if in_it else 0.0
        found = _products(pieces.by_part[part.name], counts, base[piece], model[piece])
        whole = Products(whole.own + found.own, whole.shared + found.shared, whole.mean + found.mean)
        if in_it and found.mean > 0:
            parts[part.name] = found
    if not parts:
        return None
    return OwnShare(spec.run, spec.round, pieces.factor * pieces.norm, parts, whole)


def _products(update: Vector, counts: float, base: Vector, model: Vector) -> Products:
    """Of ``counts * update`` and ``model - base``, in float64 piece by piece."""
    own = shared = mean = 0.0
    for start in range(0, len(update), _PIECE):
        piece = slice(start, start + _PIECE)
        ours = counts * update[piece].astype(np.float64)
        moved = model[piece].astype(np.float64) - base[piece]
        own += float(ours @ ours)
        shared += float(ours @ moved)
        mean += float(moved @ moved)
    return Products(own, shared, mean)
