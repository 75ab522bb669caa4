"""What one institution puts into a secure sum, before any mask: its clipped update and its weights, as ring words.

The same for a session over the network and for one in memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedddpm.local_update import LocalUpdate
from fedddpm_protocol import ring
from fedddpm_protocol.chunks import chunk_span
from fedddpm_protocol.encoding import ValuesEncoder, clip_to_norm, sums_words, weight_units
from fedddpm_protocol.methods import reports_losses
from fedddpm_protocol.spec import RoundSpec, SegmentSpec

Vector = npt.NDArray[np.float32]


def clipped_pieces(spec: RoundSpec, delta: Vector) -> tuple[dict[str, Vector], float]:
    """The update by part of the round, scaled down to the agreed norm as a whole, and the norm it had."""
    clipped, norm = clip_to_norm(delta, spec.clip_norm)
    pieces, start = {}, 0
    for part in spec.parts:
        pieces[part.name] = clipped[start : start + part.values.coordinates]
        start += part.values.coordinates
    return pieces, norm


class Contribution:
    """The words of one institution in one part's session.

    ``piece`` is the part's slice of the clipped update [coordinates]; ``rounding_seed`` (32 bytes) makes the stochastic
    rounding repeatable, without it the rounding is fresh.

    Raises:
        NonFiniteError, RingOverflowError, EncodingError: an update that cannot be summed.
    """

    def __init__(
        self, spec: RoundSpec, part: str, update: LocalUpdate, piece: Vector, rounding_seed: bytes | None = None
    ) -> None:
        self._spec, self._part = spec, spec.part(part)
        weight = weight_units(update.samples, spec)
        losses = (update.loss_before, update.loss_after) if reports_losses(part) else (0.0, 0.0)
        self._values = ValuesEncoder(spec, self._part, piece, weight, rounding_seed)
        self._sums = sums_words(self._part, weight, *losses)
        self.disclosed_samples = update.samples if spec.weighting == "disclosed" else None

    def words(self, segment: SegmentSpec, index: int) -> ring.Words:
        """Words of chunk ``index`` of a segment; the same ones at every call, in memory of their own."""
        if segment == self._part.values:
            return self._values.chunk(index)
        start, count = chunk_span(segment, self._spec.chunk_coordinates, index)
        return self._sums[start : start + count].copy()
