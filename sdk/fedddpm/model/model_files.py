"""A network as a safetensors file whose metadata say what it is; also readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fedddpm.errors import ModelError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.model.partition import PARTS, flatten, manifest, parameters_of, require_finite_values
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import Architecture
from fedddpm_protocol.agreement.model_metadata import (
    ARCHITECTURE_KEY,
    INITIAL_SEED_KEY,
    MANIFEST_KEY,
    architecture_from_json,
    architecture_json,
    manifests_json,
)


def save_model(
    path: Path,
    model: UNet,
    notes: Mapping[str, str] | None = None,
    mode: int = 0o644,
    *,
    initial_seed: bytes = b"",
) -> None:
    """Write all parts to a safetensors file, atomically.

    Metadata: what :mod:`fedddpm_protocol.agreement.model_metadata` says, and ``notes``. ``initial_seed`` is of a
    theta_0 that :func:`fedddpm.model.initialization.initial_network` makes from that seed: a federation then gives the
    seed away instead of the file.

    Raises:
        ModelError: a weight is no finite number.
        CheckpointError: the file cannot be written.
    """
    for part in PARTS:
        flatten(model, (part,))  # refuses what nobody could train from
    metadata = {
        ARCHITECTURE_KEY: architecture_json(model.architecture, sort_keys=True),
        MANIFEST_KEY: manifests_json({part: manifest(model, (part,)) for part in PARTS}),
    }
    metadata |= notes or {}
    if initial_seed:
        metadata[INITIAL_SEED_KEY] = initial_seed.hex()
    tensors = {name: p for part in PARTS for name, p in parameters_of(model, part)}
    save_tensors(path, tensors, metadata, mode)


@torch.no_grad()
def load_model_into(path: Path, model: UNet) -> None:
    """Read a file of :func:`save_model` into ``model``, which must have the same architecture.

    Raises:
        ModelError: the file holds another architecture, or is no model file. Nothing is written then.
        CheckpointError: the file is missing or damaged.
    """
    tensors, metadata = load_tensors(path)
    theirs, ours = _architecture_in(metadata, path), model.architecture
    if theirs != ours:
        raise ModelError(f"{path} holds the architecture {theirs}, not {ours}", "Build the network that the file names")
    targets = dict(entry for part in PARTS for entry in parameters_of(model, part))
    if {n: (t.shape, t.dtype) for n, t in tensors.items()} != {n: (p.shape, p.dtype) for n, p in targets.items()}:
        raise ModelError(f"the tensors in {path} are not those of its architecture", "Fetch it again")
    for name, tensor in tensors.items():
        require_finite_values(tensor.numpy(), f"{name} in {path}")
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def read_architecture(path: Path) -> Architecture:
    """The architecture a model file was written with.

    Raises:
        ModelError: the file says nothing sensible about it.
        CheckpointError: the file is missing or damaged.
    """
    return _architecture_in(load_tensors(path)[1], path)


def _architecture_in(metadata: Mapping[str, str], path: Path) -> Architecture:
    try:
        return architecture_from_json(metadata[ARCHITECTURE_KEY])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} is no model file of this package", "Give a file written by save_model") from error
