"""The loss on images that were not trained on, always over the same noise and timesteps."""

from collections.abc import Callable

import torch

from fedddpm.compute.seeds import derived_seed
from fedddpm.data.image_set import ImageSet, require_fit, to_floats
from fedddpm.model.diffusion import Network
from fedddpm.model.process import process_of
from fedddpm.model.unet import UNet


@torch.no_grad()
def held_out_loss(
    model: UNet, data: ImageSet, device: torch.device, batch_size: int, on_batch: Callable[[], None] = lambda: None
) -> float:
    """Mean loss of ``model``, which is on ``device``, on ``data``; a network with classes is told the labels.

    Noise and timesteps depend on the number of the image and the batch size alone, and arithmetic is in float32
    everywhere: losses can be compared between rounds and institutions. ``on_batch`` is told that it goes on.

    Raises:
        DataError: the images or their labels do not fit the model.
    """
    require_fit(data, model.architecture)
    process, total = process_of(model.architecture), 0.0
    for first in range(0, len(data), batch_size):
        x_0 = to_floats(data.images[first : first + batch_size], device)
        generator = torch.Generator(device).manual_seed(derived_seed("score", first))
        network: Network = model
        if model.architecture.classes and data.labels is not None:
            network = _labelled(model, data.labels[first : first + batch_size].to(device))
        total += process.loss(network, x_0, generator).item() * len(x_0)
        on_batch()
    return total / len(data)


def _labelled(model: UNet, labels: torch.Tensor) -> Network:
    return lambda x_t, t: model(x_t, t, labels)
