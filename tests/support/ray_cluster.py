"""A real Ray cluster of several nodes on this machine, each a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
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
        quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 8}  # to see that a node is gone
        cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=STORE_BYTES, _system_config=quick)
        for _ in range(workers):
            add_worker(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_worker(cluster: Cluster) -> Any:
    """One more node of one processor."""
    return cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=STORE_BYTES)


def node_of(cluster: Cluster, process: int) -> Any:
    """The node that a worker process belongs to."""
    status = Path(f"/proc/{process}/status").read_text()
    parent = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid")))
    return next(
        node
        for node in cluster.list_all_nodes()
        if any(info.process.pid == parent for info in node.all_processes["raylet"])
    )


def kill_node(cluster: Cluster, node: Any) -> None:
    """SIGKILL to a node and whatever it runs."""
    cluster.remove_node(node, allow_graceful=False)


def frozen_workers(what: str, count: int, for_s: float = 0.0, timeout_s: float = 60.0) -> list[int]:
    """Wait until ``count`` workers run the task ``what``, for ``for_s`` on end, and stop them where they are (SIGSTOP).

    Returns their process ids; raises AssertionError if there are not so many in time.
    """
    deadline, since = time.monotonic() + timeout_s, time.monotonic()
    while time.monotonic() < deadline:
        found = processes_called(f"ray::{what}")
        if len(found) != count:
            since = time.monotonic()
        elif time.monotonic() - since >= for_s:
            for process in found:
                os.kill(process, signal.SIGSTOP)
            return found
        time.sleep(0.005)
    raise AssertionError(f"{count} workers did not run {what} at the same time")


def processes_called(title: str) -> list[int]:
    """Process ids of those whose command line holds ``title``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if title.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def kill(process: int) -> None:
    """SIGKILL to one process that a test started."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
