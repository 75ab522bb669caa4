"""The audit log: what is written, that nobody changes it unnoticed, and that replicas write one chain."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text
from tests.aggregator.support.driver import drive, take_seats
from tests.aggregator.support.sites import NewFederation, Serve
from tests.aggregator.support.watching import first_state, until

from fedddpm_aggregator.errors import AuditError
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration.runs import end_run, pause_run, resume_run
from fedddpm_aggregator.service.context import Context
from fedddpm_protocol.primitives.keys import SigningKey


def actions(ctx: Context) -> list[str]:
    with ctx.database.read() as db:
        return [row.action for row in audit.all_entries(db)]


def check(ctx: Context, known: audit.Head | None = None) -> audit.Head:
    with ctx.database.read() as db:
        return audit.verify_chain(db, ctx.key.public_key, known)


def append(ctx: Context, count: int = 1, actor: str = audit.LOCAL) -> None:
    for number in range(count):
        with ctx.transaction() as db:
            audit.record(ctx, db, actor, "tested", number=number)


def test_a_run_leaves_its_decisions(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    drive(take_seats(site.institutions.values(), federation.roster, first_state(site), "decoder"))
    until(site, lambda state: state.status == "finished")
    with federation.context() as ctx:
        assert actions(ctx) == ["init", "roster installed", "run started", "attempt started", "round published"]
        with ctx.database.read() as db:
            init, installed, started, attempt, published = audit.entries(db)
            assert audit.entries(db, 4, 1) == [attempt]
        assert [row.actor for row in (init, started, attempt)] == ["local", "local", "server"]
        assert json.loads(init.details)["root_key"] == federation.root.public_key.hex()
        assert json.loads(installed.details) == {"hash": federation.roster.hash.hex(), "version": 1}
        assert json.loads(attempt.details) == {"attempt": 0, "round": 0, "run": "run-1"}
        assert json.loads(published.details)["run"] == "run-1"
        assert check(ctx) == audit.Head(5, published.hash)


def test_what_a_coordinator_does_to_a_run_is_written(new_federation: NewFederation) -> None:
    federation = new_federation()
    federation.start_run()
    with federation.context() as ctx:
        pause_run(ctx)
        pause_run(ctx)  # changes nothing
        resume_run(ctx)
        resume_run(ctx)
        end_run(ctx, audit.operator_actor("olga"))
        assert actions(ctx)[2:] == ["run started", "run paused", "run resumed", "run ended"]
        with ctx.database.read() as db:
            assert audit.entries(db)[-1].actor == "operator:olga"


CHANGES = {
    "changed": ("UPDATE audit SET actor = 'operator:x' WHERE seq = 3", "audit entry 3 was changed"),
    "details": ("UPDATE audit SET details = '{}' WHERE seq = 4", "audit entry 4 was changed"),
    "time": ("UPDATE audit SET at = at + 1 WHERE seq = 4", "audit entry 4 was changed"),
    "removed": ("DELETE FROM audit WHERE seq = 3", "audit entry 3 is missing"),
    "the first": ("DELETE FROM audit WHERE seq = 1", "audit entry 1 is missing"),
    "a signature": (
        "UPDATE audit SET signature = (SELECT b.signature FROM audit b WHERE b.seq = 2) WHERE seq = 4",
        "audit entry 4 is not signed",
    ),
    "a hash": (
        "UPDATE audit SET hash = (SELECT b.hash FROM audit b WHERE b.seq = 2) WHERE seq = 4",
        "audit entry 4 was changed",
    ),
    "spliced": (
        "UPDATE audit SET previous = (SELECT b.previous FROM audit b WHERE b.seq = 2) WHERE seq = 4",
        "audit entry 4 does not follow",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_broken_entry_is_named(new_federation: NewFederation, change: str) -> None:
    statement, complaint = CHANGES[change]
    with new_federation().context() as ctx:
        append(ctx, 4)
        assert check(ctx).seq == 6
        with ctx.database.write() as db:
            db.execute(text(statement))
        with pytest.raises(AuditError, match=complaint):
            check(ctx)


def test_a_log_of_another_key_is_refused(new_federation: NewFederation) -> None:
    other, complaint = SigningKey.generate().public_key, "entry 1 is not signed by this aggregator's key"
    with new_federation().context() as ctx, ctx.database.read() as db, pytest.raises(AuditError, match=complaint):
        audit.verify_chain(db, other)


def test_a_noted_entry_shows_that_the_end_was_cut_off(new_federation: NewFederation) -> None:
    with new_federation().context() as ctx:
        append(ctx, 3)
        noted = check(ctx)
        append(ctx)
        assert check(ctx, noted).seq == 6
        with ctx.database.write() as db:
            db.execute(text("DELETE FROM audit WHERE seq >= 5"))
        assert check(ctx).seq == 4  # the rest is a chain still
        with pytest.raises(AuditError, match="ends at entry 4, but entry 5 was noted"):
            check(ctx, noted)
        append(ctx)
        with pytest.raises(AuditError, match="entry 5 is not the one that was noted"):
            check(ctx, noted)


def test_what_is_rolled_back_is_not_written(new_federation: NewFederation) -> None:
    def fail(ctx: Context) -> None:
        with ctx.transaction() as db:
            audit.record(ctx, db, audit.LOCAL, "tested")
            raise RuntimeError

    with new_federation().context() as ctx:
        with pytest.raises(RuntimeError):
            fail(ctx)
        assert actions(ctx) == ["init", "roster installed"]


def test_refusals_are_bounded_by_actor(new_federation: NewFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_REFUSALS", 3)
    with new_federation().context() as ctx, ctx.transaction() as db:
        for actor in ("operator:x", "operator:y"):
            for _ in range(5):
                audit.record_refusal(ctx, db, actor, code="operator")
        assert [row.action for row in audit.entries(db)].count(audit.REFUSED) == 6


def test_several_replicas_write_one_chain(new_federation: NewFederation) -> None:
    federation = new_federation()
    failures: list[Exception] = []

    def write(actor: str) -> None:
        try:
            with federation.context() as ctx:
                append(ctx, 12, actor)
        except Exception as error:
            failures.append(error)

    run_together([lambda name=name: write(name) for name in ("one", "two", "three")])
    assert failures == []
    with federation.context() as ctx:
        assert check(ctx).seq == 2 + 36
        with ctx.database.read() as db:
            rows = audit.entries(db)
        for actor in ("one", "two", "three"):
            mine = [json.loads(row.details)["number"] for row in rows if row.actor == actor]
            assert mine == list(range(12))


def run_together(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
