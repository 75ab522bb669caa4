"""Operators from afar: what they may do, what nobody else may, and that asking twice changes nothing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from tests.aggregator.support.driver import STEPS, Institution, ProblemError, Seat, drive, take_seats
from tests.aggregator.support.federations import QUICK, Federation, identity_of
from tests.aggregator.support.sites import NewFederation, Serve, Site
from tests.aggregator.support.watching import check_part, first_state, until
from typer.testing import CliRunner

from fedddpm_aggregator.background.opening_threads import OpeningThreads
from fedddpm_aggregator.background.sweeper import Sweeper
from fedddpm_aggregator.cli.app import app
from fedddpm_aggregator.cli.operator_client import OperatorClient
from fedddpm_aggregator.db import queries
from fedddpm_aggregator.db.tables import AttemptRow, RunRow
from fedddpm_aggregator.errors import OperatorError
from fedddpm_aggregator.security.key_files import OPERATOR_PURPOSE, write_key
from fedddpm_aggregator.service import audit
from fedddpm_aggregator.service.administration import model_uploads
from fedddpm_aggregator.service.administration.charter_files import write_charter
from fedddpm_aggregator.service.administration.rosters import install_roster
from fedddpm_aggregator.service.administration.run_settings import OperatorSettings, RunSettings
from fedddpm_aggregator.service.administration.runs import end_run, pause_run, resume_run
from fedddpm_aggregator.service.context import Context
from fedddpm_aggregator.service.rounds.attempts import close_attempt, start_attempt
from fedddpm_protocol.agreement.charter import Charter, sign_charter
from fedddpm_protocol.agreement.roster import Member, sign_roster
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.wire.messages import SignedDocument

OLGA = identity_of("olga")
one_database = pytest.mark.parametrize("new_federation", ["sqlite"], indirect=True)
SETTINGS = RunSettings(name="run-1", method="UDEC", rounds=2, chunk_coordinates=16, bits=32)
DURATIONS = OperatorSettings(**QUICK)


@pytest.fixture
def site(new_federation: NewFederation, serve: Serve) -> Site:
    return serve(new_federation(operators=(Member("olga", OLGA.public_key),)))


@pytest.fixture
def olga(site: Site) -> Iterator[OperatorClient]:
    with OperatorClient(site.url, "olga", OLGA) as client:
        yield client


def actions(federation: Federation, actor: str = "operator:olga") -> list[str]:
    with federation.context() as ctx, ctx.database.read() as db:
        return [row.action for row in audit.all_entries(db) if row.actor == actor]


def seats_of(site: Site, rounds_done: int = 0) -> list[Seat]:
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site, rounds_done), "decoder")


def test_a_federation_is_run_from_afar(site: Site, olga: OperatorClient) -> None:
    federation = site.federation
    theta_0 = federation.write_theta_0()
    charter = federation.signed(SETTINGS, theta_0)
    assert olga.start_run(charter, DURATIONS, theta_0) == {"outcome": "done", "run": "run-1", "roster_version": None}
    assert olga.start_run(charter, DURATIONS, theta_0)["outcome"] == "unchanged"
    seats = seats_of(site)
    drive(seats)
    check_part(site, 0, seats)
    first_state(site, 1)
    newer = dataclasses.replace(federation.roster, version=2)
    document = sign_roster(newer, federation.root)
    assert olga.install_roster(document) == {"outcome": "done", "run": None, "roster_version": 2}
    assert olga.install_roster(document)["outcome"] == "unchanged"
    for verb in ("pause", "resume", "end"):
        assert olga.steer_run("run-1", verb)["outcome"] == "done"
        assert olga.steer_run("run-1", verb)["outcome"] == "unchanged"
    lines = olga.rounds("run-1")
    assert lines == olga.rounds()
    assert [line["part"] for line in lines if line["phase"] == "done"] == ["decoder"]
    wanted = ["run started", "roster installed", "run paused", "run resumed", "run ended"]
    assert actions(federation) == wanted
    entries = olga.audit()
    assert [entry["action"] for entry in entries if entry["actor"] == "operator:olga"] == wanted
    with federation.context() as ctx, ctx.database.read() as db:
        head = audit.verify_chain(db, ctx.key.public_key)
    assert (entries[-1]["seq"], entries[-1]["hash"]) == (head.seq, head.hash.hex())
    assert not list(federation.settings.data.glob("blobs/incoming/*"))


@one_database
def test_what_is_not_chartered_cannot_be_started(site: Site, olga: OperatorClient) -> None:
    federation, theta_0 = site.federation, site.federation.write_theta_0()

    def refused(why: str, charter: SignedDocument, durations: OperatorSettings = DURATIONS) -> None:
        with pytest.raises(OperatorError, match=why):
            olga.start_run(charter, durations, theta_0)

    charter = federation.signed(SETTINGS, theta_0, number=2)
    unsigned = SignedDocument(body=charter.body, signature=bytes(64))
    refused(r"refused \(operator\): the charter is not signed by the pinned root key", unsigned)
    refused("not signed by the pinned root key", sign_charter(canonical.decode(Charter, charter.body), OLGA))
    refused("the first model holds model [0-9a-f]+, the charter", another_model(federation, theta_0))
    olga.start_run(charter, DURATIONS, theta_0)
    changed = federation.signed(dataclasses.replace(SETTINGS, rounds=3), theta_0, number=2)
    refused(r"refused \(conflict\): another charter of number 2 is installed, that of run 'run-1'", changed)
    refused(r"refused \(conflict\): run 'run-1' has been started with other durations", charter, OperatorSettings())
    olga.steer_run("run-1", "end")
    for run, why in (("run-1", "it is too late to pause it"), ("run-2", r"refused \(not-found\)")):
        with pytest.raises(OperatorError, match=why):
            olga.steer_run(run, "pause")
    assert actions(federation).count(audit.REFUSED) == 7


def another_model(federation: Federation, theta_0: Path) -> SignedDocument:
    """A charter for another first model than the one in ``theta_0``."""
    kept = theta_0.read_bytes()
    charter = federation.signed(SETTINGS, federation.write_theta_0(2.0))
    theta_0.write_bytes(kept)
    return charter


def test_a_damaged_or_missing_model_starts_nothing(site: Site) -> None:
    olga = Institution(site.url, "olga", OLGA)
    federation = site.federation
    data = federation.write_theta_0().read_bytes()
    named = hashlib.sha256(data).hexdigest()
    charter = federation.signed(SETTINGS, federation.write_theta_0()).model_dump(mode="json")
    asked = {"charter": charter, "durations": {}, "initial_model": named}
    start = json.dumps(asked).encode()
    json_body = {"content-type": "application/json"}

    def refusal(path: str, content: bytes, method: str = "POST", headers: dict[str, str] | None = None) -> str:
        response = olga.http.send(olga.signed(method, path, content, headers))
        assert response.status_code >= 400
        return str(response.json()["code"]) + ": " + str(response.json()["detail"])

    assert "is not here, or not whole" in refusal("/v1/operator/runs", start, headers=json_body)
    place = f"/v1/operator/models/{named}/chunks"
    olga.send("PUT", f"{place}/0", data[:-1])
    assert refusal(f"{place}/0", data, "PUT").startswith("conflict: chunk 0")
    assert "has the SHA-256" in refusal("/v1/operator/runs", start, headers=json_body)
    assert not list(site.federation.settings.data.glob("blobs/incoming/*"))
    assert refusal(f"{place}/0", b"x" * (model_uploads.CHUNK_BYTES + 1), "PUT").startswith(
        "operator: a chunk of a model"
    )
    assert refusal(f"{place}/1000000", b"x", "PUT").startswith("operator: a first model has at most")
    text = b"no model at all"
    olga.send("PUT", f"/v1/operator/models/{hashlib.sha256(text).hexdigest()}/chunks/0", text)
    other = json.dumps({**asked, "initial_model": hashlib.sha256(text).hexdigest()})
    assert "the first model is not a model file" in refusal("/v1/operator/runs", other.encode(), headers=json_body)
    strange = start.replace(b'"durations"', b'"settings": {}, "durations"')
    assert refusal("/v1/operator/runs", strange, headers=json_body).startswith("validation")
    for number in range(model_uploads.MOST_FILES - 1):
        olga.send("PUT", f"/v1/operator/models/{number:064x}/chunks/0", b"x")
    assert refusal(f"{place}/0", data, "PUT").startswith("conflict: 4 other models")
    olga.close()
    with site.federation.context() as ctx:
        model_uploads.remove_leftovers(ctx, time.time() + model_uploads.KEPT_S - 60)
        assert len(list(site.federation.settings.data.glob("blobs/incoming/*"))) == 4
        model_uploads.remove_leftovers(ctx, time.time() + model_uploads.KEPT_S + 60)
    assert not list(site.federation.settings.data.glob("blobs/incoming/*"))


REQUESTS = (
    ("POST", "/v1/operator/runs"),
    ("POST", "/v1/operator/runs/run-1/end"),
    ("POST", "/v1/operator/rosters"),
    ("PUT", f"/v1/operator/models/{'0' * 64}/chunks/0"),
    ("GET", "/v1/operator/audit"),
    ("GET", "/v1/operator/rounds"),
)


@one_database
@pytest.mark.parametrize(("method", "path"), REQUESTS)
def test_nobody_else_may(site: Site, method: str, path: str) -> None:
    stranger = Institution(site.url, "stranger", identity_of("stranger"))
    imposter = Institution(site.url, "olga", identity_of("a"))
    for who, status, code in ((site["a"], 403, "not-operator"), (stranger, 403, "not-operator"), (imposter, 401, None)):
        with pytest.raises(ProblemError) as refusal:
            who.send(method, path, b"" if method == "GET" else b"{}")
        assert (refusal.value.status, refusal.value.code) == (status, code or "unauthenticated")
    stranger.close()
    imposter.close()
    assert actions(site.federation, "member:a") == [audit.REFUSED]
    assert actions(site.federation) == []


@one_database
def test_an_operator_is_no_member(site: Site) -> None:
    olga = Institution(site.url, "olga", OLGA)
    with pytest.raises(ProblemError) as refusal:
        olga.state()
    olga.close()
    assert (refusal.value.status, refusal.value.code) == (403, "not-enrolled")


@one_database
def test_an_operator_that_the_root_removed_is_out_at_once(site: Site, olga: OperatorClient) -> None:
    assert olga.audit()
    site.federation.install(operators=())
    with pytest.raises(OperatorError, match=r"refused \(not-(operator|enrolled)\)"):
        olga.audit()


@one_database
def test_a_roster_must_be_signed_by_the_root(site: Site, olga: OperatorClient) -> None:
    newer = dataclasses.replace(site.federation.roster, version=2)
    with pytest.raises(OperatorError, match="not signed by the pinned root key"):
        olga.install_roster(sign_roster(newer, OLGA))
    assert actions(site.federation) == [audit.REFUSED]


def test_a_paused_run_ends_what_is_past_join_and_starts_nothing(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=2)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:1])
    with federation.context() as ctx:
        pause_run(ctx)
    state = until(site, lambda state: state.status == "stalled")
    assert "paused the run" in str(state.reason)
    drive(seats, STEPS[1:])
    check_part(site, 0, seats)
    state = until(site, lambda state: state.results == 1)
    assert (state.round, state.status) == (0, "stalled")
    with federation.context() as ctx:
        resume_run(ctx)
    seats = seats_of(site, 1)
    drive(seats)
    check_part(site, 1, seats)


@one_database
def test_join_does_not_close_while_a_run_is_paused(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1)
    site = serve(federation)
    seats = seats_of(site)
    with federation.context() as ctx:
        pause_run(ctx)
        drive(seats, STEPS[:1])
        assert {session.phase.value for session in site["a"].state().sessions.values()} == {"join"}
        install_roster(ctx, sign_roster(dataclasses.replace(federation.roster, version=2), federation.root))
        assert first_state(site).attempt == 0
        resume_run(ctx)
    federation.roster = dataclasses.replace(federation.roster, version=2)
    until(site, lambda state: state.attempt == 1)  # under the newer roster
    seats = seats_of(site)
    drive(seats)
    check_part(site, 0, seats)


@one_database
def test_the_command_line_of_an_operator(site: Site, tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None, result.output
        return result.output

    federation = site.federation
    key = tmp_path / "ivo.key"
    public = re.search("ivo=([0-9a-f]{64})", run("operator", "keygen", "--out", key, "--operator", "ivo"))
    assert public is not None
    operators = (Member("ivo", bytes.fromhex(public[1])), *federation.roster.operators)
    federation.install(operators=operators)
    here = ("--url", site.url, "--key", key)
    theta_0 = federation.write_theta_0()
    write_charter(tmp_path / "run-1.json", federation.signed(SETTINGS, theta_0))
    started = run("operator", "start-run", tmp_path / "run-1.json", *here, "--initial-model", theta_0)
    assert "run run-1 starts: 2 rounds of UDEC" in started
    assert "is paused" in run("operator", "pause-run", *here, "--run", "run-1")
    assert "(it was before)" in run("operator", "pause-run", *here, "--run", "run-1")
    local = ("--data", federation.settings.data, *database_option(federation))
    assert "goes on" in run("federation", "resume-run", *local)
    assert "is paused" in run("federation", "pause-run", *local)
    assert "is resumed" in run("operator", "resume-run", *here, "--run", "run-1")
    assert json.loads(run("operator", "rounds", *here, "--json"))[0]["phase"] == "join"
    assert "join" in run("operator", "rounds", *here)
    assert "operator:ivo" in run("operator", "audit", *here)
    assert "is ended" in run("operator", "end-run", *here, "--run", "run-1")
    told = json.loads(run("audit", *local, "--json"))
    assert told["newest"].startswith(f"{len(told['entries'])}:")
    assert "the chain holds" in run("audit", *local, "--noted", told["newest"])
    nameless = tmp_path / "olga.key"
    write_key(nameless, OLGA, OPERATOR_PURPOSE)
    assert (
        json.loads(run("operator", "audit", "--url", site.url, "--key", nameless, "--operator", "olga", "--json"))
        == told["entries"]
    )


def database_option(federation: Federation) -> tuple[str, ...]:
    return ("--database-url", federation.database_url) if federation.database_url else ()


@one_database
def test_a_sum_that_is_held_while_the_run_is_paused_stays_held(new_federation: NewFederation, serve: Serve) -> None:
    federation = new_federation()
    federation.start_run(rounds=1, clip_norm=0.05)
    site = serve(federation)
    seats = seats_of(site)
    drive(seats, STEPS[:2])
    for seat in seats:
        seat.encode_unchecked(np.full(43, 2**27, np.uint32))
        for segment, index in seat.chunks:
            seat.put(segment, index)
        seat.finish()
    with federation.context() as ctx:
        pause_run(ctx)
        drive(seats, STEPS[3:])
        state = until(site, lambda state: "held" in (state.reason or ""))
        assert "paused" in (state.reason or "")
        resume_run(ctx)
    state = until(site, lambda state: "paused" not in (state.reason or ""))
    assert (state.status, state.attempt) == ("stalled", 0)  # only a newer roster lets it go on
    federation.install()
    until(site, lambda state: state.attempt == 1)


@pytest.mark.parametrize("new_federation", ["postgresql"], indirect=True)
def test_who_waits_for_an_attempt_gets_the_one_that_came_after_it(new_federation: NewFederation) -> None:
    federation = new_federation()
    federation.start_run()
    found = []
    with federation.context() as ctx, federation.context() as other:
        with ctx.transaction() as db:
            start_attempt(ctx, db, queries.open_runs(db)[0])

        def wait() -> None:
            with other.transaction() as db:
                attempt = queries.newest_attempt(db, queries.open_runs(db)[0].id, lock=True)
                assert attempt is not None
                found.append((attempt.attempt, attempt.status))

        with ctx.transaction() as db:
            run = queries.open_runs(db)[0]
            attempt = queries.newest_attempt(db, run.id, lock=True)
            assert attempt is not None
            waiter = threading.Thread(target=wait)
            waiter.start()
            until_somebody_waits(ctx)
            close_attempt(ctx, db, attempt, "tested")
            start_attempt(ctx, db, run)
        waiter.join()
    assert found == [(1, "active")]


@pytest.mark.parametrize("new_federation", ["postgresql"], indirect=True)
@pytest.mark.parametrize("first", ["end", "start"])
def test_a_run_is_ended_while_its_first_attempt_begins(new_federation: NewFederation, first: str) -> None:
    federation = new_federation()
    federation.start_run()
    with federation.context() as ctx, federation.context() as other:

        def end(db: Session) -> None:
            run = queries.open_runs(db)[0]
            assert queries.newest_attempt(db, run.id, lock=True) is None
            run.status = "ended"

        def start(db: Session) -> None:
            run = queries.open_runs(db)[0]
            assert queries.newest_attempt(db, run.id, lock=True) is None
            start_attempt(ctx, db, run)

        def sweep() -> None:
            Sweeper(other, OpeningThreads(other), 0.1).tick(0.1)

        meanwhile = threading.Thread(target=sweep if first == "end" else functools.partial(end_run, other))
        with ctx.transaction() as db:
            (end if first == "end" else start)(db)
            meanwhile.start()
            until_somebody_waits(ctx)
        meanwhile.join()
        with ctx.database.read() as db:
            attempts = [row.status for row in db.scalars(select(AttemptRow))]
            assert db.scalars(select(RunRow.status)).one() == "ended"
    assert attempts == ([] if first == "end" else ["failed"])


def until_somebody_waits(ctx: Context) -> None:
    deadline = time.monotonic() + 30
    with ctx.database.read() as db:
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        while not db.scalar(waiting):
            assert time.monotonic() < deadline
            time.sleep(0.01)
