"""New images from a trained network, and how they become files."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from fedddpm.compute.seeds import derived_seed
from fedddpm.compute.torchvision_compat import load_torchvision
from fedddpm.data.image_set import to_uint8
from fedddpm.errors import CheckpointError, ConfigError, DataError, StateError
from fedddpm.files.atomic import write_atomic
from fedddpm.model.diffusion import Diffusion, Network, Sampler, guided
from fedddpm.model.ema import average_file, load_average_into
from fedddpm.model.partition import load_model_into, read_architecture
from fedddpm.model.unet import UNet
from fedddpm.state.report import read_state

Weights = Literal["ema", "model"]
Watch = Callable[[int, int], None]  # steps of the network done, steps in all

BATCH = 64


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
    path = Diffusion().visited(sampler, steps)  # refuses before anything is computed
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
    return Diffusion().sample(network, (size, channels, side, side), generator, sampler, steps, watch).cpu()


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


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write uint8 images [N, C, H, W] as one PNG, ``columns`` in a row.

    Raises:
        CheckpointError: the file cannot be written, or is to be no PNG.
        DataError: a PNG cannot show so many channels.
    """
    if path.suffix.lower() != ".png":
        raise CheckpointError(f"{path} cannot be written (only PNG is known)", "Choose a name that ends in .png")
    load_torchvision()
    from torchvision.utils import make_grid  # only after the line above

    _require_showable(images)
    buffer = io.BytesIO()
    _picture(make_grid(images, nrow=min(columns, len(images)))).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def save_folder(images: Tensor, folder: Path) -> None:
    """Write uint8 images [N, C, H, W] as 000000.png, 000001.png ... into a folder that is new or empty.

    The folder appears when all images are in it.

    Raises:
        ConfigError: there are files in the folder already.
        CheckpointError: it cannot be written.
        DataError: a PNG cannot show so many channels.
    """
    require_free_folder(folder)
    _require_showable(images)
    unfinished = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir(parents=True)
        for index, image in enumerate(images):
            _picture(image).save(unfinished / f"{index:06d}.png")
        unfinished.replace(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"the images could not be written to {folder} ({error.strerror or error})",
            "Check the disk and the rights, or choose another folder",
        ) from error


def require_free_folder(folder: Path) -> None:
    """ConfigError if ``folder`` is a file or holds something: images of two draws must not be mixed."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty", "Choose a new folder, or empty it first")


def _require_showable(images: Tensor) -> None:
    if images.shape[1] not in (1, 3):
        raise DataError(f"a PNG cannot show {images.shape[1]} channels", "Only grey and colour images become PNG files")


def _picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] -> a picture of mode L or RGB."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
