"""Fresh virtual environments, as a user makes them."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.repository import ROOT

CONSTRAINTS = ROOT / "constraints.txt"


def run(*command: str | Path, timeout_s: float = 900, **environment: str) -> str:
    """Run to the end; the output is the assertion's message when it fails."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "PYTHONPATH", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Environment:
    """A virtual environment that exists for one test module.

    The pip of the tests fills it, and only what is imported is compiled.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder)
        self.python = folder / "bin" / "python"
        self._pip = (sys.executable, "-m", "pip", "--python", self.python)

    def install(self, *what: str | Path, extra: tuple[str, ...] = ()) -> None:
        run(*self._pip, "install", "--quiet", "--no-compile", "-c", CONSTRAINTS, *extra, *what)

    def distributions(self) -> set[str]:
        listing = run(*self._pip, "list", "--format=freeze")
        return {line.split("==")[0].lower() for line in listing.splitlines()}
