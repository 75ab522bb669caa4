"""The only door between a network's weights (torch) and the vectors that travel (NumPy).

A *part* is a child module of the UNet. A vector of parts is all their parameters as float32, one after the other, in
the order of :func:`manifest`. Model files are safetensors whose metadata say which tensors belong to which part, so
that the aggregator, which has no torch, can read them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedddpm.errors import ModelError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.spec import Architecture, Manifest, TensorSpec
from fedddpm_protocol.foreign.json_reading import read_json, record_of

PARTS = ("encoder", "bottleneck", "decoder")  # in the order of every manifest
ARCHITECTURE_KEY = "fedddpm.architecture"
MANIFEST_KEY = "fedddpm.manifest"
INITIAL_SEED_KEY = "fedddpm.initial_seed"

Vector = npt.NDArray[np.float32]


def parameters_of(model: UNet, part: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The named parameters of one part, as ("decoder.levels.0...", parameter), in the order of the manifest.

    Raises:
        ModelError: there is no such part.
    """
    if part not in PARTS:
        raise ModelError(f"the network has no part {part!r}", f"Its parts are {', '.join(PARTS)}")
    return model.get_submodule(part).named_parameters(prefix=part)


def manifest(model: UNet, parts: Iterable[str] = PARTS) -> Manifest:
    """Names and shapes of the tensors of ``parts``, in the order in which :func:`flatten` lays them out."""
    return tuple(
        TensorSpec(name, tuple(p.shape)) for part in _in_order(parts) for name, p in parameters_of(model, part)
    )


def flatten(model: UNet, parts: Iterable[str] = PARTS) -> Vector:
    """All parameters of ``parts`` as one C-contiguous float32 vector [P]: a copy.

    Raises:
        ModelError: an unknown part, a weight that is no finite number, or weights that are not float32.
    """
    pieces = []
    for part in _in_order(parts):
        for name, parameter in parameters_of(model, part):
            if parameter.dtype != torch.float32:
                raise ModelError(f"{name} is {parameter.dtype}", "Keep the weights in float32 (use autocast for speed)")
            pieces.append(parameter.detach().cpu().contiguous().reshape(-1))
    vector = torch.cat(pieces).numpy()
    _require_finite(vector, "the network's weights")
    return vector


@torch.no_grad()
def unflatten(model: UNet, parts: Iterable[str], vector: Vector) -> None:
    """Write a vector [P] into the parameters of ``parts``, in place; the inverse of :func:`flatten`.

    Raises:
        ModelError: an unknown part, a wrong length or type, or a number that is not finite. Nothing is written then.
    """
    chosen = [entry for part in _in_order(parts) for entry in parameters_of(model, part)]
    size = sum(parameter.numel() for _, parameter in chosen)
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise ModelError(
            f"a vector of {size} float32 values was expected, not {vector.dtype} of shape {vector.shape}",
            "The other side trains another architecture: compare image size, channels and preset",
        )
    _require_finite(vector, "the vector")
    start = 0
    for _, parameter in chosen:
        piece = torch.from_numpy(vector[start : start + parameter.numel()].copy())
        parameter.copy_(piece.reshape(parameter.shape))
        start += parameter.numel()


def save_model(
    path: Path,
    model: UNet,
    notes: Mapping[str, str] | None = None,
    mode: int = 0o644,
    *,
    initial_seed: bytes = b"",
) -> None:
    """Write all parts to a safetensors file, atomically.

    Metadata: ``fedddpm.architecture``, a JSON object, ``fedddpm.manifest``, a JSON object {part: [[name, shape]]},
    ``notes``, and ``fedddpm.initial_seed`` in hex for a theta_0 that
    :func:`fedddpm.model.initialization.initial_network` makes from that seed: a federation then gives the
    seed away instead of the file.

    Raises:
        ModelError: a weight is no finite number.
        CheckpointError: the file cannot be written.
    """
    for part in PARTS:
        flatten(model, (part,))  # refuses what nobody could train from
    shapes = {part: [[spec.name, list(spec.shape)] for spec in manifest(model, (part,))] for part in PARTS}
    metadata = {ARCHITECTURE_KEY: _architecture_json(model.architecture), MANIFEST_KEY: json.dumps(shapes)}
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
        _require_finite(tensor.numpy(), f"{name} in {path}")
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
        # Files from before there were classes name none: they read as the default, 0.
        return record_of(Architecture, read_json(metadata[ARCHITECTURE_KEY]))
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} is no model file of this package", "Give a file written by save_model") from error


def _architecture_json(architecture: Architecture) -> str:
    return json.dumps(asdict(architecture), sort_keys=True)


def _in_order(parts: Iterable[str]) -> list[str]:
    """The parts in manifest order, whatever the order they were named in; ModelError for an unknown or repeated one."""
    named = list(parts)
    if not named or len(set(named)) != len(named) or not set(named) <= set(PARTS):
        raise ModelError(f"{named} does not name parts of the network", f"Its parts are {', '.join(PARTS)}")
    return [part for part in PARTS if part in named]


def _require_finite(values: npt.NDArray[np.float32], what: str) -> None:
    if not np.isfinite(values).all():
        raise ModelError(
            f"{what} hold {np.count_nonzero(~np.isfinite(values))} values that are not finite numbers",
            "Training diverged or the file is damaged: go back to the last good model, and lower the learning rate",
        )
