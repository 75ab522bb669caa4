"""What one institution puts into a secure sum, before any mask: its clipped update and its weights, as ring words.

The same for a session over the network and for one in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedddpm.updates.local_update import LocalUpdate
from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.methods import reports_losses
from fedddpm_protocol.agreement.model_layout import Vector
from fedddpm_protocol.agreement.spec import ROTATED, RoundSpec, SegmentSpec
from fedddpm_protocol.encoding.encoder import Place, ValuesEncoder, fit_to_norm, sums_words, weight_units
from fedddpm_protocol.errors import EncodingError, PhaseError
from fedddpm_protocol.primitives import ring


@dataclass(frozen=True, eq=False)
class Pieces:
    """An update by part of the round; nothing is copied."""

    by_part: dict[str, Vector]
    factor: float  # at most 1: brings the whole update to the agreed norm
    norm: float  # that it has


def scaled_pieces(spec: RoundSpec, delta: Vector) -> Pieces:
    """Cut ``delta`` [parameters of all parts] into the parts of the round.

    Raises:
        NonFiniteError, EncodingError: an update that cannot be summed.
    """
    expected = sum(part.parameters for part in spec.parts)
    if delta.shape != (expected,):
        raise EncodingError(f"an update of {expected} values expected, got {delta.shape}")
    factor, norm = fit_to_norm(delta, spec.clip_norm)
    return Pieces({part.name: delta[here] for part, here in spec.places}, factor, norm)


class Contribution:
    """The words of one institution in one part's session.

    ``pieces`` is the update; ``rounding_seed`` (32 bytes) makes private rounding repeatable, without it that rounding
    is fresh. Words exist once the cohort is known, see :meth:`take_place`.

    Raises:
        NonFiniteError, RingOverflowError, EncodingError: an update that cannot be summed.
    """

    def __init__(
        self, spec: RoundSpec, part: str, update: LocalUpdate, pieces: Pieces, rounding_seed: bytes | None = None
    ) -> None:
        self._spec, self._part = spec, spec.part(part)
        self._pieces, self._rounding_seed = pieces, rounding_seed
        self._weight = weight_units(update.samples, spec)
        losses = (update.loss_before, update.loss_after) if reports_losses(part) else (0.0, 0.0)
        self._encoder: ValuesEncoder | None = None
        self._sums = sums_words(self._part, self._weight, *losses)
        self.disclosed_samples = update.samples if spec.weighting == "disclosed" else None

    def take_place(self, member: str, cohort: Sequence[str], conspirators: int = 0) -> None:
        """Take the member's place in the cohort (U1, sorted), of whom so many may conspire: scale and dither follow."""
        self._encoder = ValuesEncoder(
            self._spec,
            self._part,
            self._pieces.by_part[self._part.name],
            self._weight,
            Place.of(member, cohort, conspirators),
            factor=self._pieces.factor,
            rounding_seed=self._rounding_seed,
        )

    def residual(self, into: Vector) -> None:
        """Write what rounding takes from the update into ``into`` [parameters]; zeros where values are not rotated.

        It is counted in what was sent: where the update was scaled down to the agreed norm, so is this.
        """
        if self._encoder is None:
            raise PhaseError("rounding is known once the place in the cohort is")
        if self._part.values.encoding != ROTATED:
            into[:] = 0
            return
        for index in range(chunk_count(self._part.values, self._spec.chunk_coordinates)):
            self._encoder.residual(index, into)
        into *= np.float32(self._pieces.factor)

    def words(self, segment: SegmentSpec, index: int) -> ring.Words:
        """Words of chunk ``index`` of a segment; the same ones at every call, in memory of their own."""
        if segment == self._part.values:
            if self._encoder is None:
                raise PhaseError("an update is encoded once its place in the cohort is known")
            return self._encoder.chunk(index)
        start, count = chunk_span(segment, self._spec.chunk_coordinates, index)
        return self._sums[start : start + count].copy()
