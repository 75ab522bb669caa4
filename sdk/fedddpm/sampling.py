"""A picture of what the institution's newest network can do."""

from __future__ import annotations

from pathlib import Path

import torch

from fedddpm.device import pick_device
from fedddpm.diffusion import Diffusion, Sampler
from fedddpm.errors import CheckpointError, StateError
from fedddpm.image_set import to_uint8
from fedddpm.partition import load_model_into, read_architecture
from fedddpm.state_report import read_state
from fedddpm.unet import UNet
from fedddpm.vision import load_torchvision

_BATCH = 64


def newest_network(state_dir: Path) -> UNet:
    """The institution's newest whole network: shared parts and its own; StateError before the first round."""
    runs = read_state(state_dir).runs
    if not runs:
        raise StateError(f"{state_dir} holds no network yet", "Take part in a round first")
    model = UNet.from_architecture(read_architecture(runs[-1].model))
    load_model_into(runs[-1].model, model)
    return model


@torch.no_grad()
def sample_images(
    model: UNet, count: int, *, sampler: Sampler, steps: int, seed: int, device: torch.device
) -> torch.Tensor:
    """``count`` new images: uint8 [count, C, H, W] on the CPU."""
    architecture = model.architecture
    model.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    pieces = []
    for first in range(0, count, _BATCH):
        shape = (min(_BATCH, count - first), architecture.channels, architecture.image_size, architecture.image_size)
        pieces.append(
            to_uint8(
                Diffusion().sample(model, shape, generator, sampler=sampler, steps=steps if sampler == "ddim" else None)
            ).cpu()
        )
    return torch.cat(pieces)


def save_grid(images: torch.Tensor, path: Path) -> None:
    """Write uint8 images [N, C, H, W] as one PNG, eight in a row; CheckpointError if it cannot be written."""
    load_torchvision()
    from torchvision.utils import save_image  # only after the line above

    try:
        save_image(images.float() / 255, path, nrow=min(8, len(images)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written ({error})", "Choose a name that ends in .png") from error


def sample_from_state(
    state_dir: Path, path: Path, *, count: int, sampler: Sampler, steps: int, seed: int, device: str
) -> None:
    """Draw images from the institution's newest network into a PNG grid; CheckpointError if there is no such folder."""
    if not path.parent.is_dir():
        raise CheckpointError(f"there is no folder {path.parent} for {path.name}", f"Run: mkdir -p {path.parent}")
    model = newest_network(state_dir)
    save_grid(sample_images(model, count, sampler=sampler, steps=steps, seed=seed, device=pick_device(device)), path)
