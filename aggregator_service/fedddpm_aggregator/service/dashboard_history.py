"""A run's past for the operator's page: rounds, failed attempts, models.

Attempts that are over never change, so each is read once and remembered; a page of a run with thousands of rounds then
costs no more than its newest lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from threading import Lock

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator import store
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.dashboard_reasons import Advice, advice_on
from fedddpm_aggregator.service.overview import SessionLine, lines_of, run_called
from fedddpm_aggregator.service.traffic import RoundTraffic, models_of, traffic_by_round
from fedddpm_aggregator.tables import AttemptRow, ModelRow, ResultRow, RunRow
from fedddpm_protocol.methods import reports_losses
from fedddpm_protocol.phases import Phase
from fedddpm_protocol.spec import LOSS_UNITS

REMEMBERED_RUNS = 2
RECENT_ROUNDS = 5  # in which a drop is told beside the member


@dataclass(frozen=True)
class Round:
    """One published round. Of the opened sums only mean losses: see the package ``dashboard``."""

    index: int  # from 0
    attempts: int
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]  # in the cohort of a sum, but not in that sum
    unopened: tuple[str, ...]  # sessions that gave no sum and kept their values
    loss_before: float | None  # mean over the survivors, before local training
    loss_after: float | None
    traffic: RoundTraffic
    began_at: float  # Unix seconds, of the first attempt
    published_at: float

    @property
    def seconds(self) -> float:
        """From the first attempt to the result."""
        return max(0.0, self.published_at - self.began_at)


@dataclass(frozen=True)
class Failure:
    """An attempt's session that gave no sum."""

    round: int
    attempt: int
    session: str
    reason: str
    advice: Advice


@dataclass(frozen=True)
class Model:
    """A model that can be downloaded."""

    hash: str  # hex
    size: int  # bytes
    at: float  # Unix seconds
    round: int | None = None  # from 0; None: the first model
    result_hash: str | None = None
    signature: str | None = None  # hex, of the aggregator over the result that names the model


@dataclass(frozen=True)
class Taking:
    """A member's part in the run so far."""

    rounds: int  # in whose sums it is
    last_at: float | None  # Unix seconds of the newest of them
    dropped: tuple[int, ...]  # of the newest rounds, those in which it dropped out


@dataclass(frozen=True)
class History:
    """What a run has done so far, oldest first."""

    run: str
    method: str
    status: str
    reason: str | None
    planned: int
    rounds: tuple[Round, ...]
    failures: tuple[Failure, ...]
    models: tuple[Model, ...]

    def taking(self, members: Iterable[str]) -> dict[str, Taking]:
        """Each member's part in it."""
        rounds, last_at = Counter[str](), dict[str, float]()
        for round_ in self.rounds:
            rounds.update(round_.survivors)
            last_at.update(dict.fromkeys(round_.survivors, round_.published_at))
        recent = self.rounds[-RECENT_ROUNDS:]
        return {
            member: Taking(
                rounds=rounds[member],
                last_at=last_at.get(member),
                dropped=tuple(round_.index for round_ in recent if member in round_.dropped),
            )
            for member in members
        }

    @property
    def total(self) -> RoundTraffic | None:
        """Traffic of all rounds together."""
        if not self.rounds:
            return None
        sums = [sum(getattr(round_.traffic, name) for round_ in self.rounds) for name in ("up", "down", "float32")]
        return RoundTraffic(len(self.rounds), (), *sums)


@dataclass(frozen=True)
class _Published:
    round: int
    hash: str
    signature: bytes
    model: str
    at: float


@dataclass
class _Memory:
    lines: dict[int, tuple[list[SessionLine], float]] = field(default_factory=dict)  # by attempt; with its start


class Histories:
    """Reads histories, remembering what cannot change any more; one for a process."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._memories: dict[int, _Memory] = {}
        self._lock = Lock()

    def names(self) -> list[str]:
        """All runs, the newest first."""
        with self._ctx.database.read() as db:
            return list(db.scalars(select(RunRow.name).order_by(RunRow.id.desc())))

    def of(self, run_name: str | None) -> History | None:
        """The history of a run (the current one for None); None before the first run, OperatorError for unknown."""
        with self._lock, self._ctx.database.read() as db:
            if run_name is None and store.current_run(db) is None:
                return None
            run = run_called(db, run_name)
            memory = self._memory(run.id)
            lines, began = self._lines(db, run, memory)
            results = _published(db, run)
            return History(
                run=run.name,
                method=run.method,
                status=run.status,
                reason=run.reason,
                planned=run.rounds,
                rounds=tuple(_rounds(run, lines, began, results)),
                failures=tuple(_failures(lines)),
                models=_models(db, run, results),
            )

    def _memory(self, run_id: int) -> _Memory:
        memory = self._memories.pop(run_id, None) or _Memory()
        self._memories[run_id] = memory
        while len(self._memories) > REMEMBERED_RUNS:
            del self._memories[next(iter(self._memories))]
        return memory

    @staticmethod
    def _lines(db: Session, run: RunRow, memory: _Memory) -> tuple[list[SessionLine], dict[int, float]]:
        """Sessions of attempts that are over, in order, and when each round began."""
        over = select(AttemptRow.id).where(AttemptRow.run_id == run.id, AttemptRow.status != "active")
        ids = db.scalars(over.order_by(AttemptRow.id)).all()
        for attempt_id in ids:
            if attempt_id not in memory.lines:
                attempt = store.attempt_by_id(db, attempt_id)
                memory.lines[attempt_id] = (lines_of(db, run, attempt), attempt.created_at)
        lines, began = [], dict[int, float]()
        for attempt_id in ids:
            found, created_at = memory.lines[attempt_id]
            lines += found
            for line in found:
                began.setdefault(line.round, created_at)
        return lines, began


def _published(db: Session, run: RunRow) -> list[_Published]:
    columns = (ResultRow.round, ResultRow.hash, ResultRow.signature, ResultRow.model, ResultRow.published_at)
    rows = db.execute(select(*columns).where(ResultRow.run_id == run.id).order_by(ResultRow.round))
    return [_Published(*row) for row in rows]


def _rounds(
    run: RunRow, lines: Sequence[SessionLine], began: dict[int, float], results: Sequence[_Published]
) -> Iterator[Round]:
    traffic = {one.round: one for one in traffic_by_round(lines, models_of(run))}
    published = {result.round: result.at for result in results}
    for index, group in groupby(lines, key=lambda line: line.round):
        sessions = list(group)
        opened = [line for line in sessions if line.model is not None]
        summed = [line for line in opened if line.phase == Phase.DONE]
        if not summed or index not in traffic or index not in published:
            continue
        before, after = _losses(summed)
        yield Round(
            index=index,
            attempts=len({line.attempt for line in sessions}),
            cohort=_union(line.cohort for line in opened),
            survivors=_union(line.survivors for line in summed),
            dropped=_union(tuple(set(line.cohort) - set(line.survivors)) for line in summed),
            unopened=tuple(line.part for line in opened if line.phase != Phase.DONE),
            loss_before=before,
            loss_after=after,
            traffic=traffic[index],
            began_at=began[index],
            published_at=published[index],
        )


def _losses(lines: Sequence[SessionLine]) -> tuple[float | None, float | None]:
    """Mean losses over everybody whose losses are in one of the sums."""
    telling = [line for line in lines if line.sums and reports_losses(line.part)]
    members = sum(len(line.survivors) for line in telling)
    if not members:
        return None, None
    before, after = (sum(line.sums[place] for line in telling) for place in (1, 2))
    return before / (members * LOSS_UNITS), after / (members * LOSS_UNITS)


def _failures(lines: Sequence[SessionLine]) -> Iterator[Failure]:
    for line in lines:
        if line.phase == Phase.FAILED:
            reason = line.reason or "no reason is recorded"
            yield Failure(line.round, line.attempt, line.part, reason, advice_on(reason))


def _models(db: Session, run: RunRow, results: Sequence[_Published]) -> tuple[Model, ...]:
    """The first model (the whole network), then one a round; without those that are not kept."""
    mine = select(ResultRow.model).where(ResultRow.run_id == run.id)
    query = select(ModelRow).where((ModelRow.hash == run.initial_model) | ModelRow.hash.in_(mine))
    rows = {row.hash: row for row in db.scalars(query)}
    first = rows.get(run.initial_model)
    return (
        *([Model(first.hash, first.size, first.created_at)] if first is not None else []),
        *(
            Model(row.hash, row.size, one.at, one.round, one.hash, one.signature.hex())
            for one in results
            if (row := rows.get(one.model)) is not None
        ),
    )


def _union(groups: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({member for group in groups for member in group}))
