"""The benchmark of a round runs, compares with its peer in the same run, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.repository import ROOT


@pytest.mark.soak
def test_small_run(tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    script = ROOT / "benchmarks" / "round_overhead.py"
    command = [sys.executable, str(script), "--institutions", "4", "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert (result["institutions"], result["coordinates"]) == (4, 716_297)
    assert len(result["secure_s"]) == len(result["plain_s"]) == 1
    assert result["ratio"] == result["secure_median_s"] / result["plain_median_s"]
    assert "plain average over HTTP" in done.stdout
