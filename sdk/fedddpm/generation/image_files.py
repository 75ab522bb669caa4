"""Images as PNG: one grid, or a folder of single ones."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from torch import Tensor

from fedddpm.errors import CheckpointError, ConfigError, DataError
from fedddpm.files.atomic import write_atomic

_MARGIN = 2  # black pixels around each image of a grid


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write uint8 images [N, C, H, W] as one PNG, ``columns`` in a row.

    Raises:
        CheckpointError: the file cannot be written, or is to be no PNG.
        DataError: a PNG cannot show so many channels.
    """
    if path.suffix.lower() != ".png":
        raise CheckpointError(f"{path} cannot be written (only PNG is known)", "Choose a name that ends in .png")
    write_atomic(path, grid_png(images, columns))


def grid_png(images: Tensor, columns: int = 8) -> bytes:
    """uint8 images [N, C, H, W] as one PNG, ``columns`` in a row; DataError if it cannot show so many channels."""
    require_showable(images.shape[1])
    count, channels, height, width = images.shape
    in_a_row, step_y, step_x = min(columns, count), height + _MARGIN, width + _MARGIN
    grid = images.new_zeros(channels, -(-count // in_a_row) * step_y + _MARGIN, in_a_row * step_x + _MARGIN)
    for number, image in enumerate(images):
        top, left = _MARGIN + number // in_a_row * step_y, _MARGIN + number % in_a_row * step_x
        grid[:, top : top + height, left : left + width] = image
    buffer = io.BytesIO()
    _picture(grid).save(buffer, "PNG")
    return buffer.getvalue()


def save_folder(images: Tensor, folder: Path) -> None:
    """Write uint8 images [N, C, H, W] as 000000.png, 000001.png ... into a folder that is new or empty.

    The folder appears when all images are in it.

    Raises:
        ConfigError: there are files in the folder already.
        CheckpointError: it cannot be written.
        DataError: a PNG cannot show so many channels.
    """
    require_free_folder(folder)
    require_showable(images.shape[1])
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


def require_showable(channels: int) -> None:
    """DataError unless a PNG can show images of so many channels."""
    if channels not in (1, 3):
        raise DataError(f"a PNG cannot show {channels} channels", "Only grey and colour images become PNG files")


def _picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] -> a picture of mode L or RGB."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())
