"""The benchmark of secure sums checks what it measures, puts the limit beside it, and says what it left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.aggregation.cases import Case, Scheme
from benchmarks.aggregation.cost import PeakMemory, Stopwatch
from benchmarks.aggregation.peer_environment import FLOWER, find
from tests.support.repository import ROOT


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("out")
    script = ROOT / "benchmarks" / "secure_aggregation.py"
    command = [sys.executable, str(script), "--quick", "--bits", "32", "8", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "FEDDDPM_NVFLARE_PYTHON"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The aggregator: 100,000 parameters" in done.stdout
    assert (out / "secure_aggregation.png").stat().st_size > 10_000
    result: dict[str, object] = json.loads((out / "secure_aggregation.json").read_text())
    return result


def rows(report: dict[str, object], role: str) -> list[dict[str, object]]:
    assert isinstance(report["rows"], list)
    return [row for row in report["rows"] if row["role"] == role and row["scheme"].startswith("fedddpm")]


def test_every_opened_mean_is_right(report: dict[str, object]) -> None:
    errors = {(row["bits"], row["drops"]): row["error"] for row in rows(report, "server")}
    assert set(errors) == {(32, 0), (32, 2), (8, 0), (8, 2)}
    for (bits, _), error in errors.items():
        assert error < {32: 1e-10, 8: 1e-2}[bits]


def test_traffic_is_the_ring_and_at_most_a_percent(report: dict[str, object]) -> None:
    for row in rows(report, "client"):
        for each_way in (row["bytes_up"], row["bytes_down"]):
            assert row["bits"] / 8 <= each_way <= 1.01 * row["bits"] / 8


def test_memory_stays_below_64_mib(report: dict[str, object]) -> None:
    for row in [*rows(report, "client"), *rows(report, "server")]:
        assert 0 < row["extra_bytes"] < 64 * 2**20


def test_ratios_are_those_of_the_same_run(report: dict[str, object]) -> None:
    for row in [*rows(report, "client"), *rows(report, "server")]:
        assert row["times_limit"] == row["cpu_s"] / row["limit_s"]
        assert row["cpu_s"] == pytest.approx(sum(row["steps_s"].values()))


def test_peers_that_are_missing_are_named(report: dict[str, object]) -> None:
    assert isinstance(report["skipped"], dict)
    assert "FEDDDPM_NVFLARE_PYTHON" in report["skipped"]["nvflare"]
    assert ("flower" in report["skipped"]) == (not os.environ.get(FLOWER.variable))


def test_an_interpreter_without_the_peer_is_no_peer(tmp_path: Path) -> None:
    found = find(FLOWER, Path(sys.executable), tmp_path, make=False)
    assert found.python is None
    assert "flwr==1.41.0" in found.why_not


def test_masks_of_dropped_institutions_are_counted() -> None:
    case, python = Case(1000, 20), Path(sys.executable)
    complete, circle = Scheme("ours", "w", python, 19), Scheme("Flower", "w", python, 10)
    assert complete.masks("client", case, 0) == 20
    assert complete.masks("server", case, 2) == 18 + 2 * 18
    assert circle.masks("server", case, 2) == 18 + 2 * 10


def test_a_step_inside_another_counts_once() -> None:
    watch = Stopwatch()
    with watch.step("outer"):
        _busy()
        with watch.step("inner"):
            _busy()
    assert set(watch.seconds) == {"outer", "inner"}
    assert min(watch.seconds.values()) > 0


def test_peak_memory_sees_what_was_given_back() -> None:
    with PeakMemory() as memory:
        block = bytearray(b"x") * (48 * 2**20)
        del block
    assert 40 * 2**20 < memory.extra_bytes < 80 * 2**20


def _busy() -> int:
    return sum(range(200_000))
