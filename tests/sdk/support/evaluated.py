"""Labelled images for the tests of evaluation: discs in four corners, which a classifier learns in seconds."""

import torch

from fedddpm.data.image_set import ImageSet

SIZE = 14
CLASSES = 4


def shapes(count: int, seed: int) -> ImageSet:
    """``count`` grey images of a soft disc near one corner, with its place, size and brightness at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    corners = torch.tensor([[4.0, 4.0], [4.0, 9.0], [9.0, 4.0], [9.0, 9.0]])[labels]
    centres = corners + torch.rand(count, 2, generator=generator) * 2 - 1
    radii = 1.5 + 2 * torch.rand(count, 1, 1, generator=generator)
    bright = 120 + 135 * torch.rand(count, 1, 1, generator=generator)
    grid = torch.arange(SIZE, dtype=torch.float32)
    distance = torch.hypot(grid[None, :, None] - centres[:, :1, None], grid[None, None] - centres[:, 1:, None])
    images = bright * torch.sigmoid(2 * (radii - distance)) + 8 * torch.rand(count, SIZE, SIZE, generator=generator)
    return ImageSet(images.clamp(0, 255).to(torch.uint8)[:, None], labels)
