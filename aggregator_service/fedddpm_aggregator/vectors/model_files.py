"""Models as safetensors files: theta_0 as the coordinator hands it in, and what the aggregator publishes.

The file's metadata says which tensor belongs to which part and in what order, so no PyTorch is needed here:
``fedddpm.architecture`` (JSON of the architecture's fields) and ``fedddpm.manifest`` (JSON {part: [[name, shape]..]}).
``fedddpm.initial_seed`` (64 hex digits) stands in a theta_0 that every institution can compute from that public seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from fedddpm_aggregator.blobs import Blobs
from fedddpm_protocol.agreement.methods import MODEL_PARTS
from fedddpm_protocol.agreement.model_layout import Architecture, Manifest, TensorSpec, Vector, coordinates
from fedddpm_protocol.foreign.json_reading import read_json, record_of
from fedddpm_protocol.primitives import canonical

ARCHITECTURE_KEY, MANIFEST_KEY = "fedddpm.architecture", "fedddpm.manifest"
INITIAL_SEED_KEY = "fedddpm.initial_seed"
_SEED = re.compile(r"[0-9a-f]{64}")
_MANIFESTS: TypeAdapter[dict[str, list[tuple[str, tuple[int, ...]]]]] = TypeAdapter(
    dict[str, list[tuple[str, tuple[int, ...]]]]
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
            architecture = _architecture(metadata[ARCHITECTURE_KEY])
            manifests = manifests_of(metadata[MANIFEST_KEY])
            seed = _initial_seed(path, metadata.get(INITIAL_SEED_KEY))
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
            ARCHITECTURE_KEY: json.dumps(dataclasses.asdict(architecture)),
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


def manifests_json(manifests: dict[str, Manifest]) -> str:
    """JSON {part: [[name, shape], ...]}."""
    return json.dumps(
        {part: [[tensor.name, list(tensor.shape)] for tensor in manifest] for part, manifest in manifests.items()}
    )


def manifests_of(text: str) -> dict[str, Manifest]:
    """Inverse of :func:`manifests_json`; ValueError for another form."""
    try:
        parts = _MANIFESTS.validate_python(read_json(text))
    except ValidationError:  # it repeats what it refused
        raise ValueError("its manifest is not {part: [[name, shape], ..]}") from None
    return {part: tuple(TensorSpec(name, shape) for name, shape in tensors) for part, tensors in parts.items()}


def _architecture(text: str) -> Architecture:
    # Files from before there were classes name none: they read as the default, 0.
    architecture = record_of(Architecture, read_json(text))
    canonical.encode(architecture)  # ValueError for what no specification can hold
    return architecture


def _initial_seed(path: Path, text: str | None) -> bytes:
    if text is None:
        return b""
    if not _SEED.fullmatch(text):
        raise ModelFileError(f"{path}: its {INITIAL_SEED_KEY} is not 64 hex digits; write it with: fedddpm init-model")
    return bytes.fromhex(text)


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
