"""Institutions of earlier versions go on working: rounds that they lived, replayed word for word.

Each folder of tests/vectors/transcripts was recorded by scripts/record_transcript.py of that version. The database is
brought to today's schema, today's server answers, and every answer must be the recorded one: the same fields, no more
and no fewer, because institutions refuse fields that they do not know.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.aggregator.support.driver import Institution
from tests.aggregator.support.federations import identity_of
from tests.support.repository import ROOT

from fedddpm_aggregator.selftest.serving import served_here
from fedddpm_aggregator.settings import Settings
from fedddpm_protocol.wire.phases import Phase, place_of

FOLDERS = sorted((ROOT / "tests" / "vectors" / "transcripts").iterdir())
FREE = {"version", "server_time"}  # count and clock of the server
PATIENCE_S = 30.0


def restore(folder: Path, data: Path) -> Settings:
    (data / "blobs").mkdir(parents=True)
    shutil.copy(folder / "server.key", data)
    (data / "server.key").chmod(0o600)
    shutil.copytree(folder / "models", data / "blobs" / "models")
    with sqlite3.connect(data / "aggregator.sqlite") as database:
        database.executescript((folder / "database.sql").read_text())
    return Settings(data=data, port=0, tick_s=0.1, lease_s=1.0)


def decoded(response: httpx.Response) -> Any:
    kind = response.headers.get("content-type", "")
    if "json" in kind and response.content:
        return response.json()
    return base64.b64encode(response.content).decode()


def comparable(reply: Any, problem: bool) -> Any:
    """What must not change of a reply."""
    if problem:  # words may
        return {name: reply[name] if name in ("type", "status", "code", "title") else None for name in reply}
    return reply


def is_as_recorded(state: dict[str, Any], recorded: dict[str, Any]) -> bool:
    """The same fields, with the same values unless the server was quicker than the one that was recorded."""
    assert set(state) == set(recorded)
    fields = {name: set(session) for name, session in state["sessions"].items()}
    assert fields == {name: set(session) for name, session in recorded["sessions"].items()}

    def place(reply: dict[str, Any]) -> list[int]:
        return [reply["results"], *(place_of(Phase(one["phase"])) for one in reply["sessions"].values())]

    if place(state) != place(recorded):
        return place(state) > place(recorded)
    # Specifications of later rounds too: they follow from the charter and the results.
    return all(state[name] == recorded[name] for name in set(recorded) - FREE)


def replay(institution: Institution, exchange: dict[str, Any]) -> None:
    target, content = exchange["target"], base64.b64decode(exchange["request"])
    problem = "problem" in exchange["type"]
    wanted = comparable(exchange["reply"], problem)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        kind = {"content-type": exchange["request_type"]} if exchange["request_type"] else None
        response = institution.http.send(
            institution.signed(exchange["method"], target.split("&wait")[0], content, kind)
        )
        assert response.status_code == exchange["status"], (target, response.text)
        assert response.headers.get("content-type", "") == exchange["type"], target
        if not target.startswith("/v1/state"):
            assert comparable(decoded(response), problem) == wanted, target
            return
        if is_as_recorded(response.json(), exchange["reply"]):
            return
        assert time.monotonic() < deadline, (target, response.text)
        time.sleep(0.05)


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_recorded_round_is_answered_as_it_was(folder: Path, tmp_path: Path) -> None:
    exchanges = [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    settings = restore(folder, tmp_path / "data")
    with served_here(settings) as url:
        members = {exchange["member"] for exchange in exchanges}
        institutions = {name: Institution(url, name, identity_of(name)) for name in members}
        for exchange in exchanges:
            replay(institutions[exchange["member"]], exchange)
        for institution in institutions.values():
            institution.close()
    targets = {exchange["target"].partition("?")[0].rsplit("/", 1)[-1] for exchange in exchanges}
    assert {"state", "roster", "joins", "cohort", "shares", "upload", "survivors", "unmask", "results"} <= targets
