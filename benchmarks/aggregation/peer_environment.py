"""Environments of their own for peers whose packages must not meet ours: given on the command line, or made here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

INSTALL_S = 1800


@dataclass(frozen=True)
class Peer:
    """A library to measure beside."""

    name: str
    requirement: str
    modules: tuple[str, ...]  # that its worker imports

    @property
    def variable(self) -> str:
        """Environment variable that may name an interpreter which has it."""
        return f"FEDDDPM_{self.name.upper()}_PYTHON"


@dataclass(frozen=True)
class Found:
    """An interpreter that has a peer, or why there is none."""

    python: Path | None
    why_not: str = ""


FLOWER = Peer("flower", "flwr==1.41.0", ("flwr", "numpy"))
NVFLARE = Peer("nvflare", "nvflare[HE]==2.9.0", ("nvflare", "tenseal", "numpy"))


def find(peer: Peer, given: Path | None, folder: Path, *, make: bool) -> Found:
    """The interpreter that is ``given`` or named by the variable, else one made in ``folder`` where that is wanted."""
    named = given or (Path(os.environ[peer.variable]) if os.environ.get(peer.variable) else None)
    if named is not None:
        return _checked(peer, named)
    if not make:
        return Found(None, f"no environment was given; {peer.variable} may name one")
    python = folder / peer.name / "bin" / "python"
    if python.exists() and (found := _checked(peer, python)).python:
        return found
    commands = (
        [sys.executable, "-m", "venv", str(folder / peer.name)],
        [str(python), "-m", "pip", "install", "--quiet", peer.requirement],
    )
    for command in commands:
        if error := _failure(command):
            return Found(None, f"{peer.requirement} does not install here: {error}")
    return _checked(peer, python)


def _checked(peer: Peer, python: Path) -> Found:
    error = _failure([str(python), "-c", f"import {', '.join(peer.modules)}"])
    return Found(None, f"{python} has no {peer.requirement}: {error}") if error else Found(python)


def _failure(command: list[str]) -> str:
    """The last line of what a command complained about; empty if it worked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")
