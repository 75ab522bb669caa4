"""A real Ray cluster of several nodes on this machine, each a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

STORE_BYTES = 80_000_000  # of each node's objects


def require_ray() -> None:
    """Skip where Ray is not installed; fail where FEDDDPM_REQUIRE_RAY says that it should be."""
    if importlib.util.find_spec("ray") is None:
        message = "Ray is not installed: pip install 'ray>=2.40'"
        if os.environ.get("FEDDDPM_REQUIRE_RAY"):
            pytest.fail(message)
        pytest.skip(message)


@contextlib.contextmanager
def ray_cluster(workers: int = 2) -> Iterator[Cluster]:
    """A head that computes nothing, and ``workers`` nodes of one processor."""
    require_ray()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=STORE_BYTES)
        for _ in range(workers):
            add_worker(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_worker(cluster: Cluster) -> Any:
    """One more node of one processor."""
    return cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES)


def kill_node(cluster: Cluster, node: Any) -> None:
    """SIGKILL to a node and whatever it runs."""
    cluster.remove_node(node, allow_graceful=False)


def busy_workers(what: str, timeout_s: float = 30.0) -> list[int]:
    """Process ids of the workers that run the task ``what`` now; AssertionError if there are none in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := _processes_called(f"ray::{what}"):
            return found
        time.sleep(0.005)
    raise AssertionError(f"no worker ran {what}")


def _processes_called(title: str) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/cmdline", "rb") as file:  # noqa: PTH123
                if file.read().startswith(title.encode()):
                    found.append(int(entry.name))
    return found


def kill(process: int) -> None:
    """SIGKILL to one process that a test started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
