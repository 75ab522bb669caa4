"""The benchmark of the service runs whole rounds over real processes, and writes what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load.report import growth, write_markdown
from benchmarks.load.server import Setup, roster_of
from benchmarks.service_load import DOCUMENTED, _endpoints, _round_seconds, document, options_of
from tests.support.repository import ROOT

SCRIPT = ROOT / "benchmarks" / "service_load.py"
ENDPOINTS = {
    "GET cohort",
    "GET confirmations",
    "GET opened",
    "GET results",
    "GET roster",
    "GET shares",
    "GET state",
    "GET survivors",
    "POST confirmations",
    "POST joins",
    "POST shares",
    "POST unmask",
    "POST upload",
    "PUT chunks",
    "long poll",
}


def run(out: Path, *options: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, str(SCRIPT), *options, "--out", str(out / "load.json")]
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((out / "load.json").read_text())
    return result, done.stdout


def test_small_run(tmp_path: Path) -> None:
    options = ["--institutions", "5", "--coordinates", "4096", "--poll", "1"]
    idle = ["--idle", "10", "--idle-seconds", "0.5"]
    result, printed = run(tmp_path, *options, *idle)
    (row,) = result["rows"]
    assert (row["institutions"], row["coordinates"], len(row["round_s"])) == (5, 4096, 1)
    assert set(row["endpoints"]) == ENDPOINTS
    counts = {endpoint: values["requests"] for endpoint, values in row["endpoints"].items()}
    assert (counts["POST joins"], counts["PUT chunks"], counts["GET roster"]) == (5, 10, 5)
    assert row["bytes_up"] > 5 * 4096 * 2
    assert 0 < row["server_idle_mib"] <= row["server_peak_mib"]
    assert row["database_mib"] > row["database_before_mib"] > 0
    assert result["idle"]["pollers"] == 10
    assert len(result["peers"][0]["s"]) == 1
    assert "Requests, as clients see them" in printed
    write_markdown({"Here": result}, tmp_path / "load.md")
    assert "## Here" in (tmp_path / "load.md").read_text()
    assert "| 5 | 4,096 |" in (tmp_path / "load.md").read_text()


@pytest.mark.soak
def test_one_section_of_the_documents_is_measured_anew(tmp_path: Path) -> None:
    small = ["--institutions", "3", "--coordinates", "4096", "--idle", "0", "--no-peer", "--poll", "1"]
    document(tmp_path, [("First", small), ("Second", small)])
    before = json.loads((tmp_path / "service_load.json").read_text())
    document(tmp_path, [("First", small), ("Second", small)], sections=["Second"])
    after = json.loads((tmp_path / "service_load.json").read_text())
    assert list(after) == ["First", "Second"]
    assert after["First"] == before["First"]
    assert after["Second"]["rows"][0]["round_s"] != before["Second"]["rows"][0]["round_s"]
    assert (tmp_path / "service_load.md").read_text().count("## ") == 2


@pytest.mark.soak
def test_shards(tmp_path: Path) -> None:
    options = ["--institutions", "12", "--shards", "3", "--coordinates", "4096", "--idle", "0", "--no-peer"]
    result, printed = run(tmp_path, *options)
    (row,) = result["rows"]
    assert row["endpoints"]["GET opened"]["requests"] == 12
    assert "12 in 3 shards" in printed


@pytest.mark.soak
def test_replicas_over_postgresql(tmp_path: Path) -> None:
    options = ["--institutions", "4", "--coordinates", "4096", "--idle", "0", "--no-peer", "--database", "postgresql"]
    result, _ = run(tmp_path, *options, "--replicas", "2")
    assert (result["database"], result["rows"][0]["replicas"]) == ("postgresql", 2)


def test_a_round_is_from_the_last_join_to_the_first_sight_of_its_end() -> None:
    reports = [{"joined": {"0": [1.0, 4.0]}, "ended": {"0": [9.0]}}, {"joined": {"0": [3.0]}, "ended": {"0": [7.0]}}]
    assert _round_seconds(reports, 1) == [3.0]


def test_percentiles_are_those_of_all_processes_together() -> None:
    reports = [{"latencies": {"GET state": [1.0, 2.0]}}, {"latencies": {"GET state": [3.0], "GET roster": [5.0]}}]
    assert _endpoints(reports)["GET state"]["p50_ms"] == 2.0
    assert _endpoints(reports)["GET roster"] == {"requests": 1, "p50_ms": 5.0, "p95_ms": 5.0}


def test_growth_is_between_the_smallest_and_the_largest() -> None:
    peaks = {(10, 4096): 100.0, (10, 10**6): 110.0, (100, 10**6): 119.0, (100, 4096): 107.0}
    rows = [{"institutions": n, "coordinates": c, "server_peak_mib": peak} for (n, c), peak in peaks.items()]
    by_client, by_parameter = growth({"rows": rows})
    assert "by 102 KiB for each" in by_client
    assert "by 12 MiB" in by_parameter


@pytest.mark.parametrize(("institutions", "shards"), [(10, 0), (128, 0), (1000, 8)])
def test_rosters_of_every_size_are_allowed(institutions: int, shards: int) -> None:
    roster = roster_of(Setup(institutions, 4096, shards=shards), bytes(32))
    assert len(roster.members) == institutions
    assert bool(roster.sharding) == bool(shards)


def test_what_the_documents_show_can_be_measured() -> None:
    by_title = {title: options_of(arguments) for title, arguments in DOCUMENTED}
    options = by_title["SQLite"]
    assert (options.institutions, options.coordinates, options.idle) == ([10, 100, 128], [4096, 716_297], 500)
    assert by_title["PostgreSQL"].database == "postgresql"
    assert by_title["A thousand institutions in eight shards"].shards == 8
