"""Sums that this institution confirmed, until it has checked what was published for them; and what came of that.

A record is on the disk before the answer that lets its sum be opened leaves, the draw of chunks before the first of
them is asked for, so that after a kill the same check is made again.
"""

from __future__ import annotations

import json

from pydantic import ValidationError

from fedddpm.errors import StateError
from fedddpm.state.folder import StateFolder
from fedddpm_protocol.wire.sum_proofs import ConfirmedSum

CONFIRMED = "confirmed-sum/"  # and the session
_DRAW, _CHECKED, _FALSE = "sum-draw/", "sum-checked", "false-sum/"


class ConfirmedSums:
    """The newest confirmed sum of each session, and the newest result whose sums were checked."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state

    def keep(self, confirmed: ConfirmedSum) -> None:
        """Remember a sum, in the place of the session's earlier one."""
        self._state.remember(CONFIRMED + confirmed.session, confirmed.model_dump_json().encode())

    def of(self, session: str) -> ConfirmedSum | None:
        """The newest sum of a session that was confirmed here; StateError if it cannot be read."""
        stored = self._state.fact(CONFIRMED + session)
        return None if stored is None else confirmed_in(stored)

    def draw(self, result_hash: bytes, session: str) -> tuple[int, ...] | None:
        """The chunks that were drawn for a session of this result; None before they were."""
        stored = self._state.fact(_DRAW + session)
        drawn = None if stored is None else json.loads(stored)
        return tuple(drawn["chunks"]) if drawn is not None and drawn["result"] == result_hash.hex() else None

    def remember_draw(self, result_hash: bytes, session: str, chunks: tuple[int, ...]) -> None:
        """Hold to these chunks, whatever the aggregator shows and however often it is asked."""
        self._state.remember(_DRAW + session, json.dumps({"result": result_hash.hex(), "chunks": chunks}).encode())

    def is_checked(self, result_hash: bytes) -> bool:
        """Whether nothing is left to do for this result."""
        return self._state.fact(_CHECKED) == result_hash

    def remember_checked(self, result_hash: bytes) -> None:
        """The sums of this result were checked, as far as they could be."""
        self._state.remember(_CHECKED, result_hash)

    def false_sum(self, run: str) -> str | None:
        """What was found false in ``run``, and in which file the proof is; None: nothing."""
        stored = self._state.fact(_FALSE + run)
        return None if stored is None else stored.decode()

    def remember_false(self, run: str, what: str) -> None:
        """This institution contributes to ``run`` no more."""
        self._state.remember(_FALSE + run, what.encode())


def confirmed_in(stored: bytes) -> ConfirmedSum:
    """A sum as it was remembered; StateError if it cannot be read."""
    try:
        return ConfirmedSum.model_validate_json(stored)
    except ValidationError as error:
        raise StateError("the record of a confirmed sum is damaged", "Restore the state folder") from error
