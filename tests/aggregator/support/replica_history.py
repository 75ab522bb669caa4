"""What a database must say after a run over replicas that died: nothing twice, nothing wrong, nothing unexplained."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import psycopg
from sqlalchemy import select
from sqlalchemy.orm import Session
from tests.aggregator.support.driver import expected_sum
from tests.aggregator.support.replicas import PART, Book, Cluster

from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, ResultRow, SessionRow
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.vectors.opened_values import OpenedValues
from fedddpm_protocol.agreement.chunks import chunk_count
from fedddpm_protocol.agreement.documents import open_result
from fedddpm_protocol.agreement.result import RoundResult
from fedddpm_protocol.agreement.roster import Roster
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.messages import SignedDocument
from fedddpm_protocol.wire.phases import PHASES, Phase

FULL_WAY = [*PHASES]


def check_history(running: Cluster, book: Book, rounds: int) -> int:
    """Check a finished run of ``rounds`` rounds against what the institutions did; the number of attempts."""
    federation = running.federation
    assert federation.database_url is not None
    with federation.context() as ctx, ctx.database.read() as db:
        attempts = db.scalars(select(AttemptRow).order_by(AttemptRow.id)).all()
        results = db.scalars(select(ResultRow).order_by(ResultRow.round)).all()
        assert [row.round for row in results] == list(range(rounds))
        done = [attempt for attempt in attempts if attempt.status == "done"]
        assert [attempt.round for attempt in done] == list(range(rounds))
        assert {attempt.status for attempt in attempts} <= {"done", "failed"}
        _check_chain(done, results, federation.roster.ids)
        ways = _ways(federation.database_url)
        for attempt in attempts:
            (session,) = queries.sessions_of(db, attempt.id)
            way = ways[session.id]
            assert way == (FULL_WAY if attempt.status == "done" else [*FULL_WAY[: len(way) - 1], Phase.FAILED]), way
            if attempt.status == "done":
                document = SignedDocument(body=results[attempt.round].body, signature=results[attempt.round].signature)
                _check_sum(ctx, book, attempt, open_result(document, federation.roster), federation.roster)
            else:
                _check_failure(ctx, db, book, attempt, session)
    return len(attempts)


def _ways(url: str) -> dict[int, list[str]]:
    """The phases that each session was in, in the order of the committed changes."""
    ways: dict[int, list[str]] = defaultdict(lambda: [Phase.JOIN])
    with psycopg.connect(url) as connection:
        for session, was, now in connection.execute("SELECT session_id, was, now FROM phase_log ORDER BY id"):
            assert ways[session][-1] == was
            ways[session].append(now)
    return ways


def _check_chain(done: list[AttemptRow], results: object, ids: tuple[str, ...]) -> None:
    """Every round stands on the result and the model of the round before."""
    assert isinstance(results, list)
    previous: ResultRow | None = None
    for attempt, row in zip(done, results, strict=True):
        spec = canonical.decode(RoundSpec, attempt.spec)
        result = canonical.decode(RoundResult, row.body)
        assert spec.previous_result.hex() == (previous.hash if previous else "")
        assert previous is None or spec.base_model_hash.hex() == previous.model
        assert (result.spec_hash, result.round, result.hash.hex()) == (spec.hash, attempt.round, row.hash)
        assert set(result.parts[0].survivors) <= set(result.parts[0].cohort) <= set(ids)
        previous = row


def _check_sum(ctx: Context, book: Book, attempt: AttemptRow, result: RoundResult, roster: Roster) -> None:
    """The opened vector is the integer sum of what the survivors encoded."""
    spec, (part,) = canonical.decode(RoundSpec, attempt.spec), result.parts
    seats = [book.seats[attempt.spec_hash][member] for member in part.survivors]
    values = OpenedValues(ctx.blobs, spec, PART)
    chunks = range(chunk_count(spec.part(PART).values, spec.chunk_coordinates))
    opened = np.concatenate([values.chunk(index) for index in chunks])
    np.testing.assert_array_equal(opened, expected_sum(seats, spec.part(PART).values))
    assert part.sums == tuple(int(word) for word in expected_sum(seats, spec.part(PART).weights))
    assert values.measure()[0] == part.opened_digest
    assert len(part.survivors) >= roster.quorum(len(part.cohort))


def _check_failure(ctx: Context, db: Session, book: Book, attempt: AttemptRow, session: SessionRow) -> None:
    """An attempt fails only if its members left it, never because replicas died."""
    cohort = {row.member for row in queries.joins_of(db, session.id) if row.in_cohort}
    left = cohort - book.dropped[attempt.spec_hash]
    assert len(left) < ctx.roster(db, attempt.roster_version).threshold(len(cohort)), session.reason
