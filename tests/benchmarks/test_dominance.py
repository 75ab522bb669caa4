"""The benchmark of dominance: what it writes, and in which order the ways come."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.repository import ROOT


@pytest.mark.soak
def test_a_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "dominance.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "dominance.json").read_text())["rows"]
    for row in rows:
        assert row["share"] + sum(row["others"]) == pytest.approx(1, abs=0.01)
    by_way = {row["way"]: [line for line in rows if line["way"] == row["way"]] for row in rows}
    samples, fixed, adaptive, equals = (
        by_way[way] for way in ("by samples, fixed", "equal, fixed", "equal, adaptive", "three equals")
    )
    assert min(row["share"] for row in samples) > 0.97
    assert min(row["cosine"] for row in samples) > 0.99
    assert samples[-1]["share"] > fixed[-1]["share"] > adaptive[-1]["share"] + 0.1
    assert adaptive[0]["share"] > adaptive[1]["share"] > adaptive[3]["share"] > max(row["share"] for row in equals)
    for before, after in itertools.pairwise(equals):
        assert after["clip_norm"] > 0.9 * max(before["norms"])  # equals are hardly clipped, and less so as time goes
    assert "python benchmarks/dominance.py --quick" in (tmp_path / "dominance.md").read_text()
