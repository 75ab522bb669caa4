"""The clip norm of the next round of a run, from its published results: what anybody can compute who has these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy.orm import Session

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import ResultRow, RunRow
from fedddpm_protocol.agreement.clipping import ADAPTIVE, next_clip_norm, norms_allowed
from fedddpm_protocol.agreement.methods import Method
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.errors import MalformedError
from fedddpm_protocol.primitives import canonical


class ClipNorms:
    """The clip norms of a run, while its results are followed one by one."""

    def __init__(self, run: RunRow) -> None:
        self._largest, self._adaptive = run.clip_norm, run.clip == ADAPTIVE
        self._first: Mapping[str, float] = {}
        self._newest: Mapping[str, float] = {}

    def follow(self, result: RoundResult) -> None:
        """The next result was published."""
        norms = norms_allowed(result)
        self._first, self._newest = {**norms, **self._first}, {**self._newest, **norms}

    @property
    def next(self) -> float:
        """Of every attempt at the round after the results so far."""
        return next_clip_norm(self._largest, self._first, self._newest) if self._adaptive else self._largest


def clip_norm_now(db: Session, run: RunRow) -> float:
    """The clip norm of the round after the newest result of a run; reads no more results than it needs."""
    if run.clip != ADAPTIVE:
        return run.clip_norm
    parts = frozenset(Method(run.method).sessions)
    first = _norms(queries.results_forwards(db, run.id), parts)
    return next_clip_norm(run.clip_norm, first, _norms(queries.results_backwards(db, run.id), parts))


def _norms(rows: Iterable[ResultRow], parts: frozenset[str]) -> dict[str, float]:
    """By part: what follows from the first of ``rows`` that opened it."""
    found: dict[str, float] = {}
    for row in rows:
        try:
            found = {**norms_allowed(canonical.decode(RoundResult, row.body)), **found}
        except MalformedError:  # of an earlier version of this program, whose runs have a fixed clip norm
            break
        if found.keys() >= parts:
            break
    return found
