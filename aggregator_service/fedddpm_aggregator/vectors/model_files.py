"""Models as safetensors files: theta_0 as the coordinator hands it in, and what the aggregator publishes.

The file's metadata says which tensor belongs to which part and in what order (see ``model_metadata``), so no PyTorch
is needed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from fedddpm_aggregator.blobs.interface import Blobs
from fedddpm_protocol.agreement.methods import MODEL_PARTS
from fedddpm_protocol.agreement.model_layout import Architecture, Manifest, Vector, coordinates
from fedddpm_protocol.agreement.model_metadata import (
    ARCHITECTURE_KEY,
    INITIAL_SEED_KEY,
    MANIFEST_KEY,
    architecture_from_json,
    architecture_json,
    initial_seed_of,
    manifests_json,
    manifests_of,
)

_ITEM, _ALIGNMENT, _PIECE = 4, 8, 2**18  # bytes of a value and of the header's steps, values written together


class ModelFileError(Exception):
    """A model file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Network:
    """A whole network: architecture, tensors by part, and their values [coordinates] in that order."""

    architecture: Architecture
    manifests: dict[str, Manifest]
    vector: Vector
    initial_seed: bytes = b""  # 32 bytes that the values follow from; empty: they follow from none

    def select(self, parts: tuple[str, ...]) -> Vector:
        """The values of some parts, in the network's order."""
        pieces, start = [], 0
        for part, manifest in self.manifests.items():
            end = start + coordinates(manifest)
            if part in parts:
                pieces.append(self.vector[start:end])
            start = end
        return np.concatenate(pieces)


def read_network(path: Path) -> Network:
    """Read theta_0; ModelFileError unless the file is a whole network with finite float32 tensors."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            architecture = architecture_from_json(metadata[ARCHITECTURE_KEY])
            manifests = manifests_of(metadata[MANIFEST_KEY])
            seed = initial_seed_of(metadata.get(INITIAL_SEED_KEY))
            names = {tensor.name for manifest in manifests.values() for tensor in manifest}
            if set(manifests) != set(MODEL_PARTS) or names != set(file.keys()):
                raise ModelFileError(f"{path}: its tensors are not those that its manifest lists for the three parts")
            ordered = {part: manifests[part] for part in MODEL_PARTS}
            vector = _flatten(file, tuple(tensor for manifest in ordered.values() for tensor in manifest))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        message = f"{path} has no metadata {error}; write it with the SDK: save_model(path, model)"
        raise ModelFileError(message) from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise ModelFileError(f"{path} is not a model file: {error}") from error
    if not np.isfinite(vector).all():
        raise ModelFileError(f"{path} holds NaN or infinity")
    return Network(architecture, ordered, vector, seed)


def read_vector(path: Path, manifest: Manifest, into: Vector | None = None) -> Vector:
    """The values [coordinates] of a published model, in the manifest's order; into a vector that is there, if given."""
    with safe_open(path, framework="numpy") as file:
        return _flatten(file, manifest, into)


@contextlib.contextmanager
def vector_on_disk(size: int) -> Iterator[Vector]:
    """A vector of ``size`` float32 zeros in a temporary file: the system may write it out, however large it is.

    OSError where the disk has no room for it. The room is taken at once: a page without any would end the process.
    """
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size) * _ITEM)
        yield np.memmap(file, np.float32, "r+", shape=(size,))


def write_safetensors(
    file: BinaryIO, architecture: Architecture, manifests: dict[str, Manifest], vector: Vector
) -> None:
    """Write ``vector``, cut into the tensors of ``manifests``, piece by piece: no second model is in memory.

    The library would hold the whole file. The format: eight bytes of length, a JSON header, the tensors without gaps
    (https://huggingface.co/docs/safetensors, *Format*).
    """
    header: dict[str, object] = {
        "__metadata__": {
            ARCHITECTURE_KEY: architecture_json(architecture),
            MANIFEST_KEY: manifests_json(manifests),
        }
    }
    end = 0
    for tensor in (tensor for manifest in manifests.values() for tensor in manifest):
        start, end = end, end + tensor.size * _ITEM
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for start in range(0, len(vector), _PIECE):
        file.write(vector[start : start + _PIECE].astype("<f4", copy=False).tobytes())


def _flatten(file: safe_open, manifest: Manifest, into: Vector | None = None) -> Vector:
    for tensor in manifest:  # before there is memory for so many
        if file.get_slice(tensor.name).get_shape() != list(tensor.shape):  # type: ignore[no-untyped-call]
            raise ModelFileError(f"tensor {tensor.name} has another shape than its manifest says")
    vector: Vector = np.empty(coordinates(manifest), np.float32) if into is None else into
    start = 0
    for tensor in manifest:
        values: npt.NDArray[np.float32] = file.get_tensor(tensor.name)  # type: ignore[no-untyped-call]
        if values.dtype != np.float32 or values.shape != tensor.shape:
            raise ModelFileError(f"tensor {tensor.name} is {values.dtype}{values.shape}, not float32{tensor.shape}")
        vector[start : start + tensor.size] = values.reshape(-1)
        start += tensor.size
    return vector


def model_blob(model: str) -> str:
    """Name of a published model by its hash (hex)."""
    return f"models/{model}.safetensors"


def read_model(blobs: Blobs, model: str, manifest: Manifest, into: Vector | None = None) -> Vector:
    """The values [coordinates] of a model by its hash (hex), in the manifest's order; see :func:`read_vector`."""
    with blobs.local(model_blob(model)) as path:
        return read_vector(path, manifest, into)
