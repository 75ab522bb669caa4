"""Faster arithmetic where the device has it: bfloat16, and the network compiled into a few kernels and one CUDA graph.

Weights, gradients, Adam and the loss stay in float32 in any case; only what lies between is computed in less.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from fedddpm.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]
Forward = Callable[..., Tensor]  # (x_t, t) or (x_t, t, labels) -> eps

_LOG = logging.getLogger(__name__)
_WORTH_COMPILING = 500  # steps: compiling takes about a minute


def resolve_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """What "auto" means on ``device``: bfloat16 on cards that compute in it (Ampere and later), else float32."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "float32"


def resolve_compile(wanted: bool | None, device: torch.device, steps: int) -> bool:
    """Whether to compile; by default on CUDA, for a training of enough ``steps``, where there is what it needs."""
    if wanted is not None:
        return wanted
    return device.type == "cuda" and steps >= _WORTH_COMPILING and _has_triton() and _has_compiler()


@contextlib.contextmanager
def arithmetic(precision: Literal["float32", "bfloat16"], device: torch.device) -> Iterator[None]:
    """Compute the network's forward pass in ``precision``; what needs more stays in float32, as autocast decides."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        yield


@contextlib.contextmanager
def tuned_kernels(device: torch.device) -> Iterator[None]:
    """On CUDA: try cuDNN's ways to compute each convolution once, then use the fastest."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def compiled(network: Forward, device: torch.device, try_out: Callable[[Forward], None], *, required: bool) -> Forward:
    """``network`` compiled, after ``try_out`` ran it forwards and backwards; the plain one where that fails.

    Raises:
        ConfigError: it fails although it is ``required``.
    """
    _name_the_cache()
    mode = "reduce-overhead" if device.type == "cuda" else "default"  # CUDA graphs: no launch of single kernels
    try:
        with warnings.catch_warnings(action="ignore"):  # the compiler's advice to its users is not for ours
            fast: Forward = torch.compile(network, mode=mode, dynamic=False)
            try_out(fast)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's errors have no common class; the plain network tells real ones again
        if required:
            raise ConfigError(
                f"the network could not be compiled ({type(error).__name__}: {_first_line(error)})",
                "Install a C++ compiler and, for CUDA, triton; or leave compile out",
            ) from error
        _LOG.warning("the network is not compiled, training is slower: %s", _first_line(error))
        return network
    return fast


def _name_the_cache() -> None:
    """torch calls its cache after the user, and some releases fail where a container's user has no name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_uid_{os.getuid()}")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None  # only CUDA builds of torch bring it


def _has_compiler() -> bool:
    return shutil.which(os.environ.get("CC", "cc")) is not None or shutil.which("gcc") is not None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
