"""The outer step: from the averaged model to the base model of the next round, the same bits for everybody.

It is a public function of opened sums (see ``terms.OuterOptimizer``): each coordinate on its own, in float64, rounded
to float32 once.
"""

from __future__ import annotations

import numpy as np

from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.spec import RoundSpec

_PIECE = 2**18  # coordinates


def with_mean(spec: RoundSpec, base: Vector, averaged: Vector) -> Vector:
    """``base`` and the mean update [coordinates] of the parts that were opened.

    ``averaged`` is what the outer learning rate made of them; of other parts what comes out means nothing.
    """
    if spec.outer.learning_rate == 1:
        return averaged
    whole = base.copy()
    for start in range(0, len(base), _PIECE):
        here = slice(start, start + _PIECE)
        mean = averaged[here].astype(np.float64)
        mean -= base[here]
        mean /= spec.outer.learning_rate
        mean += base[here]
        whole[here] = mean
    return whole


def step_outward(spec: RoundSpec, part: Vector, averaged: Vector, *, opened: bool) -> None:
    """Move one part of the base model [parameters] beyond its averaged model, and this one on; both in place.

    ``part`` holds the averaged model of this round where its sum was ``opened``, else the base model that it was; and
    ``averaged`` the averaged model of the round before. With the last round the base model is the averaged one.
    """
    for start in range(0, len(part), _PIECE):
        here = slice(start, start + _PIECE)
        if opened:
            newest = part[here].copy()
            if not spec.is_last:
                beyond = newest.astype(np.float64)
                beyond -= averaged[here]
                beyond *= spec.outer.momentum
                beyond += newest
                part[here] = beyond
            averaged[here] = newest
        elif spec.is_last:
            part[here] = averaged[here]
