"""The one way to torchvision.

torchvision's wheel carries a compiled part that is linked against CUDA. Beside a CPU build of torch that part is not
loaded, and ``import torchvision`` dies with "operator torchvision::nms does not exist", although nothing here needs
that operator. Declaring the two missing schemas lets the import go on; using one of them still raises. Installations
whose torch and torchvision match never reach the cure.
"""

import importlib
from functools import cache
from types import ModuleType

import torch

from fedddpm.errors import ConfigError

_SYMPTOM = "operator torchvision::nms does not exist"
_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def _declare_missing_operators() -> torch.library.Library:
    """Declare the schemas once; the cache keeps the library alive, and with it the declarations."""
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _MISSING_SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def load_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled part does not fit the installed torch.

    Raises:
        ConfigError: torchvision is not installed, or fails for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise ConfigError(f"torchvision cannot be imported ({error})", "Run: pip install torchvision") from error
    except RuntimeError as error:
        if str(error) != _SYMPTOM:
            raise ConfigError(
                f"torchvision cannot be imported ({error})", "Install the torchvision release made for your torch"
            ) from error
    _declare_missing_operators()
    return importlib.import_module("torchvision")
