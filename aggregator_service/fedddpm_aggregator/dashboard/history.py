"""A run's past for the operator's page: rounds, failed attempts, models, runs to choose from."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedddpm_aggregator.dashboard.rounds import Failure, Round, Spoiled, Story, Taking
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import ModelRow, ResultRow, RunRow
from fedddpm_aggregator.service.conduct import Conduct, conduct_in
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.session_lines import run_called
from fedddpm_aggregator.service.history.traffic import RoundTraffic
from fedddpm_aggregator.service.suspicion import Suspicion, suspicion_in
from fedddpm_protocol.encoding.alarms import Alarm

REMEMBERED_RUNS = 2
ALARMED_ROUNDS = 10  # the newest ones, whose alarms are told at the top
CATCH_UP_S = 1.0  # for rounds that were published before this process started; more at the next look


@dataclass(frozen=True)
class Model:
    """A published model."""

    hash: str  # hex
    size: int  # bytes
    at: float  # Unix seconds
    round: int | None = None  # from 0; None: the first model
    signature: str | None = None  # hex, of the aggregator over the result that names the model
    kept: bool = True  # whether its file is still there


@dataclass(frozen=True)
class History:
    """What a run has done so far, oldest first."""

    run: str
    planned: int
    published: int
    complete: bool  # whether all published rounds are in it yet
    rounds: tuple[Round, ...]
    failures: tuple[Failure, ...]
    spoiled: tuple[Spoiled, ...]
    models: tuple[Model, ...]  # the newest ones
    taking: Mapping[str, Taking]  # by member of the newest roster
    conduct: Sequence[Conduct]  # members that the coordinator should call
    suspicion: Suspicion | None  # among whom the one is that spoils sums

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Those of the newest rounds, the newest first."""
        return tuple(alarm for one in reversed(self.rounds[-ALARMED_ROUNDS:]) for alarm in one.alarms)

    @property
    def total(self) -> RoundTraffic:
        """Traffic of all rounds together."""
        sums = [sum(getattr(one.traffic, name) for one in self.rounds) for name in ("up", "down", "float32")]
        return RoundTraffic(len(self.rounds), (), *sums)


class Histories:
    """Reads histories, remembering what cannot change any more; one for a process."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._stories: OrderedDict[int, Story] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def view(self) -> Iterator[Session]:
        """One moment of the database; one at a time, so that what is remembered is of no later one."""
        with self._lock, self._ctx.database.read() as db:
            yield db

    def names(self, db: Session) -> list[str]:
        """All runs, the newest first."""
        return list(db.scalars(select(RunRow.name).order_by(RunRow.id.desc())))

    def of(self, db: Session, run_name: str | None, models: int, before: int | None = None) -> History | None:
        """The history of a run, the current one for None, with so many models of rounds below ``before``.

        ``db`` is a :meth:`view`. None before the first run; OperatorError for an unknown one.
        """
        if run_name is None and queries.current_run(db) is None:
            return None
        run = run_called(db, run_name)
        story = self._story(run.id)
        story.catch_up(db, run, time.monotonic() + CATCH_UP_S)
        last = queries.last_result(db, run.id)
        members = self._ctx.newest_roster(db).ids if queries.newest_roster_version(db) else ()
        suspected = suspicion_in(self._ctx, db, run) if members else None
        return History(
            run=run.name,
            planned=run.rounds,
            published=last.round + 1 if last is not None else 0,
            complete=story.complete,
            rounds=tuple(story.rounds),
            failures=tuple(story.failures),
            spoiled=tuple(story.spoiled),
            models=_models(db, run, models, before),
            taking=story.taking(members),
            conduct=conduct_in(self._ctx, db, run, suspected) if members else (),
            suspicion=suspected,
        )

    def _story(self, run_id: int) -> Story:
        story = self._stories.setdefault(run_id, Story())
        self._stories.move_to_end(run_id)
        while len(self._stories) > REMEMBERED_RUNS:
            self._stories.popitem(last=False)
        return story


def _models(db: Session, run: RunRow, most: int, before: int | None) -> tuple[Model, ...]:
    """The newest models of a run, the first model (the whole network) with the first rounds."""
    mine = [ResultRow.run_id == run.id, *([ResultRow.round < before] if before is not None else [])]
    query = select(ResultRow.round, ResultRow.signature, ResultRow.published_at, ModelRow)
    joined = query.join(ModelRow, ModelRow.hash == ResultRow.model).where(*mine).order_by(ResultRow.round.desc())
    rows = db.execute(joined.limit(most)).all()
    models = [
        Model(model.hash, model.size, at, round_, signature.hex(), model.removed_at is None)
        for round_, signature, at, model in rows
    ]
    first = db.get(ModelRow, run.initial_model)
    if first is not None and (not rows or rows[-1].round == 0):
        models.append(Model(first.hash, first.size, first.created_at, kept=first.removed_at is None))
    return tuple(reversed(models))
