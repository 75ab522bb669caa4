"""Cohorts of the selftest's simulated institutions, and what no honest one would send."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedddpm_aggregator.selftest import institution
from fedddpm_aggregator.selftest.institution import STEPS, Institution, ProblemError, expected_sum, spec_of
from fedddpm_protocol.agreement.chunks import chunk_count, chunk_span
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.encoding.encoder import sums_words, weight_units
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.wire.api import RunState, ShareInbox
from fedddpm_protocol.wire.phases import Phase

__all__ = ["STEPS", "Institution", "ProblemError", "Seat", "drive", "expected_sum", "spec_of", "take_seats"]


class Seat(institution.Seat):
    """A seat that can also encode what it likes."""

    def encode_unchecked(self, values: np.ndarray) -> None:
        """As :meth:`mask` for ring words that no honest encoder would give."""
        self.wait_for(Phase.MASKED)
        inbox = ShareInbox.model_validate_json(self.get("shares"))
        self.machine.receive_shares(inbox.items, inbox.deals)
        sums = sums_words(self.part, weight_units(self.samples, self.spec), 0.5, 0.25)
        for segment, words in ((self.part.values, values), (self.part.weights, sums)):
            for index in range(chunk_count(segment, self.spec.chunk_coordinates)):
                start, count = chunk_span(segment, self.spec.chunk_coordinates, index)
                self.chunks[segment.name, index] = self.machine.mask_chunk(
                    segment.name, index, words[start : start + count].copy()
                )


def take_seats(
    institutions: Iterable[Institution], roster: Roster, state: RunState, part: str, **participant: object
) -> list[Seat]:
    """Everybody who reports ``part`` in the current attempt."""
    spec = spec_of(state, roster)
    reporters = session_plan(spec, roster, part).reporters
    return [
        Seat(institution, roster, spec, part, seed, **participant)
        for seed, institution in enumerate(institutions)
        if institution.name in reporters
    ]


def drive(seats: Iterable[Seat], steps: Iterable[str] = STEPS) -> None:
    """Let all seats take the steps, each step by everybody before the next."""
    seats = list(seats)
    for step in steps:
        for seat in seats:
            getattr(seat, step)()
