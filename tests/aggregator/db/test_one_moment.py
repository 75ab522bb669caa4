"""Every reply is of one moment: whatever is written between two of its statements, it shows all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tests.aggregator.support.federations import QUICK, Federation, identity_of
from tests.aggregator.support.interleaved import boundaries, torn
from tests.aggregator.support.sites import NewFederation
from tests.support.slow_pipe import SlowPipe, far_away

from fedddpm_aggregator.api.institutions import state_json
from fedddpm_aggregator.dashboard.views import Views
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.errors import PhaseOverError
from fedddpm_aggregator.monitoring.figures import FigureReader
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration import remote_operations
from fedddpm_aggregator.service.administration.rosters import react_to_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import end_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.history.run_report import run_report
from fedddpm_aggregator.service.rounds import publishing
from fedddpm_aggregator.service.rounds.attempts import start_attempt
from fedddpm_aggregator.service.rounds.joins import get_cohort, post_join
from fedddpm_aggregator.service.rounds.shares import get_inbox, post_shares
from fedddpm_aggregator.service.verification.verify_history import verify_history
from fedddpm_protocol.agreement.result import PartResult, RoundResult
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.session.cohort import session_plan
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.wire.phases import Phase

PART = "decoder"
Replying = Callable[[Context], Callable[[], object]]


@dataclass
class Pair:
    """Two processes' holds on one federation: who replies, and who changes something meanwhile. Nobody sweeps."""

    federation: Federation
    replying: Context
    changing: Context
    runs: int = 0
    spec: RoundSpec = field(init=False)
    machines: dict[str, Participant] = field(init=False)

    def begin_run(self, *, joining: bool = True) -> None:
        """A new run, whose first attempt has its cohort: so every reply is as long as the one before."""
        ctx = self.changing
        with ctx.database.read() as db:
            is_open = bool(queries.open_runs(db))
        if is_open:
            end_run(ctx)
        self.runs += 1
        settings = RunSettings(f"run-{self.runs}", "UDEC", 2, bits=32, chunk_coordinates=16)
        self.federation.start(ctx, settings, self.federation.write_theta_0(self.runs), OperatorSettings(**QUICK))
        with ctx.transaction() as db:
            (run,) = queries.open_runs(db)
            start_attempt(ctx, db, run)
            attempt = queries.newest_attempt(db, run.id)
            assert attempt is not None
            self.spec = ctx.spec_of(attempt)
        self.machines = {name: self._machine(name) for name in self.federation.members}
        for name, machine in self.machines.items() if joining else ():
            post_join(ctx, name, self.spec.hash.hex(), PART, machine.join(1))

    def _machine(self, name: str) -> Participant:
        roster = self.federation.roster
        return Participant(
            identity=identity_of(name),
            member_id=name,
            roster=roster,
            plan=session_plan(self.spec, roster, PART),
            floor=roster.n_min,
        )

    def share(self) -> None:
        """A new run in which everybody has sent its shares."""
        self.begin_run()
        ctx, spec_hash = self.changing, self.spec.hash.hex()
        for name, machine in self.machines.items():
            shares = machine.receive_cohort(get_cohort(ctx, spec_hash, PART).joins)
            post_shares(ctx, name, spec_hash, PART, shares)

    def give_up(self) -> None:
        """End the run, and delete what nobody needs any more of it."""
        end_run(self.changing)
        publishing.scrub(self.changing)

    def publish_round(self) -> None:
        """Publish a round of a made-up sum that leaves the model as it is, and begin the next: the real transaction."""
        ctx = self.changing
        with ctx.transaction() as db:
            (run,) = queries.open_runs(db)
            attempt = queries.newest_attempt(db, run.id, lock=True)
            assert attempt is not None
            spec, ids, digest = ctx.spec_of(attempt), self.federation.roster.ids, bytes(32)
            (session,) = queries.sessions_of(db, attempt.id)
            opened = PartResult(PART, True, digest, digest, ids, ids, (3 * 65535, 0, 0), digest, norm=1.0)
            session.phase, session.result = Phase.DONE, canonical.encode(opened)
            result = RoundResult.of(spec, (opened,), spec.base_model_hash)
            model = publishing.StoredModel(spec.base_model_hash.hex(), 1)
            publishing._record(ctx, db, attempt.id, result, [model])


@pytest.fixture
def pair(new_federation: NewFederation) -> Iterator[Pair]:
    federation = new_federation()
    with federation.context() as one, federation.context() as other:
        yield Pair(federation, one, other)


def state(ctx: Context) -> Callable[[], object]:
    def reply() -> object:
        version, body = state_json(ctx)
        said = json.loads(body)
        assert said["version"] == version
        return {name: value for name, value in said.items() if name != "server_time"}

    return reply


def figures(ctx: Context) -> Callable[[], object]:
    reader = FigureReader(ctx)
    return lambda: repr(reader.read())


def page(ctx: Context) -> Callable[[], object]:
    views = Views(ctx)
    return lambda: views.page(None, None)


def stream(ctx: Context) -> Callable[[], object]:
    views = Views(ctx)
    return lambda: views.frame().id


def audit_log(ctx: Context) -> Callable[[], object]:
    def reply() -> object:
        with ctx.database.read() as db:
            head = audit.verify_chain(db, ctx.key.public_key)
            return head, [row.seq for row in audit.all_entries(db)]

    return reply


REPLIES: dict[str, Replying] = {
    "state": state,
    "operator's rounds": lambda ctx: lambda: remote_operations.rounds(ctx, None, 0),
    "report of a run": lambda ctx: lambda: run_report(ctx),
    "metrics": figures,
    "page": page,
    "stream of the page": stream,
    "audit log": audit_log,
}


@pytest.mark.parametrize("reply", REPLIES)
def test_a_round_is_published_between_two_statements(pair: Pair, reply: str) -> None:
    pair.begin_run()
    asked = REPLIES[reply](pair.replying)
    assert torn(pair.replying, asked, pair.publish_round, pair.begin_run) == []


@pytest.mark.parametrize("reply", ["state", "audit log"])
def test_a_roster_is_installed_between_two_statements(pair: Pair, reply: str) -> None:
    pair.begin_run()
    assert torn(pair.replying, REPLIES[reply](pair.replying), pair.federation.install) == []


def test_shares_are_deleted_between_two_statements(pair: Pair) -> None:
    """An inbox without the shares of those whom it names would be a lie in the eyes of its owner."""

    def inbox() -> object:
        try:
            return get_inbox(pair.replying, "a", pair.spec.hash.hex(), PART)
        except PhaseOverError as error:
            return str(error)

    assert torn(pair.replying, inbox, pair.give_up, pair.share) == []


def test_a_roster_is_installed_while_the_history_is_verified(pair: Pair) -> None:
    """A history of many rounds is not one moment: the newest attempts may be under rosters that came meanwhile."""

    def install() -> None:
        pair.federation.install()
        with pair.changing.transaction() as db:
            (run,) = queries.open_runs(db)
            react_to_roster(pair.changing, db, run, queries.newest_attempt(db, run.id, lock=True))

    pair.begin_run(joining=False)
    for number in range(8):
        with boundaries(pair.replying, number, install):
            verify_history(pair.replying)


def test_one_moment_costs_no_round_trip(new_postgresql_database: Callable[[], str]) -> None:
    """Of a database that is far away every round trip is felt."""
    with far_away(new_postgresql_database()) as (url, pipe), closing(Database(url)) as database:
        views, plain = database.read, sessionmaker(database.engine)
        for opened in (views, plain):  # the first of each finds out what the server can
            turns_of(pipe, opened)
        assert turns_of(pipe, views) == turns_of(pipe, plain) == 4  # is it there, BEGIN, the statement, ROLLBACK


def turns_of(pipe: SlowPipe, opened: Callable[[], AbstractContextManager[Session]]) -> int:
    before = pipe.turns
    with opened() as db:
        db.execute(text("SELECT 1"))
    return pipe.turns - before


def test_a_view_writes_nothing_and_leaves_no_trace(new_postgresql_database: Callable[[], str]) -> None:
    """Whether others may write is the server's word, before and after."""
    url = new_postgresql_database()
    with closing(Database(url)) as database:
        with pytest.raises(DBAPIError, match="read-only transaction"), database.read() as db:
            db.execute(text("CREATE TABLE things (id int)"))
        with database.write() as db:
            assert settings_of(db) == ("read committed", "off")
            db.execute(text(f"ALTER DATABASE {make_url(url).database} SET default_transaction_read_only = on"))
    with closing(Database(url)) as database:
        with database.read() as db:
            assert settings_of(db) == ("repeatable read", "on")
        with database.write() as db:
            assert settings_of(db) == ("read committed", "on")


def settings_of(db: Session) -> tuple[str, str]:
    names = ("transaction_isolation", "transaction_read_only")
    isolation, read_only = (str(db.scalar(text(f"SHOW {name}"))) for name in names)
    return isolation, read_only
