"""What turns images into vectors, and the digests by which caches know images and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Features = npt.NDArray[np.float32]  # [N, width]
OnProgress = Callable[[int, int], None]  # images done, images in all


class FeatureNet(Protocol):
    """A fixed network whose last inner layer describes an image."""

    @property
    def name(self) -> str:
        """Short, for tables: "inception-2048", "classifier-64-..."."""

    @property
    def source(self) -> str:
        """A sentence for the report: which weights, from where, how proven."""

    @property
    def width(self) -> int:
        """Length of a feature vector."""

    @property
    def digest(self) -> str:
        """Hex: two nets with the same digest give the same features."""

    @property
    def is_inception(self) -> bool:
        """Whether a Frechet distance of its features may be called FID."""

    def extract(self, images: Tensor, on_progress: OnProgress | None = None) -> Features:
        """Features [N, width] of uint8 ``images`` [N, C, H, W]."""


def extract_batches(
    network: Callable[[Tensor], Tensor], images: Tensor, batch: int, on_progress: OnProgress | None
) -> Features:
    """``network`` takes uint8 [B, C, H, W] and gives [B, width] on any device; ``batch`` images at a time."""
    pieces = []
    with torch.inference_mode(), full_precision():
        for first in range(0, len(images), batch):
            pieces.append(network(images[first : first + batch]).float().cpu().numpy())
            if on_progress is not None:
                on_progress(min(first + batch, len(images)), len(images))
    return np.concatenate(pieces)


def _tf32_switch() -> tuple[object, str, object]:
    """Where TF32 is switched, the attribute's name, and its value for off."""
    backend = torch.backends.cudnn
    if hasattr(backend, "conv"):  # torch 2.9 and later, where reading the older switch fails beside the newer one
        return backend.conv, "fp32_precision", "ieee"
    return backend, "allow_tf32", False


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside convolutions on CUDA: its 10 bits would move features in the third digit."""
    switch, name, off = _tf32_switch()
    before = getattr(switch, name)
    setattr(switch, name, off)
    try:
        yield
    finally:
        setattr(switch, name, before)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, hex, over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(np.ascontiguousarray(values.numpy()).data)
    return digest.hexdigest()
