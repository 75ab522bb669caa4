"""Which network images are drawn from: of a state folder or a file, its weights or their average."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedddpm.errors import CheckpointError, ConfigError, StateError
from fedddpm.model.ema import average_file, load_average_into
from fedddpm.model.model_files import load_model_into, read_architecture
from fedddpm.model.unet import UNet
from fedddpm.state.report import read_state

Weights = Literal["ema", "model"]


def newest_file(state_dir: Path) -> Path:
    """The file of the institution's newest whole network; StateError before the first round."""
    runs = read_state(state_dir).runs
    if not runs:
        raise StateError(f"{state_dir} holds no network yet", "Take part in a round first")
    return runs[-1].model


def newest_network(state_dir: Path) -> UNet:
    """The institution's newest whole network: shared parts and its own; StateError before the first round."""
    return load_network(newest_file(state_dir), "model")


def chosen_file(state_dir: Path | None, model: Path | None) -> Path:
    """The model file that is meant by one of the two; ConfigError unless exactly one is given."""
    if state_dir is not None and model is None:
        return newest_file(state_dir)
    if model is not None and state_dir is None:
        return model
    raise ConfigError("one network is needed", "Give either --state-dir or --model")


def chosen_weights(path: Path, weights: Weights | None) -> Weights:
    """What None means for a model file: the average of the weights where there is one, for it draws better images.

    Raises:
        CheckpointError: the average is asked for, and there is none beside ``path``.
    """
    averaged = average_file(path).exists()
    if weights == "ema" and not averaged:
        raise CheckpointError(
            f"there is no average of the weights of {path}", "Use the weights themselves, or train with an ema_decay"
        )
    return weights or ("ema" if averaged else "model")


def load_network(path: Path, weights: Weights) -> UNet:
    """The network of a model file, or the average of its weights; ModelError, CheckpointError if it cannot be read."""
    model = UNet.from_architecture(read_architecture(path))
    if weights == "ema":
        load_average_into(average_file(path), model)
    else:
        load_model_into(path, model)
    return model


def open_network(state_dir: Path | None, model: Path | None, weights: Weights | None = None) -> UNet:
    """An institution's newest network or that of a model file; errors as of the three functions above."""
    path = chosen_file(state_dir, model)
    return load_network(path, chosen_weights(path, weights))
