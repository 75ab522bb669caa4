"""The network as everybody knows it: its architecture, its tensors in their order, and the hash of its values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedddpm_protocol.primitives import canonical
from fedddpm_protocol.primitives.canonical import added_later, tagged_hash

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PRESETS = ("paper", "fast", "tiny", "lean")
MAX_COORDINATES = 2**32
HASH_BYTES = 32
MAX_CLASSES = 1000  # of a network that is told what to draw


def require(condition: bool, message: str) -> None:
    """ValueError with ``message`` unless the condition holds; records of the agreement are made by it."""
    if not condition:
        raise ValueError(message)


def require_name(kind: str, value: str) -> None:
    """ValueError unless ``value`` is a short name that is safe in URLs, file names and logs."""
    if not NAME.fullmatch(value):
        raise ValueError(f"{kind} {value!r} must be 1 to 64 letters, digits, dots, dashes or underscores")


NOISE, PRECONDITIONED = "noise", "preconditioned"
PREDICTIONS = (NOISE, PRECONDITIONED)  # what a network's answer means: eps of DDPM, or F of EDM (arXiv 2206.00364)


@dataclass(frozen=True)
class Architecture:
    """The network everybody trains."""

    preset: str
    image_size: int  # pixels, square
    channels: int
    base_dim: int
    multipliers: tuple[int, ...]
    classes: int = 0  # labels that an image can have; 0: the network is told none
    prediction: str = added_later(NOISE)

    def __post_init__(self) -> None:
        require(self.preset in PRESETS, f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        require(8 <= self.image_size <= 1024, f"image size {self.image_size} is outside 8 to 1024 pixels")
        require(1 <= self.channels <= 16, f"{self.channels} channels are outside 1 to 16")
        require(
            self.prediction in PREDICTIONS,
            f"unknown prediction {self.prediction!r}; known: {', '.join(PREDICTIONS)}",
        )
        require(0 <= self.classes <= MAX_CLASSES, f"{self.classes} classes are outside 0 to {MAX_CLASSES}")

    @property
    def hash(self) -> bytes:
        """32 bytes that name this architecture."""
        return tagged_hash("architecture", canonical.encode(self))


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a manifest."""

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        require(0 < len(self.name) <= 256, "a tensor name must have 1 to 256 characters")
        require(len(self.shape) <= 8 and all(side > 0 for side in self.shape), f"bad shape {self.shape}")

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


Manifest = tuple[TensorSpec, ...]
Vector = npt.NDArray[np.float32]  # the values of a manifest, tensor after tensor: a model, or a difference of two


def coordinates(manifest: Manifest) -> int:
    """How many float32 values the tensors of ``manifest`` hold together."""
    return sum(tensor.size for tensor in manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical form of a manifest."""
    return canonical.lp(*(canonical.encode(tensor) for tensor in manifest))


def model_hash(manifest: Manifest, vector: Vector) -> bytes:
    """Hash over manifest and raw little-endian float32 values [coordinates], independent of any file format."""
    if vector.dtype != np.float32 or vector.shape != (coordinates(manifest),):
        raise ValueError(
            f"a model of {coordinates(manifest)} float32 values expected, got {vector.dtype}{vector.shape}"
        )
    raw: Vector = np.ascontiguousarray(vector).astype("<f4", copy=False)
    return tagged_hash("model", manifest_bytes(manifest), raw.data.cast("B"))
