"""The pre-commit hook runs scripts/check, and a commit that does not pass it is not made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.repository import ROOT


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("passes", [True, False])
def test_a_commit_is_made_where_the_check_passes_and_only_there(tmp_path: Path, passes: bool) -> None:
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    check = tmp_path / "scripts" / "check"
    check.parent.mkdir()
    check.write_text(f"#!/bin/sh\ntouch looked\nexit {int(not passes)}\n")
    check.chmod(0o755)
    assert git(tmp_path, "init", "--quiet").returncode == 0
    installed = [sys.executable, "-m", "pre_commit", "install"]
    subprocess.run(installed, cwd=tmp_path, capture_output=True, check=True)
    git(tmp_path, "add", ".")
    done = git(tmp_path, "commit", "--message", "x")
    assert (tmp_path / "looked").exists(), done.stderr
    assert (done.returncode == 0) == passes
    assert (git(tmp_path, "rev-parse", "HEAD").returncode == 0) == passes
