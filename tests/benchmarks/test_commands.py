"""Every benchmark is a command that starts and says what it measures; their long runs are `make soak`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.support.repository import ROOT

COMMANDS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


def test_all_commands_are_found() -> None:
    assert {"attacks.py", "dominance.py", "encoding_accuracy.py", "round_overhead.py", "train_step.py"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_starts(name: str) -> None:
    program = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
