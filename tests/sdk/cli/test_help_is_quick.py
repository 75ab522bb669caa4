"""Asking the command for help waits for none of the large libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedddpm.cli.app import app

HEAVY = {"torch", "torchvision", "numpy", "ray", "httpx"}
COMMANDS = [str(command.name or command.callback.__name__) for command in app.registered_commands if command.callback]
ASK = """
import runpy, sys
sys.argv = ["fedddpm", *sys.argv[1:]]
try:
    runpy.run_module("fedddpm", run_name="__main__")
except SystemExit as end:
    print(end.code, *sorted(sys.modules))
"""


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_loads_no_large_library(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *command, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Usage: fedddpm" in done.stdout
    code, *loaded = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert "fedddpm.cli.app" in loaded
    assert not HEAVY & set(loaded)
