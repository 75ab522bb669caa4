"""How a network's floats become the bytes that are scored: rescaled, or clipped as in the paper's code."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from fedddpm.data.image_set import to_uint8
from fedddpm.errors import ConfigError

Saving = Literal["rescaled", "clipped"]


def as_saved(images: Tensor, how: Saving) -> Tensor:
    """Floats [N, C, H, W] of a network that was trained on [-1, 1] -> uint8.

    "rescaled" takes [-1, 1] to 0..255. "clipped" does what the paper's public code does: it hands the floats as they
    are to a function that expects [0, 1], so that all below mid-grey becomes black. It exists for comparison only.

    Raises:
        ConfigError: there is no such way.
    """
    if how not in get_args(Saving):
        raise ConfigError(f"there is no way of saving called {how!r}", f"Use one of {', '.join(get_args(Saving))}")
    return to_uint8(images if how == "rescaled" else images.clamp(0, 1) * 2 - 1)
