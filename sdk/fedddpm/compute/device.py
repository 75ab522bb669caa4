"""Where to compute, and on how many cores."""

import os
from pathlib import Path

import torch

from fedddpm.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that exists; ``auto`` takes CUDA, then the CPU.

    Raises:
        ConfigError: the name is unknown or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is no device", "Use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"the device {name!r} does not exist here ({torch.cuda.device_count()} CUDA devices are visible)",
            "Use device='auto' or 'cpu', or check the driver with nvidia-smi and install a CUDA build of torch",
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"the device {name!r} is not supported", "Use auto, cpu, cuda or cuda:N")
    return device


def use_cores(processes: int = 1) -> int:
    """Give this process, one of ``processes`` side by side, its share of the usable cores; returns its threads.

    torch starts a thread for every core of the machine, also in a container that may use two of them, where the threads
    then wait for each other. OMP_NUM_THREADS, where it is set, is the user's word and stands; the number never grows.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        wanted = max(1, usable_cores() // processes)
        if wanted < torch.get_num_threads():
            torch.set_num_threads(wanted)
    return torch.get_num_threads()


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use at once: its affinity, and the quotas of its control groups; at least 1.

    ``root`` is where /proc and /sys are looked for (Linux's cgroups(7), versions 1 and 2).
    """
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affine, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """What each control group above this process allows, in cores."""
    found: list[float] = []
    for line in _words(root / "proc/self/cgroup", "\n"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("cpu", "cpu,cpuacct") if controllers else ("", "unified")  # version 1, version 2
        groups = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]  # a group obeys those above it too
        for folder in (root / "sys/fs/cgroup" / mount / group for mount in mounts for group in groups):
            if controllers:
                quota, period = (_words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                limit = [*quota, *period]
            else:
                limit = _words(folder / "cpu.max")
            if len(limit) == 2 and limit[0] not in ("max", "-1"):
                found.append(int(limit[0]) / int(limit[1]))
    return found


def _words(path: Path, separator: str | None = None) -> list[str]:
    """The words of a small system file; none where it is not there or not for us."""
    try:
        return path.read_text().strip().split(separator)
    except OSError:
        return []
