"""What people get wrong, and what machines do to them: one clear message, an exit code, never a stack trace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e.conftest import NewFederation
from tests.e2e.federation import Federation, blobs, sitecustomize, wait_until

from fedddpm.state.folder import StateFolder

SHIFTED = """
import time
true = time.time
time.time = lambda: true() + {shift}
"""


def refused(fed: Federation, code: int, *said: str, **settings: Any) -> str:
    """The first institution's process ends with ``code`` and says all of ``said``."""
    member = fed.members[0]
    fed.join_in(member, **settings)
    ended, output = fed.exit_of(member)
    assert ended == code, output
    for words in said:
        assert words in output
    return output


# --- images ----------------------------------------------------------------------------------------------------------


def test_no_images(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.images(fed.members[0]).unlink()
    refused(fed, 2, "Error:", "hospital-a.npz")
    np.savez(fed.images(fed.members[0]), images=np.zeros((0, 8, 8), np.uint8))
    refused(fed, 2, "no images")


def test_an_empty_folder_of_images(new_federation: NewFederation, tmp_path: Path) -> None:
    fed = new_federation()
    (tmp_path / "scans").mkdir()
    fed.images(fed.members[0]).unlink()
    fed.images(fed.members[0]).symlink_to(tmp_path / "scans")
    refused(fed, 2, "image", image_size=8, channels=1)


def test_one_image_is_too_few(new_federation: NewFederation) -> None:
    fed = new_federation()
    blobs(fed.images(fed.members[0]), 0, 1)
    refused(fed, 2, "Use a fraction such as 0.1 and at least two images")


def test_images_of_another_size(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start()
    blobs(fed.images(fed.members[0]), 0, 12, size=10)
    refused(fed, 2, "the federation trains on 8x8 images with 1 channels, yours are 10x10 with 1", "image_size=8")


def test_training_that_diverges_is_not_sent(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start(learning_rate=1e30, epochs=4)
    fed.proxy(fed.members[0])
    above = {"max_learning_rate": 1e31}
    refused(fed, 5, "Lower the learning rate", "nothing of this round has been sent", policy=above)
    assert not fed.proxy(fed.members[0]).requests("POST")


# --- disks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only a user who may mount can fill a disk of its own")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing(new_federation: NewFederation, small_disk: Path) -> None:
    fed = new_federation()
    fed.start()
    member, *others = fed.members
    state = fed.site(member) / "state"
    state.symlink_to(small_disk)
    fed.join_here(*others)
    output = refused(fed, 5, "ree some space")
    assert "No space left on device" in output or "disk is full" in output
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    fed.join_in(member)
    fed.end()
    fed.check_round(0, fed.members)
    fed.check_models()
    fed.stop()  # before the disk is taken away


# --- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "said"), [(3600, "3600 s ahead"), pytest.param(-3600, "3600 s behind", marks=pytest.mark.soak)]
)
def test_a_wrong_clock_is_corrected(new_federation: NewFederation, tmp_path: Path, shift: int, said: str) -> None:
    fed = new_federation()
    fed.start()
    member, *others = fed.members
    fed.join_here(*others)
    fed.join_in(member, environment=sitecustomize(tmp_path / "clock", SHIFTED.format(shift=shift)))
    fed.end()
    output = " ".join(fed.log(member).split())
    assert f"this machine's clock is {said}" in output or f"clock is {said.replace('3600', '3601')}" in output
    assert "Set this machine's clock" in output
    fed.check_round(0, fed.members)
    fed.check_models()


# --- the same identity twice -----------------------------------------------------------------------------------------


def test_a_second_client_on_the_same_state(new_federation: NewFederation) -> None:
    fed = new_federation()
    fed.start()
    member, *others = fed.members
    fed.join_in(member)
    wait_until(lambda: any(member in line.joined for line in fed.lines()), "the first one's JOIN")
    first = fed.processes.pop(member)
    refused(fed, 5, f"another process (number {first.pid}) works with the state folder", "a state_dir each")
    fed.processes[member] = first
    fed.join_here(*others)
    fed.end()
    fed.check_round(0, fed.members)


def test_a_second_client_on_a_state_of_its_own(new_federation: NewFederation) -> None:
    """The copy is told, the first one goes on."""
    fed = new_federation()
    fed.start()
    member, *others = fed.members
    fed.join_in(member)
    wait_until(lambda: any(member in line.joined for line in fed.lines()), "the first one's JOIN")
    first = fed.processes.pop(member)
    refused(fed, 5, "another process uses this identity", "Stop the other one", state_dir="copy")
    fed.processes[member] = first
    fed.join_here(*others)
    fed.end()
    fed.check_round(0, fed.members)
    fed.check_models()


def test_a_second_client_that_was_faster(new_federation: NewFederation) -> None:
    """A copy with higher numbers takes the seat; the first one finds a JOIN that it did not send, and stops."""
    fed = new_federation()
    fed.start()
    member, *others = fed.members
    fed.join_in(member)
    wait_until(lambda: any(member in line.joined for line in fed.lines()), "the first one's JOIN")
    copy = fed.site(member) / "copy"
    with StateFolder(copy, bytes.fromhex(fed.root_public), member) as state:
        while state.next_seq() < 10:
            pass
    proxy = fed.proxy(member)
    fed.join_here(member, state_dir=copy)
    wait_until(lambda: any(exchange.reply for exchange in proxy.requests("POST .*/joins")), "the copy's JOIN")
    fed.join_here(*others)
    code, output = fed.exit_of(member)
    assert code == 5
    assert f"the cohort holds a JOIN of '{member}' that this process did not send" in output
    assert "the key is in other hands" in output
    del fed.processes[member]
    fed.end()
    assert fed.lines(0)[-1].survivors == tuple(fed.members)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"colour": "red"}, "the setting 'colour': is unknown"),
        ({"policy": {"min_cohort": 2}}, "min_cohort = 2 needs allow_two_party = true"),
        ({"federation_root": "beef"}, "neither a public key"),
    ],
)
def test_settings_that_cannot_be(new_federation: NewFederation, settings: dict[str, Any], said: str) -> None:
    refused(new_federation(), 2, said, **settings)
