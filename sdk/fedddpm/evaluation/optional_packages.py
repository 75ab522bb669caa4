"""The one way to the packages of the extra ``[evaluation]``, which training and taking part do without."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.errors import ConfigError

PACKAGES = ("pytorch_fid", "torch_fidelity", "matplotlib", "jinja2")
_ADVICE = "Run: pip install 'fedddpm-sdk[evaluation]'"


def require_extra() -> None:
    """Ask for the whole extra at once, before hours of training.

    Raises:
        ConfigError: a package of it is not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"measuring needs packages that are not installed: {', '.join(missing)}", _ADVICE)


def load_extra(module: str) -> ModuleType:
    """Import one module of the extra, with torchvision before it.

    Raises:
        ConfigError: it is not installed, or torchvision does not work.
    """
    load_torchvision()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} cannot be imported ({error})", _ADVICE) from error
