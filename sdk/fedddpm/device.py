"""Where to compute."""

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
