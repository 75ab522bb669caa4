"""The integrity check: a whole history passes, and every single damage to it is named."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.aggregator.support.driver import STEPS, drive, take_seats
from tests.aggregator.support.federations import Federation
from tests.aggregator.support.sites import Site
from tests.aggregator.support.watching import first_state, until
from typer.testing import CliRunner

from fedddpm_aggregator.app import KEY_PURPOSE, open_context
from fedddpm_aggregator.cli.app import app
from fedddpm_aggregator.errors import HistoryError
from fedddpm_aggregator.security.key_files import read_key
from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.service.verification.verify_history import attempts_in, verify_history
from fedddpm_aggregator.settings import KEY_FILE, Settings
from fedddpm_protocol.agreement.documents import sign_spec
from fedddpm_protocol.agreement.roster import Sharding
from fedddpm_protocol.agreement.spec import RoundSpec
from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.keys import SigningKey

DATABASE = "aggregator.sqlite"


@dataclass(frozen=True)
class Place:
    """A data directory that a test may damage."""

    data: Path

    def sql(self, statement: str, *values: object) -> None:
        """Change the database behind the aggregator's back; exactly one row, or more."""
        with contextlib.closing(sqlite3.connect(self.data / DATABASE)) as db, db:
            assert db.execute(statement, values).rowcount > 0

    def flip(self, table: str, column: str, where: str) -> None:
        """Change the middle byte of a value."""
        with contextlib.closing(sqlite3.connect(self.data / DATABASE)) as db, db:
            key, value = db.execute(
                f"SELECT rowid, {column} FROM {table} WHERE {where} LIMIT 1"  # noqa: S608
            ).fetchone()
            raw = bytearray(value)
            raw[len(raw) // 2] ^= 1
            db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (bytes(raw), key))  # noqa: S608

    def blob(self, pattern: str) -> Path:
        return sorted((self.data / "blobs").glob(pattern))[0]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Federation]:
    """Two rounds with a failed attempt between, one member gone in the second, and another run that is under way."""
    folder = tmp_path_factory.mktemp("history")
    federation = Federation(folder)
    federation.start_run(rounds=2)
    with served_here(federation.settings) as url, contextlib.closing(Site(federation, url)) as site:
        drive(seats(site, 0))
        late = seats(site, 1)
        drive(late, STEPS[:2])
        drive([seat for seat in late if seat.name != "d"], STEPS[2:3])
        federation.install(c_max=2, n_min=4)  # stricter rules end a session: the attempt fails
        until(site, lambda state: state.attempt == 1)
        drive(seats(site, 1))
        until(site, lambda state: state.status == "finished")
        federation.start_run(name="run-2", method="FULL", scale=0.5)
        until(site, lambda state: state.run == "run-2" and state.spec is not None)
        drive(seats(site, 0, "full"), STEPS[:3])
    return federation.settings.data, federation


def seats(site: Site, rounds_done: int, part: str = "decoder") -> list:  # type: ignore[type-arg]
    return take_seats(site.institutions.values(), site.federation.roster, first_state(site, rounds_done), part)


@pytest.fixture
def place(history: tuple[Path, Federation], tmp_path: Path) -> Place:
    """A copy of it."""
    shutil.copytree(history[0], tmp_path / "data")
    return Place(tmp_path / "data")


def verify(place: Place, **options: object) -> dict[str, int]:
    ctx = open_context(Settings(data=place.data))
    try:
        return dict(verify_history(ctx, **options))  # type: ignore[arg-type]
    finally:
        ctx.database.close()


def test_a_whole_history_is_intact(place: Place, history: tuple[Path, Federation]) -> None:
    federation = history[1]
    places: list[str] = []
    counts = verify(place, root=federation.root.public_key, step=places.append)
    ctx = open_context(Settings(data=place.data))
    try:
        assert attempts_in(ctx) == len(places) == 4
    finally:
        ctx.database.close()
    assert counts["audit entries"] > 0
    del counts["audit entries"]
    assert counts == {
        "rosters": 2,
        "charters": 2,
        "runs": 2,
        "attempts": 4,
        "sessions": 4,
        "results": 2,
        "joins": 16,
        "sealed shares": 12,
        "uploads": 4 + 3 + 4 + 4,
        "confirmations": 8,
        "unmasks": 8,
        "opened sums": 2,
        "models": 2 + 2 + 2,
        "models derived anew": 2,
    }


DAMAGES: dict[str, tuple[Callable[[Place], object], str]] = {
    "roster": (lambda p: p.flip("rosters", "body", "version = 2"), "roster 2: "),
    "roster signature": (lambda p: p.flip("rosters", "signature", "version = 1"), "roster 1: "),
    "roster removed": (lambda p: p.sql("DELETE FROM rosters WHERE version = 2"), "attempt 2: its roster 2 is missing"),
    "root key": (lambda p: p.flip("federation", "root_public_key", "1"), "roster 1: "),
    "charter": (lambda p: p.flip("runs", "charter", "name = 'run-1'"), "run 'run-1': the run's charter is not signed"),
    "charter signature": (
        lambda p: p.flip("runs", "charter_signature", "name = 'run-2'"),
        "run 'run-2': the run's charter is not signed",
    ),
    "charter number": (
        lambda p: p.sql("UPDATE runs SET charter_number = 7 WHERE name = 'run-1'"),
        "run 'run-1': its charter has number 1, which does not follow",
    ),
    "charter removed": (
        lambda p: p.sql("UPDATE runs SET charter = NULL WHERE name = 'run-2'"),
        "run 'run-2': it has no charter",
    ),
    "first charter removed": (
        lambda p: p.sql("UPDATE runs SET charter = NULL, charter_number = NULL WHERE name = 'run-1'"),
        "audit entry [0-9]+ tells of what is not there: run started",
    ),
    "settings of a run": (
        lambda p: p.sql("UPDATE runs SET learning_rate = 1.0 WHERE name = 'run-2'"),
        "run 'run-2': its row tells something else than its charter",
    ),
    "spec that does not follow": (
        lambda p: sign_another_spec(p, 4, learning_rate=0.5),
        "run 'run-2', round 1, attempt 1: the round has 0.5 as learning rate, from the charter of run run-2 follows",
    ),
    "clip norm that does not follow": (
        lambda p: sign_another_spec(p, 3, clip_norm=9.0),
        "run 'run-1', round 2, attempt 2: the round has 9.0 as clip norm, from the charter of run run-1 follows",
    ),
    "theta_0": (
        lambda p: flip_file(model(p, "SELECT initial_model FROM runs")),
        "run 'run-1': model [0-9a-f]{64} holds other values",
    ),
    "first base": (
        lambda p: p.sql("UPDATE runs SET first_base = (SELECT model FROM results LIMIT 1) WHERE name = 'run-1'"),
        "run 'run-1': its first base model is not the shared part of theta_0",
    ),
    "spec": (lambda p: p.flip("attempts", "spec", "id = 2"), "round 2, attempt 1: "),
    "spec signature": (lambda p: p.flip("attempts", "signature", "id = 3"), "round 2, attempt 2: "),
    "spec hash": (
        lambda p: p.sql("UPDATE attempts SET spec_hash = ? WHERE id = 1", "00" * 32),
        "round 1, attempt 1: its specification is not the one that it is stored with",
    ),
    "attempt removed": (
        lambda p: p.sql("UPDATE attempts SET run_id = 9 WHERE id = 2"),
        "round 2, attempt 2: it does not follow the attempt before it",
    ),
    "session removed": (
        lambda p: p.sql("DELETE FROM sessions WHERE attempt_id = 4 AND part = 'full'"),
        "run 'run-2', round 1, attempt 1: its sessions are not those of its method",
    ),
    "join": (
        lambda p: p.flip("joins", "body", "session_id = 1 AND member = 'c'"),
        "session 'decoder': the JOIN of 'c'",
    ),
    "join under another name": (
        lambda p: p.sql("UPDATE joins SET seq = 7 WHERE session_id = 1 AND member = 'c'"),
        "the JOIN of 'c' is stored under another name or number",
    ),
    "cohort": (
        lambda p: p.sql("UPDATE joins SET in_cohort = 0 WHERE session_id = 1 AND member = 'c'"),
        "round 1, attempt 1: session 'decoder': ",
    ),
    "sealed share": (
        lambda p: p.flip("shares", "sealed", "sender = 'b'"),
        "run 'run-2', round 1, attempt 1: session 'full': a share of 'b' does not hold",
    ),
    "upload": (
        lambda p: p.sql("UPDATE messages SET body = replace(body, 'chunks', 'chunkz') WHERE step = 'upload'"),
        "the upload of 'a' does not hold: it is not the message that was accepted",
    ),
    "upload digest": (
        lambda p: p.flip("messages", "upload_digest", "step = 'upload' AND session_id = 1"),
        "the upload of 'a' does not hold: its digest",
    ),
    "chunk": (
        lambda p: p.sql("UPDATE chunks SET sha256 = ? WHERE session_id = 1 AND member = 'b'", "00" * 32),
        "the upload of 'b' does not hold: chunk 0 of",
    ),
    "survivor removed": (
        lambda p: p.sql("DELETE FROM messages WHERE step = 'upload' AND session_id = 1 AND member = 'd'"),
        "round 1, attempt 1: session 'decoder': the confirmation of 'a' does not hold",
    ),
    "confirmation swapped": (
        lambda p: p.sql(
            "UPDATE messages SET (body, sha256) = (SELECT body, sha256 FROM messages WHERE step = 'confirmation' AND"
            " session_id = 1 AND member = 'a') WHERE step = 'confirmation' AND session_id = 1 AND member = 'b'"
        ),
        "the confirmation of 'b' does not hold: it is stored under another name",
    ),
    "confirmations removed": (
        lambda p: p.sql("DELETE FROM messages WHERE step = 'confirmation' AND session_id = 1"),
        "there is a result, but not the messages",
    ),
    "too few answers": (
        lambda p: p.sql("DELETE FROM messages WHERE step = 'unmask' AND session_id = 1 AND member > 'a'"),
        "the result does not hold: too few members sent a unmask",
    ),
    "answer of another session": (
        lambda p: p.sql(
            "UPDATE messages SET (body, sha256) = (SELECT body, sha256 FROM messages WHERE step = 'unmask' AND"
            " session_id = 1 AND member = 'a') WHERE step = 'unmask' AND session_id = 3 AND member = 'a'"
        ),
        "round 2, attempt 2: session 'decoder': the unmask of 'a' does not hold",
    ),
    "session result": (lambda p: p.flip("sessions", "result", "id = 1"), "session 'decoder': the result does not hold"),
    "result": (lambda p: p.flip("results", "body", "round = 0"), "round 1, attempt 1: the result does not hold"),
    "result signature": (lambda p: p.flip("results", "signature", "round = 1"), "round 2, attempt 2: the result does"),
    "result hash": (
        lambda p: p.sql("UPDATE results SET hash = ? WHERE round = 1", "00" * 32),
        "the result is stored with another hash",
    ),
    "result removed": (
        lambda p: p.sql("DELETE FROM results WHERE round = 1"),
        "round 2, attempt 2: it is finished, but its result is missing",
    ),
    "order of results": (
        lambda p: p.sql("UPDATE results SET round = 1 - round + 10"),
        "round 1, attempt 1: it is finished, but its result is missing",
    ),
    "results swapped": (
        lambda p: [p.sql("UPDATE results SET round = 10 + round"), p.sql("UPDATE results SET round = 11 - round")],
        "round 1, attempt 1: the result is stored under another round",
    ),
    "result of nobody": (
        lambda p: p.sql(
            "INSERT INTO results SELECT run_id, 2, hash, body, signature, model, published_at, NULL FROM results"
            " WHERE round = 1"
        ),
        "run 'run-1': it has 3 results, but finished attempts for 2",
    ),
    "opened sum": (
        lambda p: flip_file(p.blob("opened/*/decoder")),
        "the opened sum of 'decoder' is not the one that was signed",
    ),
    "opened sum cut": (lambda p: cut_file(p.blob("opened/*/decoder")), "the opened sum of 'decoder' cannot be read"),
    "opened sum removed": (lambda p: p.blob("opened/*/decoder").unlink(), "the opened sum of 'decoder' is missing"),
    "model": (
        lambda p: flip_file(model(p)),
        "round 1, attempt 1: model [0-9a-f]{64} holds other values",
    ),
    "model cut": (
        lambda p: cut_file(model(p)),
        "round 1, attempt 1: model [0-9a-f]{64} cannot be read",
    ),
    "model removed": (
        lambda p: model(p).unlink(),
        "round 1, attempt 1: model [0-9a-f]{64} is missing",
    ),
    "last round taken back": (
        lambda p: (
            p.sql("DELETE FROM results WHERE round = 1"),
            p.sql("UPDATE attempts SET status = 'failed' WHERE id = 3"),
        ),
        "audit entry [0-9]+ tells of what is not there: round published",
    ),
    "last attempt removed": (
        lambda p: p.sql("DELETE FROM attempts WHERE id = 4"),
        "audit entry [0-9]+ tells of what is not there: attempt started",
    ),
    "last run removed": (
        lambda p: p.sql("DELETE FROM runs WHERE name = 'run-2'"),
        "audit entry [0-9]+ tells of what is not there: run started",
    ),
    "last roster removed": (
        lambda p: (
            p.sql("DELETE FROM rosters WHERE version = 2"),
            p.sql("DELETE FROM attempts WHERE roster_version = 2"),
            p.sql("DELETE FROM results WHERE round = 1"),
        ),
        "audit entry [0-9]+ tells of what is not there: roster installed",
    ),
    "audit": (lambda p: p.sql("UPDATE audit SET actor = 'local' WHERE action = 'round published'"), "audit entry"),
}


def model(place: Place, query: str = "SELECT model FROM results WHERE round = 0") -> Path:
    """The file of a model."""
    with contextlib.closing(sqlite3.connect(place.data / DATABASE)) as db:
        return place.blob(f"models/{db.execute(query).fetchone()[0]}.safetensors")


def sign_another_spec(place: Place, attempt: int, **changes: object) -> None:
    """The server itself asks for something else, with its own signature."""
    key = read_key(place.data / KEY_FILE, KEY_PURPOSE)
    with contextlib.closing(sqlite3.connect(place.data / DATABASE)) as db:
        ((body,),) = db.execute("SELECT spec FROM attempts WHERE id = ?", (attempt,)).fetchall()
    spec = canonical.decode(RoundSpec, body).with_terms_hash(**changes)
    signed = sign_spec(spec, key)
    change = "UPDATE attempts SET spec = ?, signature = ?, spec_hash = ? WHERE id = ?"
    place.sql(change, signed.body, signed.signature, spec.hash.hex(), attempt)


def flip_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_named(place: Place, name: str) -> None:
    damage, named = DAMAGES[name]
    damage(place)
    with pytest.raises(HistoryError, match=named) as broken:
        verify(place)
    assert len(str(broken.value).splitlines()) == 1


def test_another_root_key_is_told(place: Place) -> None:
    with pytest.raises(HistoryError, match="is not the given one"):
        verify(place, root=SigningKey.generate().public_key)


def test_another_root_that_signed_the_same_rosters_is_told(place: Place) -> None:
    root = SigningKey.generate()
    place.sql("UPDATE federation SET root_public_key = ?", root.public_key)
    with contextlib.closing(sqlite3.connect(place.data / DATABASE)) as db:
        rosters = db.execute("SELECT version, body FROM rosters").fetchall()
        charters = db.execute("SELECT id, charter FROM runs").fetchall()
    for version, body in rosters:
        place.sql("UPDATE rosters SET signature = ? WHERE version = ?", root.sign("roster", body), version)
    for run, body in charters:
        place.sql("UPDATE runs SET charter_signature = ? WHERE id = ?", root.sign("charter", body), run)
    with pytest.raises(HistoryError, match="audit entry 1 tells of what is not there: init"):
        verify(place)


def test_shards_are_verified_one_by_one(tmp_path: Path) -> None:
    members = tuple(f"m{index}" for index in range(7))
    federation = Federation(tmp_path, None, members, 0, sharding=(Sharding(4, 0, bytes(32), "a test"),))
    federation.start_run(rounds=1)
    with served_here(federation.settings) as url, contextlib.closing(Site(federation, url)) as site:
        drive([seat for shard in (0, 1) for seat in seats(site, 0, f"decoder.{shard}")])
        until(site, lambda state: state.status == "finished")
    place = Place(federation.settings.data)
    counts = verify(place)
    assert (counts["sessions"], counts["opened sums"], counts["models derived anew"]) == (2, 2, 1)
    flip_file(place.blob("opened/*/decoder.1"))
    with pytest.raises(HistoryError, match=r"round 1, attempt 1: the opened sum of 'decoder.1' is not the one"):
        verify(place)


def test_the_command(place: Place) -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "fedddpm_aggregator", "verify", "--data", str(place.data)]
        return subprocess.run([*program, *options], capture_output=True, text=True, check=False)

    whole = command()
    assert whole.returncode == 0, whole.stderr
    assert "the history is intact" in whole.stdout
    assert "models derived anew" in whole.stdout
    place.blob("opened/*/decoder").unlink()
    broken = command()
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.splitlines()[-1].startswith("error: run 'run-1', round ")
    told = CliRunner().invoke(app, ["verify", "--data", str(place.data), "--json"])
    assert told.exit_code == 1
    broken_thing = broken.stderr.splitlines()[-1].removeprefix("error: ")
    assert json.loads(told.stdout) == {"intact": False, "broken": broken_thing}
