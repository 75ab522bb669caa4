"""How many cores and threads a process may use."""

import os
import subprocess
import sys

import pytest

from fedddpm.compute.device import usable_cores

AFFINE = len(os.sched_getaffinity(0))


def system(root, files):
    """A folder with files of /proc and /sys."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"},
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"},  # the group above
        {"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},  # seen from inside
        {
            "proc/self/cgroup": "5:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    ],
)
def test_quotas_of_control_groups_limit_the_cores(tmp_path, files):
    assert usable_cores(system(tmp_path, files)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"},
    ],
)
def test_without_a_quota_the_affinity_counts(tmp_path, files):
    assert usable_cores(system(tmp_path, files)) == AFFINE


def test_threads_follow_the_cores_and_the_users_word():
    source = """
import os, torch
from fedddpm.compute.device import use_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(2)
os.environ["OMP_NUM_THREADS"] = "2"
print(use_cores())
del os.environ["OMP_NUM_THREADS"]
print(use_cores())
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1"]
