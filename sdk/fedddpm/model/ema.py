"""The exponential moving average of a network's weights: a second network that draws better images than the first.

One average belongs to one institution: it runs through all its rounds and never leaves. When a round ends and the
federation's base model replaces the weights that were trained here, the average makes the same move, so that its
distance from the weights, which is what averaging is about, stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedddpm.errors import ModelError
from fedddpm.files.atomic import load_tensors
from fedddpm.model.model_files import load_model_into, save_model
from fedddpm.model.partition import PARTS, flatten, parameters_of, unflatten
from fedddpm.model.unet import UNet
from fedddpm_protocol.agreement.model_layout import Vector

UPDATES_KEY = "fedddpm.ema_updates"
_SUFFIX = ".ema.safetensors"
_PRIVATE = 0o600  # beside the base model that everybody has, it tells something of what was learned here alone


@dataclass(frozen=True, eq=False)
class AverageState:
    """An average between two trainings."""

    vector: Vector  # float32 [P]: the whole network, in the order of PARTS
    updates: int  # steps that went into it

    @classmethod
    def fresh(cls, model: UNet) -> AverageState:
        """The average of no step yet: the weights themselves."""
        return cls(flatten(model), 0)


class WeightAverage:
    """The average of ``model``'s weights, beside them on their device; ``model`` must have been moved there before.

    Raises:
        ModelError: ``state`` belongs to another network.
    """

    def __init__(self, model: UNet, decay: float, state: AverageState | None = None) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = {name: p for part in PARTS for name, p in parameters_of(model, part)}
        self.shadow: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}
        if state is not None:
            self.take(state)

    @torch.no_grad()
    def update(self) -> None:
        """Follow one step of training: shadow = d shadow + (1 - d) weights.

        While there are few steps d is (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage: an average must
        not remember the weights that training began from for longer than it has run.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.shadow.values()), list(self._parameters.values()), 1 - decay)
        self.updates += 1

    def state(self) -> AverageState:
        """The average as it is now: a copy on the CPU."""
        pieces = [tensor.cpu().contiguous().reshape(-1) for tensor in self.shadow.values()]
        return AverageState(torch.cat(pieces).numpy(), self.updates)

    @torch.no_grad()
    def take(self, state: AverageState) -> None:
        """Go on from ``state``; ModelError if it is of another size."""
        size = sum(tensor.numel() for tensor in self.shadow.values())
        if state.vector.shape != (size,):
            raise ModelError(
                f"the average holds {len(state.vector)} weights, the network {size}",
                "Leave it out: the average then starts again from the network's weights",
            )
        start = 0
        for tensor in self.shadow.values():
            piece = state.vector[start : start + tensor.numel()]
            tensor.copy_(torch.from_numpy(piece.copy()).reshape(tensor.shape))
            start += tensor.numel()
        self.updates = state.updates


def follow(state: AverageState, before: Vector, after: Vector) -> AverageState:
    """The average after the weights it belongs to, whole networks [P], were moved from ``before`` to ``after``."""
    return AverageState((state.vector + (after - before)).astype(np.float32, copy=False), state.updates)


def average_file(model_file: Path) -> Path:
    """Where the average of the network in ``model_file`` lies: model-x.safetensors -> model-x.ema.safetensors."""
    return model_file.with_name(model_file.name.removesuffix(".safetensors") + _SUFFIX)


def save_average(path: Path, model: UNet, state: AverageState) -> None:
    """Write the average of ``model`` as a model file of its own, atomically; ``model`` itself stays as it is.

    Raises:
        ModelError: a value is no finite number, or the average belongs to another network.
        CheckpointError: the file cannot be written.
    """
    averaged = UNet.from_architecture(model.architecture)
    unflatten(averaged, PARTS, state.vector)
    save_model(path, averaged, {UPDATES_KEY: str(state.updates)}, _PRIVATE)


def load_average_into(path: Path, model: UNet) -> int:
    """Read an average into ``model`` in place of its weights; returns the steps that went into it.

    Raises:
        ModelError: the file holds another architecture, or no average.
        CheckpointError: the file is missing or damaged.
    """
    try:
        updates = int(load_tensors(path)[1][UPDATES_KEY])
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} holds no average of weights", "Give a file written by save_average") from error
    load_model_into(path, model)
    return updates


def load_average(path: Path, model: UNet) -> AverageState:
    """Read the average of a network like ``model``, which stays as it is; errors as :func:`load_average_into`."""
    averaged = UNet.from_architecture(model.architecture)
    updates = load_average_into(path, averaged)
    return AverageState(flatten(averaged), updates)
