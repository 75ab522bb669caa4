"""What a training is made of between two steps, and how it lies on disk.

A checkpoint holds the weights, their average, the optimizer's moments and counts, the sum of losses, and the position
as text. It names the training it belongs to by a fingerprint of everything that decides the result, so a stale one is
never continued.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedddpm.errors import CheckpointError
from fedddpm.files.atomic import load_tensors, save_tensors
from fedddpm.training.optimizers import STATE_KEYS, Parameters
from fedddpm_protocol.untrusted.json_reading import read_json

CHECKPOINT_KEY = "fedddpm.training"
_DELETE = "Delete it: the round's training then starts afresh"

Tensors = Mapping[str, Tensor]


@dataclass
class Position:
    """Where a training is."""

    step: int  # steps done
    seconds: float  # spent on them
    loss_sum: Tensor  # float64 scalar, over these steps


def moments(parameters: Parameters, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All tensors of an optimizer's state, in the order of the parameters."""
    for parameter in parameters.values():
        for part in STATE_KEYS:
            yield optimizer.state[parameter][part]


def fingerprint(settings: Iterable[float | int | str | None], tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the settings and the tensors' shapes and bytes, in hex."""
    digest = hashlib.sha256(json.dumps(list(settings)).encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_training(
    path: Path,
    name: str,
    parameters: Parameters,
    average: Tensors,
    optimizer: torch.optim.Optimizer,
    position: Position,
) -> None:
    """Write the training called ``name`` (its fingerprint) atomically; ``average`` is empty where none is kept.

    Raises:
        CheckpointError: the file cannot be written; the old one is intact.
    """
    tensors: dict[str, Tensor] = {"loss_sum": position.loss_sum}
    for key, parameter in parameters.items():
        tensors[f"weight/{key}"] = parameter
        for part in STATE_KEYS:
            tensors[f"{part}/{key}"] = optimizer.state[parameter][part]
    for key, tensor in average.items():
        tensors[f"average/{key}"] = tensor
    where = {"training": name, "step": position.step, "seconds": position.seconds}
    save_tensors(path, tensors, {CHECKPOINT_KEY: json.dumps(where)}, 0o600)


@torch.no_grad()
def load_training(
    path: Path, name: str, parameters: Parameters, average: Tensors, optimizer: torch.optim.Optimizer
) -> Position | None:
    """Put weights, average and optimizer where the checkpoint of training ``name`` left them; None if there is none.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        where = read_json(metadata.get(CHECKPOINT_KEY, "{}"))
        if not isinstance(where, dict) or where.get("training") != name:
            return None
        for key, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{key}"])
            for part in STATE_KEYS:
                optimizer.state[parameter][part].copy_(tensors[f"{part}/{key}"])
            device = parameter.device
        for key, tensor in average.items():
            tensor.copy_(tensors[f"average/{key}"])
        return Position(where["step"], where["seconds"], tensors["loss_sum"].to(device))
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}", _DELETE) from error
    except ValueError as error:
        raise CheckpointError(f"{path} says nothing sensible about its training: {error}", _DELETE) from error
