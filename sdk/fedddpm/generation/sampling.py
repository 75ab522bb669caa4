"""New images from a trained network, and how they become files."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedddpm.compute.seeds import derived_seed
from fedddpm.data.image_set import to_uint8
from fedddpm.errors import ConfigError
from fedddpm.model.diffusion import Network, Sampler, guided
from fedddpm.model.process import process_of
from fedddpm.model.unet import UNet

Watch = Callable[[int, int], None]  # steps of the network done, steps in all

BATCH = 64


def sample_images(
    model: UNet,
    count: int,
    *,
    sampler: Sampler,
    steps: int | None = None,
    seed: int,
    device: torch.device,
    labels: Tensor | None = None,
    guidance: float = 1.0,
    batch: int = BATCH,
    on_progress: Watch | None = None,
) -> Tensor:
    """``count`` new images: uint8 [count, C, H, W] on the CPU; the rest is as in :func:`sample_images_raw`."""
    drawn = sample_images_raw(
        model,
        count,
        sampler=sampler,
        steps=steps,
        seed=seed,
        device=device,
        labels=labels,
        guidance=guidance,
        batch=batch,
        on_progress=on_progress,
    )
    return to_uint8(drawn)


def sample_images_raw(
    model: UNet,
    count: int,
    *,
    sampler: Sampler,
    steps: int | None = None,
    seed: int,
    device: torch.device,
    labels: Tensor | None = None,
    guidance: float = 1.0,
    batch: int = BATCH,
    start: int = 0,
    on_progress: Watch | None = None,
) -> Tensor:
    """``count`` new images: float32 [count, C, H, W] in [-1, 1] on the CPU; ``model`` is moved to ``device``.

    ``labels`` [count] int64 say what each image is to show; without them a conditional network takes its classes in
    turn, and the value ``classes`` stands for no label. ``guidance`` is the scale of classifier-free guidance. Each
    batch has a generator of its own, so the same seed and ``batch`` give the same images, however many are drawn;
    ``start``, a multiple of ``batch``, leaves out the first ones, so that several processes can draw one set.

    Raises:
        ConfigError: an impossible number of images or steps, an unknown sampler, or labels or a guidance that the
            network does not know.
    """
    if count < 1 or batch < 1 or start % batch:
        raise ConfigError(
            f"{count} images from number {start} on in batches of {batch} cannot be drawn",
            "Use at least one, and begin with a batch",
        )
    path = process_of(model.architecture).visited(sampler, steps)  # refuses before anything is computed
    chosen = _labels(model, count if labels is not None else start + count, labels, guidance)
    if chosen is not None and labels is None:
        chosen = chosen[start:]
    model.to(device).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    total, pieces = len(path) * -(-count // batch), []
    for number, first in enumerate(range(0, count, batch)):
        size = min(batch, count - first)
        network: Network = model
        if chosen is not None:
            here = chosen[first : first + size].to(device)
            network = guided(model, here, model.architecture.classes, guidance)
        generator = torch.Generator(device).manual_seed(derived_seed("sample", seed, start + first))
        watch = None if on_progress is None else _part_of(on_progress, number * len(path), total)
        pieces.append(_draw(model, network, size, generator, sampler, steps, watch))
    return torch.cat(pieces)


def _draw(
    model: UNet,
    network: Network,
    size: int,
    generator: torch.Generator,
    sampler: Sampler,
    steps: int | None,
    watch: Watch | None,
) -> Tensor:
    side, channels = model.architecture.image_size, model.architecture.channels
    shape = (size, channels, side, side)
    return process_of(model.architecture).sample(network, shape, generator, sampler, steps, watch).cpu()


def _part_of(on_progress: Watch, before: int, total: int) -> Watch:
    return lambda done, _: on_progress(before + done, total)


def _labels(model: UNet, count: int, labels: Tensor | None, guidance: float) -> Tensor | None:
    """The label of each image [count] int64 on the CPU; None for a network without classes."""
    classes = model.architecture.classes
    if not classes and (labels is not None or guidance != 1):
        raise ConfigError(
            "this network was not trained with labels: it cannot be told what to draw, nor be guided",
            "Leave label and guidance out, or use a network made with init-model --classes",
        )
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ConfigError(f"a guidance of {guidance} makes no sense", "Use 1 for none, or for instance 2 to 5")
    if not classes:
        return None
    if labels is None:
        return torch.arange(count) % classes
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ConfigError(
            f"{count} images need as many int64 labels, not {labels.dtype} {list(labels.shape)}", "Give one an image"
        )
    if int(labels.min()) < 0 or int(labels.max()) > classes:
        raise ConfigError(
            f"the labels go from {int(labels.min())} to {int(labels.max())}, the network knows 0 to {classes - 1}",
            f"Use those, or {classes} for an image without a label",
        )
    return labels.cpu()
