"""``fedddpm-aggregator prepare``, as a job runs it before servers start: once, again, twice at the same time."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from alembic import command
from benchmarks.load.postgresql import PostgreSQL
from tests.aggregator.support.federations import identity_of
from tests.support import fork_server
from tests.support.postgresql import NewDatabase

from fedddpm_aggregator.app import open_context
from fedddpm_aggregator.db.engine import Database
from fedddpm_aggregator.db.schema import alembic_config, revision_of, this_release
from fedddpm_aggregator.security.key_files import SERVER_PURPOSE, read_key, write_key
from fedddpm_aggregator.service.audit import all_entries
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.agreement.roster import Member, Roster, sign_roster
from fedddpm_protocol.primitives.keys import SigningKey, fingerprint

PREPARE = [sys.executable, "-m", "fedddpm_aggregator", "prepare"]


@dataclass
class Deployment:
    """What an operator hands to a cluster: a key, a root's public key, a signed roster, a database."""

    folder: Path
    database_url: str | None = None
    root: SigningKey = field(default_factory=SigningKey.generate)
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        write_key(self.key, SigningKey.generate(), SERVER_PURPOSE)
        members = tuple(Member(name, identity_of(name).public_key) for name in "abcd")
        server = read_key(self.key, SERVER_PURPOSE).public_key
        self.roster = Roster("north", 1, 1, 3, server, members)
        self.sign(self.roster)

    @property
    def key(self) -> Path:
        return self.folder / "key.json"

    @property
    def file(self) -> Path:
        return self.folder / "roster.json"

    def sign(self, roster: Roster, root: SigningKey | None = None) -> None:
        self.file.write_text(sign_roster(roster, root or self.root).model_dump_json())

    def environment(self, **changes: object) -> dict[str, str]:
        variables: dict[str, object] = {"data": self.folder / "data", "server_key": self.key, "roster": self.file}
        variables |= {"root_key": self.root.public_key.hex(), "database_url": self.database_url or ""}
        return os.environ | {f"FEDDDPM_AGGREGATOR_{name.upper()}": str(v) for name, v in (variables | changes).items()}

    def run(self, *arguments: str, **changes: object) -> subprocess.CompletedProcess[str]:
        env = self.environment(**changes)
        return fork_server.run("fedddpm-aggregator", "prepare", *arguments, environment=env)

    def prepare(self, **changes: object) -> str:
        """The output of a run that succeeds, without a word on standard error."""
        done = self.run(**changes)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def fails(self, *arguments: str, **changes: object) -> str:
        """The one line of a run that is refused."""
        done = self.run(*arguments, **changes)
        assert done.returncode == 1, done.stderr
        *waits, line = done.stderr.splitlines()
        assert all(wait.startswith("waiting for the database (") for wait in waits)
        assert line.startswith("error: ")
        return line

    def audited(self) -> list[tuple[str, str]]:
        ctx = open_context(Settings(data=self.folder / "data", database_url=self.database_url, server_key=self.key))
        with ctx.database.read() as db:
            found = [(entry.action, entry.details) for entry in all_entries(db)]
        ctx.database.close()
        return found


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    url = request.getfixturevalue("new_postgresql_database")() if request.param == "postgresql" else None
    return Deployment(tmp_path, url)


def test_again_and_again(deployment: Deployment) -> None:
    first = deployment.prepare()
    assert f"{fingerprint(deployment.root.public_key)} is pinned" in first
    assert "version 1 of north is in force: 4 members" in first
    audited = deployment.audited()
    assert [action for action, _ in audited] == ["init", "roster installed"]
    assert "version 1 of north was in force already: 4 members" in deployment.prepare()
    assert deployment.prepare(roster="").count("\n") == 3  # without a roster nothing is said of one
    assert deployment.audited() == audited
    deployment.sign(dataclasses.replace(deployment.roster, version=3))
    assert "version 3 of north is in force" in deployment.prepare()
    deployment.sign(deployment.roster)
    assert "version 3 stays in force: version 1 is older" in deployment.prepare()
    assert len(deployment.audited()) == 3


def test_several_at_once(deployment: Deployment) -> None:
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: deployment.run(), range(4)))
    assert [(done.returncode, done.stderr) for done in outputs] == [(0, "")] * 4
    assert [action for action, _ in deployment.audited()] == ["init", "roster installed"]


def test_what_does_not_fit_together_is_refused(deployment: Deployment) -> None:
    other, roster = SigningKey.generate(), deployment.roster
    deployment.sign(roster, other)
    assert "roster.json is not signed by this root key" in deployment.fails()
    assert not (deployment.folder / "data").exists()  # nothing was begun
    deployment.sign(dataclasses.replace(roster, server_public_key=other.public_key))
    assert "names another aggregator key" in deployment.fails()
    deployment.sign(roster)
    deployment.prepare()
    line = deployment.fails(root_key=other.public_key.hex(), roster="")
    assert fingerprint(other.public_key) in line
    assert fingerprint(deployment.root.public_key) in line
    deployment.sign(dataclasses.replace(roster, c_max=0))
    assert "another roster of version 1 is in force" in deployment.fails()
    deployment.sign(dataclasses.replace(roster, federation="south", version=2))
    assert "belongs to federation 'north'" in deployment.fails()
    write_key(deployment.folder / "new.json", SigningKey.generate(), SERVER_PURPOSE)
    assert "institutions would refuse its rounds" in deployment.fails(
        roster="", server_key=deployment.folder / "new.json"
    )


def test_a_database_of_another_root_keeps_its_schema(deployment: Deployment) -> None:
    deployment.prepare()
    settings = Settings(data=deployment.folder / "data", database_url=deployment.database_url)
    database = Database(settings.resolved_database_url)

    def revision() -> str | None:
        with database.engine.connect() as connection:
            return revision_of(connection)

    with database.engine.connect() as connection:
        connection.execution_options(fedddpm_write=True)
        with connection.begin():
            command.downgrade(alembic_config(connection), "-1")
    before, other = revision(), SigningKey.generate().public_key.hex()
    assert before != this_release().head
    assert "a federation never changes its root key" in deployment.fails(root_key=other, roster="")
    assert revision() == before
    env = deployment.environment(root_key=other, roster="")
    done = fork_server.run("fedddpm-aggregator", "serve", environment=env, timeout_s=60)
    assert (done.returncode, "a federation never changes its root key" in done.stderr) == (1, True)
    assert revision() == before
    deployment.prepare()
    assert revision() == this_release().head
    database.close()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    assert "FEDDDPM_AGGREGATOR_ROOT_KEY" in deployment.fails(root_key="")
    assert "64 hex digits" in deployment.fails(root_key=tmp_path / "nowhere")
    assert "the aggregator's own private key" in deployment.fails(root_key=deployment.key)
    assert "FEDDDPM_AGGREGATOR_SERVER_KEY" in deployment.fails(server_key=tmp_path / "nowhere")
    assert "nowhere cannot be read" in deployment.fails(roster=tmp_path / "nowhere")
    deployment.file.write_text("{}")
    assert "roster.json is no signed roster" in deployment.fails()
    assert not (tmp_path / "data").exists()


def test_it_waits_for_a_database_that_starts(own_postgresql: PostgreSQL, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, own_postgresql.new_database())
    own_postgresql.stop_immediately()
    env = deployment.environment()
    with subprocess.Popen(PREPARE, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("waiting for the database (0 of 120 s): connection")
        own_postgresql.start()
        out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert "version 1 of north is in force" in out


def test_it_does_not_wait_for_ever(new_postgresql_database: NewDatabase, tmp_path: Path) -> None:
    new_postgresql_database()  # skips where psycopg is not there either
    deployment = Deployment(tmp_path, "postgresql://fedddpm:s3cr3t@127.0.0.1:1/name")
    line = deployment.fails("--wait-s", "2")
    assert "did not answer for 2 s" in line
    assert "s3cr3t" not in line


def test_refused_credentials_are_told_at_once(own_postgresql: PostgreSQL, tmp_path: Path) -> None:
    url = own_postgresql.new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE fedddpm LOGIN PASSWORD 'right'")
        (rules,) = connection.execute("SHOW hba_file").fetchone() or ("",)
        lines = r"local all postgres trust\nlocal all all scram-sha-256"
        connection.execute(f"COPY (SELECT unnest(string_to_array(E'{lines}', E'\\n'))) TO '{rules}'".encode())
        connection.execute("SELECT pg_reload_conf()")
    deployment = Deployment(tmp_path)

    def refusal(user: str, name: str = "fedddpm_1") -> str:
        place = url.partition("?")[2]
        return deployment.fails(database_url=f"postgresql://{user}@/{name}?{place}")

    deadline = time.monotonic() + 30
    while "password authentication failed" not in (line := refusal("fedddpm:s3cr3t")):
        assert time.monotonic() < deadline, line  # the new rules count a moment later
    assert line.startswith("error: the database refuses: ")
    assert "s3cr3t" not in line
    assert "no password supplied" in refusal("fedddpm")
    assert 'database "nowhere" does not exist' in refusal("postgres", "nowhere")
