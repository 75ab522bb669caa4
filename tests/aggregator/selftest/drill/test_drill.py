"""The drill: nothing leaks from an intact installation, and where a defence is broken it says what leaked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from tests.support.postgresql import NewDatabase
from typer.testing import CliRunner

from fedddpm_aggregator.cli.app import app
from fedddpm_aggregator.db.nonces import NonceBook
from fedddpm_aggregator.errors import SelftestError
from fedddpm_aggregator.selftest.drill.drilling import NAMES, Outcome, run_drill
from fedddpm_aggregator.service.rounds import confirmations, uploads
from fedddpm_protocol.agreement import documents, lineage
from fedddpm_protocol.session import dealing, sealed
from fedddpm_protocol.session.cohort import SurvivorSet
from fedddpm_protocol.session.participant import Participant
from fedddpm_protocol.session.session_secrets import DealtPair
from fedddpm_protocol.session.spent import SpentLog
from fedddpm_protocol.wire.messages import Commitments

DRILL = [sys.executable, "-m", "fedddpm_aggregator", "drill"]


def test_nothing_leaks_and_nothing_stays(new_postgresql_database: NewDatabase, tmp_path: Path) -> None:
    url, temporary = new_postgresql_database(), tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [*DRILL, "--database-url", url, "--blobs", str(tmp_path / "blobs")],
        env=os.environ | {"TMPDIR": str(temporary), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"\ndrill passed: {len(NAMES)} attacks, nothing leaked\n")
    lines = [line.strip() for line in done.stdout.splitlines()]
    for name in NAMES:
        assert any(line.startswith(f"{name}  ") and line.endswith("  nothing") for line in lines), name
    with psycopg.connect(url) as connection:
        assert not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname LIKE 'fedddpm%'").fetchone()
    assert [*temporary.iterdir(), *(tmp_path / "blobs").iterdir()] == []


def opened_whatever_it_is(session: bytes, dealer: str, line: Commitments, item: bytes, key: bytes) -> DealtPair:
    return sealed.open_sealed(item, key, session, dealer, line.recipient)


BREAKS = {  # a defence that is taken out, and what then leaks
    "altered specification": (documents, "_verify_server", lambda *_: None, "that nobody signed was taken"),
    "other terms, same base": (SpentLog, "agree", lambda *_: None, "one update alone"),
    "terms beside the charter": (lineage, "_require_same", lambda *_: None, "the server decides what"),
    "different survivors": (SurvivorSet, "verify_confirmation", lambda *_: None, "that they do not agree on"),
    "second sum, one left out": (SpentLog, "recorded", lambda *_: (), "the update of e alone"),
    "replayed request": (NonceBook, "first", lambda *_: (True, 1), "a recorded request works again"),
    "second content": (uploads.queries, "refuse", lambda *_: None, "an update can be changed"),
    "wrong share": (confirmations, "judge_answer", lambda *_: None, "nobody is named for it"),
    "share not as committed": (dealing, "opened_as_dealt", opened_whatever_it_is, "can never be put together"),
}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name, instead, _ in BREAKS.values():
        monkeypatch.setattr(place, name, instead)
    monkeypatch.setattr(SpentLog, "commit", lambda *_: None)


@pytest.mark.usefixtures("broken")
def test_a_broken_defence_is_named_with_what_leaked() -> None:
    names = [*BREAKS, "no signature"]  # the last one is as it should be
    done = CliRunner().invoke(app, ["drill", "--json", *(word for name in names for word in ("--only", name))])
    assert isinstance(done.exception, SelftestError)
    assert str(done.exception).startswith(f"drill failed: {len(BREAKS)} of {len(names)} attacks leaked: ")
    outcomes = {line["attack"]: line for line in json.loads(done.stdout)}
    assert outcomes.keys() == set(names)
    for name, (*_, leaked) in BREAKS.items():
        assert leaked in outcomes[name]["leaked"], outcomes[name]
        assert outcomes[name]["noticed"] == "nobody"
        assert name in str(done.exception)
    assert outcomes["no signature"]["leaked"] == ""
    assert "401" in outcomes["no signature"]["noticed"]


def drill(*only: str) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_drill(None, None, print, outcomes.append, only)
    return outcomes


def test_verdicts_need_an_honest_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Institutions that refuse everything would pass every attack."""

    def refuse(*_: object) -> None:
        raise SelftestError("no")

    with pytest.raises(SelftestError, match="no attack is called nonsense; there are altered specification, "):
        drill("nonsense")
    monkeypatch.setattr(Participant, "receive_survivors", refuse)
    with pytest.raises(SelftestError, match=r"^no$"):
        drill("sum of two")


def test_what_could_not_be_tried_counts_as_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SelftestError("the server opened no round")

    monkeypatch.setattr("fedddpm_aggregator.selftest.drill.against_server.Besieged.seats", broken)
    (outcome,) = drill("another's name")
    assert outcome.leaked == "unknown, because the attack could not be tried: the server opened no round"
