"""As a restricted container: a user that no file names, no home, nothing to write but the state folder and /tmp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.e2e.conftest import NewFederation
from tests.support.low_floors import IN_TOML

USER = 10001
ANYBODY = {"user": USER, "group": USER, "extra_groups": []}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter of this version that every user may run; the packages come by PYTHONPATH."""
    found = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
    for candidate in (sys.executable, found):
        if candidate is not None and _runs(candidate):
            return candidate
    pytest.skip("no interpreter of this version, with these packages, that another user may run")


def _runs(interpreter: str) -> bool:
    try:
        command = [interpreter, "-c", "import torch"]
        return subprocess.run(command, env=_environment(), **ANYBODY, capture_output=True).returncode == 0
    except PermissionError:
        return False


def _environment() -> dict[str, str]:
    path = [str(Path(entry).resolve()) for entry in sys.path if entry]
    return {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": "1"}


READ_ONLY = """
mount --make-rprivate / && mount --bind /tmp /tmp && mount -o remount,bind,ro / || exit 99
exec setpriv --reuid=10001 --regid=10001 --clear-groups "$@"
"""


def start(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as that user: on a read-only root where this machine lets us make one."""
    options = {"cwd": "/", "env": _environment() | environment, "capture_output": True, "text": True, "timeout": 120}
    closed = subprocess.run(["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *command], **options)
    if closed.returncode != 99 and "unshare failed" not in closed.stderr:
        return closed
    return subprocess.run(command, **options, **ANYBODY)


@pytest.fixture
def mounts() -> Iterator[Path]:
    """What a pod has: folders of root, and a state folder that belongs to its group."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # what stays writable
        root = Path(folder)
        root.chmod(0o755)
        for name in ("etc", "identity", "images", "state"):
            (root / name).mkdir(mode=0o755)
        os.chown(root / "state", 0, USER)
        (root / "state").chmod(0o2775)
        yield root


def pictures(folder: Path) -> None:
    """So many bytes that decoded images are worth keeping."""
    random = np.random.default_rng(0)
    for number in range(12):
        noise = random.integers(0, 256, (500, 500, 3), dtype=np.uint8)
        noise[:250] >>= 1  # noise made small is one grey, which would be warned of
        Image.fromarray(noise).save(folder / f"{number}.png")


def test_it_takes_part(new_federation: NewFederation, mounts: Path, python: str) -> None:
    fed = new_federation()
    fed.start()
    pod, others = fed.members[0], fed.members[1:]
    fed.join_here(*others)
    pictures(mounts / "images")
    key = mounts / "identity" / "..data"
    key.write_bytes((fed.site(pod) / "identity.key").read_bytes())
    os.chown(key, 0, USER)
    key.chmod(0o440)
    (mounts / "identity" / "identity.key").symlink_to("..data")
    (mounts / "etc" / "site.toml").write_text(
        f'aggregator_url = "{fed.url}"\nidentity = "{mounts}/identity/identity.key"\n'
        f'federation_root = "{fed.root_public}"\ndata = "{mounts}/images"\nstate_dir = "{mounts}/state"\n'
        'image_size = 8\nchannels = 1\ndevice = "cpu"\n[network]\npoll_s = 1.0\n[metrics]\nport = 0\n' + IN_TOML
    )
    settings = str(mounts / "etc" / "site.toml")
    done = start([python, "-m", "fedddpm", "participate"], FEDDDPM_SITE_CONFIG=settings)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be kept in /nonexistent/.cache/fedddpm/images" in done.stderr
    assert done.stderr.count("Warning") == 1, done.stderr
    fed.end(*others)
    (line,) = fed.lines(0)
    assert set(line.survivors) == set(fed.members)
    assert (mounts / "state" / "rounds.jsonl").stat().st_uid == USER


def test_a_state_folder_that_it_may_not_write_is_named(mounts: Path, python: str) -> None:
    (mounts / "state").chmod(0o755)
    keygen = [python, "-m", "fedddpm", "keygen", "--id", "hospital-a", "--out", f"{mounts}/identity/a.key"]
    subprocess.run(keygen, env=_environment(), capture_output=True, check=True)
    os.chown(mounts / "identity" / "a.key", USER, USER)
    np.savez(mounts / "images" / "all.npz", images=np.zeros((8, 8, 8), np.uint8))
    options = [
        "--identity",
        f"{mounts}/identity/a.key",
        "--federation-root",
        "ab" * 32,
        "--state-dir",
        f"{mounts}/state",
    ]
    options += ["--aggregator-url", "http://127.0.0.1:9", "--data", f"{mounts}/images/all.npz"]
    done = start([python, "-m", "fedddpm", "participate", *options])
    assert done.returncode == 5
    last = done.stderr.splitlines()[-1]
    assert (
        last == f"Error: the state folder {mounts}/state cannot be used (Permission denied). Choose a writable folder"
    )
